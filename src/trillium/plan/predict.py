"""The plan of one run: small runs on paper, summed up by client, tier and federation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice

from trillium.config.experiment import ExperimentConfig
from trillium.errors import UserError
from trillium.federation.fleet import FleetConfig
from trillium.plan.bounds import is_steady, upper_bound
from trillium.plan.data import Texts, by_tier
from trillium.plan.federation import PaperFederation, Shared
from trillium.plan.grow import Small, Stage, is_alike, is_apart, share_of, stages
from trillium.plan.models import Models
from trillium.plan.phases import Known, PhaseMeter, Phases
from trillium.plan.sizes import NOTHING, Weight
from trillium.plan.sums import Sums
from trillium.plan.waves import Ask, Memory, Wave, Work
from trillium.plan.written import writing
from trillium.wire.ledger import Entry

# Of rounds that are run one by one; later ones are taken to be as the last of them.
MESSAGES, ROUNDS = 3_000, 20


@dataclass
class Prediction:
    """What a run will send, receive and compute.

    Attributes:
        config: of the run.
        clients: by name, over the whole run.
        later: by client, one round after the first in which it takes part; the first where there
            is no other.
        once_bytes: what a client must hold beside what messages bring, by what it is.
        server_flops: of the whole run.
        server_peak_bytes: the most memory that the server's work takes.
        memory: of each client at its peak, by part.
        courses: of that round, what it is made of, each with its weight, for its course in time.
        planned_rounds: rounds that were planned one by one.
        upper_bound: whether a run may take less, because some is left out by value.
        num_parameters, num_trained: of the model.
        shared: what plans of nearly the same run can use.
    """

    config: ExperimentConfig
    clients: dict[str, Sums]
    later: dict[str, Sums]
    once_bytes: dict[str, int]
    server_flops: float
    server_peak_bytes: int
    memory: dict[str, Memory]
    courses: list[tuple[float, list[Wave]]]
    planned_rounds: int
    upper_bound: bool
    num_parameters: int
    num_trained: int
    texts: Texts
    shared: Shared

    @property
    def total(self) -> Sums:
        """All clients together, over the whole run."""
        total = Sums()
        for sums in self.clients.values():
            total.merge(sums)
        return total


@dataclass
class _Outcome:
    """What a run on paper took; or a weighted sum of such.

    Attributes:
        clients, later: as in `Prediction`, by name or by tier.
        most: by client, or tier, and label of its work, the most that is held in each phase.
        server: the same of the server.
        flops: of the server.
    """

    clients: dict[str, Sums] = field(default_factory=dict)
    later: dict[str, Sums] = field(default_factory=dict)
    most: dict[str, dict[str, Phases]] = field(default_factory=dict)
    server: dict[str, Phases] = field(default_factory=dict)
    flops: float = 0.0
    once_bytes: dict[str, float] = field(default_factory=dict)
    waves: list[Wave] = field(default_factory=list)
    num_rounds: int = 0

    def add(self, other: _Outcome, weight: float) -> None:
        """Add another one, all of it but its waves."""
        for mine, theirs in ((self.clients, other.clients), (self.later, other.later)):
            for name, sums in theirs.items():
                mine.setdefault(name, Sums()).merge(sums, weight)
        for name, most in other.most.items():
            _add_phases(self.most.setdefault(name, {}), most, weight)
        _add_phases(self.server, other.server, weight)
        self.flops += weight * other.flops
        for name, count in other.once_bytes.items():
            self.once_bytes[name] = self.once_bytes.get(name, 0.0) + weight * count
        self.num_rounds = max(self.num_rounds, other.num_rounds)


def predict(config: ExperimentConfig, texts: Texts, models: Models | None = None) -> Prediction:
    """Return what a run will send, receive and compute.

    Nothing is trained and no weight exists: the code of the run itself is run on tensors without
    values, with the cohorts, batches and codecs that the run will have.

    Args:
        config: of the run.
        texts: its data, or what is assumed of it.
        models: makes the model; give the same one to plans of the same model.

    Raises:
        UserError: the settings do not fit together, or there is no plan for them.
    """
    _check(config)
    shared = Shared(models or Models())
    model = shared.models.get(config.of(None), texts.num_classes, None)
    found, courses = _Outcome(), []
    by_name = not texts.assumed or not is_alike(config)
    share = 1.0 if by_name else share_of(config, texts)
    for stage in stages(config, texts, model):
        outcome = _of_stage(stage, shared, by_name, share)
        found.add(outcome, stage.weight)
        courses.append((stage.weight, outcome.waves))
    tiers = by_tier(config, texts.clients)
    if not by_name and is_apart(config):
        asked = {label: own[: round(share * len(own))] for label, own in tiers.items()}
        courses = [(weight, _for_all(waves, asked)) for weight, waves in courses]
    label_of = {name: name if by_name else label for label, own in tiers.items() for name in own}
    memory = {label: _most(most) for label, most in found.most.items()}
    for label, sums in (*found.clients.items(), *found.later.items()):
        sums.peak_bytes = int(memory[label].peak) if label in memory else 0
    return Prediction(
        config=config,
        clients={name: found.clients[label_of[name]] for name in texts.clients},
        later={n: found.later[label_of[n]] for n in texts.clients if label_of[n] in found.later},
        once_bytes={name: round(count) for name, count in found.once_bytes.items()},
        server_flops=texts.written + found.flops,
        server_peak_bytes=int(_most(found.server).peak),
        memory={n: memory[label_of[n]] for n in texts.clients if label_of[n] in found.later},
        courses=courses,
        planned_rounds=found.num_rounds,
        upper_bound=upper_bound(config),
        num_parameters=sum(parameter.numel() for parameter in model.module.parameters()),
        num_trained=sum(tensor.numel() for tensor in model.initial.values()),
        texts=texts,
        shared=shared,
    )


def bytes_of_a_round(
    config: ExperimentConfig, texts: Texts, shared: Shared, *, shallow: bool = False
) -> float:
    """Return the bytes up and down of one client in a round after the first.

    Args:
        shallow: whether the model is to have a few blocks alone.

    Raises:
        UserError: as `predict`.
    """
    _check(config)
    if texts.assumed and not config.tiers and config.fleet == FleetConfig():  # all are alike
        texts = replace(texts, clients=dict(islice(texts.clients.items(), 1)))
    total, model = 0.0, shared.models.get(config.of(None), texts.num_classes, None)
    for stage in stages(config, texts, model, shallow=shallow):
        later = _of_stage(stage, shared, by_name=True).later
        mean = sum(own.up.bytes + own.down.bytes for own in later.values()) / len(later)
        total += stage.weight * mean
    return total


def _check(config: ExperimentConfig) -> None:
    if config.model.quantize != "none":
        raise UserError(
            f"a plan for model.quantize={config.model.quantize}",
            "what a quantised base takes is not planned yet",
            "Write model.quantize=none to see what it would take without",
        )


def _of_stage(stage: Stage, shared: Shared, by_name: bool, share: float = 1.0) -> _Outcome:
    """Return the outcome of runs that differ in depth alone, with the waves of a round.

    Args:
        by_name: whether clients are told apart; else tiers are.
        share: in how many of the rounds a client takes part.
    """
    total, waves = _Outcome(), list[tuple[float, list[Wave]]]()
    for weight, small in stage.runs:
        key = f"{small.key} {share}" if small.texts.assumed else ""
        outcome: _Outcome = shared.outcomes.get(key) or _run(small, shared, share)
        if key:
            shared.outcomes[key] = outcome
        total.add(outcome if by_name else _by_tier(outcome, small), weight)
        waves.append((weight, outcome.waves))
    total.waves = _joined(waves)
    return total


def _run(small: Small, shared: Shared, share: float) -> _Outcome:
    """Run on paper; every client counts with a share of the rounds."""
    config = small.shallow()
    federation = PaperFederation(config, small.texts, shared, small.num_blocks)
    course, server = federation.course, federation.server
    found = _Outcome(clients={name: Sums() for name in federation.clients})
    found.once_bytes = dict(federation.once_bytes())
    federation.start()
    _add(found.clients, course.entries)
    total = config.rounds if config.framework.trains else 0
    since: dict[str, int] = {}
    while found.num_rounds < total:
        found.num_rounds = number = found.num_rounds + 1
        before, flops = len(course.entries), server.meter.read().flops
        federation.round(number, evaluates=not small.texts.assumed)
        own = _add({}, course.entries[before:])
        for name, sums in own.items():
            found.clients[name].merge(sums, share)
            if since.get(name, 1) == 1:  # in the first round nothing comes down
                found.later[name], since[name] = sums, number
        if number <= 2:
            found.waves = course.waves(number)
        count = len(course.entries)
        is_long = count + count / number > MESSAGES or number >= ROUNDS or small.texts.assumed
        if is_long and is_steady(config, number):
            left = total - number
            found.flops = left * (server.meter.read().flops - flops)
            _repeat(found.clients, own, share * left)
            break
    if max(since.values(), default=1) > 1:
        found.later = {name: sums for name, sums in found.later.items() if since[name] > 1}
    found.flops += server.meter.read().flops
    found.most = {n: client.meter.most for n, client in federation.clients.items()}
    found.server = dict(server.meter.most)
    if small.texts.assumed:  # else it is known from the run
        meter = PhaseMeter(shared.models.paper, Known())
        flops, most = writing(config, federation.model, shared.models.paper, meter)
        found.flops, found.server = found.flops + flops, {**found.server, **most}
    return found


def _add(clients: dict[str, Sums], entries: Iterable[Entry]) -> dict[str, Sums]:
    """Add what messages took to the sums of their clients, evaluation apart."""
    for entry in entries:
        if entry.purpose != "evaluate":
            clients.setdefault(entry.client, Sums()).add(entry)
    return clients


def _repeat(clients: dict[str, Sums], last: Mapping[str, Sums], times: float) -> None:
    """Add rounds like the last one; whoever is drawn for them costs what those of the last one did."""
    mean = Sums()
    for sums in last.values():
        mean.merge(sums, 1 / len(last))
    share = len(last) / len(clients)
    for name, found in clients.items():
        found.merge(last[name] if share == 1 else mean, times * share)


def _by_tier(outcome: _Outcome, small: Small) -> _Outcome:
    """Return the same with one client for each tier, the mean of its clients, and the most of any."""
    found = replace(outcome, clients={}, later={}, most={})
    for label, names in by_tier(small.config, small.texts.clients).items():
        for mine, theirs in ((found.clients, outcome.clients), (found.later, outcome.later)):
            known = [theirs[name] for name in names if name in theirs]
            for sums in known:
                mine.setdefault(label, Sums()).merge(sums, 1 / len(known))
        most: dict[str, Phases] = {}
        for own in (outcome.most[name] for name in names):
            for work, phases in own.items():
                pairs = zip(most.get(work, phases), phases, strict=True)
                most[work] = tuple(max(pair, key=lambda memory: memory.peak) for pair in pairs)
        found.most[label] = most
    return found


def _add_phases(mine: dict[str, Phases], theirs: Mapping[str, Phases], weight: float) -> None:
    for label, phases in theirs.items():
        before = mine.get(label, (Memory(),) * len(phases))
        mine[label] = tuple(a.plus(b, weight) for a, b in zip(before, phases, strict=True))


def _most(most: Mapping[str, Phases]) -> Memory:
    """Return the most that is held in any phase of any work."""
    found = [memory for phases in most.values() for memory in phases]
    return max(found, key=lambda memory: memory.peak, default=Memory()).rounded()


def _for_all(waves: list[Wave], asked: Mapping[str, list[str]]) -> list[Wave]:
    """Return waves in which those are asked, too, for whom a single client of their tier stands.

    Args:
        asked: who is asked in a round, by tier.
    """
    label_of = {name: label for label, names in asked.items() for name in names}
    found = []
    for wave in waves:
        counts = Counter(label_of.get(ask.client) for ask in wave.asks)
        asks = list(wave.asks)
        for ask in wave.asks:
            label = label_of.get(ask.client)
            if label is not None and counts[label] == 1:
                asks += [replace(ask, client=n) for n in asked[label] if n != ask.client]
        found.append(replace(wave, asks=tuple(asks)))
    return found


def _joined(parts: list[tuple[float, list[Wave]]]) -> list[Wave]:
    """Return the weighted sum of waves that differ in size alone."""
    if len(parts) == 1:
        return parts[0][1]
    weights = [weight for weight, _ in parts]
    return [
        replace(
            alike[0], asks=_asks(weights, alike), server=_work(weights, [w.server for w in alike])
        )
        for alike in zip(*(waves for _, waves in parts), strict=True)
    ]


def _asks(weights: list[float], waves: tuple[Wave, ...]) -> tuple[Ask, ...]:
    return tuple(
        replace(
            asks[0],
            down=Weight.sum(weights, [ask.down for ask in asks]),
            up=None if asks[0].up is None else Weight.sum(weights, [a.up or NOTHING for a in asks]),
            cost=_work(weights, [ask.cost for ask in asks]),
        )
        for asks in zip(*(wave.asks for wave in waves), strict=True)
    )


def _work(weights: list[float], parts: list[Work]) -> Work:
    return Work(sum(weight * part.flops for weight, part in zip(weights, parts, strict=True)))
