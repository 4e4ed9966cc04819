"""Aggregators: what the server makes of the tensors that the clients of a round sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trillium.component import Component
from trillium.models.slots import Tensors


@dataclass(frozen=True)
class Contribution:
    """What one client sent.

    Attributes:
        client: its name.
        weight: its examples, or supervised tokens; positive.
        tensors: by parameter name.
    """

    client: str
    weight: float
    tensors: Tensors


class Aggregator(Component, kind="aggregator", package="trillium.aggregators"):
    """Reduces the contributions of a round to one set of tensors."""

    def aggregate(self, contributions: Sequence[Contribution]) -> Tensors:
        """Return one tensor per name.

        Args:
            contributions: at least one, with equal names and shapes, sorted by client so that the
                result does not depend on who answered first.
        """
        raise NotImplementedError
