"""Deep models in little time: costs are counted on few blocks, and grow evenly with every further one.

Messages are weighed on the whole model. Its blocks are alike, so the FLOPs of a round are linear in
their number, and so is the peak of memory in each phase of a step (`trillium.plan.phases`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from trillium.config.experiment import ExperimentConfig
from trillium.federation.client import Client
from trillium.frameworks.split.protocol import Split
from trillium.plan.cohorts import Cohort
from trillium.plan.federation import Federation
from trillium.plan.heads import HeadPhase
from trillium.plan.waves import Ask, Memory, Wave, Work

# Blocks of each part of a model that are run instead of all, where that is less work. With a single
# one less is alive at the same time than with any more of them.
FEW = (2, 3)
_PARTS = {"finish_batch": "tail", "feature_moments": "whole"}  # what a verb runs; else the head


class Rounds(Protocol):
    """What a framework does, on paper."""

    def start(self) -> Iterator[Wave]:
        """Return what crosses before the first round."""

    def round(self, number: int, cohort: Cohort) -> Iterator[Wave]:
        """Return the messages of a round; called for one round after the other."""

    def memory(self, client: Client, peak_bytes: int) -> Memory:
        """Divide the most that a client holds into its parts."""

    @property
    def upper_bound(self) -> bool:
        """Whether a run may take less than is planned."""


Make = Callable[[Federation], Rounds]


@dataclass(frozen=True)
class Course:
    """The rounds of a run; see `course_of`.

    Attributes:
        federation, rounds: of the whole model.
        few: the same of models with fewer blocks, where costs are counted on those.
        factors: how often the blocks between the two lie between the first and the whole, by whose
            they are.
    """

    federation: Federation
    rounds: Rounds
    few: tuple[tuple[Federation, Rounds], ...] = ()
    factors: Mapping[str, float] = field(default_factory=dict)

    def start(self) -> Iterator[Wave]:
        """Return what crosses before the first round: for the head, then for the framework."""
        yield from self._joined(
            [
                HeadPhase(f.config.head, f).start()
                for f in (self.federation, *(f for f, _ in self.few))
            ]
        )
        yield from self._joined([rounds.start() for rounds in self._all])

    def round(self, number: int) -> Iterator[Wave]:
        """Return the messages of a round, with their costs."""
        cohort = self.federation.begin(number)
        for federation, _ in self.few:
            federation.begin(number)
        return self._joined([rounds.round(number, cohort) for rounds in self._all])

    @property
    def _all(self) -> list[Rounds]:
        return [self.rounds, *(rounds for _, rounds in self.few)]

    def _joined(self, courses: list[Iterator[Wave]]) -> Iterator[Wave]:
        if len(courses) == 1:
            yield from courses[0]
            return
        seen: dict[tuple[int, int, int], tuple[list[Wave], Wave]] = {}  # the former keep their ids
        for waves in zip(*courses, strict=True):
            whole, less, more = waves
            key = (id(whole), id(less), id(more))
            if key not in seen:
                asks = tuple(map(self._with_cost, whole.asks, less.asks, more.asks))
                server = _grown(less.server, more.server, self.factors["body"])
                seen[key] = list(waves), replace(whole, asks=asks, server=server)
            yield seen[key][1]

    def _with_cost(self, whole: Ask, less: Ask, more: Ask) -> Ask:
        factor = self.factors[_PARTS.get(whole.verb, "head")]
        cost = _grown(less.cost, more.cost, factor)
        return Ask(whole.client, whole.verb, whole.down, whole.up, cost, whole.purpose)


def course_of(federation: Federation, make: Make) -> Course:
    """Return the rounds of a run; of a deep model the costs are counted on few blocks."""
    if not is_deep(federation):
        return Course(federation, make(federation))
    num_blocks = federation.model.num_blocks
    sizes = _part_sizes(federation.config, num_blocks)
    federation.counts = False
    few = []
    for few_blocks in FEW:
        some = {part: min(size, few_blocks) for part, size in sizes.items()}
        config, count = _shallow(federation.config, some)
        found = Federation(config, federation.texts, count, weighs=False, models=federation.models)
        few.append((found, make(found)))
    wide = FEW[1] - FEW[0]
    factors = {part: max(size - FEW[0], 0) / wide for part, size in sizes.items()}
    fewest, more = (sum(min(size, most) for size in sizes.values()) for most in FEW)
    factors["whole"] = (num_blocks - fewest) / (more - fewest)
    if not isinstance(federation.config.framework, Split):
        factors = dict.fromkeys(("head", "body", "tail", "whole"), factors["body"])
    return Course(federation, make(federation), tuple(few), factors)


def is_deep(federation: Federation) -> bool:
    """Whether a few blocks tell all, and are less work."""
    num_blocks = federation.model.num_blocks
    sizes = _part_sizes(federation.config, num_blocks)
    effort = sum(min(size, few_blocks) for size in sizes.values() for few_blocks in FEW)
    return effort < num_blocks and _is_even(federation.config) and federation.model.has_equal_blocks


def on_few(federation: Federation, value: Callable[[int], float]) -> float:
    """Return a value for a deep model from what it is with few blocks; of FedLLM or KD-FedLLM."""
    less, more = map(value, FEW)
    return less + (federation.model.num_blocks - FEW[0]) / (FEW[1] - FEW[0]) * (more - less)


def _is_even(config: ExperimentConfig) -> bool:
    """Whether every block trains alike."""
    if config.has_other_models or any(tier.cut is not None for tier in config.tiers.values()):
        return False
    layers = [getattr(config.adapter, "layers", None), *(t.layers for t in config.tiers.values())]
    return all(found is None for found in layers)


def _part_sizes(config: ExperimentConfig, num_blocks: int) -> dict[str, int]:
    """Return how many blocks are whose: of a client's first part, the server's, a client's last."""
    framework = config.framework
    if not isinstance(framework, Split):
        return {"head": 0, "body": num_blocks, "tail": 0}
    tail = num_blocks if framework.tail is None else framework.tail
    return {"head": framework.cut, "body": tail - framework.cut, "tail": num_blocks - tail}


def _shallow(config: ExperimentConfig, sizes: Mapping[str, int]) -> tuple[ExperimentConfig, int]:
    """Return the settings for a model whose parts have so many blocks, and how many it has in all."""
    framework = config.framework
    if isinstance(framework, Split):
        tail = None if framework.tail is None else sizes["head"] + sizes["body"]
        changed = framework.model_copy(update={"cut": sizes["head"], "tail": tail})
        config = config.model_copy(update={"framework": changed})
    return config, sum(sizes.values())


def _grown(less: Work, more: Work, factor: float) -> Work:
    """Return the cost with so many times the further blocks that `more` has over `less`."""
    flops = less.flops + factor * (more.flops - less.flops)
    pairs = zip(less.peaks, more.peaks, strict=True)
    return Work(flops, tuple(few + round(factor * (many - few)) for few, many in pairs))
