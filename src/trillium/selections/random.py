"""A random choice, as in DS-FL (Itahara et al., 2020, arXiv 2008.06180)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trillium.selections import Selection, drawn

if TYPE_CHECKING:
    from trillium.server import Server


class Random(Selection, name="random"):
    """Draw anew for each round."""

    def choose(self, server: Server, size: int) -> list[int]:
        """Return a draw of this round."""
        return sorted(drawn(server, [*range(len(server.public))], size))
