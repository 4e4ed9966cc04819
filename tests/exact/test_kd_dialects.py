"""Language models whose tokenizers differ teach one another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from checkpoints import checkpoint
from papers import hold
from tiny import NUM_WORDS, SPECIAL, VOCABULARY, Recorder, distance, federation, run_rounds
from trillium.experiment.run import Experiment
from trillium.frameworks.kd.dialects import opinion_of, read_classes, teacher_for, with_classes
from trillium.frameworks.kd.opinion import Opinion
from trillium.wire.message import Message, decode
from trillium.wire.soft_labels import Teacher, Writer

# Plain SGD: Adam makes steps of full size of what rounding leaves of a gradient of zero.
WORDS = ("framework=kd", "model.random_weights=false", "training.optimizer={name: sgd, lr: 0.3}")


def retold(hub: Path, source: Path, order: list[int], name: str) -> Path:
    """Return the folder of the same model whose token `i` has the id `order[i]`."""
    folder = hub / name
    if folder.exists():
        return folder
    shutil.copytree(source, folder)
    model = AutoModelForCausalLM.from_pretrained(source)
    table = model.transformer.wte.weight.data
    table[torch.tensor(order)] = table.clone()
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(model.config, key, order[getattr(model.config, key)])
        setattr(model.generation_config, key, getattr(model.config, key))
    model.save_pretrained(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["vocab"] = {w: order[i] for w, i in content["model"]["vocab"].items()}
    for token in content["added_tokens"]:
        token["id"] = order[token["id"]]
    content["added_tokens"].sort(key=lambda token: token["id"])
    path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def mixed(hub: Path, order: list[int], name: str, *words: str) -> tuple[Experiment, Experiment]:
    """The same federation with one tokenizer for all, and with another one for a client."""
    base = checkpoint(hub, "gpt2", "CAUSAL_LM")
    common = (*WORDS, f"model.id={base}", *words)
    other = retold(hub, base, order, name)
    tier = f"tiers={{other: {{clients: [client-1], model: {{id: {other}}}}}}}"
    return federation(hub, *common, task="causal_lm"), federation(
        hub, *common, tier, task="causal_lm"
    )


REVERSED = list(range(VOCABULARY))[::-1]


# What is translated is encoded anew, which rounds a second time.
@pytest.mark.parametrize(
    ("words", "tolerance"), [((), 1e-4), (("wire.up=[{name: top_classes, k: 5}]",), 1e-3)]
)
def test_a_model_with_other_token_ids_is_the_same_model(
    hub: Path, words: tuple[str, ...], tolerance: float
) -> None:
    plain, other = mixed(hub, REVERSED, "reversed", *words)
    assert not plain.server.dialects
    assert other.server.dialects.keys() == {"client-1"}
    one, two = other.clients[0].examples, other.clients[1].examples
    assert not torch.equal(one[0].input_ids, two[0].input_ids)
    first, second = run_rounds(plain, 2), run_rounds(other, 2)
    assert distance(plain.server.state, other.server.state) < tolerance
    assert distance(plain.server.state, plain.model.initial) > 1e-2
    for client, same in zip(plain.clients, other.clients, strict=True):
        assert distance(client.store["tensors"], same.store["tensors"]) < tolerance
    assert "aligned_rows" not in first[0]
    assert second[0]["aligned_rows"] == 1.0
    assert second[0]["lost_mass"] == 0.0


def test_without_translation_the_same_model_teaches_nonsense(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, other = mixed(hub, REVERSED, "reversed")
    monkeypatch.setattr(other.server, "dialects", {})  # ids are taken for the server's
    run_rounds(plain, 1)
    run_rounds(other, 1)
    assert distance(plain.server.state, other.server.state) > 1e-2


def letters(hub: Path) -> Path:
    """Return the folder of a model that reads `w12` as `w1`, `2`."""
    folder = hub / "letters"
    if not folder.exists():
        shutil.copytree(checkpoint(hub, "llama", "CAUSAL_LM"), folder)
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        words = [*SPECIAL, *(f"w{i}" for i in range(10)), *"0123456789"]
        vocabulary = {word: index for index, word in enumerate(words)}
        content["model"]["vocab"] = vocabulary
        pattern = {"Regex": r"\s+|w[0-9]|[0-9]"}
        split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
        content["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [content["pre_tokenizer"], split],
        }
        path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def of_other_words(hub: Path, direction: str) -> Experiment:
    """A federation in which one client has another architecture and reads other words."""
    tier = (
        f"tiers={{other: {{clients: [client-1], model: {{id: {letters(hub)}}}, "
        "adapter: {target_modules: [q_proj, v_proj]}}}"
    )
    return federation(
        hub,
        *WORDS,
        f"model.id={checkpoint(hub, 'gpt2', 'CAUSAL_LM')}",
        f"framework.direction={direction}",
        tier,
        task="causal_lm",
    )


@pytest.mark.parametrize("direction", ["server", "both"])
def test_models_of_other_words_and_architecture_teach_one_another(
    hub: Path, direction: str
) -> None:
    fed = of_other_words(hub, direction)
    log = Recorder(fed)
    figures = run_rounds(fed, 2)
    assert figures[0]["aligned_rows"] == 1.0
    assert 0 <= figures[0]["lost_mass"] < 1
    dialect = fed.server.dialects["client-1"]
    rows = {
        "client-0": sum(fed.server.task.num_targets(e) for e in fed.server.public),
        "client-1": sum(fed.server.task.num_targets(e) for e in dialect.public),
    }
    assert rows["client-1"] > rows["client-0"]
    asks = [(client, decode(ask)) for client, ask, _ in log.log]
    told = [c for c, ask in asks if "public/classes" in ask.tensors]
    assert told == (["client-1"] if direction == "both" else [])
    lessons = [(c, ask) for c, ask in asks if ask.verb == "learn"]
    for client, ask in lessons:
        sent = len(ask.tensors["logits/teacher"])
        assert sent == rows["client-0"]  # no more of the finer tokens can be taught
        assert ("control/rows" in ask.tensors) == (client == "client-1")
        assert ask.tensors["logits/teacher"].shape[1] == VOCABULARY
    assert bool(lessons) == (direction == "both")


def test_an_opinion_and_a_teacher_keep_their_places(hub: Path) -> None:
    _, fed = mixed(hub, REVERSED, "reversed")
    dialect, task = fed.server.dialects["client-1"], fed.server.task
    indices = [1, 4, 5]
    count = sum(task.num_targets(dialect.public[i]) for i in indices)
    told = torch.randn(count, VOCABULARY, generator=torch.Generator().manual_seed(0)).log_softmax(
        -1
    )
    writer: Writer = fed.fleet.wire.writer("teach", "logits/public", 1, (count, VOCABULARY), "up")
    writer.add(told)
    opinion = Opinion(1.0, 0.0, writer.done())
    own, _ = opinion_of(fed.server, fed.fleet, "client-1", opinion, indices)
    assert torch.allclose(own.labels.take(slice(None)), told.flip(1), atol=1e-6)
    # Back again, of rows that the teacher does not all speak of.
    present = torch.arange(count) % 3 != 0
    kept = own.labels.joined([own.labels.records[present]])
    back = teacher_for(fed.server, "client-1", indices, Teacher(kept, present))
    assert torch.equal(back.present, present)
    assert torch.equal(back.labels.records, kept.records)  # in the server's tokens
    message = with_classes(Message("receive_public"), fed.server, "client-1")
    classes, count = read_classes(message, VOCABULARY)
    assert classes is not None
    assert (classes.tolist(), count) == (REVERSED, VOCABULARY)
    assert with_classes(message, fed.server, "client-0") is message
    assert NUM_WORDS + len(SPECIAL) == VOCABULARY


@pytest.mark.parametrize("direction", ["server", "both"])
def test_what_is_translated_is_planned(hub: Path, direction: str) -> None:
    hold(of_other_words(hub, direction))
