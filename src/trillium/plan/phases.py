"""A meter that does work of one kind once, and remembers what it costs and what form it returns."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from trillium.plan.fakes import Paper, is_fake
from trillium.plan.memory import Memory
from trillium.plan.moments import Moments, Phases, before_step
from trillium.training.meters import Cost, Meter

T = TypeVar("T")


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
                count = Moments(self._device)
                count.keep(resident())
                with self._paper.watched(count), before_step(count.begin_step):
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
