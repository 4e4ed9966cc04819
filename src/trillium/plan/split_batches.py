"""One batch of a cut model on paper: what its messages weigh, and what client and server compute."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from trillium.federation.client import Client, verbs_of
from trillium.frameworks.split.body import Body, Step
from trillium.frameworks.split.client import _take_step
from trillium.frameworks.split.pooled import Forwarded, Pooled
from trillium.frameworks.split.protocol import Split
from trillium.models.parts import Parts
from trillium.models.slots import train_only
from trillium.plan.federation import Chunk, Federation
from trillium.plan.sizes import Weight
from trillium.plan.waves import FREE, Work
from trillium.wire.kinds import Tensors
from trillium.wire.message import Message, named, scalar

Pair = tuple[Weight, Weight]


@dataclass
class Batches:
    """What batches weigh, by rows and tokens, and cost, by their layout; each found once.

    Attributes:
        framework: its settings.
        federation: both sides.
        parts: the cut model.
        stepped: clients that have taken a step, whose optimisers so have their state.
    """

    framework: Split
    federation: Federation
    parts: Parts
    stepped: set[str] = field(default_factory=set)
    _weights: dict[Hashable, dict[str, Pair]] = field(default_factory=dict)
    _costs: dict[Hashable, dict[str, Work]] = field(default_factory=dict)
    _bodies: dict[Hashable, tuple[Work, Work]] = field(default_factory=dict)
    _run_for: dict[Hashable, tuple[int, dict[str, Work]]] = field(default_factory=dict)

    def client_part(self, client: Client) -> Tensors:
        """Return what trains at a client batch by batch, by name."""
        return {name: client.initial[name] for name in self.framework.client_names(self.parts)}

    @property
    def waits(self) -> bool:
        """Whether a batch stays at its client until the server has answered."""
        return self.framework.shape == "u" or self.framework.head_trains(self.parts)

    # Messages

    def weights(
        self, client: Client, chunk: Chunk, *, late: bool = False, kept: bool = False
    ) -> Mapping[str, Pair]:
        """Return what the messages of a batch weigh, down and up by verb.

        Args:
            client: whose batch it is.
            chunk: the batch.
            late: whether the first message to the client after `forward` also brings a step.
            kept: whether the server has the activations, and that message names the samples.
        """
        rows, tokens = len(chunk.examples), chunk.num_tokens
        key = (id(client.tier), len(str(client.round)), rows, tokens, late, kept)
        if key not in self._weights:
            pairs = self._messages(client, rows, tokens)
            if late or kept:
                down, up = pairs[1]
                samples = {"control/samples": _counts(rows)} if kept else {}
                step = Step().tensors() if late else {}
                pairs[1] = replace(down, tensors={**down.tensors, **samples, **step}), up
            self._weights[key] = {
                down.verb: (
                    self.federation.down(client.name, down),
                    self.federation.up(client.name, up),
                )
                for down, up in pairs
            }
        return self._weights[key]

    def _messages(self, client: Client, rows: int, tokens: int) -> list[tuple[Message, Message]]:
        """Return the messages of a batch; values, and so padding, have no part in them."""
        framework, dtype = self.framework, client.model.dtype
        hidden = self.federation.paper.empty(tokens, self.parts.width, dtype=dtype)
        number = scalar(0.0)
        up: dict[str, Tensor] = {
            "activations/hidden": hidden,
            "control/lengths": _counts(rows),
        }
        if framework.delta is not None:
            up |= {"control/samples": _counts(rows), "control/forms": _counts(rows).byte()}
        if framework.shape == "two_part":
            classifies = client.task.peft_task == "SEQ_CLS"
            up["labels/labels"] = _counts(rows if classifies else tokens)
        else:
            up["control/count"] = number
        found = [(Message("forward", Step().tensors()), Message("forward", up))]
        if framework.shape == "u":
            down = {"activations/output": hidden, "control/share": number}
            figures = {"control/loss": number, "control/squared_norm": number}
            gradient = {"gradients/output": hidden, **figures}
            found.append((Message("finish_batch", down), Message("finish_batch", gradient)))
        if framework.head_trains(self.parts):
            back = Message("backward", {"gradients/hidden": hidden})
            found.append((back, Message("backward", {"control/squared_norm": number})))
        return found

    # Work

    def costs(
        self, client: Client, chunk: Chunk, other: Chunk | None = None, *, first: bool = False
    ) -> Mapping[str, Work]:
        """Return what a batch costs its client, by verb; a step of its own is there once more.

        Args:
            client: whose batch it is.
            chunk: the batch.
            other: the one that is under way beside it, if there is one.
            first: whether the client has taken no step yet.
        """
        if not self.federation.counts:
            return {}
        key = (id(client.tier), chunk.layout, None if other is None else other.layout, first)
        if key not in self._costs:
            like = (id(client.tier), chunk.layout[1:], *key[2:])
            found = self._shared(like, chunk.layout[0])
            if found is None:
                with self.federation.paper.running():
                    found = self._run(client, chunk, other, first)
                self._run_for[like] = chunk.layout[0], found
            self._costs[key] = found
        return self._costs[key]

    def _shared(self, like: Hashable, rows: int) -> dict[str, Work] | None:
        """Return what fewer rows cost than have been run; `None` where that is not known.

        Of assumed examples, as in `Federation.summed`: FLOPs grow with the rows, and the largest batch
        alone is run.
        """
        known, costs = self._run_for.get(like, (0, {}))
        if not self.federation.texts.assumed or rows > known:
            return None
        if any(cost.flops * rows % known for cost in costs.values()):
            return None
        return {name: Work(cost.flops * rows // known, cost.peaks) for name, cost in costs.items()}

    def _run(
        self, client: Client, chunk: Chunk, other: Chunk | None, first: bool
    ) -> dict[str, Work]:
        """Run the verbs of a batch."""
        # What is sent instead of activations makes no difference to what is computed.
        framework = self.framework.model_copy(update={"delta": None})
        costs, verbs = dict[str, Work](), verbs_of(framework)

        def ask(message: Message) -> Message:
            self.federation.meter.reset()
            reply = verbs[message.verb](client, message)
            costs[message.verb] = self.federation.meter.work()
            return reply

        verbs["begin"](client, Message("begin", named("parameters", self.client_part(client))))
        optimizer = client.scratch["optimizer"]
        if optimizer is not None and not first:
            _step(optimizer)

        def run_forward(*chunks: Chunk) -> list[Message]:
            client.scratch["pending"].clear()
            client.scratch["batches"] = iter([found.examples for found in chunks])
            return [ask(Message("forward", Step().tensors())) for _ in chunks]

        if other is None:
            [sent] = run_forward(chunk)
        else:  # this batch goes forward behind the other one, and back before it
            run_forward(other, chunk)
            forward = costs["forward"]
            sent = run_forward(chunk, other)[0]
            costs["forward"] = forward
        hidden = sent.tensors["activations/hidden"]
        if framework.shape == "u":
            tensors = {"activations/output": hidden, "control/share": scalar(1.0)}
            ask(Message("finish_batch", tensors))
        if framework.head_trains(self.parts):
            ask(Message("backward", {"gradients/hidden": torch.zeros_like(hidden)}))
        if any(p.grad is not None for p in client.scratch["state"].values()):
            costs["step"] = self._stepped(client)
            costs["forward"] += costs["step"]
        client.scratch = {}
        return costs

    def _stepped(self, client: Client) -> Work:
        """Return what the step takes with which the next forward pass begins."""
        self.federation.meter.reset()
        _take_step(client, Message("forward", Step().tensors()))
        return self.federation.meter.work()

    def served(self, chunks: Sequence[Chunk]) -> list[tuple[str, Work]]:
        """Return the messages of a turn in order, with what the server computes once each is answered.

        Args:
            chunks: the batches of the turn.
        """
        groups = [chunks] if self.framework.mode == "coalesced" else [[chunk] for chunk in chunks]
        wanted = self.framework.head_trains(self.parts)
        forward, backward = Work(), Work()
        for group in groups:
            found = self.body(group, gradient=wanted)
            forward, backward = forward + found[0], backward + found[1]
        verbs = [("forward", forward + backward)]
        if self.framework.shape == "u":
            verbs = [("forward", forward), ("finish_batch", backward)]
        return [*verbs, ("backward", Work())] if wanted else verbs

    def body(self, chunks: Sequence[Chunk], *, gradient: bool) -> tuple[Work, Work]:
        """Return what the server computes for a pooled batch, forward and backward.

        Args:
            chunks: the batches that it takes as one.
            gradient: whether the clients want one back.
        """
        if not self.federation.counts:
            return FREE, FREE
        pool, count = [chunk.layout for chunk in chunks], sum(chunk.count for chunk in chunks)
        length = max(found[1] for found in pool)
        is_padded = any(found[2] or found[1] < length for found in pool)
        key = (sum(found[0] for found in pool), length, is_padded, gradient)
        if key not in self._bodies:
            found = self._shared(key[1:], key[0])
            if found is None:
                with self.federation.paper.running():
                    found = self._run_body(*key[:3], count, gradient)
                self._run_for[key[1:]] = key[0], found
            self._bodies[key] = found["forward"], found["backward"]
        return self._bodies[key]

    def _run_body(
        self, rows: int, length: int, is_padded: bool, count: int, gradient: bool
    ) -> dict[str, Work]:
        federation, server, parts = self.federation, self.federation.server, self.parts
        task, meter = server.task, federation.meter
        mask = torch.ones(rows, length, dtype=torch.int64)
        mask[0, length - 1] = 0 if is_padded else 1
        labels = _labels(task.peft_task == "SEQ_CLS", rows, length, count)
        hidden = federation.paper.empty(rows, length, parts.width, dtype=server.model.dtype)
        pooled = Pooled({"": Forwarded(hidden, mask, labels, count)})
        names = parts.body.names
        state = train_only(
            server.model.state({name: server.initial[name] for name in names}),
            () if self.framework.train == "client" else names,
        )
        body = Body("", parts, state, server.training.optimizer, None, meter)
        if body._optimizer is not None:
            _step(body._optimizer)
        meter.reset()
        body.forward(pooled, gradient=gradient)
        forward = meter.work()
        meter.reset()
        body.backward(pooled, task if self.framework.shape == "two_part" else None)
        return {"forward": forward, "backward": meter.work()}


def _step(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimiser the state that it has after its first step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _counts(size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.int32)


def _labels(classifies: bool, rows: int, length: int, count: int) -> Tensor:
    """Return labels of a pooled batch, of which so many are supervised."""
    if classifies:
        return torch.zeros(rows, dtype=torch.int64)
    flat = torch.full((rows, length), -100)
    places = torch.arange(rows * (length - 1))[:count]
    flat[places // (length - 1), 1 + places % (length - 1)] = 0
    return flat
