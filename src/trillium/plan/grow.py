"""Large runs in little time: of what is alike a few are run, and every further one adds as much.

Figures of a run grow evenly with the blocks of a model, with the batches of a client, with the public
set and with the clients of a tier, each by itself. So a run is a weighted sum of small ones, with two
and with three of each: this is the one place where anything is extrapolated. The peak of memory does
not grow evenly, but each phase of work does (`trillium.plan.phases`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

from trillium.config.experiment import ExperimentConfig
from trillium.data.publics.sampled import Sampled
from trillium.federation.cohort import FleetConfig
from trillium.frameworks.fedkseed import FedKSeed
from trillium.frameworks.fedllm.settings import FedLLMSettings
from trillium.frameworks.kd.distillation import PREDICT_BATCH
from trillium.frameworks.kd.settings import KDSettings
from trillium.frameworks.split.settings import SplitSettings
from trillium.plan.bounds import draws_texts, keeps
from trillium.plan.data import Texts, by_tier
from trillium.plan.models import Depth

FEW = 2  # with a single block, less is alive at the same time than with any more of them


@dataclass(frozen=True)
class Small:
    """A run that is no larger than the one that is planned.

    Attributes:
        blocks: of the model, or of each part of a cut one; all of them by default.
    """

    config: ExperimentConfig
    texts: Texts
    blocks: tuple[int, ...] | None = None

    @property
    def num_blocks(self) -> int | None:
        """How many blocks the model has."""
        return None if self.blocks is None else sum(self.blocks)

    @property
    def key(self) -> str:
        """What its outcome depends on, where data are assumed."""
        sizes = {name: len(own) for name, own in self.texts.clients.items()}
        return repr((self.config, sizes, len(self.texts.public), self.blocks))

    def shallow(self) -> ExperimentConfig:
        """Return the settings for so many blocks."""
        framework = self.config.framework
        if self.blocks is None or not isinstance(framework, SplitSettings):
            return self.config
        head, body, _ = self.blocks
        tail = None if framework.tail is None else head + body
        changed = framework.model_copy(update={"cut": head, "tail": tail})
        return self.config.model_copy(update={"framework": changed})


@dataclass(frozen=True)
class Stage:
    """Runs on the same data with the same clients, which differ in depth alone.

    Attributes:
        weight: how much of them is in the run that is planned.
        runs: each with its weight among them.
    """

    weight: float
    runs: tuple[tuple[float, Small], ...]


@dataclass(frozen=True)
class _Axis:
    """What there may be less of.

    Attributes:
        size: how much there is.
        make: makes a run with so much of it.
        few: the least of which each further one adds as much.
        whole: whether there is no part of one.
        step: how many further ones, together, add as much as any so many others.
        apart: whether further ones add nothing to the figures of one.
    """

    size: float
    make: Callable[[Small, float], Small]
    few: int = FEW
    whole: bool = False
    step: int = 1
    apart: bool = False

    @property
    def steps(self) -> float:
        """How many steps lie behind the least."""
        return (self.size - self.few) / self.step

    @property
    def grows(self) -> bool:
        """Whether a few are run instead of all."""
        return self.size > self.few + self.step or (self.whole and self.size != int(self.size))


def stages(
    config: ExperimentConfig, texts: Texts, model: Depth, *, shallow: bool = False
) -> list[Stage]:
    """Return the small runs that a run is made of.

    Args:
        texts: its data; if it is not assumed, every batch is another, and the run is made in full.
        model: of the server, in full depth.
        shallow: whether they are to have a few blocks alone.
    """
    whole, depth = Small(config, texts), list[_Axis]()
    alike = texts.assumed and not config.late  # else who is first follows from all there is
    blocks = _blocks(config, model) if alike else None
    if blocks is not None:
        whole = replace(whole, blocks=blocks)
        if shallow:
            blocks = tuple(min(size, FEW) for size in blocks)
            whole = replace(whole, blocks=blocks)
        depth = [_Axis(size, partial(_with_blocks, part)) for part, size in enumerate(blocks)]
    outer = [list[_Axis]()]
    meets = keeps(config, model) and draws_texts(config)  # texts of before, by chance
    if alike and not meets and not isinstance(config.framework, FedKSeed):  # whose directions do
        data, clients = [*_data(config, texts)], [*_clients(config, texts, model)]
        outer = [data, clients]
    return [
        Stage(weight, tuple(_points([depth], small))) for weight, small in _points(outer, whole)
    ]


def _points(groups: Sequence[Sequence[_Axis]], whole: Small) -> Iterable[tuple[float, Small]]:
    """Yield small runs with their weights: axes of one group add up, groups multiply."""
    for chosen in product(*map(_of_group, groups)):
        weight, small = math.prod(own for own, _ in chosen), whole
        for _, sizes in chosen:
            for axis, size in sizes:
                small = axis.make(small, size)
        if weight:
            yield weight, small


def _of_group(axes: Sequence[_Axis]) -> list[tuple[float, list[tuple[_Axis, float]]]]:
    """Return weights and sizes: the least of everything, then one more of one thing."""
    growing = [axis for axis in axes if axis.grows]
    fixed = [(axis, axis.size) for axis in axes if not axis.grows]
    found: list[tuple[float, list[tuple[_Axis, float]]]] = []
    for more in (None, *(axis for axis in growing if not axis.apart)):
        sizes = [(axis, float(axis.few + axis.step * (axis is more))) for axis in growing]
        weight = 1.0 - sum(axis.steps for axis in growing if not axis.apart)
        found.append((weight if more is None else more.steps, [*fixed, *sizes]))
    return found


def is_apart(config: ExperimentConfig) -> bool:
    """Whether no figure of a client, and none of the server, depends on how many clients there are."""
    framework = config.framework
    if isinstance(framework, FedLLMSettings):
        return not framework.aggregator.folds and framework.aggregator.min_clients == 1
    return isinstance(framework, KDSettings)


def is_even(config: ExperimentConfig) -> bool:
    """Whether no setting tells one block of a model from another."""
    layers = [getattr(config.adapter, "layers", None), *(t.layers for t in config.tiers.values())]
    cuts = [tier.cut for tier in config.tiers.values()]
    return all(found is None for found in (*layers, *cuts)) and not config.has_other_models


def _blocks(config: ExperimentConfig, model: Depth) -> tuple[int, ...] | None:
    """Return how many blocks are whose, if a few of them tell all and are less work."""
    if not is_even(config) or not model.has_equal_blocks:
        return None
    count, framework = model.num_blocks, config.framework
    sizes: tuple[int, ...] = (count,)
    if isinstance(framework, SplitSettings):
        tail = count if framework.tail is None else framework.tail
        sizes = framework.cut, tail - framework.cut, count - tail
    effort = sum(min(size, few) for size in sizes for few in (FEW, FEW + 1))
    return sizes if effort < count and min(sizes) >= 0 and sizes[0] > 0 else None


def _with_blocks(part: int, small: Small, size: float) -> Small:
    assert small.blocks is not None
    blocks = [int(size) if place == part else own for place, own in enumerate(small.blocks)]
    return replace(small, blocks=tuple(blocks))


def _data(config: ExperimentConfig, texts: Texts) -> Iterable[_Axis]:
    """Yield the batches of every client and of the public set, and steps where these are told.

    The last batch may be a part of one, and is counted as a part of what a whole one takes.
    """
    batch, steps = config.training.batch_size, config.training.local_steps
    examples = len(next(iter(texts.clients.values())))
    told = [steps, *(tier.local_steps for tier in config.tiers.values())]
    few = 2 * FEW if any(told) else FEW  # then all steps of a round are to see full batches
    step = 1 + getattr(config.framework, "staleness", 0)  # so many batches are under way together
    yield _Axis(examples / batch, partial(_with_examples, batch), few, step=step)
    if steps is not None:
        yield _Axis(steps, _with_steps, step=step)
    for label, tier in config.tiers.items():
        if tier.local_steps is not None:
            yield _Axis(tier.local_steps, partial(_with_tier_steps, label))
    framework, public = config.framework, len(texts.public)
    if isinstance(framework, KDSettings):
        even = framework.public_per_round is None and framework.cache_rounds == 1
        batch = math.lcm(batch, PREDICT_BATCH)
        if even and texts.rows is None:
            yield _Axis(public / batch, partial(_with_public, batch))


def _with_examples(batch: int, small: Small, size: float) -> Small:
    own = next(iter(small.texts.clients.values()))[: round(size * batch)]
    return replace(
        small, texts=replace(small.texts, clients=dict.fromkeys(small.texts.clients, own))
    )


def _with_public(batch: int, small: Small, size: float) -> Small:
    public = small.texts.public[: round(size * batch)]
    data = small.config.data
    if not isinstance(data.public, Sampled):  # else it tells how much is to be written
        data = data.model_copy(update={"public_size": len(public)})
    config = small.config.model_copy(update={"data": data})
    return replace(small, config=config, texts=replace(small.texts, public=public))


def _with_steps(small: Small, size: float) -> Small:
    training = small.config.training.model_copy(update={"local_steps": int(size)})
    return replace(small, config=small.config.model_copy(update={"training": training}))


def _with_tier_steps(label: str, small: Small, size: float) -> Small:
    tiers = dict(small.config.tiers)
    tiers[label] = tiers[label].model_copy(update={"local_steps": int(size)})
    return replace(small, config=small.config.model_copy(update={"tiers": tiers}))


def _clients(config: ExperimentConfig, texts: Texts, model: Depth) -> Iterable[_Axis]:
    """Yield the clients of each tier; of a cohort as many as there are on average."""
    apart = is_apart(config)
    single = apart or isinstance(config.framework, SplitSettings)
    if is_alike(config, model):
        few, share = 1 if single else FEW, share_of(config, texts)
        for names in by_tier(config, texts.clients).values():
            size = share * len(names)
            make = partial(_with_clients, names)
            yield _Axis(size, make, few=few, whole=True, apart=apart)


def is_alike(config: ExperimentConfig, model: Depth) -> bool:
    """Whether all clients of a tier fare alike: nobody fails, and no round depends on who was there."""
    if config.fleet.clients_per_round is not None and keeps(config, model):
        return False  # the first round of a client takes more
    fleet = config.fleet.model_copy(update={"clients_per_round": None})
    alike = fleet == FleetConfig() and not config.late
    return alike and not isinstance(config.framework, FedKSeed)


def share_of(config: ExperimentConfig, texts: Texts) -> float:
    """Return how large a part of the clients is asked in a round."""
    size = config.fleet.clients_per_round
    return 1.0 if size is None else size / len(texts.clients)


def _with_clients(names: Sequence[str], small: Small, size: float) -> Small:
    out = {*names[int(size) :]}
    config = small.config.model_copy(update={"fleet": FleetConfig()})
    clients = {name: own for name, own in small.texts.clients.items() if name not in out}
    return replace(small, config=config, texts=replace(small.texts, clients=clients))
