"""One client: bytes in, bytes out. A verb table, the client's own data, and what it keeps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from types import FunctionType, ModuleType
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from trillium.component import Component
from trillium.federation.dispatch import ERROR_VERB
from trillium.federation.parts import Halves, Joining, is_part, limits_of
from trillium.federation.side import Side
from trillium.federation.tiers import Tier
from trillium.models.slots import State
from trillium.privacy import NoPrivacy, Privacy
from trillium.privacy.example import NoisySteps
from trillium.rng import scoped_rng
from trillium.tasks import Batch, Example
from trillium.training.loop import Loop, batches
from trillium.training.meters import Cost, resident_tensors
from trillium.wire.kinds import Limits, MessageError, Tensors
from trillium.wire.message import Message
from trillium.wire.wire import Packed, Wire

log = logging.getLogger(__name__)

Verb = Callable[["Client", Message], Message]


class Hiding(Protocol):
    """What hides in sums what a client sends."""

    @property
    def verbs(self) -> Mapping[str, Verb]:
        """What a client can be asked for it."""

    def closed(self, reply: Message, message: Message, data: bytes) -> Message:
        """Return a reply as it leaves, to a message that came as these bytes."""


F = TypeVar("F", bound=Callable[..., Message])


def client_verb(function: F) -> F:
    """Mark what the server may ask a client for.

    A method of a component, or a function `(component, client, message)` in one of the modules that the
    component names as `client_half`.
    """
    function.__dict__["client_verb"] = True
    return function


def verbs_of(*components: Component) -> dict[str, Verb]:
    """Return the clients' half of components: what a client can be asked, by verb."""
    found: dict[str, Verb] = {}
    for component in components:
        for base in type(component).__mro__:
            found |= {name: getattr(component, name) for name in _marked(base)}
        for module in getattr(component, "client_half", ()):
            found |= {name: partial(verb, component) for name, verb in _marked(module).items()}
    return found


def _marked(place: type | ModuleType) -> dict[str, Callable[..., Message]]:
    return {
        name: found
        for name, found in vars(place).items()
        if isinstance(found, FunctionType) and found.__dict__.get("client_verb")
    }


