"""A meter that does work of one kind once, and tells what memory is made of, phase by phase.

The peak of a training step is where the backward pass begins, all activations being alive, or where it
ends, with all gradients, or in the optimiser's step. Which of them it is depends on the depth of the
model, but each grows evenly with it. So each of them is extrapolated, and not the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakIdKeyDictionary

from trillium.plan.fakes import BUFFER, Paper, is_fake
from trillium.plan.waves import Memory
from trillium.training.meters import Cost, Count, Meter

T = TypeVar("T")
STATE = "trillium_state"  # marks the tensors that an optimiser keeps
NEAR = 48  # changes of memory; fewer than the backward pass of two blocks makes
Phases = tuple[Memory, ...]
"""What is held at the peak of each phase of some work."""


@dataclass(frozen=True)
class _Work:
    """What some work costs."""

    flops: float
    phases: Phases

    @property
    def peak_bytes(self) -> int:
        return int(max((memory.peak for memory in self.phases), default=0))


@dataclass
class Known:
    """What is known of work by its key: share one among all who have the same model.

    Attributes:
        costs: FLOPs and memory of work that looks at nothing but its batch and what is resident.
        others: the same of other work.
        returned: the form of what it returned, and which tensors got a gradient.
    """

    costs: dict[Hashable, _Work] = field(default_factory=dict)
    others: dict[Hashable, _Work] = field(default_factory=dict)
    returned: dict[Hashable, tuple[Any, list[bool]]] = field(default_factory=dict)

    def cost(self, key: Hashable) -> _Work | None:
        """Return what some work costs, if that is known."""
        return self.costs.get(key) or self.others.get(key)

    def take(self, other: Known, key: Hashable, whole: Hashable) -> None:
        """Take from another what work costs that looks at nothing else, and what it returned."""
        self.costs[key], self.returned[whole] = other.costs[key], other.returned[whole]

    def elsewhere(self) -> Known:
        """Return what is known where work that looks at other things may find them in other sizes."""
        return Known(self.costs, returned=self.returned)


class PhaseMeter(Meter):
    """Counts what runs on paper, always on a CPU.

    Attributes:
        most: by the label of some work, the most that it held in each phase since the beginning.

    Args:
        paper: on which it runs.
        known: what others have done.
        plain: the same of work that is alike in every framework.
    """

    def __init__(self, paper: Paper, known: Known, plain: Known | None = None) -> None:
        super().__init__({}, "cpu")
        self._paper, self._known, self._plain = paper, known, plain
        self._flops, self._peak = 0.0, 0
        self._again: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.most: dict[str, Phases] = {}

    @contextmanager
    def measure(
        self, key: Hashable, resident: Callable[[], Iterable[Tensor]] = tuple
    ) -> Iterator[None]:
        """Add the cost of the enclosed work to the total, as a run does."""
        assert not self._measuring, "a measurement inside another would be counted twice"
        self._measuring = True
        try:
            if self._known.cost(key) is not None:
                yield
            else:
                count = _Moments(self._device)
                count.keep(resident())
                with self._paper.watched(count), _before_step(count.begin_step):
                    yield
                rest = list(resident())
                count.keep(rest)
                known = self._known.costs if count.is_closed(rest) else self._known.others
                known[key] = _Work(count.flops, count.phases(rest))
            self._add(key)
        finally:
            self._measuring = False

    def run(
        self,
        key: Hashable,
        work: Callable[..., T],
        resident: Callable[[], Iterable[Tensor]] = tuple,
        *,
        form: Hashable = None,
        moves: Iterable[nn.Parameter] = (),
        fills: Iterable[Tensor] = (),
        needs: Sequence[Tensor] = (),
        plain: bool = False,
    ) -> T:
        """Return what some work returns, or something of its form where it has been done before."""
        whole, fills = (key, form), list(fills)
        if plain and self._plain is not None and key in self._plain.costs:
            self._known.take(self._plain, key, whole)
        if self._known.cost(key) is not None and whole in self._known.returned:
            self._add(key)
            moved = list(moves)
            versions = [parameter._version + 1 for parameter in moved]
            torch._C._autograd._unsafe_set_version_counter(tuple(moved), tuple(versions))
            found, filled = self._known.returned[whole]
            for tensor, is_filled in zip(fills, filled, strict=True):
                if is_filled and tensor.grad is None:
                    tensor.grad = torch.empty_like(tensor)
            result: T = self._made(found, lambda: work(*needs))
            return result
        needs = [self._live(tensor) for tensor in needs]
        with self.measure(key, resident):
            done = work(*needs)
        self._known.returned[whole] = _form(done), [t.grad is not None for t in fills]
        if plain and self._plain is not None and key in self._known.costs:
            self._plain.take(self._known, key, whole)
        return done

    def _add(self, key: Hashable) -> None:
        work = self._known.cost(key)
        assert work is not None
        self._flops += work.flops
        self._peak = max(self._peak, work.peak_bytes)
        label = str(key[0] if isinstance(key, tuple) else key)
        before = self.most.get(label, work.phases)
        self.most[label] = tuple(map(_larger, before, work.phases))

    def _live(self, tensor: Tensor) -> Tensor:
        """Return a tensor that can go back the way it came, which may not have been gone yet."""
        again = self._again.get(tensor)  # type: ignore[no-untyped-call]
        found: Tensor = tensor if again is None else again()
        return found

    def _made(self, form: Any, again: Callable[[], Any]) -> Any:
        """Return something of a form.

        Args:
            again: does the work that returns it after all.
        """
        if isinstance(form, _Form):
            made = torch.empty_strided(form.shape, form.stride, dtype=form.dtype, device="meta")
            found = self._paper.tensor(made)
            if form.trains:
                self._again[found.requires_grad_()] = again
            return found
        if isinstance(form, list | tuple):
            parts = [self._made(f, lambda p=p: again()[p]) for p, f in enumerate(form)]  # type: ignore[misc]
            return type(form)(parts)
        return form

    def read(self) -> Cost:
        """Return the same as a run's meter does."""
        return Cost(self._flops, 0.0, self._peak)

    def reset(self, total: Cost = Cost()) -> None:
        """Start again from zero; what is known stays."""
        assert total == Cost()
        self._flops, self._peak = 0.0, 0


