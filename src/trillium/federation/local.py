"""The local engine: all clients in this process, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set

from trillium.errors import UserError
from trillium.federation.checkpoint import Checkpoints
from trillium.federation.client import Client
from trillium.federation.engine import Gathered, Saved


class LocalEngine:
    """Runs clients that share one resident model.

    The bytes are the ones that would cross a network; nothing else passes between the sides. What
    `save` has to write goes to `checkpoints`, if there are any.
    """

    def __init__(self, clients: Sequence[Client], checkpoints: Checkpoints | None = None) -> None:
        self._clients = {client.name: client for client in sorted(clients, key=lambda c: c.name)}
        self._checkpoints = checkpoints
        self._changed = {client.name for client in clients if client.store}
        self._held: dict[str, int] = {}
        self.counts: dict[str, Mapping[str, int]] = {
            name: {"texts": len(client.examples), "held_out": len(client.test)}
            for name, client in self._clients.items()
        }

    @property
    def clients(self) -> Sequence[str]:
        """Names of the clients, sorted."""
        return list(self._clients)

    def carry(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
        """Ask the clients in the order of the requests."""
        for name, data in requests.items():
            self._changed.add(name)
            yield name, self._clients[name].handle(data)

    def gather(self, need: int) -> Gathered:
        """Return everybody: the clients are always here, and forget nothing."""
        return Gathered(self._clients.keys())

    def save(self, number: int) -> Saved | None:
        """Write what those clients hold that were asked, or were made, since the last time."""
        if self._checkpoints is None:
            return None
        for name in sorted(self._changed):
            self._checkpoints.keep(name, number, self._clients[name].store)
            self._held[name] = number
        self._changed.clear()
        return Saved(self._held)

    def restore(self, number: int, held: Mapping[str, int]) -> Set[str]:
        """Read the newest that each client has of that round or before.

        Raises:
            UserError: it is not that of the round that it must be of.
        """
        if self._checkpoints is None:
            return frozenset()
        for name, client in self._clients.items():
            found = self._checkpoints.newest(name, number)
            if name in held and (found is None or found[0] != held[name]):
                raise UserError(
                    str(self._checkpoints.folder / f"{name}@{held[name]}.pt"),
                    "this checkpoint of a client is gone, and the run would go on with another state",
                    "Put the file back, or start the run anew",
                )
            client.go_back({} if found is None else found[1], number)
        self._held = dict(held)
        return self._clients.keys()