def _all_of(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


@dataclass(kw_only=True)
class Client(Side):
    """A data owner's side; its `test` are rows that it does not train on, to measure models with.

    Attributes:
        examples: the client's own data, which never leaves it.
        tier: what this client does differently from others.
        describe: what the server is told of an error; all of it in a simulation.
        leave: looks at each answer (its verb, its round, the bytes of the ask) before it leaves; where
            it raises, that is the answer.
        privacy: what is to leave of what the client answers.
        steps: how steps and sums hide single examples, if they do.
    """

    examples: list[Example]
    verbs: Mapping[str, Verb]
    wire: Wire
    tier: Tier = field(default_factory=Tier)
    describe: Callable[[Exception], str] = _all_of
    leave: Callable[[str, int, int, Packed], None] | None = None
    privacy: Privacy = field(default_factory=NoPrivacy)
    steps: NoisySteps | None = None
    masks: Hiding | None = None
    last_verb: str = ""
    _asks: int = 0

    def handle(self, data: bytes) -> bytes:
        """Answer one message; whatever goes wrong becomes an error reply, never an exception.

        One that is too long to be carried at once comes in parts, and its answer goes so.
        """
        self.meter.reset()
        size = len(data)
        try:
            if is_part(data):
                whole, answer = self._parts.take(data)
                if whole is None:
                    return answer
                data = whole
            message = self.wire.unpack(data, "down", self._limits).message
            reply = self._closed(self._answer(message), message, data)
        except Exception as error:
            log.debug("client %s failed", self.name, exc_info=True)
            reply = Message(ERROR_VERB, meta={"reason": self._reason(error)})
        packed = self._packed(reply)
        if self.leave is not None:
            try:
                self.leave(self.last_verb, self.round, size, packed)
            except Exception as error:
                packed = self._packed(Message(ERROR_VERB, meta={"reason": self._reason(error)}))
        return self._parts.give(packed.data)

    def _closed(self, reply: Message, message: Message, data: bytes) -> Message:
        """Return a reply as it leaves."""
        if self.masks is not None:
            return self.masks.closed(reply, message, data)
        return self.privacy.closed(reply, message)

    def _packed(self, reply: Message) -> Packed:
        """Return a reply as it crosses, with what it has cost."""
        figures = [*self._cost(), reply.bytes_raw]
        tensors = {**reply.tensors, "control/cost": torch.tensor(figures, dtype=torch.float64)}
        meta = {**reply.meta, "round": self.round}  # codecs with shared randomness go by it
        return self.wire.pack(replace(reply, tensors=tensors, meta=meta), "up")

    def secret(self, purpose: str) -> bytes:
        """Return a key for one purpose in one ask: what is asked again is drawn anew."""
        return super().secret(f"{purpose}/{self._asks}")

    def batches(self) -> Iterator[list[Example]]:
        """Yield the batches of this round of the client's own data."""
        if self.steps is not None:
            return self.steps.batches(self.examples, self.training.num_steps(len(self.examples)))
        return batches(self.examples, self.training, self.generator("batches"))

    def loop(self, label: str, state: State) -> Loop:
        """Return the local loop, whose steps hide examples if they are to be hidden."""
        return replace(super().loop(label, state), private=self.steps)

    def sum_rows(self, rows: Tensor, groups: Tensor, num_groups: int, noise: float) -> Tensor:
        """Return the sum of the rows of each group, one row for each example of the client's own.

        Args:
            rows: `(examples, width)` float64, none longer than 1 in l2 norm.
            groups: `(examples,)`.
            noise: in units of the noise of a step, where examples are to be hidden.
        """
        if self.steps is not None:
            return self.steps.sums(rows, groups, num_groups, noise)
        return rows.new_zeros(num_groups, rows.shape[1]).index_add(0, groups, rows)

    def tally(
        self, state: State, base: Tensors, batch_tokens: int, *, metered: bool = True
    ) -> Tensors:
        """Return the counts and sums of a state on the client's held-out rows.

        Args:
            base: weights that are others than as loaded.
            metered: whether it counts as work of the client.
        """
        module = self.model.mount(state, base).eval()

        def measured(batch: Batch, work: Callable[[], Tensors]) -> Tensors:
            if not metered:
                return work()
            key = ("measure", batch.layout, self.task.num_rows(batch.labels))
            return self.meter.run(key, work, lambda: resident_tensors(module))

        examples, tokenizer = self.test if metered else self.known_tests(), self.model.tokenizer
        return self.task.tally(module, examples, tokenizer, batch_tokens, measured)

    def _cost(self) -> tuple[float, float, float]:
        """Return the cost of an ask; in a private run none, as it tells how much data there is."""
        cost = Cost() if self.privacy.unit else self.meter.read()
        return cost.flops, cost.seconds, cost.peak_bytes

    def _reason(self, error: Exception) -> str:
        """Return what the server is told of an error; in a private run nothing, and the log has it."""
        if not self.privacy.unit:
            return self.describe(error)
        log.warning("client %s failed: %s", self.name, _all_of(error))
        return "it failed; the log of the client says why"

    @cached_property
    def _limits(self) -> Limits:
        return limits_of(self.model)

    @cached_property
    def _parts(self) -> Halves:
        return Halves(Joining(self._limits.max_bytes))

    def _answer(self, message: Message) -> Message:
        number = message.meta.get("round")
        if type(number) is not int or number < 0:
            raise MessageError(f"round {number!r} is not a count")
        verbs = {**self.verbs, **({} if self.masks is None else self.masks.verbs)}
        if message.verb not in verbs:
            raise MessageError(f"verb {message.verb!r} is not one of {', '.join(verbs)}")
        self.last_verb = message.verb
        # Each ask has random numbers of its own, so that dropout does not depend on the other asks.
        self._asks = self._asks + 1 if number == self.round else 0
        self.round = number
        with scoped_rng(self.seed, self.name, number, self._asks):
            return verbs[message.verb](self, message)

    def go_back(self, store: dict[str, Any], number: int) -> None:
        """Hold what it held after a round, and nothing of what has come since."""
        self.store, self.scratch, self.round, self._asks = store, {}, number, 0

    def dump(self) -> dict[str, Any]:
        """Return all that the next ask depends on, as tensors and plain values."""
        return {"store": self.store, "round": self.round, "asks": self._asks}

    def load(self, content: Mapping[str, Any]) -> None:
        """Go on from what `dump` returned."""
        self.store, self.round = content["store"], content["round"]
        self._asks = content["asks"]

    @cached_property
    def weight(self) -> float:
        """The client's weight in means: its examples, or its supervised tokens."""
        return float(sum(self.task.num_targets(example) for example in self.examples))
