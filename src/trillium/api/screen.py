"""What a user sees while runs go on: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trillium.report.human import prefixed
from trillium.report.measure import MAIN
from trillium.wire.ledger import Entry

NARROW = 90  # columns; on less the table has only what says how a run goes


class Screen:
    """Shows evaluations as they come.

    Args:
        console: where to; nothing is shown if it is quiet.
    """

    def __init__(self, console: Console, rounds: Mapping[tuple[str, int], int]) -> None:
        self._console = console
        self._rounds = dict(rounds)
        self._lines: dict[tuple[str, int], dict[str, Any]] = {}
        self._bytes: dict[tuple[str, int], dict[str, int]] = defaultdict(
            lambda: {"up": 0, "down": 0}
        )
        self._first: dict[tuple[str, int], int] = {}
        self._messages = 0
        self._here: Counter[tuple[str, int]] = Counter()  # messages since the last evaluation
        self._before: dict[tuple[str, int], int] = {}  # as many as there were before that one
        self._current: list[tuple[str, int]] = []
        self._start = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.quiet:
            self._live = Live(
                console=self._console, get_renderable=self._render, refresh_per_second=4
            )
            self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def begin(self, arm: str, seed: int) -> Seen:
        """Start a run and return what sees how it goes on."""
        self._current.append((arm, seed))
        if self._live is None:
            self._console.print(f"arm {arm}  seed {seed}  begins", highlight=False)
        return Seen(self, (arm, seed))

    def observe(self, key: tuple[str, int], line: Mapping[str, Any]) -> None:
        """Take an evaluation of a run."""
        self._lines[key] = dict(line)
        self._first.setdefault(key, line["round"])  # of a run that is gone on with, not the start
        if line["round"]:
            self._before[key] = self._here[key]
        self._here[key] = 0
        if self._live is None:
            self._console.print(self._plain(key, line), highlight=False, soft_wrap=True)

    def watch(self, key: tuple[str, int], entry: Entry) -> None:
        """Take note of a message of a run."""
        self._messages += 1
        self._here[key] += 1
        if entry.purpose == "train":
            self._bytes[key][entry.direction] += entry.bytes

    def end(self, key: tuple[str, int]) -> None:
        """Take note that a run has ended."""
        self._current.remove(key)

    def _plain(self, key: tuple[str, int], line: Mapping[str, Any]) -> str:
        return "  ".join(f"{name} {cell}" for name, cell in self._cells(key, line).items())

    def _cells(self, key: tuple[str, int], line: Mapping[str, Any]) -> dict[str, str]:
        measure = self._measure()
        sent = self._bytes[key]
        missing = f" ({len(line['missing'])} of {line['asked']} missing)" * bool(line["missing"])
        return {
            "arm": key[0],
            "seed": str(key[1]),
            "round": f"{line['round']}/{self._rounds[key]}{missing}",
            measure.replace("_", " "): f"{100 * line[measure]:.1f} %" if measure in line else "–",
            "loss": f"{line['loss']:.3f}" if "loss" in line else "–",
            "train loss": f"{line['train_loss']:.3f}" if "train_loss" in line else "–",
            "up (all)": prefixed(sent["up"], "B"),
            "down (all)": prefixed(sent["down"], "B"),
            "time": f"{line['seconds']:.0f} s",
        }

    def _measure(self) -> str:
        return next((m for m in MAIN for line in self._lines.values() if m in line), MAIN[0])

    def _render(self) -> RenderableType:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        left_out = ("seed", "train loss", "down (all)") if self._console.width < NARROW else ()
        for number, (key, line) in enumerate(self._lines.items()):
            cells = self._cells(key, line)
            shown = [name for name in cells if name not in left_out]
            for name in shown if number == 0 else ():
                table.add_column(name, justify="left" if name == "arm" else "right", no_wrap=True)
            style = "" if key in self._current else "dim"
            table.add_row(*(cells[name] for name in shown), style=style)
        total, elapsed = sum(self._rounds.values()), time.monotonic() - self._start
        whole, done = self._done()
        runs = [
            f"{arm} · seed {seed}" + " · loading" * ((arm, seed) not in self._lines)
            for arm, seed in self._current
        ]
        here = done - sum(self._first.values())
        left = f", about {_clock(elapsed * (total - done) / here)} left" if here >= 1 else ""
        status = [
            *(runs if len(runs) < 2 else [f"{len(runs)} runs at a time"]),
            f"{whole}/{total} rounds",
            f"{self._messages:,} messages",
            f"{_clock(elapsed)}{left if whole < total else ''}",
        ]
        bar = ProgressBar(total=max(total, 1), completed=done, width=min(40, self._console.width))
        return Group(table, bar, Text(" · ".join(status), style="cyan"))

    def _done(self) -> tuple[int, float]:
        """Return how many rounds are complete, and with the share of those that are under way."""
        whole = sum(line["round"] for line in self._lines.values())
        shares = [
            min(self._here[key] / before, 1.0)
            for key, before in self._before.items()
            if before and self._lines[key]["round"] < self._rounds[key]
        ]
        return whole, whole + sum(shares)


@dataclass(frozen=True)
class Seen:
    """One run on a screen."""

    screen: Screen
    key: tuple[str, int]

    def observe(self, line: Mapping[str, Any]) -> None:
        """Show an evaluation."""
        self.screen.observe(self.key, line)

    def watch(self, entry: Entry) -> None:
        """Count a message."""
        self.screen.watch(self.key, entry)

    def end(self) -> None:
        """Show that the run goes on no longer."""
        self.screen.end(self.key)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
