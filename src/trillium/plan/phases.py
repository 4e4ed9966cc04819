"""A meter that does work of one kind once, and remembers what it costs and what form it returns."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from trillium.plan.fakes import Paper, is_fake
from trillium.plan.memory import Memory
from trillium.plan.moments import Moments, Phases, Record, before_step
from trillium.plan.values import change
from trillium.training.meters import Cost, Evenly, Meter

T = TypeVar("T")


@dataclass
class Known:
    """What is known of work by its key: share one among all who have the same model.

    Attributes:
        costs: FLOPs and memory of work that looks at nothing but its batch and what is resident.
        others: the same of other work.
        returned: the form of what it returned, and which tensors got a gradient.
        alike: by all that works have in common but the number of rows, and by how much was counted, the
            keys of what two of them cost and of what they returned, by their numbers of rows.
    """

    costs: dict[Hashable, Record] = field(default_factory=dict)
    others: dict[Hashable, Record] = field(default_factory=dict)
    returned: dict[Hashable, tuple[Any, list[bool]]] = field(default_factory=dict)
    alike: dict[Hashable, dict[int, dict[int, tuple[Hashable, Hashable]]]] = field(
        default_factory=dict
    )

    def cost(self, key: Hashable) -> Record | None:
        """Return what some work costs, if that is known."""
        return self.costs.get(key) or self.others.get(key)

    def note(self, evenly: Evenly, key: Hashable, whole: Hashable) -> None:
        """Note work that others may be told from."""
        like, rows = evenly
        cost = self.cost(key)
        if cost is not None:  # the first step of an optimiser counts what makes its state, too
            found = self.alike.setdefault(like, {}).setdefault(len(cost.sums), {})
            if len(found) < 2:
                found[rows] = key, whole

    def tell(self, evenly: Evenly, key: Hashable, whole: Hashable) -> None:
        """Tell what work takes and returns from two that had other numbers of rows, if there are such.

        They do the same operations, whose every result is so many bytes longer with each row.
        """
        like, rows = evenly
        pairs = [found for found in self.alike.get(like, {}).values() if len(found) == 2]
        if not pairs:
            return
        (first, (one, its)), (second, (other, theirs)) = pairs[0].items()
        steps, of = rows - first, second - first
        for costs in (self.costs, self.others):
            if one in costs and other in costs:
                cost = costs[one].towards(costs[other], steps, of)
                with suppress(_UnevenError):
                    found = _towards(self.returned[its], self.returned[theirs], steps, of)
                    if cost is not None:
                        costs[key], self.returned[whole] = cost, found

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
                known[key] = count.record(rest)
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
        evenly: Evenly | None = None,
    ) -> T:
        """Return what some work returns, or something of its form where it has been done before."""
        whole, fills = (key, form), list(fills)
        shared = self._plain if plain else None
        for known in (shared, self._known):
            if known is not None and evenly is not None and known.cost(key) is None:
                known.tell(evenly, key, whole)
        if shared is not None and key in shared.costs:
            self._known.take(shared, key, whole)
        if self._known.cost(key) is not None and whole in self._known.returned:
            self._add(key)
            change(moves)
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
        if shared is not None and key in self._known.costs:
            shared.take(self._known, key, whole)
        for known in (shared, self._known):
            if known is not None and evenly is not None:
                known.note(evenly, key, whole)
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


class _UnevenError(Exception):
    """What two works returned does not differ in sizes alone."""


def _towards(one: Any, other: Any, steps: int, of: int) -> Any:
    """Return what lies so many of so many steps from one form of what was returned to another.

    Raises:
        _UnevenError: nothing does.
    """
    if type(one) is not type(other):
        raise _UnevenError
    if isinstance(one, _Form):
        parts = [(one.shape, other.shape), (one.stride, other.stride)]
        shape, stride = (_towards(tuple(a), tuple(b), steps, of) for a, b in parts)
        if (one.dtype, one.trains) != (other.dtype, other.trains):
            raise _UnevenError
        return replace(one, shape=torch.Size(shape), stride=stride)
    if isinstance(one, list | tuple) and len(one) == len(other):
        return type(one)(_towards(a, b, steps, of) for a, b in zip(one, other, strict=True))
    if type(one) is int and not (other - one) * steps % of:
        return one + (other - one) * steps // of
    if one is not other and (isinstance(one, Tensor) or one != other):
        raise _UnevenError
    return one


def _larger(one: Memory, other: Memory) -> Memory:
    return one if one.peak >= other.peak else other
