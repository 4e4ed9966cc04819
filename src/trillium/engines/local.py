"""The local engine: all clients in this process, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from trillium.client import Client


class LocalEngine:
    """Runs clients that share one resident model.

    The bytes are the ones that would cross a network; nothing else passes between the sides.
    """

    def __init__(self, clients: Sequence[Client]) -> None:
        self._clients = {client.name: client for client in sorted(clients, key=lambda c: c.name)}

    @property
    def clients(self) -> Sequence[str]:
        """Names of the clients, sorted."""
        return list(self._clients)

    def carry(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
        """Ask the clients in the order of the requests."""
        for name, data in requests.items():
            yield name, self._clients[name].handle(data)
