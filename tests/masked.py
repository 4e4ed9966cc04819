"""A masked sum without models: clients that have a vector each, and any of them lost in any phase."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from tiny import Recorder
from trillium.experiment.run import Experiment
from trillium.federation.masked import MaskedSums
from trillium.federation.parts import Lost
from trillium.federation.sums import Form, Read
from trillium.privacy.masks import Masks
from trillium.privacy.sums import Masked
from trillium.wire.addend import Addend
from trillium.wire.kinds import MessageError, Tensors
from trillium.wire.message import Message, decode
from trillium.wire.wire import Wire

T = TypeVar("T")
ADD = "add"
WIRE = Wire()
LIKE: Tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(5)}
FORM = Form({"parameters": LIKE})


@dataclass
class Keeper:
    """A side that keeps what masks need."""

    name: str
    seed: int = 0
    store: dict[str, Any] = field(default_factory=dict)
    round: int = 1

    def lasting(self, purpose: str) -> bytes:
        return hashlib.sha256(f"{self.name} {purpose}".encode()).digest()


@dataclass
class Here:
    """A client: what it adds, and its masks. Messages reach it as bytes."""

    masks: Masks
    adds: Tensors
    seen: list[tuple[Message, Message]] = field(default_factory=list)

    def handle(self, data: bytes) -> Message:
        """Answer a message; `MessageError` where a client would say that it has failed."""
        message = WIRE.unpack(data, "down").message
        if message.verb == ADD:
            named = {f"parameters/{name}": tensor for name, tensor in self.adds.items()}
            reply = Message(ADD, summed=Addend(named, 7.0, {"loss": 1.0}))
        else:
            reply = self.masks.verbs[message.verb](None, message)
        reply = self.masks.closed(reply, message, data)
        self.seen.append((message, reply))
        return WIRE.unpack(WIRE.pack(reply, "up").data, "up").message


@dataclass
class Federation:
    """A server and its clients.

    Attributes:
        lost: by verb, who does not answer it.
        changed: makes something else of a message to a client, if it is there.
        asked: verbs in order, each with whom it went to.
    """

    clients: dict[str, Here]
    server: MaskedSums
    lost: dict[str, set[str]] = field(default_factory=dict)
    changed: Callable[[str, Message], Message] | None = None
    asked: list[tuple[str, list[str]]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def ask(self, requests: Mapping[str, Message], read: Read[T]) -> Iterator[tuple[str, T]]:
        for verb in {message.verb for message in requests.values()}:
            self.asked.append((verb, sorted(requests)))
        for name, message in requests.items():
            if name in self.lost.get(message.verb, ()):
                continue
            found = message if self.changed is None else self.changed(name, message)
            try:
                reply = self.clients[name].handle(self.bytes_of(found))
                yield name, (read if callable(read) else read[name])(reply)
            except MessageError as error:
                self.refused[name] = str(error)

    def bytes_of(self, message: Message) -> bytes:
        return WIRE.pack(replace(message, meta={**message.meta, "round": 1}), "down").data

    def total(self, need: int | None = None, form: Form = FORM) -> Addend:
        """Return the mean of a sum with all clients."""
        message = Message(ADD, {"parameters/state": torch.ones(3)})
        return self.server.total(
            dict.fromkeys(self.clients, message),
            form,
            self.ask,
            lambda found: hashlib.sha256(self.bytes_of(found)).digest(),
            len(self.clients) if need is None else need,
            (),
        )

    def verbs(self) -> list[str]:
        return [verb for verb, _ in self.asked]


def made(count: int, peers: int = 48, bits: int = 8, least: int = 2, seed: int = 0) -> Federation:
    """Return a federation of clients with vectors of about one."""
    masked, draw = Masked(bits=bits, peers=peers), torch.Generator().manual_seed(seed)
    clients = {}
    for number in range(count):
        adds = {n: torch.randn(t.shape, generator=draw) for n, t in LIKE.items()}
        clients[f"c{number}"] = Here(Masks(masked, Keeper(f"c{number}"), least), adds)
    return Federation(clients, MaskedSums(masked, Keeper("server")))  # type: ignore[arg-type]


class Losing(Recorder):
    """Loses clients for good in a round, when they are asked something."""

    def __init__(self, run: Experiment, lost: Mapping[tuple[int, str], str]) -> None:
        super().__init__(run)
        self._run, self._lost = run, lost
        self._gone: set[str] = set()

    def carry(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Lost]]:
        for client, data in requests.items():
            at = self._run.fleet.round, decode(data).verb
            if self._lost.get(at) == client:
                yield client, Lost("the test loses it")
            else:
                yield from super().carry({client: data})
