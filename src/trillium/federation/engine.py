"""What carries bytes between a server and its clients, and keeps what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from trillium.federation.parts import Lost


@dataclass(frozen=True)
class Gathered:
    """Who is there at the beginning of a round.

    Attributes:
        newcomers: those that have come, or come back without what they kept, since the last round.
        behind: those that came back with the state of another round than they had said to keep, and
            why that is.
    """

    present: Set[str]
    newcomers: Set[str] = frozenset()
    behind: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved:
    """What came of it that every client was to write down what it holds.

    Attributes:
        held: by client, the round of the state that it has said to keep; without those that have
            nothing to keep, or no place for it.
        lost: those whose work of the round counts, and whose state of it is gone, and why.
    """

    held: Mapping[str, int]
    lost: Mapping[str, str] = field(default_factory=dict)


class Engine(Protocol):
    """Carries bytes to clients and brings bytes back, and knows nothing else."""

    @property
    def clients(self) -> Sequence[str]:
        """Names of the clients of the run, sorted, whether or not they can be reached just now."""

    def carry(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Lost]]:
        """Yield `(client, reply)` as replies arrive, or why one will not."""

    def gather(self, need: int) -> Gathered:
        """Wait for clients before a round.

        Args:
            need: how many clients the round needs; after its patience the engine goes on with less.
        """

    def save(self, number: int) -> Saved | None:
        """Let every client write down what it holds after a round; `None` where nobody keeps any."""

    def restore(self, number: int, held: Mapping[str, int]) -> Set[str] | None:
        """Take every client back to what it wrote down after that round, or the newest before.

        Args:
            held: by client, the round of the state that it must have.

        Returns:
            Who is back there, or will be before it is asked anything; nobody for `None`.
        """


@runtime_checkable
class BoundedEngine(Engine, Protocol):
    """An engine that takes no more of a reply than it is told to."""

    most_bytes: int


@runtime_checkable
class CountingEngine(Engine, Protocol):
    """An engine whose clients have said how many texts they have, and how many are left out."""

    counts: dict[str, Mapping[str, int]]


@runtime_checkable
class LateEngine(Engine, Protocol):
    """An engine whose clients may answer when nobody waits for it any more."""

    def late(self) -> Sequence[tuple[str, int]]:
        """Return who has answered too late since the last time, and how many bytes."""


@runtime_checkable
class GuardedEngine(Engine, Protocol):
    """An engine whose clients may be found out during a round."""

    def revoked(self) -> Set[str]:
        """Return who has answered in this round, and is not to be believed any more."""


@runtime_checkable
class MendingEngine(Engine, Protocol):
    """An engine that puts by itself in place again what it has lost of its clients."""

    @property
    def repeats(self) -> int:
        """How often the round that is under way is worth a new try: never, if nobody was lost in it."""

    def ready(self) -> None:
        """Wait until clients can be asked."""


@runtime_checkable
class LaunchingEngine(Engine, Protocol):
    """An engine whose clients may be at work while rounds go by."""

    def launch(self, requests: Mapping[str, bytes]) -> None:
        """Send the requests now; the answers are among the arrivals, whenever they come."""

    def arrivals(self) -> Iterator[tuple[str, bytes | Lost]]:
        """Yield the answers to all that is under way as they arrive, or why one will not."""


@runtime_checkable
class PostingEngine(Engine, Protocol):
    """An engine whose clients work while the server does something else."""

    def post(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Lost]]:
        """Send the requests now, and return what yields the replies as `carry` does."""
