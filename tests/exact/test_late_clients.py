"""A client that comes when the run has begun takes part, as its tier says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path

import pytest

from tiny import experiment_config
from trillium.experiment.run import build, build_server
from trillium.federation.engine import Engine, Gathered, Saved
from trillium.federation.parts import Lost

LATE = "client-2"
ROUND = 2  # in which it comes


class Growing:
    """An engine that hears of its last client when some rounds are over."""

    def __init__(self, inner: Engine) -> None:
        self.inner, self.rounds = inner, 0

    @property
    def clients(self) -> Sequence[str]:
        return [name for name in self.inner.clients if name != LATE or self.rounds >= ROUND]

    def carry(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Lost]]:
        return self.inner.carry(requests)

    def gather(self, need: int) -> Gathered:
        self.rounds += 1
        is_new = self.rounds == ROUND
        return Gathered({*self.clients}, {LATE} if is_new else frozenset())

    def save(self, number: int) -> Saved | None:
        return None

    def restore(self, number: int, held: Mapping[str, int]) -> Set[str]:
        return frozenset()


@pytest.mark.parametrize("framework", ["fedllm", "split", "kd"])
def test_it_takes_part_with_its_own_tier(hub: Path, framework: str, uncounted: None) -> None:
    words = (f"framework={framework}", "data.num_clients=3", "rounds=3", "model.dtype=float32")
    tiers = f"tiers={{slow: {{clients: [{LATE}], up: [int8]}}}}"
    config = experiment_config(hub, *words, tiers, "fleet.min_replies=1", "training.local_steps=1")
    whole = build(config)
    built = build_server(whole.config, whole.model, whole.data, Growing(whole.fleet.engine))
    lines = built.run()
    assert [line["asked"] for line in lines] == [0, 2, 3, 3]
    assert [line["missing"] for line in lines] == [{}] * 4
    if framework != "kd":  # which has codecs of its own for labels
        sizes = {
            entry.client: entry.bytes
            for entry in built.fleet.ledger.entries
            if entry.round == 3 and entry.direction == "up" and len(entry.kinds) > 1
        }
        assert sizes[LATE] < 0.7 * sizes["client-0"]
