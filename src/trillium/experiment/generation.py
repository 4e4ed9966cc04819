"""Text from the model of a finished run: of a split across its wire, of any other in one piece."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trillium.config.experiment import ExperimentConfig
from trillium.errors import UserError
from trillium.experiment.kept import find_model
from trillium.experiment.run import Experiment
from trillium.experiment.trained import Trained, about_data, load_trained, rebuild, run_config
from trillium.frameworks.split.generate import give_prompts, texts_of, write_texts
from trillium.frameworks.split.protocol import Split
from trillium.models.load import LanguageModel
from trillium.rng import scoped_rng
from trillium.tasks.ends import before_end, end_ids
from trillium.tasks.language import LanguageTask
from trillium.tasks.writing import Writing, write_whole
from trillium.wire.ledger import Entry

NEXT = "next_tokens"  # the verb of all that crosses after the prompts


@dataclass(frozen=True)
class Crossed:
    """What crossed between a client and the server, encoded, as the ledger has it.

    Attributes:
        prompt_bytes_down: what was trained in the client's part, and how to write.
        bytes_up, bytes_down: all that came after.
        bytes_up_per_token, bytes_down_per_token: of these, for each token that was written.
    """

    client: str
    prompt_bytes_up: int
    prompt_bytes_down: int
    bytes_up: int
    bytes_down: int
    bytes_up_per_token: float
    bytes_down_per_token: float


@dataclass(frozen=True)
class Generated:
    """What a model has written."""

    texts: list[str]
    num_tokens: list[int]
    crossed: Crossed | None = None


def generate_run(
    folder: Path, prompts: Sequence[str], writing: Writing, client: str | None = None
) -> Generated:
    """Let the model of a run, or that of a client, continue prompts, all as one batch.

    Raises:
        UserError: the folder holds no such language model, or a prompt is empty.
    """
    find_model(folder, client)
    config = run_config(folder)
    check_writes(config, folder)
    if isinstance(config.framework, Split):
        built = rebuild(folder)
        given = prompt_tokens(built.model, folder, prompts, writing)
        written = _across(built, config.framework, given, writing)
        return generated(built.model, written, built.fleet.ledger.entries)
    found = load_trained(folder, client)
    given = prompt_tokens(found.model, folder, prompts, writing)
    return generated(found.model, write_on(found, given, writing))


def check_writes(config: ExperimentConfig, folder: Path) -> None:
    """Refuse the run of a classifier.

    Raises:
        UserError: it is one.
    """
    if not isinstance(config.task, LanguageTask):
        raise UserError(
            str(folder),
            f"its model was trained for task={config.task.name}, and a classifier cannot write",
            "Give the folder of a run with task=causal_lm",
        )


def generated(
    model: LanguageModel, written: Sequence[Sequence[int]], entries: Sequence[Entry] = ()
) -> Generated:
    """Return the texts of tokens, and what has crossed for them."""
    ends = end_ids(model.tokenizer, model.module)
    said = [before_end(tokens, ends) for tokens in written]
    texts = [model.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in said]
    sizes = [len(tokens) for tokens in written]
    return Generated(texts, sizes, _crossed(entries, sum(sizes)) if entries else None)


def prompt_tokens(
    model: LanguageModel, folder: Path, prompts: Sequence[str], writing: Writing
) -> list[list[int]]:
    """Return prompts as tokens of a run's model, in its chat template if its rows were chats.

    Raises:
        UserError: there is none, one is empty, or one leaves no room.
    """
    task = run_config(folder).task
    assert isinstance(task, LanguageTask)
    chat = task.chats(about_data(folder).get("columns", ()))
    check_prompts(prompts)
    found = [task.prompt_tokens(prompt, model.tokenizer, chat=chat) for prompt in prompts]
    check_room(model, found, writing.max_new_tokens)
    return found


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuse to continue nothing.

    Raises:
        UserError: there is no prompt, or one is empty.
    """
    if not prompts:
        raise UserError("no prompt", "there is no text to continue", "Give a prompt, in quotes")
    for prompt in prompts:
        if not prompt.strip():
            raise UserError(
                f"the prompt {prompt!r}", "there is no text to continue", "Write some words"
            )


def check_room(model: LanguageModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Refuse prompts behind which the model has not so many positions.

    Raises:
        UserError: there is such a one.
    """
    bound, longest = model.num_positions, max(map(len, prompts), default=0)
    if bound is not None and longest + max_new_tokens > bound:
        raise UserError(
            f"a prompt of {longest} tokens with --max-new-tokens {max_new_tokens}",
            f"the model has {bound} positions",
            f"Write a shorter prompt, or --max-new-tokens {max(1, bound - longest)}",
        )


def _across(
    built: Experiment, split: Split, prompts: list[list[int]], writing: Writing
) -> list[list[int]]:
    """Let server and client write in turns; the texts are read at the client.

    Raises:
        UserError: by rules that need the whole model.
    """
    if isinstance(built.config.task, LanguageTask) and built.config.task.decoding != "greedy":
        raise UserError(
            f"task.decoding={built.config.task.decoding} with framework=split",
            "beams and penalties need the whole model, and the parts choose a token at a time",
            "Write task.decoding=greedy, or export the run with --merge and write with Transformers",
        )
    client = min(built.clients, key=lambda client: client.name)
    give_prompts(client, prompts)
    write_texts(split, built.server, built.fleet, [client.name], writing)
    return texts_of(client)


def write_on(found: Trained, prompts: Sequence[Sequence[int]], writing: Writing) -> list[list[int]]:
    """Let a whole model write, in this process."""
    model, task = found.model, found.config.task
    assert isinstance(task, LanguageTask)
    settings: dict[str, object] = {}
    if writing.temperature:
        settings = {
            "do_sample": True,
            "temperature": writing.temperature,
            "top_p": writing.top_p,
            "top_k": 0,
        }
    module = model.mount(found.state).eval()
    with scoped_rng(found.config.seed, "tokens"):
        return write_whole(
            module,
            model.tokenizer,
            model.device,
            prompts,
            decoding=task.decoding,
            max_new_tokens=writing.max_new_tokens,
            **settings,
        )


def _crossed(entries: Sequence[Entry], num_tokens: int) -> Crossed:
    """Sum up what the ledger has of one client's texts."""

    def total(direction: str, *, after: bool) -> int:
        own = [e for e in entries if e.direction == direction and (e.verb == NEXT) is after]
        return sum(entry.bytes for entry in own)

    up, down = total("up", after=True), total("down", after=True)
    return Crossed(
        client=entries[0].client,
        prompt_bytes_up=total("up", after=False),
        prompt_bytes_down=total("down", after=False),
        bytes_up=up,
        bytes_down=down,
        bytes_up_per_token=up / num_tokens,
        bytes_down_per_token=down / num_tokens,
    )
