"""A run on paper, round by round, until all that come are known or can be told from those before.

Rounds that are alike need not be run. Of those that are not, who is asked and who fails follows from
the seed for the whole run; what that takes is told from the rounds that were run, and is an estimate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from trillium.plan.bounds import first_alike, grows, reasons, unsteady
from trillium.plan.data import by_tier
from trillium.plan.federation import PaperFederation, Shared
from trillium.plan.grow import Small
from trillium.plan.outcome import Outcome, largest
from trillium.plan.phases import Known, PhaseMeter
from trillium.plan.sums import Sums
from trillium.plan.written import writing
from trillium.wire.ledger import Entry

# Of rounds that are run one by one; and of messages where no two rounds are alike.
MESSAGES, ROUNDS = 3_000, 20
SAMPLE, LEAST = 600, 4


def outcome_of(small: Small, shared: Shared, share: float) -> Outcome:
    """Return what a run takes.

    Args:
        share: in how many of the rounds a client takes part, where it is asked in all that are run.
    """
    run = _Run(small, shared, share)
    run.start()
    while run.number < run.total and not run.is_told():
        run.next()
    return run.finish()


class _Run:
    """A run on paper, and what it took so far."""

    def __init__(self, small: Small, shared: Shared, share: float) -> None:
        self._config, self._share = small.shallow(), share
        self._texts, self._paper = small.texts, shared.models.paper
        self._federation = PaperFederation(self._config, self._texts, shared, small.num_blocks)
        self._every = list[dict[str, Sums]]()  # what each round took, by client
        self._flops = list[float]()  # of the server, after each round
        self._found = Outcome(clients={name: Sums() for name in self._federation.clients})
        self._since = dict[str, int]()
        self._looked = dict[str, Sums]()  # what it took to measure a model, the last time
        self.total = self._config.rounds if self._config.framework.trains else 0

    @property
    def number(self) -> int:
        """Of the last round."""
        return len(self._every)

    def start(self) -> None:
        """Do what comes before the first round."""
        self._found.once_bytes = dict(self._federation.once_bytes())
        self._federation.start()
        entries = self._federation.course.entries
        _add(self._found.clients, entries)
        self._look(entries)
        self._flops.append(self._federation.server.meter.read().flops)

    def next(self) -> None:
        """Run another round."""
        number, course, found = self.number + 1, self._federation.course, self._found
        before = len(course.entries)
        self._federation.round(number, evaluates=not self._texts.assumed)
        own = _add({}, course.entries[before:])
        self._look(course.entries[before:])
        self._every.append(own)
        self._flops.append(self._federation.server.meter.read().flops)
        for name, sums in own.items():
            found.clients[name].merge(sums, self._share)
            if self._since.get(name, 1) == 1:  # in the first round nothing comes down
                found.later[name], self._since[name] = sums, number
        if number <= 2:
            found.waves = course.waves(number)

    def _look(self, entries: Iterable[Entry], *, again: bool = True) -> None:
        """Add what clients did to measure a model, which need not be in every round.

        Args:
            again: whether later rounds do the same.
        """
        found = dict[str, Sums]()
        for entry in entries if self._texts.held else ():
            if entry.purpose == "evaluate":
                found.setdefault(entry.client, Sums()).add(entry)
        for name, sums in found.items():
            self._found.clients[name].merge(sums)
        if again:
            self._looked = found or self._looked

    def is_told(self) -> bool:
        """Whether those that come can be told from those that were run."""
        number, count = self.number, len(self._federation.course.entries)
        if number < first_alike(self._config):
            return False
        if not unsteady(self._config, self._federation.model):
            is_long = count + count / number > MESSAGES or number >= ROUNDS
            return is_long or self._texts.assumed
        is_long = self.total > ROUNDS or self.total * count / number > MESSAGES
        is_seen = number >= ROUNDS and not (grows(self._config) and self._has_grown())
        return is_long and number >= LEAST and (is_seen or count > SAMPLE)

    def _has_grown(self) -> bool:
        """Whether messages are longer than in the round before."""
        before, last = self._every[-2], self._every[-1]
        return any(before[n].down.bytes < last[n].down.bytes for n in last if n in before)

    def finish(self) -> Outcome:
        """Return what the whole run takes."""
        found, federation, left = self._found, self._federation, self.total - self.number
        before = len(federation.course.entries)
        federation.finish()
        self._look(federation.course.entries[before:], again=False)
        found.num_rounds, found.flops = self.number, self._flops[-1]
        found.most = {name: client.meter.most for name, client in federation.clients.items()}
        if max(self._since.values(), default=1) > 1:
            later = found.later.items()
            found.later = {name: own for name, own in later if self._since[name] > 1}
        guard = federation.fleet.guard
        found.added = 0.0 if guard is None else guard.width
        why = unsteady(self._config, self._federation.model) if left else ""
        if why:
            self._estimate(why)
        elif left:
            found.flops += left * (self._flops[-1] - self._flops[-2])
            for name, sums in self._every[-1].items():
                found.clients[name].merge(sums, self._share * left)
        if self._config.late and reasons(self._config):
            found.estimate = found.estimate or (
                "who is first follows from bytes that depend on values, so others may be"
            )
        every = self._config.evaluation.every
        coming = range(self.number + 1, self.total + 1)
        due = sum(number % every == 0 or number == self.total for number in coming)
        for name, sums in self._looked.items():
            found.clients[name].merge(sums, due)
        found.server = dict(federation.server.meter.most)
        if self._texts.assumed:  # else it is known from the run
            meter = PhaseMeter(self._paper, Known())
            flops, most = writing(self._config, federation.model, self._paper, meter)
            found.flops, found.server = found.flops + flops, {**found.server, **most}
        return found

    def _estimate(self, why: str) -> None:
        """Add the rounds that come: who is asked takes what it took on average of late.

        Who was never asked is taken to be as those of its tier.
        """
        found, last = self._found, self.number
        most = 2 if grows(self._config) else last - 2
        first = last - most // 2 * 2  # an even number of rounds: some take turns
        seen = self._every[first:]
        coming = self._as_seen(seen) if self._config.late else self._coming()
        lost = Sums.mean([s for own in self._every for s in own.values() if not s.up.messages])
        for names in by_tier(self._config, found.clients).values():
            told = {n: [own[n] for own in seen if n in own] for n in names}
            every = [s for own in told.values() for s in own]
            every = every or [sums for own in seen for sums in own.values()]
            asked = [name for name in names if name in found.later]
            for name in names:
                mean = Sums.mean([s for s in told[name] or every if s.up.messages])
                found.clients[name].merge(mean, coming[name][True])
                found.clients[name].merge(lost, coming[name][False])
                if name not in found.later:
                    found.later[name] = mean
                    found.most[name] = largest([found.most[other] for other in (name, *asked)])
        found.flops += (self.total - last) * (self._flops[-1] - self._flops[first]) / len(seen)
        exact = "" if self._config.late else "; who is asked and who fails is exact"
        found.estimate = (
            f"what comes after round {last} is an estimate, because {why}: each client as on average "
            f"in rounds {first + 1} to {last}{exact}"
        )

    def _as_seen(self, seen: Sequence[Mapping[str, Sums]]) -> dict[str, dict[bool, float]]:
        """Return by client how often it will be asked, by whether it answers, if all goes on so."""
        share = (self.total - self.number) / len(seen)
        found = {name: {True: 0.0, False: 0.0} for name in self._found.clients}
        for own in seen:
            for name, sums in own.items():
                found[name][bool(sums.up.messages)] += share
        return found

    def _coming(self) -> Mapping[str, Mapping[bool, float]]:
        """Return by client how often it will be asked, by whether it is there then."""
        fleet = self._federation.fleet
        found = {name: Counter[bool]() for name in self._found.clients}
        for number in range(self.number + 1, self.total + 1):
            asked = fleet.begin_round(number)
            present = {*fleet.attend()}
            for name in asked:
                found[name][name in present] += 1
        return found


def _add(clients: dict[str, Sums], entries: Iterable[Entry]) -> dict[str, Sums]:
    """Add what messages took to the sums of their clients, evaluation apart."""
    for entry in entries:
        if entry.purpose != "evaluate":
            clients.setdefault(entry.client, Sums()).add(entry)
    return clients
