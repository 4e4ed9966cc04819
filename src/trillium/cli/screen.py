"""What a user sees while runs go on: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import defaultdict
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
from trillium.wire.ledger import Entry

QUALITY = ("accuracy", "exact_match", "token_accuracy")  # the first that a line has is shown


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
        self._done = 0
        self._messages = 0
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
        return Seen(self, (arm, seed))

    def observe(self, key: tuple[str, int], line: Mapping[str, Any]) -> None:
        """Take an evaluation of a run."""
        self._lines[key] = dict(line)
        self._done += line["round"] > 0
        if self._live is None:
            self._console.print(self._plain(key, line), highlight=False, soft_wrap=True)

    def watch(self, key: tuple[str, int], entry: Entry) -> None:
        """Take note of a message of a run."""
        self._messages += 1
        if entry.purpose == "train":
            self._bytes[key][entry.direction] += entry.bytes

    def end(self, key: tuple[str, int]) -> None:
        """Take note that a run has ended."""
        self._current.remove(key)

    def _plain(self, key: tuple[str, int], line: Mapping[str, Any]) -> str:
        cells = dict(zip(_COLUMNS, self._cells(key, line), strict=True))
        return "  ".join(f"{name} {cell}" for name, cell in cells.items())

    def _cells(self, key: tuple[str, int], line: Mapping[str, Any]) -> list[str]:
        quality = next((line[name] for name in QUALITY if name in line), None)
        sent = self._bytes[key]
        cells = [
            key[0],
            str(key[1]),
            f"{line['round']}/{self._rounds[key]}",
            "–" if quality is None else f"{100 * quality:.1f} %",
            f"{line['loss']:.3f}" if "loss" in line else "–",
            f"{line['train_loss']:.3f}" if "train_loss" in line else "–",
            prefixed(sent["up"], "B"),
            prefixed(sent["down"], "B"),
            f"{line['seconds']:.0f} s",
        ]
        if line["missing"]:
            cells[2] += f" ({len(line['missing'])} of {line['asked']} missing)"
        return cells

    def _render(self) -> RenderableType:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for name in _COLUMNS:
            table.add_column(name, justify="left" if name == "arm" else "right", no_wrap=True)
        for key, line in self._lines.items():
            table.add_row(*self._cells(key, line), style="" if key in self._current else "dim")
        total = sum(self._rounds.values())
        runs = [f"{arm} · seed {seed}" for arm, seed in self._current]
        now = (
            f"{runs[0]} · " if len(runs) == 1 else f"{len(runs)} runs at a time · " if runs else ""
        )
        elapsed = int(time.monotonic() - self._start)
        status = Text(
            f"{now}{self._done}/{total} rounds · {self._messages:,} messages · "
            f"{elapsed // 60}:{elapsed % 60:02d}",
            style="cyan",
        )
        progress = Table.grid(padding=(0, 2))
        progress.add_row(ProgressBar(total=max(total, 1), completed=self._done, width=40), status)
        return Group(table, progress)


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


_COLUMNS = (
    "arm",
    "seed",
    "round",
    "accuracy",
    "loss",
    "train loss",
    "up (all)",
    "down (all)",
    "time",
)
