"""Logs of a deployment: what comes from another machine cannot forge a line, or move a cursor."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType


class _Clean(logging.Formatter):
    """One printable line for a message, and each line of a traceback set apart."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - as logging calls it
        record.message = _printable(record.message)
        return super().formatMessage(record)

    def formatException(  # noqa: N802
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None]
        | tuple[None, None, None],
    ) -> str:
        lines = super().formatException(ei).splitlines()
        return "\n".join("  " + _printable(line) for line in lines)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


class _Json(logging.Formatter):
    """One JSON object a line, with who says it."""

    def __init__(self, who: Mapping[str, str]) -> None:
        super().__init__()
        self._who = dict(who)

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as JSON, which has a way to write every character."""
        content = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            **self._who,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return json.dumps(content)


def log_to_screen(who: Mapping[str, str], form: str = "text") -> None:
    """Send Trillium's log to the output of this process, which Flower collects.

    Args:
        form: `text` or `json`.
    """
    logger = logging.getLogger("trillium")
    logger.handlers.clear()
    handler = logging.StreamHandler(sys.stdout)
    said = " ".join(f"{name}={value}" if value else name for name, value in who.items())
    text = _Clean(f"%(asctime)s %(levelname)s {said}: %(message)s")
    handler.setFormatter(_Json(who) if form == "json" else text)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
