"""Buffered asynchronous rounds: FedBuff (Nguyen et al., 2022, arXiv 2106.06639).

Exchanged is what FedLLM exchanges. Clients work on the state that they were sent, for as long as it
takes them. As soon as `buffer` of them have answered, wherever they began, the server takes a step
along the mean of their changes, and sends the new state to as many as have answered.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from trillium.wire.kinds import Tensors


class Asynchronous(BaseModel):
    """Rounds of those that answer next; `fleet.clients_per_round` are at work at a time.

    Attributes:
        buffer: how many answers make a round.
        damping: how much less a change counts that is stale. Where the server has taken `s` steps
            since the client was sent the state, it is multiplied by `(1 + s) ** -damping`: at 0.5 by
            one over the root, as in FedBuff; at 0 all count alike.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    buffer: int = Field(ge=1)
    damping: float = Field(default=0.5, ge=0)

    def damped(self, change: Tensors, staleness: int) -> Tensors:
        """Return a change as it counts so many steps later."""
        factor = (1 + staleness) ** -self.damping
        return {name: factor * tensor for name, tensor in change.items()} if staleness else change
