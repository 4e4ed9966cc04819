"""The server parts of a round: one that serves all clients, or in SplitFed v1 copies of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from trillium.federation.server import Server
from trillium.frameworks.split.body import Body
from trillium.frameworks.split.settings import SplitSettings
from trillium.models.parts import Parts
from trillium.models.slots import State, train_only, values

SHARED: Final = "shared"  # the server part of all clients, where they have no copies


def bodies_of(
    split: SplitSettings, server: Server, parts: Parts, clients: Sequence[str]
) -> dict[str, Body]:
    """Return the server part that serves each client: a shared one, or copies of its own."""
    trains = split.train != "client"
    if split.mode != "splitfed_v1":
        return dict.fromkeys(clients, shared_body(server, parts, trains=trains))
    current = values(server.state)
    return {c: _body(server, parts, server.model.state(current), c, trains=trains) for c in clients}


def shared_body(server: Server, parts: Parts, *, trains: bool) -> Body:
    """Return the server part that serves all clients; what it trains is the server's state."""
    return _body(server, parts, server.state, SHARED, trains=trains)


def _body(server: Server, parts: Parts, state: State, owner: str, *, trains: bool) -> Body:
    names = parts.body.names
    trained = server.training.trained(names) if trains else ()
    own = train_only({name: state[name] for name in names}, trained)
    saved = server.store.get("optimizers", {}).get(owner)
    return Body(owner, parts, own, server.training, saved, server.meter, server.task)
