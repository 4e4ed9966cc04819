"""Soft labels alone are exchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trillium.frameworks.kd.hiddens import Hidden
from trillium.frameworks.kd.hiddens.probe import Probe

if TYPE_CHECKING:
    from trillium.federation.side import Side


class NoHidden(Hidden, name="none"):
    """No hidden states are sent, and none have a part in the loss."""

    def probe(self, side: Side) -> Probe | None:
        """Return `None`."""
        return None
