"""One client: bytes in, bytes out. A verb table, the client's own data, and what it keeps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from trillium.fleet import ERROR_VERB
from trillium.message import Message, MessageError
from trillium.models.load import LanguageModel
from trillium.models.slots import State
from trillium.rng import generator, scoped_rng
from trillium.tasks import Example, Task
from trillium.training.loop import Loop, Training
from trillium.training.meters import Meter
from trillium.wire import Wire

log = logging.getLogger(__name__)

Verb = Callable[["Client", Message], Message]


@dataclass
class Client:
    """A data owner's side.

    Attributes:
        name: who it is.
        model: the resident model; shared with other clients in a simulation, never written.
        task: what is learnt.
        examples: the client's own data, which never leaves it.
        test: held-out data that a simulation gives its clients, to look at their own models.
        verbs: what the framework lets the server ask for.
        training: how it trains.
        wire: the codecs.
        meter: what it computed since the last reply.
        seed: of the run.
        num_rounds: of the run.
        store: what the framework keeps here from one ask to the next.
    """

    name: str
    model: LanguageModel
    task: Task
    examples: list[Example]
    test: list[Example]
    verbs: Mapping[str, Verb]
    training: Training
    wire: Wire
    meter: Meter
    seed: int
    num_rounds: int
    store: dict[str, Any] = field(default_factory=dict)
    round: int = 0
    _asks: int = 0

    def handle(self, data: bytes) -> bytes:
        """Answer one message; whatever goes wrong becomes an error reply, never an exception."""
        self.meter.reset()
        try:
            reply = self._answer(self.wire.unpack(data, "down").message)
        except Exception as error:
            log.debug("client %s failed", self.name, exc_info=True)
            reply = Message(ERROR_VERB, meta={"reason": f"{type(error).__name__}: {error}"})
        cost = self.meter.read()
        raw = sum(tensor.nbytes for tensor in reply.tensors.values())
        figures = [cost.flops, cost.seconds, cost.peak_bytes, raw]
        tensors = {**reply.tensors, "control/cost": torch.tensor(figures, dtype=torch.float64)}
        return self.wire.pack(Message(reply.verb, tensors, reply.meta), "up").data

    def _answer(self, message: Message) -> Message:
        number = message.meta.get("round")
        if type(number) is not int or number < 0:
            raise MessageError(f"round {number!r} is not a count")
        if message.verb not in self.verbs:
            raise MessageError(f"verb {message.verb!r} is not one of {', '.join(self.verbs)}")
        # Each ask has random numbers of its own, so that dropout does not depend on the other asks.
        self._asks = self._asks + 1 if number == self.round else 0
        self.round = number
        with scoped_rng(self.seed, self.name, number, self._asks):
            return self.verbs[message.verb](self, message)

    @cached_property
    def weight(self) -> float:
        """The client's weight in means: its examples, or its supervised tokens."""
        return float(sum(self.task.num_targets(example) for example in self.examples))

    def generator(self, purpose: str) -> torch.Generator:
        """Return a generator for one purpose in this round."""
        return generator(self.seed, purpose, self.name, self.round)

    def progress(self, fraction: float) -> float:
        """Return how far the run is, from 0 to 1, at a fraction of this round."""
        return (max(self.round, 1) - 1 + fraction) / self.num_rounds

    def loop(self, label: str, state: State, module: nn.Module | None = None) -> Loop:
        """Return the local loop over a state, mounted into the model."""
        module = self.model.mount(state) if module is None else module
        pad_id = self.model.tokenizer.pad_token_id
        return Loop(module, state, pad_id, self.model.device, self.meter, label)
