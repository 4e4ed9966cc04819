"""What all verbs have in common: plain help, `-h`, and how much is said while they work."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, TextIO

import click
from typer.core import TyperGroup

from trillium.errors import UserError, suggest

LEVEL: Final = "TRILLIUM_LOG"  # in the environment
LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")


class _Screen(logging.StreamHandler[TextIO]):
    """Writes to what standard error is at the time: while a live table is shown, above that."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _File(logging.FileHandler):
    """Adds the log to a file."""


@dataclass
class Log:
    """How much is said on standard error, and what goes into a file."""

    more: int = 0
    quiet: bool = False
    file: Path | None = None

    def apply(self) -> None:
        """Set up logging.

        Raises:
            UserError: the environment names no level, or the file cannot be written.
        """
        level = self._level()
        root, ours = logging.getLogger(), logging.getLogger("trillium")
        for handler in [found for found in root.handlers if isinstance(found, _Screen | _File)]:
            root.removeHandler(handler)
            handler.close()
        screen = _Screen()
        screen.setLevel(level)
        screen.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        root.addHandler(screen)
        if self.file is not None:
            root.addHandler(_file(self.file))
        # Libraries say little that is of use here.
        root.setLevel(logging.INFO if self.more > 1 else logging.WARNING)
        ours.setLevel(level if self.file is None else min(level, logging.INFO))

    def _level(self) -> int:
        if self.quiet and self.more:
            raise UserError("-q with -v", "one says less, the other more", "Take one of them")
        if self.quiet:
            return logging.ERROR
        if self.more:
            return logging.INFO if self.more == 1 else logging.DEBUG
        name = os.environ.get(LEVEL, "WARNING").upper()
        if name not in LEVELS:
            known = [level.lower() for level in LEVELS]
            raise UserError(
                f"{LEVEL}={os.environ[LEVEL]}",
                "the environment variable names no level of logging",
                suggest(name.lower(), known),
            )
        return int(getattr(logging, name))


def _file(path: Path) -> logging.Handler:
    try:
        handler = _File(path, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--log-file {path}",
            f"it cannot be written ({error.strerror})",
            "Name a file in an existing folder that you may write to",
        ) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler


def is_quiet() -> bool:
    """Whether nothing but results and errors is wanted."""
    screens = (found for found in logging.getLogger().handlers if isinstance(found, _Screen))
    return any(screen.level > logging.WARNING for screen in screens)


def _log_options() -> list[click.Parameter]:
    """Return the options of every verb that say how much is said."""

    def take(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if not value:
            return
        log = context.find_root().ensure_object(Log)
        if parameter.name == "verbose":
            log.more += value
        elif parameter.name == "quiet":
            log.quiet = True
        else:
            log.file = value
        log.apply()

    return [
        click.Option(
            ["-v", "--verbose"], count=True, expose_value=False, callback=take,
            help="Log to standard error; -vv logs more.",
        ),
        click.Option(
            ["-q", "--quiet"], is_flag=True, expose_value=False, callback=take,
            help="Print results and errors only.",
        ),
        click.Option(
            ["--log-file"], type=click.Path(path_type=Path), expose_value=False, callback=take,
            help="Append the log to this file.",
        ),
    ]  # fmt: skip


class _Plain(click.HelpFormatter):
    """Writes help without the backslashes that Typer puts before brackets, for Rich."""

    def write_dl(self, rows: Any, *args: Any, **kwargs: Any) -> None:
        super().write_dl([(word, text.replace("\\[", "[")) for word, text in rows], *args, **kwargs)


class _Context(click.Context):
    formatter_class: ClassVar[type[click.HelpFormatter]] = _Plain  # type: ignore[misc]


def _version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(f"trillium {version('trillium')}")
        context.exit()


class Verbs(TyperGroup):
    """The program: its verbs, each with what all have."""

    context_class = _Context

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.params += [
            *_log_options(),
            click.Option(
                ["-V", "--version"], is_flag=True, is_eager=True, expose_value=False,
                callback=_version, help="Print the version.",
            ),
        ]  # fmt: skip
        for verb in self.commands.values():
            verb.context_class = _Context
            verb.params += _log_options()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs, each with its whole first sentence."""
        with formatter.section("Commands"):
            formatter.write_dl([
                (name, " ".join((verb.help or "").split("\n\n")[0].split()))
                for name, verb in self.commands.items()
            ])  # fmt: skip


@contextmanager
def working(what: str) -> Iterator[None]:
    """Say on a terminal what is under way, while nothing else is said: libraries alone take seconds."""
    if is_quiet() or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{what} …"):
        yield
