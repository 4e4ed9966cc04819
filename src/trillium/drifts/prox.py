"""FedProx: Federated Optimization in Heterogeneous Networks (Li et al., 2020, arXiv 1812.06127)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field

from trillium.drifts import Correction, Drift
from trillium.models.slots import State, Tensors


@dataclass
class _Pull(Correction):
    """The gradient of `mu / 2 * ||state - start||^2`."""

    state: State
    start: Tensors
    mu: float

    @torch.no_grad()
    def apply(self) -> None:
        for name, parameter in self.state.items():
            if parameter.grad is not None:
                parameter.grad.add_(parameter - self.start[name], alpha=self.mu)


class Prox(Drift, name="prox"):
    """Add `mu / 2 * ||state - received||^2` to the loss, through its gradient.

    Attributes:
        mu: how strongly a client is held to what it received; 0 is federated averaging.
    """

    mu: float = Field(default=0.01, ge=0)

    def correction(
        self, client: dict[str, Tensors], state: State, start: Tensors, received: Tensors
    ) -> Correction:
        """Return the pull towards the received state."""
        return _Pull(state, start, self.mu)
