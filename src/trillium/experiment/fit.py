"""What config, rows and model say together: patterns that match nothing, texts that are too long.

Checked before the first round. What the config alone says is checked with it (`Framework.check`), and
what a framework makes of a model in its `start`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from trillium.config.experiment import ExperimentConfig
from trillium.data.partitions.natural import Natural
from trillium.errors import UserError, suggest
from trillium.experiment.tracking import check_trackers
from trillium.federation.client import Client
from trillium.federation.server import Server
from trillium.federation.tiers import tier_of
from trillium.models.load import LanguageModel
from trillium.models.quantize import check_package
from trillium.models.slots import matches
from trillium.rng import generator
from trillium.tasks import Example
from trillium.tasks.batches import MULTIPLE, by_tokens, in_order, padded, padding
from trillium.tasks.causal_lm import CausalLM
from trillium.training.loop import batches


def check_ready(config: ExperimentConfig) -> None:
    """Refuse what this machine, or the number of its simulated clients, does not allow.

    Raises:
        UserError: before any file or model is read.
    """
    if not isinstance(config.data.partition, Natural):  # which has as many as the rows name
        config.fleet.check(config.data.num_clients)
    check_trackers(config.report.track)
    own = [config.server.model, *(tier.model for tier in config.tiers.values())]
    for model in (config.model, *(model for model in own if model is not None)):
        check_package(model.quantize)


def check_tiers(config: ExperimentConfig, clients: Collection[str]) -> None:
    """Refuse tiers of no client.

    Raises:
        UserError: a tier names no client of the run, or only such as an earlier tier has.
    """
    found = {id(tier_of(config.tiers, client)) for client in clients}
    for label, tier in config.tiers.items():
        if id(tier) not in found:
            raise UserError(
                f"tiers.{label}.clients={list(tier.clients)}",
                "every client that it matches is in an earlier tier, or there is none",
                f"The clients are {', '.join(sorted(clients)[:10])}{' …' * (len(clients) > 10)}",
            )


def check_names(config: ExperimentConfig, names: Collection[str]) -> None:
    """Refuse learning rates of tensors that do not train, and runs in which nothing does.

    Args:
        names: of all tensors that some model of the run trains.
    """
    factors = config.training.lr_factors
    for pattern in factors:
        if not any(matches(name, [pattern]) for name in names):
            parts = {part for name in names for part in name.split(".") if not part.isdigit()}
            raise UserError(
                f"training.lr_factors={{{pattern}: {factors[pattern]}}}",
                "no tensor that trains has such a name",
                suggest(pattern, {"head", *parts}),
            )
    own = config.finetune
    if own.local_steps is not None and not any(matches(name, own.tensors) for name in names):
        parts = {part for name in names for part in name.split(".") if not part.isdigit()}
        raise UserError(
            f"finetune.tensors=[{', '.join(own.tensors)}]",
            "no tensor that trains has such a name",
            suggest(own.tensors[0], {"head", *parts}),
        )
    if names and not config.training.trained(names):
        raise UserError(
            f"training.lr_factors={factors}",
            "it freezes everything that would train",
            "Leave a factor above 0",
        )


def check_lengths(
    config: ExperimentConfig, model: LanguageModel, examples: Iterable[Sequence[Example]]
) -> None:
    """Refuse texts for which the model has no positions, with what stands before and behind them.

    Args:
        config: as the side with this model sees it.
    """
    bound = model.num_positions
    longest = max((e.num_tokens for own in examples for e in own), default=0)
    if bound is None or not longest:
        return
    virtual = config.adapter.virtual_tokens
    if padded(longest) + virtual > bound:
        before = f", behind {virtual} virtual ones" if virtual else ""
        room = max((bound - virtual) // MULTIPLE * MULTIPLE, 4)
        raise UserError(
            f"training.max_length={config.training.max_length}",
            f"there are texts of {longest} tokens{before}, in batches of whole eights, and the "
            f"model has {bound} positions",
            f"Leave it out, or write training.max_length={room} or less",
        )


def check_answers(config: ExperimentConfig, model: LanguageModel, test: Sequence[Example]) -> None:
    """Refuse to generate answers behind prompts that leave no room for them."""
    task, bound = config.task, model.num_positions
    if not isinstance(task, CausalLM) or not task.generate or bound is None:
        return
    longest = max((e.prompt_tokens for e in test[: task.generate]), default=0)
    room = bound - longest - config.adapter.virtual_tokens
    if task.max_new_tokens > room:
        raise UserError(
            f"task.max_new_tokens={task.max_new_tokens}",
            f"the longest prompt has {longest} tokens, and the model {bound} positions",
            f"Write task.max_new_tokens={max(room, 1)} or less, or a smaller training.max_length",
        )


def padding_of(server: Server, clients: Sequence[Client], batch_tokens: int) -> dict[str, float]:
    """Return the share of padding in evaluation, and in the first round of clients that are here.

    Rounds differ in how batches are drawn, not in how texts of similar length are brought together.
    Batches that are drawn by coins are not looked at.
    """

    def drawn() -> Iterator[Sequence[Example]]:
        for client in clients:
            training, first = client.training, generator(client.seed, "batches", client.name, 1)
            for chunk in batches(client.examples, training, first):
                yield from in_order(chunk, training.at_once)

    found = {"evaluation": padding(by_tokens(server.test, batch_tokens))}
    if clients and all(client.steps is None for client in clients):
        found["training"] = padding(drawn())
    return found
