"""Who takes part in a round: the cohort, who drops out of it, and whether enough are left."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence, Set

import torch

from trillium.federation.agreed import Agreed, Sizes
from trillium.federation.clock import Clock
from trillium.federation.cohort import FleetConfig, Turns
from trillium.federation.engine import CountingEngine, Engine
from trillium.federation.failed import RoundFailed, RoundUndone
from trillium.federation.guard import Guard
from trillium.federation.sums import Summing
from trillium.rng import generator
from trillium.wire.ledger import Entry

log = logging.getLogger(__name__)


class Members:
    """The clients of a run, and those of its current round.

    Attributes:
        round: the current round; 0 before the first.
        asked: the cohort that was sampled for this round.
        missing: clients that dropped out of this round, with the reason.
        newcomers: clients that hold nothing of earlier rounds, as far as is known.
        unsure: clients that were asked in a round which is to count for nothing, and may not have gone
            back; the next time that they are asked they are newcomers.
        short: whether fewer clients than it needs were there at the beginning of this round.
        failed: how often a round has failed before, by its number.
        held: by client, the round of the state that it has said to keep.
        gone: those whose state of this round, or before it, is gone, and why.
        agreed: what clients have said of themselves, and are held to.
        sizes: what they have sent in this round.
        banned: those that are left out for the rest of the run, and why.
        guard: in a private run, what adds up, and says who is asked.
        masks: where sums are masked, what adds up.
        turns: where clients are asked in turns, whose is which.
        clock: in a simulation that knows how fast everything is, when answers arrive.
        under_way: what clients are at work on whose answers make a later round, with the round in which
            they were asked.
        staleness: how many rounds before this one those were asked whose answers have made it.
    """

    def __init__(self, engine: Engine, config: FleetConfig, seed: int) -> None:
        self.engine, self.config, self.seed = engine, config, seed
        self.round = 0
        self.asked: list[str] = list(engine.clients)
        self.missing: dict[str, str] = {}
        self.newcomers: Set[str] = frozenset()
        self.unsure: frozenset[str] = frozenset()
        self.failed: Mapping[int, int] = {}
        self.held: dict[str, int] = {}
        self.gone: dict[str, str] = {}
        self.agreed, self.sizes = Agreed(), Sizes()
        self.banned: dict[str, str] = {}
        self.guard: Guard | None = None
        self.masks: Summing | None = None
        self.turns = Turns()
        self.clock: Clock | None = None
        self.under_way: dict[str, Entry] = {}
        self.staleness: dict[str, int] = {}
        self.short = False
        self._refused: set[str] = set()  # whose answers of this round could not be used
        config.check(len(engine.clients))

    def begin_round(self, number: int) -> list[str]:
        """Sample the cohort of a round and return it, sorted by name."""
        self.round, self.missing, self.gone, self.sizes = number, {}, {}, Sizes()
        self._refused, self.staleness = set(), {}
        need = max(self._need(len(self.engine.clients)) - len(self.under_way), 0)
        gathered = self.engine.gather(need)
        self.short = len(gathered.present) < need
        names = [name for name in self.engine.clients if name not in self.under_way]
        present = gathered.present - self._late(gathered.present, need)
        self.asked = self._drawn(names, number, present)
        late = (name for name in self.asked if name in gathered.present - present)
        self.missing |= dict.fromkeys(late, "it still owes the answer to an earlier ask")
        self.newcomers = gathered.newcomers | self.unsure.intersection(self.asked)
        self.unsure = self.unsure.difference(self.asked)
        self._forgo(gathered.behind)
        self.agree()
        return self.asked

    def _drawn(self, names: Sequence[str], number: int, present: Set[str]) -> list[str]:
        """Return who is to be asked in a round; who is to be, and is away, is missing."""
        guard, at_work = self.guard, len(self.under_way)
        size = max(self.config.size(len(names) + at_work) - at_work, 0)
        if self.config.sampling == "cyclic":
            total = len(names) if guard is None else guard.clients or len(names)
            period, even = self.config.period(total), guard is None or not guard.adds
            asked = self.turns.cohort(names, number, period, self.seed, even=even)
        elif guard is not None and guard.adds:
            asked = guard.cohort(names)
        else:
            draw = torch.randperm(len(names), generator=generator(self.seed, "cohort", number))
            # Who is away would be asked in vain, so those come last; else the draw stays as it is.
            order = sorted((names[index] for index in draw), key=lambda n: n not in present)
            return sorted(order[:size])
        self.missing |= dict.fromkeys((n for n in asked if n not in present), "it is away")
        return asked

    def _late(self, present: Set[str], need: int) -> Set[str]:
        """Return who is late with an earlier answer when enough others are free, in simulated time."""
        if self.clock is None:
            return frozenset()
        if (lacking := need - len(present - self.clock.late)) > 0:
            self.clock.wait(lacking)
        return self.clock.late

    @property
    def cohort(self) -> list[str]:
        """The clients of this round that have not dropped out, sorted by name."""
        return [name for name in self.asked if name not in self.missing]

    @property
    def adds_only(self) -> bool:
        """Whether what clients send is to be added up, and nothing else be made of it."""
        return self.guard is not None or self.masks is not None

    def num_replied(self, missing: Mapping[str, str]) -> int:
        """Return how many answers have made the round."""
        return len(self.staleness) or len(self.asked) - len(missing)

    def attend(self) -> list[str]:
        """Return who of the cohort takes part in a round in which nobody is asked anything.

        Raises:
            RoundFailed: fewer clients are left than `min_replies`.
        """
        present = [client for client in self.cohort if not self._drops_out(client)]
        self._check_enough()
        return present

    def _drops_out(self, client: str) -> bool:
        fails = self.fails(client)
        if fails:
            self.missing[client] = f"simulated failure (failure_rate={self.config.failure_rate})"
        return fails

    def fails(self, client: str) -> bool:
        """Whether a client is drawn to fail in this round; see `FleetConfig.failure_rate`."""
        if not self.config.failure_rate or self.round == 0:
            return False
        again = [str(count)] if (count := self.failed.get(self.round, 0)) else []
        draw = torch.rand((), generator=generator(self.seed, "failure", self.round, client, *again))
        return float(draw) < self.config.failure_rate

    def agree(self) -> None:
        """Hold clients to what they said at the start; without those that now say something else."""
        changed = {}
        if isinstance(self.engine, CountingEngine):
            changed = self.agreed.note(self.engine.counts)
        out = {**self.banned, **changed}
        self.missing |= {name: why for name, why in out.items() if name in self.asked}
        if out.keys() & set(self.asked):
            self._check_enough()

    def _forgo(self, behind: Mapping[str, str]) -> None:
        """Do without clients whose state is not that of the run, and begin anew with them later."""
        for name, why in behind.items():
            self.held.pop(name, None)
            log.warning("round %d: %s: %s", self.round, name, why)
        self.gone |= behind
        self.unsure |= behind.keys()
        self.missing |= {name: why for name, why in behind.items() if name in self.asked}
        if behind:
            self._check_enough()

    def undo(self, why: str) -> RoundUndone:
        """Return the failure of a round that must not count; who stands out in it is left out."""
        suspect = self.sizes.suspect()
        if suspect is None:
            return RoundUndone(f"round {self.round}: {why}; it is undone, and no client stands out")
        name, said = suspect
        # Others may only have been unable to go on with what has come of it.
        self.missing = {n: why for n, why in self.missing.items() if n not in self._refused}
        self.banned[name] = f"it is left out since round {self.round}, where {said}"
        self.missing[name] = said
        return RoundUndone(f"round {self.round}: {why}; it is undone: {name} stands out, as {said}")

    def _check_enough(self) -> None:
        need = self._need(len(self.asked))
        if self.guard is not None and self.guard.adds:  # by chance there may be nobody
            need = min(self.config.min_replies or 0, len(self.asked))
        self._hold(len(self.cohort) + len(self.under_way), len(self.asked), need)

    def _hold(self, left: int, asked: int, need: int) -> None:
        """Let the round fail if fewer are left of it than it needs."""
        if left < need:
            reasons = "; ".join(f"{name}: {why}" for name, why in sorted(self.missing.items()))
            why = f"{left} of {asked} clients are left, min_replies is {need} ({reasons})"
            if self._refused and self.sizes.suspect() is not None:
                raise self.undo(why)
            raise RoundFailed(f"round {self.round}: {why}")

    def _need(self, num_clients: int) -> int:
        return self.config.min_replies or min(self.config.taken(num_clients), num_clients)