@dataclass(frozen=True)
class _Form:
    """The form of a tensor without values."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    trains: bool


def _form(found: Any) -> Any:
    """Return what work returned, with forms in place of tensors that have no values."""
    if isinstance(found, Tensor) and is_fake(found):
        return _Form(found.shape, found.stride(), found.dtype, found.requires_grad)
    if isinstance(found, list | tuple):
        return type(found)(map(_form, found))
    return found


def _larger(one: Memory, other: Memory) -> Memory:
    return one if one.peak >= other.peak else other


@contextmanager
def _before_step(call: Callable[..., None]) -> Iterator[None]:
    """Have something called whenever an optimiser's step begins."""
    handle = register_optimizer_step_pre_hook(call)
    try:
        yield
    finally:
        handle.remove()


class _Moments(Count):  # type: ignore[no-untyped-call]
    """Counts, and notes when the backward pass and the optimiser's step begin."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._backward: int | None = None  # where in the course of memory
        self._step: int | None = None
        self._gradients: dict[int, tuple[int, int]] = {}  # birth and bytes by storage
        self._found: set[int] = set()  # storages without values that were there before

    def follow(
        self, call: Callable[[Any, Any, Any], Any], func: Any, args: Any, kwargs: Any
    ) -> Any:
        """As the base class, and look whether this is the first operation of a backward pass."""
        if self._backward is None and torch._C._current_graph_task_id() != -1:
            self._backward = self.num_changes
        return super().follow(call, func, args, kwargs)

    def _meet(self, tensor: Tensor, existed: bool) -> None:
        if existed and is_fake(tensor) and id(tensor.untyped_storage()) not in self._live:
            self._found.add(id(tensor.untyped_storage()))
        super()._meet(tensor, existed)

    def is_closed(self, resident: Sequence[Tensor]) -> bool:
        """Whether nothing without values was looked at but what is resident."""
        return self._found <= {id(tensor.untyped_storage()) for tensor in resident}

    def begin_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Note that a step begins, and which gradients there are; a hook of the optimiser."""
        if self._step is None:
            self._step = self.num_changes
        self._note_gradients(p for group in optimizer.param_groups for p in group["params"])

    def _note_gradients(self, parameters: Iterable[Tensor]) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                key = id(parameter.grad.untyped_storage())
                if key in self._live:
                    found = self._live[key]
                    self._gradients[key] = found.birth, found.nbytes

    def phases(self, resident: Sequence[Tensor]) -> Phases:
        """Return the most that is held in each phase: passes, begin and end of backward, the step.

        A few changes of memory around both ends of the backward pass belong to them, the same ones
        whatever the depth.

        Args:
            resident: what stays.
        """
        self._note_gradients(t for t in resident if isinstance(t, nn.Parameter))
        course = self.course
        step = len(course) if self._step is None else self._step
        backward = step if self._backward is None else self._backward
        spans = [
            range(step),
            range(min(backward + NEAR, step)),
            range(max(step - NEAR, 0), step),
            range(step - 1, len(course)),
        ]
        weights, states = _held(resident)
        found = []
        for span in spans:
            at = max(span, key=course.__getitem__)
            born = [nbytes for birth, nbytes in self._gradients.values() if birth <= at]
            found.append(_divided(course[at], weights, sum(born), states))
        return tuple(found)


def _held(resident: Sequence[Tensor]) -> tuple[int, int]:
    """Return the bytes of parameters and buffers, and of the state of optimisers, among tensors."""
    weights: dict[int, int] = {}
    states: dict[int, int] = {}
    for tensor in resident:
        storage = tensor.untyped_storage()
        if STATE in vars(tensor):
            states[id(storage)] = storage.nbytes()
        elif isinstance(tensor, nn.Parameter) or vars(tensor).get(BUFFER) or not is_fake(tensor):
            weights[id(storage)] = storage.nbytes()
    return sum(weights.values()), sum(states.values())


def _divided(peak: int, weights: int, gradients: int, states: int) -> Memory:
    weights = min(weights, peak)
    states = min(states, peak - weights)
    gradients = min(gradients, peak - weights - states)
    return Memory(weights, gradients, states, peak - weights - states - gradients)
