"""How long texts may be, what is cut, and what is of no use: counted before any weights are read."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import trillium.experiment.residents as residents
from chatty import CHATML, byte_level
from tiny import federation
from trillium.config.texts import MOST, needed
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import build
from trillium.tasks import Batch
from trillium.tasks.batches import collate
from trillium.tasks.classification import Classification


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "weights" not in request.fixturenames:
        monkeypatch.setattr(
            residents, "load_model", lambda *_, **__: pytest.fail("weights were read")
        )


@pytest.fixture
def weights() -> None:
    """Let weights be read."""


def written(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"data.source={{train: {path}}}"


def pair(prompt: int, completion: int) -> dict[str, str]:
    return {"prompt": " ".join(["w1"] * prompt), "completion": " ".join(["w2"] * completion)}


def test_the_length_is_that_of_the_texts() -> None:
    assert needed(Counter([5, 9, 17])) == 24
    assert needed(Counter([10] * 995 + [12] * 5)) == 16, "nobody is cut for two tokens"
    assert needed({10: 995, 500: 5}) == 16, "few are far longer"
    assert needed({10: 900, 500: 100}) == 504
    assert needed({}) == MOST


def test_prompts_are_not_cut_away(hub: Path, tmp_path: Path, weights: None) -> None:
    rows = [pair(90, 30 + number) for number in range(12)]
    source = written(tmp_path / "rows.jsonl", rows)
    fed = federation(hub, source, "data.set_aside=0", task="causal_lm")
    assert fed.config.training.max_length == 64, "as many as the model has positions for"
    for client in fed.clients:
        for example in client.examples:
            assert 1 < example.prompt_tokens <= 32
            assert example.num_predicted > 20
    counts = fed.data.summary()
    assert counts["clients"]["client-0"]["truncated"] == len(fed.clients[0].examples)
    assert counts["test"]["truncated"] == counts["test"]["num_examples"]


def test_what_is_cut_and_left_out_is_said(hub: Path, tmp_path: Path, weights: None) -> None:
    from trillium.report.read import read_runs
    from trillium.report.summary import remarks, summarise

    rows = [pair(3, 1 + number) for number in range(20)]
    source = written(tmp_path / "rows.jsonl", rows)
    words = (source, "data.set_aside=0", "training.max_length=8", "rounds=1")
    fed = federation(hub, *words, task="causal_lm")
    built = build(fed.config, RunFolder(tmp_path / "run", "run"))
    built.run()
    said = remarks(summarise(read_runs(tmp_path / "run")))
    assert any("training texts were cut" in line for line in said)
    told = json.loads((tmp_path / "run" / "data.json").read_text())
    assert sum(client["truncated"] for client in told["clients"].values()) > 0


def test_a_chat_of_several_texts_is_counted_as_these() -> None:
    from trillium.report.summary import said_of

    client = {"num_examples": 2, "texts": 6, "truncated": 5, "left_out": 0}
    said = list(said_of({"clients": {"a": client}, "test": client}, {}))
    assert said == ["5 of 6 training texts were cut (5 of 6 of a).", "5 of 6 test texts were cut."]


@pytest.fixture
def chatty(hub: Path, tmp_path: Path) -> Path:
    """A decoder whose tokenizer has a chat template."""
    folder = tmp_path / "chatty"
    shutil.copytree(hub / "gpt2", folder)
    byte_level(CHATML).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocab_size": 270}))
    return folder


def chat(weight: int, owner: str, number: int) -> dict[str, Any]:
    answer = {"role": "assistant", "content": "yes", "weight": weight}
    return {"messages": [{"role": "user", "content": f"{owner}{number}"}, answer], "owner": owner}


OWNERS = ("data.partition=natural", "data.set_aside=0", "training.max_length=64", "rounds=1")


def test_a_client_with_nothing_to_learn_is_named(
    hub: Path, tmp_path: Path, chatty: Path, weights: None
) -> None:
    rows = [chat(weight, owner, n) for owner, weight in (("a", 1), ("b", 0)) for n in range(9)]
    source = written(tmp_path / "rows.jsonl", rows)
    test = tmp_path / "test.jsonl"
    test.write_text("".join(json.dumps(chat(1, "t", n)) + "\n" for n in range(4)))
    columns = f"data.source={{test: {test}, messages: messages, client: owner}}"
    words = (f"model.id={chatty}", source, columns, *OWNERS, "data.num_clients=2")
    with pytest.raises(UserError, match=r"the rows of client-1 \(9\)") as error:
        federation(hub, *words, task="causal_lm")
    assert "data.unusable=leave_out" in error.value.instead
    fed = federation(hub, *words, "data.unusable=leave_out", task="causal_lm")
    assert [client.name for client in fed.clients] == ["client-0"]
    assert fed.data.summary()["useless"] == ["client-1"]
    fed.run()


def test_a_test_set_with_nothing_to_predict_is_refused(
    hub: Path, tmp_path: Path, chatty: Path
) -> None:
    source = written(tmp_path / "rows.jsonl", [chat(1, "a", n) for n in range(9)])
    test = tmp_path / "test.jsonl"
    test.write_text("".join(json.dumps(chat(0, "t", n)) + "\n" for n in range(4)))
    columns = f"data.source={{test: {test}, messages: messages, client: owner}}"
    words = (f"model.id={chatty}", source, columns, *OWNERS, "data.num_clients=1")
    with pytest.raises(UserError, match=r"the rows of the test set \(4\)"):
        federation(hub, *words, task="causal_lm")


def test_no_mean_over_nothing() -> None:
    with pytest.raises(UserError, match="nothing can be measured"):
        Classification().evaluate(None, [], None, 8)  # type: ignore[arg-type]


def test_one_class_is_nothing_to_tell_apart(hub: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "rows.jsonl", [{"text": f"w{i}", "label": "x"} for i in range(30)])
    with pytest.raises(UserError, match=r"rows of one class \(x\)"):
        federation(hub, source)


def test_a_class_for_each_row_is_a_number_to_predict(hub: Path, tmp_path: Path) -> None:
    rows = [{"text": f"w{i}", "label": f"{i}.5"} for i in range(30)]
    with pytest.raises(UserError, match="each of a class of its own"):
        federation(hub, written(tmp_path / "rows.jsonl", rows))


def test_classes_that_no_client_has_are_said(hub: Path, tmp_path: Path, weights: None) -> None:
    from trillium.report.summary import said_of

    rows = [{"text": f"w{i}", "label": "xyz"[i % 2 if i else 2]} for i in range(30)]
    test = [{"text": f"t{i}", "label": "xyz"[i % 3]} for i in range(9)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test))
    source = written(tmp_path / "rows.jsonl", rows)
    more = f"data.source={{test: {tmp_path / 'test.jsonl'}}}"
    data = federation(hub, source, more, "data.set_aside=0").data
    assert data.summary()["test"]["unlearnt"] == {}
    others = {
        name: rows.filter(lambda row: row["label"] < 2) for name, rows in data.clients.items()
    }
    told = replace(data, clients=others).summary()
    assert told["test"]["unlearnt"] == {"z": 3}
    said = "3 of 9 test rows are of classes that no client has (z): nobody can learn them."
    assert said in list(said_of(told, {}))


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (("framework=fedllm", "training.micro_batch_size=3"), "trillium.training.loop"),
        (("framework={name: split, shape: u}",), "trillium.frameworks.split.client"),
    ],
)
def test_the_share_of_padding_is_that_of_the_first_round(
    hub: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weights: None,
    words: tuple[str, ...],
    place: str,
) -> None:
    from trillium.report.read import read_runs
    from trillium.report.summary import summarise

    masks: dict[str, list[Tensor]] = {"training": [], "evaluation": []}

    def seen(kind: str) -> Callable[..., Batch]:
        def collated(*args: Any, **options: Any) -> Batch:
            batch = collate(*args, **options)
            masks[kind].append(batch.attention_mask)
            return batch

        return collated

    monkeypatch.setattr(f"{place}.collate", seen("training"))
    monkeypatch.setattr("trillium.tasks.batches.collate", seen("evaluation"))
    fed = federation(hub, *words, "rounds=1", "evaluation.batch_tokens=64", model="bert")
    build(fed.config, RunFolder(tmp_path / "run", "run")).run()
    [row] = summarise(read_runs(tmp_path / "run"))
    for kind, found in masks.items():
        share = 1 - sum(int(m.sum()) for m in found) / sum(m.numel() for m in found)
        assert 0.05 < row.values[f"padding_{kind}"].mean == pytest.approx(share)
