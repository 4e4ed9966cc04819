"""What a client, or several together, send, receive and compute."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from trillium.clock.waves import Weight
from trillium.plan.paper import Weighed
from trillium.wire.ledger import Entry, Purpose
from trillium.wire.wire import Direction


@dataclass
class Traffic:
    """What crossed in one direction.

    Attributes:
        bytes: in all.
        kinds: the same by kind of tensor.
        low, high: the range of `bytes` where codecs depend on values.
        messages: how many.
    """

    bytes: float = 0
    kinds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    low: float = 0
    high: float = 0
    messages: float = 0

    def add(self, weight: Weight, times: float = 1) -> None:
        """Add a message."""
        self.bytes += weight.bytes * times
        self.low += weight.low * times
        self.high += weight.high * times
        self.messages += times
        for kind, count in weight.kinds.items():
            self.kinds[kind] += count * times

    def merge(self, other: Traffic, times: float = 1) -> None:
        """Add other traffic, so many times."""
        self.bytes += other.bytes * times
        self.low += other.low * times
        self.high += other.high * times
        self.messages += other.messages * times
        for kind, count in other.kinds.items():
            self.kinds[kind] += count * times


@dataclass
class Sums:
    """What one client, or several together, send, receive and compute.

    Attributes:
        up, down: what counts as communication.
        once: both ways, what crosses once and is reported apart.
        looks: both ways, what crosses because clients measure models, which counts nowhere else.
        look_flops: computed for that.
        flops: computed.
        peak_bytes: the most memory at once.
    """

    up: Traffic = field(default_factory=Traffic)
    down: Traffic = field(default_factory=Traffic)
    once: Traffic = field(default_factory=Traffic)
    looks: Traffic = field(default_factory=Traffic)
    look_flops: float = 0
    flops: float = 0
    peak_bytes: int = 0

    def add(self, entry: Entry) -> None:
        """Add one message."""
        size, kinds = entry.bytes, entry.kinds
        weight = kinds.weight if isinstance(kinds, Weighed) else Weight(size, kinds, size, size)
        self._of(entry.direction, entry.purpose).add(weight)
        if entry.purpose == "evaluate":
            self.look_flops += entry.flops or 0.0
            return
        self.flops += entry.flops or 0.0
        self.peak_bytes = max(self.peak_bytes, entry.peak_bytes or 0)

    def merge(self, other: Sums, times: float = 1) -> None:
        """Add other sums, so many times."""
        self.up.merge(other.up, times)
        self.down.merge(other.down, times)
        self.once.merge(other.once, times)
        self.looks.merge(other.looks, times)
        self.look_flops += other.look_flops * times
        self.flops += other.flops * times
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)

    @classmethod
    def mean(cls, every: Sequence[Sums]) -> Sums:
        """Return the mean of sums; of none, nothing."""
        mean = cls()
        for one in every:
            mean.merge(one, 1 / len(every))
        return mean

    def _of(self, direction: Direction, purpose: Purpose) -> Traffic:
        if purpose in ("once", "evaluate"):
            return self.once if purpose == "once" else self.looks
        return self.up if direction == "up" else self.down
