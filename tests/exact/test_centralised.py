"""Centralised training sees as many examples, in as many steps, as the clients of a round do."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tiny import federation
from trillium.federation.failed import RoundFailed
from trillium.tasks import Example
from trillium.tasks.batches import epoch, of_sizes
from trillium.training.loop import Loop, Trained

CASES = {
    "ragged last batches": (),
    "epochs": ("training.local_epochs=3",),
    "steps": ("training.local_steps=4",),
    "more steps than an epoch": ("training.local_steps=11", "training.batch_size=3"),
    "tiers": ("tiers={slow: {clients: [client-0], local_steps: 5}}",),
    "failures": ("fleet={failure_rate: 0.5, min_replies: 1}", "rounds=4"),
    "cohorts": ("fleet.clients_per_round=2", "rounds=3"),
    "skewed": ("data.partition={name: dirichlet, alpha: 0.5}",),
}


def seen(
    hub: Path, monkeypatch: pytest.MonkeyPatch, framework: str, words: tuple[str, ...]
) -> dict[int, list[int]]:
    """The sizes of the batches of each round, sorted."""
    fed = federation(hub, f"framework={framework}", "data.num_clients=4", *words)
    found: dict[int, list[int]] = {}
    run = Loop.run

    def noted(self: Loop, chunks: Iterable[list[Example]], *args: Any, **options: Any) -> Trained:
        batches = [*chunks]
        found.setdefault(fed.server.round, []).extend(len(chunk) for chunk in batches)
        return run(self, batches, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "run", noted)
        fed.run()
    return {number: sorted(sizes) for number, sizes in found.items()}


@pytest.mark.parametrize("case", CASES)
def test_examples_and_steps_are_those_of_the_clients(
    hub: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    clients = seen(hub, monkeypatch, "local_only", CASES[case])
    together = seen(hub, monkeypatch, "centralised", CASES[case])
    assert together == clients
    assert sum(map(sum, clients.values())) > 0


def test_who_drops_out_is_said(hub: Path) -> None:
    words = ("fleet={failure_rate: 0.5, min_replies: 1}", "rounds=4", "data.num_clients=4")
    lines = [federation(hub, f"framework={f}", *words).run() for f in ("local_only", "centralised")]
    missing = [[sorted(line["missing"]) for line in history] for history in lines]
    assert missing[0] == missing[1]
    assert any(missing[0])


def test_too_few_clients_end_the_run_as_they_do_elsewhere(hub: Path) -> None:
    words = ("fleet={failure_rate: 0.9, min_replies: 3}",)
    with pytest.raises(RoundFailed):
        federation(hub, "framework=centralised", *words).run()


def test_no_example_comes_again_before_all_have(hub: Path) -> None:
    fed = federation(hub, "framework=centralised")
    examples = [e for own in fed.server.pooled.values() for e in own]
    count = len(examples)
    sizes = [count // 2, count - count // 2, 5, 5]
    drawn = [e for chunk in of_sizes(examples, sizes, fed.server.generator("x")) for e in chunk]
    assert {id(e) for e in drawn[:count]} == {id(e) for e in examples}
    assert len({id(e) for e in drawn[count:]}) == 10


def test_batches_of_one_size_are_an_epoch(hub: Path) -> None:
    fed = federation(hub, "framework=centralised")
    examples = [e for own in fed.server.pooled.values() for e in own]
    whole, rest = divmod(len(examples), 4)
    chunks = of_sizes(examples, [4] * whole + [rest] * (rest > 0), fed.server.generator("x"))
    for own, other in zip(epoch(examples, 4, fed.server.generator("x")), chunks, strict=True):
        assert [id(e) for e in own] == [id(e) for e in other]
