"""Who is asked in a round, drawn as in a run, with nobody at the other end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from trillium.federation.fleet import Gathered, Lost


class Nobody:
    """An engine without a way to anybody, for drawing cohorts."""

    def __init__(self, clients: Sequence[str]) -> None:
        self.clients = sorted(clients)

    def carry(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Lost]]:
        """Refuse to carry anything."""
        raise AssertionError("a plan sends nothing")

    def gather(self, need: int) -> Gathered:
        """Return everybody."""
        return Gathered(frozenset(self.clients))

    def save(self, number: int) -> None:
        """Write nothing."""

    def restore(self, number: int) -> None:
        """Read nothing."""


@dataclass(frozen=True)
class Cohort:
    """Who is asked in a round.

    Attributes:
        asked: names, sorted.
        lost: those of them that are asked once, and never answer.
    """

    asked: tuple[str, ...]
    lost: frozenset[str]

    @property
    def present(self) -> list[str]:
        """Those that answer."""
        return [name for name in self.asked if name not in self.lost]
