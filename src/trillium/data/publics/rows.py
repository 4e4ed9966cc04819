"""Rows of the run's own source, taken from the training rows before these are divided."""

from __future__ import annotations

from typing import ClassVar

from trillium.data.publics import Public


class Rows(Public, name="rows"):
    """Take `data.public_size` of the training rows; no client has their texts."""

    is_written: ClassVar[bool] = False
