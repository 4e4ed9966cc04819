"""What a run on paper took, and weighted sums of such."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from trillium.clock.waves import Wave
from trillium.config.experiment import ExperimentConfig
from trillium.plan.data import by_tier
from trillium.plan.memory import Memory
from trillium.plan.moments import Phases
from trillium.plan.sums import Sums


@dataclass
class Outcome:
    """What a run on paper took; or a weighted sum of such.

    Attributes:
        clients: by name or by tier, over the whole run.
        later: the same, one round after the first in which it takes part; the first where there is no
            other.
        most: by client, or tier, and label of its work, the most that is held in each phase.
        server: the same of the server.
        flops: of the server.
        once_bytes: what a client must hold beside what messages bring, by what it is.
        added: entries of what is added up in a round of a private run.
        waves: of a round after the first.
        num_rounds: that were run one by one.
        estimate: how all later ones are told; empty where they are known to be as the last.
    """

    clients: dict[str, Sums] = field(default_factory=dict)
    later: dict[str, Sums] = field(default_factory=dict)
    most: dict[str, dict[str, Phases]] = field(default_factory=dict)
    server: dict[str, Phases] = field(default_factory=dict)
    flops: float = 0.0
    once_bytes: dict[str, float] = field(default_factory=dict)
    added: float = 0.0
    waves: list[Wave] = field(default_factory=list)
    num_rounds: int = 0
    estimate: str = ""

    def add(self, other: Outcome, weight: float) -> None:
        """Add another one, all of it but its waves."""
        for mine, theirs in ((self.clients, other.clients), (self.later, other.later)):
            for name, sums in theirs.items():
                mine.setdefault(name, Sums()).merge(sums, weight)
        for name, most in other.most.items():
            _add_phases(self.most.setdefault(name, {}), most, weight)
        _add_phases(self.server, other.server, weight)
        self.flops += weight * other.flops
        self.added += weight * other.added
        for name, count in other.once_bytes.items():
            self.once_bytes[name] = self.once_bytes.get(name, 0.0) + weight * count
        self.num_rounds = max(self.num_rounds, other.num_rounds)
        self.estimate = self.estimate or other.estimate

    def by_tier(self, config: ExperimentConfig) -> Outcome:
        """Return the same with one client for each tier, the mean of its clients, the most of any."""
        found = replace(self, clients={}, later={}, most={})
        for label, names in by_tier(config, self.clients).items():
            for mine, theirs in ((found.clients, self.clients), (found.later, self.later)):
                known = [theirs[name] for name in names if name in theirs]
                if known:
                    mine[label] = Sums.mean(known)
            found.most[label] = largest([self.most[name] for name in names])
        return found


def largest(every: list[dict[str, Phases]]) -> dict[str, Phases]:
    """Return the most that any holds in each phase, by the label of its work."""
    most: dict[str, Phases] = {}
    for own in every:
        for work, phases in own.items():
            pairs = zip(most.get(work, phases), phases, strict=True)
            most[work] = tuple(max(pair, key=lambda memory: memory.peak) for pair in pairs)
    return most


def most_of(phases: Mapping[str, Phases]) -> Memory:
    """Return the most that is held in any phase of any work."""
    found = [memory for own in phases.values() for memory in own]
    return max(found, key=lambda memory: memory.peak, default=Memory()).rounded()


def _add_phases(mine: dict[str, Phases], theirs: Mapping[str, Phases], weight: float) -> None:
    for label, phases in theirs.items():
        before = mine.get(label, (Memory(),) * len(phases))
        mine[label] = tuple(a.plus(b, weight) for a, b in zip(before, phases, strict=True))
