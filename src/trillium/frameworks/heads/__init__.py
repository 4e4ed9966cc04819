"""Heads: what the task head starts as, before the first round and whatever the framework.

Imports `federation`, `data` and what is below them, and no framework.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from trillium.component import Component
from trillium.federation.fleet import Fleet
from trillium.federation.server import Server
from trillium.federation.setting import Setting
from trillium.federation.sums import Whole
from trillium.frameworks.effects import Crossings


class Head(Component, kind="head", package="trillium.frameworks.heads"):
    """A phase before the first round that gives the task head its values.

    What it leaves: the values by parameter name in the `store["head"]` of every side, so that they
    are part of what `Side.initial` returns, and in the server's state.
    """

    runs_model: ClassVar[bool] = False  # whether clients need the whole model for it
    needs_public: ClassVar[bool] = False  # whether there is to be a public set

    @property
    def whole(self) -> Whole | None:
        """What the sum over all data is like that it asks for, if that is all it asks for."""
        return None

    def crossings(self, config: Setting) -> Crossings:
        """Return what crosses beside control, by direction and kind."""
        return {}

    def no_effect(self, config: Setting) -> Mapping[str, str]:
        """Return the settings that a run never reads, by path, and why."""
        return {}

    def check(self, config: Setting) -> None:
        """Refuse settings that contradict each other."""

    def start(self, server: Server, fleet: Fleet) -> None:
        """Find the head, before `Framework.start`; a resumed run does not come here."""

    def inform(self, server: Server, fleet: Fleet) -> None:
        """Give the head to clients of a round that do not have it; called before each round."""
