"""What the tests of the session engine share: Flower as it sees it, and nodes in threads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from flwr.app import RecordDict
from session_help import ClientThread, server_tls

from trillium.engines.distributed import SessionEngine
from trillium.engines.opening import Arrival, Opening
from trillium.engines.patience import Patience
from trillium.engines.roster import Mail, Online, text_of
from trillium.engines.session import Handler
from trillium.federation.parts import Lost

OPENING = Opening("run", {}, [], 0)
COUNTS = {"num_examples": 4, "texts": 5, "truncated": 2, "left_out": 1}


class FakeMail:
    """Flower as the engine sees it: who is online, what was sent, what is answered."""

    def __init__(self) -> None:
        self.online: dict[int, Online] = {}
        self.tokens: dict[str, list[str]] = {}
        self.replies: dict[str, RecordDict | Lost] = {}
        self._count = 0

    def nodes(self) -> dict[int, Online]:
        return self.online

    def send(
        self, action: str, contents: Mapping[int, RecordDict], ttl: float | None
    ) -> dict[str, int]:
        sent = {}
        for node, content in contents.items():
            name = self.online[node].name
            self.tokens.setdefault(name, []).append(text_of(content, "opening", "token"))
            self._count += 1
            sent[f"{name}-{len(self.tokens[name])}"] = node
        return sent

    def answers(self, waiting: Iterable[str]) -> Iterator[tuple[str, RecordDict | Lost]]:
        for message in list(waiting):
            if message in self.replies:
                yield message, self.replies.pop(message)


class Here:
    """A client's process: echoes asks, and notes what it is told; answers `had` where it is asked."""

    def __init__(self, *, had: bool = True, arrival: bytes | None = None) -> None:
        self.told: list[Any] = []
        self._had = had
        self._arrival = arrival

    def control(self, data: bytes) -> bytes:
        verb, number = json.loads(data)
        self.told.append([verb, number])
        if verb == "settle" and self._arrival is not None:
            return self._arrival
        self._had = self._had or verb == "save"
        at = number if self._had else None
        return (
            Arrival(at, COUNTS).encode().encode() if verb == "settle" else json.dumps(at).encode()
        )


@contextmanager
def engine(
    keys: Path, mail: FakeMail, wait_seconds: float = 0.0, patience: Patience | None = None
) -> Iterator[SessionEngine]:
    tls = server_tls(keys)
    address = "127.0.0.1:0"
    patience = patience or Patience(wait_seconds, 5.0)
    made = SessionEngine(
        cast(Mail, mail), OPENING, patience, bind=address, address=address, tls=tls
    )
    try:
        yield made
    finally:
        made.close(finished=False)


def come(
    made: SessionEngine,
    keys: Path,
    mail: FakeMail,
    name: str,
    here: Here,
    work: Handler = lambda data: data,
) -> ClientThread:
    """Start a client with the newest token, and wait until it is connected."""
    handlers = {"message": work, "control": here.control}
    port = made._sessions.port
    client = ClientThread(keys, port, name, mail.tokens[name][-1], handlers)
    assert made._sessions.wait([name], 10.0) == {name}
    return client


def asked(made: SessionEngine, *names: str) -> dict[str, bytes | Lost]:
    return dict(made.carry(dict.fromkeys(names, b"ask")))
