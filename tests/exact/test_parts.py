"""Messages too long to be carried at once: updates go in parts, all else is refused in time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from resumed import trained
from tiny import Recorder, experiment_config, without_seconds
from trillium.errors import UserError
from trillium.experiment.arm import run_one
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import build
from trillium.federation import parts
from trillium.federation.parts import Halves, Joining, Lost, carry, divided, is_part
from trillium.wire.kinds import Limits, MessageError

FAST = ("training.local_steps=1", "training.batch_size=8", "rounds=2", "data.num_clients=2")
SMALL = 4096


@pytest.mark.parametrize(
    "words", [("adapter=full",), ("framework.aggregator=stack",), ("framework.download=change",)]
)
def test_updates_that_are_too_long_go_in_parts(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """State, ledger and measures are those of messages in one piece; no piece is too long."""
    config = experiment_config(hub, *FAST, *words, model="bert")
    whole = build(config, RunFolder(tmp_path / "whole", "run"))
    history = whole.run()
    monkeypatch.setattr(parts, "CARRIED_BYTES", SMALL)
    cut = build(config, RunFolder(tmp_path / "cut", "run"))
    log = Recorder(cut)
    assert without_seconds(cut.run()) == without_seconds(history)
    for name, tensor in trained(whole).items():
        assert torch.equal(tensor, trained(cut)[name]), name
    entries = [
        [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in (tmp_path / run / "wire.jsonl").read_text().splitlines()
        ]
        for run in ("whole", "cut")
    ]
    assert entries[0] == entries[1]
    assert any(entry["bytes"] > SMALL for entry in entries[1])
    assert all(len(data) <= SMALL for _, *both in log.log for data in both)
    assert any(is_part(reply) for _, _, reply in log.log)


def test_what_cannot_be_received_is_refused_by_plan_and_before_training(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of soft labels of a whole vocabulary there may be many."""
    words = ("framework=kd", "data.public_size=30")
    config = experiment_config(hub, *FAST, *words, model="gpt2", task="causal_lm")
    monkeypatch.setattr(parts, "CARRIED_BYTES", SMALL)
    monkeypatch.setattr(parts, "limits_of", lambda model: Limits(max_bytes=SMALL))
    for place in ("trillium.plan.federation", "trillium.experiment.run"):
        monkeypatch.setattr(f"{place}.limits_of", lambda model: Limits(max_bytes=SMALL))
    with pytest.raises(UserError, match="are received at once") as caught:
        run_one(config, RunFolder(tmp_path / "run", "run"))
    assert "public_per_round" in caught.value.instead
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert (tmp_path / "run" / "wire.jsonl").read_text() == ""


class Echo:
    """Clients that answer with what they are sent."""

    def __init__(self, lost: str = "") -> None:
        self.lost, self.halves = lost, {n: Halves(Joining(10**6)) for n in ("a", "b")}

    def carry(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Lost]]:
        for name, data in requests.items():
            assert len(data) <= 100
            if name == self.lost:
                yield name, Lost("gone")
                continue
            whole: bytes | None = data
            answer = b""
            if is_part(data):
                whole, answer = self.halves[name].take(data)
            yield name, answer if whole is None else self.halves[name].give(whole)


def test_bytes_come_back_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "CARRIED_BYTES", 100)
    for size in (0, 1, 99, 100, 101, 160, 161, 1000):
        sent = {"a": bytes(range(250)) * 4, "b": b"x" * size}
        assert dict(carry(Echo(), sent, Limits(max_bytes=10**6))) == sent
    found = dict(carry(Echo("b"), {"a": b"y" * 500, "b": b"x" * 500}, Limits(max_bytes=10**6)))
    assert found == {"a": b"y" * 500, "b": Lost("gone")}
    found = dict(carry(Echo(), {"a": b"y" * 500}, Limits(max_bytes=400)))
    assert isinstance(found["a"], Lost)
    assert "of 500 bytes" in found["a"].reason


def test_parts_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "CARRIED_BYTES", 100)
    pieces = divided(b"z" * 300)
    for wrong in (
        [pieces[1]],
        [pieces[0], pieces[2]],
        [pieces[0], pieces[1] + b"z" * 200],
        [b"TRP"],
    ):
        joining = Joining(10**6)
        for piece in wrong[:-1]:
            assert joining.add(piece) is None
        with pytest.raises(MessageError):
            joining.add(wrong[-1])
    with pytest.raises(MessageError, match="of 300 bytes"):
        Joining(200).add(pieces[0])
    with pytest.raises(MessageError, match="no part 0"):
        Halves(Joining(100)).take(b"TRP?\0\0\0\0")
