"""What stands in for bytes and for optimisers where tensors have no values.

A message is weighed and not encoded, and reaches the other side as it is. An optimiser takes its first
step, which makes its state, and all steps that are counted; of the others nobody could tell a thing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from pydantic import PrivateAttr
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from trillium.clock.waves import Weight
from trillium.component import Component
from trillium.federation.means import Contribution
from trillium.frameworks.fedllm.aggregators import Aggregate, Aggregator
from trillium.models.factors import Factors, LowRank
from trillium.plan.fakes import Paper
from trillium.plan.moments import STATE
from trillium.plan.sizes import Scales
from trillium.plan.values import change
from trillium.training.optimizers import Optimizer
from trillium.training.settings import Training
from trillium.wire.kinds import Limits, Tensors, has_values
from trillium.wire.message import Message
from trillium.wire.wire import Direction, Packed, Preview, Wire


class Weighed(dict[str, int]):
    """The bytes of a message by kind, with all that is known of its weight."""

    def __init__(self, weight: Weight) -> None:
        super().__init__(weight.kinds)
        self.weight = weight


class PaperBytes(bytes):
    """Has the length of a message's bytes, and brings the message itself."""

    message: Message
    weight: Weight

    @classmethod
    def of(cls, message: Message, weight: Weight) -> Self:
        """Return what stands for a message of such a weight."""
        made = cls()
        made.message, made.weight = message, weight
        return made

    def __len__(self) -> int:
        """Return how many bytes there would be."""
        return self.weight.bytes


class PaperWire(Wire):
    """A wire whose bytes are weighed, not made."""

    _scales: Scales = PrivateAttr()

    @classmethod
    def of(cls, wire: Wire, scales: Scales) -> PaperWire:
        """Return a wire with the codecs of another one."""
        made = PaperWire.model_construct(up=wire.up, down=wire.down)
        made._scales = scales
        return made

    def pack(self, message: Message, direction: Direction) -> Packed:
        """Weigh a message."""
        rows = {name: (len(own), own.num_classes) for name, own in message.encoded.items()}
        plain = Message(message.verb, message.tensors, message.meta)
        weight = self._scales.weigh(self, direction, plain, rows)
        codec = self.row_codec(direction)
        encoded = {name: own.recoded(codec, 0) for name, own in message.encoded.items()}
        arrives = replace(plain, encoded=encoded, summed=message.summed)  # what a mask hides
        return Packed(PaperBytes.of(arrives, weight), message, Weighed(weight))

    def unpack(self, data: bytes, direction: Direction, limits: Limits = Limits()) -> Packed:
        """Return the message that was weighed."""
        assert isinstance(data, PaperBytes)
        return Packed(data, data.message, Weighed(data.weight))

    def preview(self, message: Message, direction: Direction) -> Preview:
        """Return the message as it is, in tensors of its own."""
        seen = {name: tensor.clone() for name, tensor in message.opened().tensors.items()}
        return Preview(message, Message(message.verb, seen, message.meta))


class PaperOptimizer(Optimizer):
    """Builds optimisers that step where it makes a difference."""

    _paper: Paper = PrivateAttr()

    @classmethod
    def of(cls, optimizer: Optimizer, paper: Paper) -> PaperOptimizer:
        """Return the same settings for parameters without values."""
        made = PaperOptimizer.model_construct(None, **optimizer.model_dump())
        made._paper = paper
        return made

    def build(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        saved: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> torch.optim.Optimizer:
        """Return an optimiser over the parameters."""
        return _Steps(super().build(parameters, saved, **more), self._paper)


class _Steps(torch.optim.Optimizer):
    """An optimiser in whose place this one stands, with its groups and its state."""

    def __init__(self, inner: torch.optim.Optimizer, paper: Paper) -> None:
        self.__dict__ = inner.__dict__
        self._inner, self._paper = inner, paper
        self._mark()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step, or let parameters be others than before."""
        moved = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if self._paper.is_watched or not all(p in self.state for p in moved):
            self._inner.step()
            self._mark()
        else:
            change(moved)
        return None

    def _mark(self) -> None:
        for leaf in tree_leaves(list(self.state.values())):
            if isinstance(leaf, Tensor):
                vars(leaf)[STATE] = True


def on_paper(training: Training, paper: Paper) -> Training:
    """Return how a side trains, with optimisers for parameters without values."""
    return training.model_copy(update={"optimizer": PaperOptimizer.of(training.optimizer, paper)})


def forming(component: Component, paper: Paper) -> Any:
    """Return a component in which aggregators tell the form of what they would make.

    A rule that collects contributions may look at their values. Where it folds into base weights, the
    form of what comes out depends on them: it is tried on random ones, equal where they must be equal.
    """
    changes = {
        name: _forming(value, paper)
        for name, value in dict(component).items()
        if isinstance(value, Aggregator) and type(value).begin is Aggregator.begin
    }
    return component.model_copy(update=changes) if changes else component


def _forming(aggregator: Aggregator, paper: Paper) -> Aggregator:
    """Return an aggregator of the same class, but for what it looks at."""
    own = type(aggregator)

    class Forming(own):  # type: ignore[misc, valid-type]
        def aggregate(
            self, contributions: Sequence[Contribution], like: Tensors, factors: Sequence[Factors]
        ) -> Aggregate:
            if all(map(has_values, like.values())):
                found: Aggregate = super().aggregate(contributions, like, factors)
                return found
            if not self.folds:
                names = sorted({name for c in contributions for name in c.tensors})
                return Aggregate({name: torch.empty_like(like[name]) for name in names})
            drawn = _Drawn(paper)
            sent = [Contribution(c.client, c.weight, drawn.all(c.tensors)) for c in contributions]
            values = drawn.all(like)
            found = super().aggregate(sent, values, factors)
            tensors = {
                name: like[name] if torch.equal(tensor, values[name]) else drawn.back(tensor)
                for name, tensor in found.tensors.items()
            }
            folds = {
                name: LowRank(drawn.back(low.left), drawn.back(low.right))
                for name, low in found.folds.items()
            }
            return Aggregate(tensors, folds)

    made: Aggregator = Forming.model_construct(**dict(aggregator))
    return made


class _Drawn:
    """Random values for tensors that have none, equal ones for equal tensors."""

    def __init__(self, paper: Paper) -> None:
        self._paper, self._known = paper, dict[Any, Tensor]()

    def all(self, tensors: Tensors) -> Tensors:
        return {name: self._draw(tensor) for name, tensor in tensors.items()}

    def _draw(self, tensor: Tensor) -> Tensor:
        key = self._paper.values.of(tensor)
        if key not in self._known:
            draw = torch.Generator().manual_seed(len(self._known))
            found = torch.randn(tensor.shape, generator=draw, dtype=torch.float64)
            self._known[key] = found.to(tensor.dtype)
        return self._known[key]

    def back(self, tensor: Tensor) -> Tensor:
        return self._paper.empty(*tensor.shape, dtype=tensor.dtype)
