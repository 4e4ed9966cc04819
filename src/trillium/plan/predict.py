"""The plan of one run: small runs on paper, summed up by client, tier and federation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice

from trillium.clock.waves import NOTHING, Ask, Wave, Weight, Work
from trillium.config.experiment import ExperimentConfig
from trillium.errors import UserError
from trillium.federation.cohort import FleetConfig
from trillium.plan.bounds import upper_bound
from trillium.plan.data import Texts, by_tier
from trillium.plan.federation import Shared
from trillium.plan.grow import FEW, Stage, is_alike, is_apart, is_even, share_of, stages
from trillium.plan.memory import Memory
from trillium.plan.models import Depth, Models
from trillium.plan.outcome import Outcome, most_of
from trillium.plan.rounds import outcome_of
from trillium.plan.sums import Sums


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
        estimate: how all later ones are told, where this is not exact; else empty.
        upper_bound: whether a run may take less, because some is left out by value.
        num_parameters, num_trained: of the model.
        num_added: entries of what is added up in a round of a private run.
        texts: its data, or what is assumed of it.
        model: of the server.
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
    estimate: str
    upper_bound: bool
    num_parameters: int
    num_trained: int
    num_added: int
    texts: Texts
    model: Depth
    shared: Shared

    @property
    def total(self) -> Sums:
        """All clients together, over the whole run."""
        total = Sums()
        for sums in self.clients.values():
            total.merge(sums)
        return total


def predict(config: ExperimentConfig, texts: Texts, models: Models | None = None) -> Prediction:
    """Return what a run will send, receive and compute.

    Nothing is trained and no weight exists: the code of the run itself is run on tensors without
    values, with the cohorts, batches and codecs that the run will have.

    Args:
        texts: its data, or what is assumed of it.
        models: makes the model; give the same one to plans of the same model.

    Raises:
        UserError: the settings do not fit together, or there is no plan for them.
    """
    _check(config)
    shared = Shared(models or Models())
    model = shared.models.depth(
        config.of(None), texts.num_classes, FEW, is_even=texts.assumed and is_even(config)
    )
    found, courses = Outcome(), []
    by_name = not texts.assumed or not is_alike(config, model)
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
    memory = {label: most_of(most) for label, most in found.most.items()}
    for label, sums in (*found.clients.items(), *found.later.items()):
        sums.peak_bytes = int(memory[label].peak) if label in memory else 0
    return Prediction(
        config=config,
        clients={name: found.clients[label_of[name]] for name in texts.clients},
        later={n: found.later[label_of[n]] for n in texts.clients if label_of[n] in found.later},
        once_bytes={name: round(count) for name, count in found.once_bytes.items()},
        server_flops=texts.written + found.flops,
        server_peak_bytes=int(most_of(found.server).peak),
        memory={n: memory[label_of[n]] for n in texts.clients if label_of[n] in found.later},
        courses=courses,
        planned_rounds=found.num_rounds,
        estimate=found.estimate,
        upper_bound=upper_bound(config),
        num_parameters=model.num_parameters,
        num_trained=model.num_trained,
        num_added=round(found.added),
        texts=texts,
        model=model,
        shared=shared,
    )


def bytes_of_a_round(
    config: ExperimentConfig, texts: Texts, like: Prediction, *, shallow: bool = False
) -> float:
    """Return the bytes up and down of one client in a round after the first.

    Args:
        like: of nearly the same run, with as many blocks.
        shallow: whether the model is to have a few blocks alone.

    Raises:
        UserError: as `predict`.
    """
    _check(config)
    if texts.assumed and not config.tiers and config.fleet == FleetConfig():  # all are alike
        texts = replace(texts, clients=dict(islice(texts.clients.items(), 1)))
    total = 0.0
    for stage in stages(config, texts, like.model, shallow=shallow):
        later = _of_stage(stage, like.shared, by_name=True).later
        mean = sum(own.up.bytes + own.down.bytes for own in later.values()) / len(later)
        total += stage.weight * mean
    return total


def _check(config: ExperimentConfig) -> None:
    if config.model.quantize != "none":
        raise UserError(
            f"a plan for model.quantize={config.model.quantize}",
            "the memory of a quantised base cannot be planned yet",
            "Write model.quantize=none to plan it without",
        )


def _of_stage(stage: Stage, shared: Shared, by_name: bool, share: float = 1.0) -> Outcome:
    """Return the outcome of runs that differ in depth alone, with the waves of a round.

    Args:
        by_name: whether clients are told apart; else tiers are.
        share: in how many of the rounds a client takes part.
    """
    total, waves = Outcome(), list[tuple[float, list[Wave]]]()
    for weight, small in stage.runs:
        key = f"{small.key} {share}" if small.texts.assumed else ""
        outcome: Outcome = shared.outcomes.get(key) or outcome_of(small, shared, share)
        if key:
            shared.outcomes[key] = outcome
        total.add(outcome if by_name else outcome.by_tier(small.config), weight)
        waves.append((weight, outcome.waves))
    total.waves = _joined(waves)
    return total


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
