"""Filters: of which public examples a client says nothing, because it knows nothing of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from trillium.component import Component
from trillium.side import Side
from trillium.tasks import Example

if TYPE_CHECKING:
    from trillium.config import ExperimentConfig


class Filter(Component, kind="filter", package="trillium.filters"):
    """The selector of a client, after Selective-FD (Shao et al., 2024, arXiv 2304.01731).

    What is left out is not sent, and has no part in the teacher. Which examples those are shows the
    server something of what the client has.
    """

    def check(self, config: ExperimentConfig) -> None:
        """Refuse settings that contradict each other.

        Raises:
            UserError: says which, why, and what to write instead.
        """

    def keep(self, side: Side, own: Sequence[Example], public: Sequence[Example]) -> Tensor | None:
        """Return of which public examples to speak, bool `(examples,)`; `None` is all.

        Args:
            side: the client's.
            own: its data.
            public: the examples that it is asked about.
        """
        raise NotImplementedError
