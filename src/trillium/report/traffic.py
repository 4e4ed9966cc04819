"""The ledger summed while it streams by, so that a report of a long run needs little memory.

Only messages of purpose "train" count as communication and compute; "once" is kept apart, and
messages that carry an evaluation are a property of the measurement, not of the framework.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any


@dataclass(frozen=True)
class RoundTraffic:
    """What crossed and what was computed in one round, summed over the clients.

    `flops` and `seconds` are None where no client measured any.
    """

    bytes_up: int = 0
    bytes_down: int = 0
    flops: float | None = None
    seconds: float | None = None

    def plus(self, other: RoundTraffic) -> RoundTraffic:
        """Return the sum of two."""
        return RoundTraffic(
            self.bytes_up + other.bytes_up,
            self.bytes_down + other.bytes_down,
            add_known(self.flops, other.flops),
            add_known(self.seconds, other.seconds),
        )


@dataclass(frozen=True)
class Traffic:
    """The training messages of one run, summed.

    `so_far` maps a round to the sum of all rounds up to and including it, in their order;
    `kinds` maps (direction, kind of tensor) to bytes; `num_turns` counts the pairs of a client and
    a round in which it took part, without what comes before the first round unless there is nothing
    else; `bytes_once` is what messages of purpose "once" took.
    """

    so_far: Mapping[int, RoundTraffic] = field(default_factory=dict)
    kinds: Mapping[tuple[str, str], int] = field(default_factory=dict)
    clients: frozenset[str] = frozenset()
    num_turns: int = 0
    num_answers: int = 0
    bytes_raw: int = 0
    bytes_once: int = 0
    peak_bytes: int | None = None

    def until(self, round_index: int | None = None) -> RoundTraffic:
        """Return the sum over all rounds up to and including one, over all where none is given."""
        rounds = list(self.so_far)
        count = len(rounds) if round_index is None else bisect_right(rounds, round_index)
        return self.so_far[rounds[count - 1]] if count else RoundTraffic()

    @property
    def compression(self) -> float | None:
        """Bytes before the codecs over bytes sent, None where nothing was sent."""
        total = self.until()
        sent = total.bytes_up + total.bytes_down
        return self.bytes_raw / sent if sent else None


class TrafficSum:
    """Adds up lines of a ledger; `num_malformed` counts those it could not use."""

    def __init__(self) -> None:
        self.num_malformed = 0
        self._rounds: dict[int, RoundTraffic] = defaultdict(RoundTraffic)
        self._kinds: dict[tuple[str, str], int] = defaultdict(int)
        self._turns: set[tuple[int, str]] = set()
        self._clients: set[str] = set()
        self._num_answers = self._bytes_raw = self._bytes_once = 0
        self._peak_bytes: int | None = None

    def add(self, line: Mapping[str, Any]) -> None:
        """Add one line of `wire.jsonl`."""
        try:
            self._add(line)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            self.num_malformed += 1

    def _add(self, line: Mapping[str, Any]) -> None:
        # Everything is taken from the line before anything is added: a line counts whole or not.
        client, purpose, direction = str(line["client"]), line["purpose"], line["direction"]
        round_index, size, raw = int(line["round"]), int(line["bytes"]), int(line["bytes_raw"])
        kinds = {str(kind): int(part) for kind, part in line["kinds"].items()}
        if direction not in ("up", "down"):
            raise ValueError(direction)
        is_up = direction == "up"
        flops, seconds = line.get("flops"), line.get("seconds")
        if purpose == "once":
            self._bytes_once += size
        if purpose != "train":
            return
        self._rounds[round_index] = self._rounds[round_index].plus(
            RoundTraffic(
                bytes_up=size if is_up else 0,
                bytes_down=0 if is_up else size,
                flops=float(flops) if is_up and flops is not None else None,
                seconds=float(seconds) if is_up and seconds is not None else None,
            )
        )
        for kind, part in kinds.items():
            self._kinds[direction, kind] += part
        self._turns.add((round_index, client))
        self._clients.add(client)
        self._num_answers += is_up
        self._bytes_raw += raw
        if is_up and line.get("peak_bytes") is not None:
            self._peak_bytes = max(self._peak_bytes or 0, int(line["peak_bytes"]))

    def result(self) -> Traffic:
        """Return the sums."""
        rounds = sorted(self._rounds)
        sums = accumulate((self._rounds[index] for index in rounds), RoundTraffic.plus)
        return Traffic(
            so_far=dict(zip(rounds, sums, strict=True)),
            kinds=dict(sorted(self._kinds.items())),
            clients=frozenset(self._clients),
            num_turns=sum(number > 0 for number, _ in self._turns) or len(self._turns),
            num_answers=self._num_answers,
            bytes_raw=self._bytes_raw,
            bytes_once=self._bytes_once,
            peak_bytes=self._peak_bytes,
        )


def add_known(a: float | None, b: float | None) -> float | None:
    """Add two numbers of which either may be unknown; None where both are."""
    if a is None or b is None:
        return b if a is None else a
    return a + b
