"""Hiddens: whether students are also drawn to the hidden states behind the clients' opinions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trillium.component import Component
from trillium.errors import UserError
from trillium.frameworks.kd.hiddens.probe import Probe

if TYPE_CHECKING:
    from trillium.federation.setting import Setting
    from trillium.federation.side import Side


class Hidden(Component, kind="hidden", package="trillium.frameworks.kd.hiddens"):
    """Which hidden states of public examples the clients send beside their soft labels.

    The server averages them, and the distillation loss gets a term that draws a student's own hidden
    states to the mean, as in FitNets (Romero et al., 2015, arXiv 1412.6550), but in few dimensions.
    """

    def check(self, config: Setting) -> None:
        """Refuse settings that contradict each other.

        Raises:
            UserError: says which, why, and what to write instead.
        """

    def probe(self, side: Side) -> Probe | None:
        """Return what reads hidden states in the model of a side, equally on all sides.

        `None` where there are none to read.

        Raises:
            UserError: the model has no such hidden states.
        """
        raise NotImplementedError

    def _check_common_space(self, config: Setting) -> None:
        """Refuse models whose hidden states cannot be averaged."""
        common = (config.model, config.adapter)
        sides = {f"tiers.{label}": tier for label, tier in config.tiers.items()}
        for where, own in {"server": config.server, **sides}.items():
            if (own.model or config.model, own.adapter or config.adapter) != common:
                raise UserError(
                    f"framework.hidden={self.name} with {where}.model or {where}.adapter",
                    "hidden states of different models have no common space",
                    "Write framework.hidden=none",
                )
