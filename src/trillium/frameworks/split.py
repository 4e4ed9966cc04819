"""Split-FedLLM: the model is cut; clients run the first blocks (and the last), the server the rest.

Split learning (Vepakomma et al., 2018, arXiv 1812.00564), its parallel forms SplitFed v1 and v2
(Thapa et al., 2020, arXiv 2004.12088), with LoRA on either side as in SplitLoRA (Lin et al., 2024,
arXiv 2407.00952). The third of the three frameworks of Yan et al. (2025, arXiv 2501.04436).

Each batch, up: activations at the cut, with labels in two parts; down: their gradient. In the U
shape the server's output goes down to the client's last blocks, and its gradient comes up. Once a
round the client parts go up and, averaged, down.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from trillium.aggregators import Contribution
from trillium.aggregators.mean import Mean
from trillium.client import Client, client_verb
from trillium.errors import UserError
from trillium.fleet import Fleet
from trillium.frameworks import Framework, weigh
from trillium.message import Message, MessageError, named, scalar
from trillium.models.load import LanguageModel
from trillium.models.parts import (
    Body,
    Parts,
    Step,
    load_values,
    scaled_step,
    squared_norm,
)
from trillium.models.pooled import Forwarded, Pooled
from trillium.models.slots import State, Tensors, train_only, values
from trillium.server import Server
from trillium.side import Metrics, Side
from trillium.tasks import Batch, Example
from trillium.tasks.batches import collate
from trillium.training.loop import batches
from trillium.training.meters import resident_tensors

SHARED = "shared"  # the server part of all clients, where they have no copies
MAX_STEPS = 1_000_000  # of one client in one round; more can only be an error


class Split(Framework, name="split"):
    """Training across a cut.

    Attributes:
        cut: how many blocks the client runs before the server.
        shape: `two_part` sends labels to the server; `u` keeps them, and the last blocks, at the
            client.
        tail: first block of the client's last part in the U shape; where it is left out that part
            holds only the final norm and the task head.
        mode: `relay`: clients train one after the other and hand their part on; `splitfed_v1`: in
            parallel, each with its copy of the server part, averaged per round; `splitfed_v2`: one
            server part takes the clients' batches in random turns; `coalesced`: the server takes the
            batches of all clients as one. Client parts are averaged per round in all but `relay`.
        train: whose adapter trains; a client that is frozen gets no gradients. The last part of the U
            shape, which holds the task head, always trains.
    """

    cut: int = Field(default=1, ge=1)
    shape: Literal["two_part", "u"] = "two_part"
    tail: int | None = Field(default=None, ge=2)
    mode: Literal["relay", "splitfed_v1", "splitfed_v2", "coalesced"] = "coalesced"
    train: Literal["both", "server", "client"] = "both"

    @model_validator(mode="after")
    def _check(self) -> Split:
        if self.tail is not None and self.shape == "two_part":
            raise UserError(
                f"tail={self.tail}",
                "two_part gives the client no last part",
                "Write shape=u beside it",
            )
        return self

    # The server

    def start(self, server: Server, fleet: Fleet) -> None:
        """Cut the model and hold the cut against the whole."""
        self._parts(server.model, server.test)

    def round(self, server: Server, fleet: Fleet) -> Metrics:
        """Train with the cohort and bring the parts of the clients together."""
        order = server.generator("order")
        cohort = _shuffled(fleet.cohort, order)
        sessions = [[client] for client in cohort] if self.mode == "relay" else [cohort]
        loss, count = 0.0, 0
        for position, clients in enumerate(sessions):
            share = 1.0 / len(sessions)
            for lost, predictions in self._session(
                server, fleet, clients, order, position * share, share
            ):
                loss, count = loss + lost, count + predictions
        return {"train_loss": loss / max(count, 1)}

    def _session(
        self,
        server: Server,
        fleet: Fleet,
        clients: Sequence[str],
        order: torch.Generator,
        start: float,
        share: float,
    ) -> list[tuple[float, int]]:
        """Hand out the client part, train batch by batch, average what the clients hand back."""
        parts = self._parts(server.model, server.test)
        names = self._client_names(parts)
        part = {name: server.state[name].detach() for name in names}
        begin = Message("begin", named("parameters", part))
        num_steps = dict(fleet.ask(dict.fromkeys(clients, begin), _read_num_steps))
        bodies = self._bodies(server, parts, sorted(num_steps))

        due = dict.fromkeys(bodies, Step())  # what each client is told to do with its last gradient
        seen: list[tuple[float, int]] = []
        total = self._num_turns(num_steps)
        for done, group in enumerate(self._turns(num_steps, order)):
            present = {client: bodies[client] for client in group if client in fleet.cohort}
            progress = server.progress(start + share * done / total)
            rate = server.training.learning_rate(progress)
            seen += self._step(server, fleet, parts, present, due, rate)

        present = {client: body for client, body in bodies.items() if client in fleet.cohort}
        self._finish(server, fleet, part, present, due)
        kept = server.store.setdefault("optimizers", {})
        kept.update({body.owner: body.optimizer_state() for body in bodies.values()})
        return seen

    def _turns(self, num_steps: dict[str, int], order: torch.Generator) -> Iterator[list[str]]:
        """Yield whose batches the server takes next, as one: in turns, or all that have one left."""
        for turn in range(max(num_steps.values(), default=0)):
            active = [client for client in sorted(num_steps) if turn < num_steps[client]]
            if self._in_turns:
                yield from ([client] for client in _shuffled(active, order))
            else:
                yield active

    def _num_turns(self, num_steps: dict[str, int]) -> int:
        steps = num_steps.values()
        return sum(steps) if self._in_turns else max(steps, default=0)

    @property
    def _in_turns(self) -> bool:
        return self.mode in ("relay", "splitfed_v2")

    def _step(
        self,
        server: Server,
        fleet: Fleet,
        parts: Parts,
        bodies: dict[str, Body],
        due: dict[str, Step],
        rate: float,
    ) -> list[tuple[float, int]]:
        """Take one batch of each client through the model and back, and step every body."""
        head_trains = self._head_trains(parts)

        def read(reply: Message) -> Forwarded:
            found = Forwarded.read(
                reply,
                server.task,
                server.training,
                width=parts.width,
                num_classes=parts.num_classes,
                with_labels=self.shape == "two_part",
            )
            return found.to(server.model.device, server.model.dtype)

        forward = {client: Message("forward", due[client].tensors()) for client in bodies}
        forwarded = dict(fleet.ask(forward, read))
        work: list[tuple[Body, Pooled]] = []
        for body in dict.fromkeys(bodies.values()):  # each body once, in order
            members = {c: forwarded[c] for c in bodies if c in forwarded and bodies[c] is body}
            if members:
                work.append((body, Pooled(members)))
        for body, pooled in work:
            body.forward(pooled, gradient=head_trains)
        if self.shape == "u":
            self._ask_tails(fleet, [pooled for _, pooled in work])
        for body, pooled in work:
            body.backward(pooled, server.task if self.shape == "two_part" else None)
        if head_trains:
            self._send_gradients(fleet, [pooled for _, pooled in work])
        for body, pooled in work:
            step = body.step(pooled, rate, server.training.max_grad_norm)
            due.update(dict.fromkeys(pooled.members, step))
        return [(pooled.loss, pooled.count) for _, pooled in work]

    def _ask_tails(self, fleet: Fleet, work: Sequence[Pooled]) -> None:
        """Let the clients run their last part on the body's output and collect its gradient."""
        pooled_of = {client: pooled for pooled in work for client in pooled.members}
        asks = {
            client: Message(
                "finish_batch",
                {
                    "activations/output": pooled.rows(client, pooled.output.detach()),
                    "control/share": scalar(pooled.share(client)),
                },
            )
            for client, pooled in pooled_of.items()
        }

        def read(reply: Message) -> tuple[torch.Tensor, float, float]:
            gradient = reply.floats("gradients/output", (None, None, None))
            loss = reply.scalar("control/loss")
            return gradient, loss, reply.not_negative("control/squared_norm")

        # Sorted, because sums of floats depend on their order, and replies come in any.
        for client, (gradient, loss, norm) in sorted(fleet.ask(asks, read)):
            pooled = pooled_of[client]
            rows = pooled.rows(client, pooled.output_gradient)
            if gradient.shape != rows.shape:
                fleet.missing[client] = f"finish_batch: a gradient of {tuple(gradient.shape)}"
                continue
            rows.copy_(gradient)
            pooled.loss += loss
            pooled.client_squared_norm += pooled.share(client) * norm

    def _send_gradients(self, fleet: Fleet, work: Sequence[Pooled]) -> None:
        """Send the clients the gradients of their activations, of the mean over their own batch."""
        asks, pooled_of = {}, {}
        for pooled in work:
            gradient = pooled.hidden.grad
            assert gradient is not None
            for client in pooled.members:
                if client in fleet.cohort:
                    own = pooled.rows(client, gradient) / pooled.share(client)
                    asks[client] = Message("backward", {"gradients/hidden": own})
                    pooled_of[client] = pooled
        norms = fleet.ask(asks, lambda reply: reply.not_negative("control/squared_norm"))
        for client, norm in sorted(norms):
            pooled = pooled_of[client]
            pooled.client_squared_norm += pooled.share(client) * norm

    def _finish(
        self,
        server: Server,
        fleet: Fleet,
        part: Tensors,
        bodies: dict[str, Body],
        due: dict[str, Step],
    ) -> None:
        """Average the client parts, and in SplitFed v1 the server's copies, by examples."""
        asks = {client: Message("finish", due[client].tensors()) for client in bodies}

        def read(reply: Message) -> tuple[float, Tensors]:
            return reply.positive("control/weight"), reply.expect("parameters", part)

        replies = sorted(fleet.ask(asks, read))
        contributions = []
        for client, (weight, tensors) in replies:
            body = values(bodies[client].state) if self.mode == "splitfed_v1" else {}
            on_cpu = {name: tensor.cpu() for name, tensor in body.items()}
            contributions.append(Contribution(client, weight, {**tensors, **on_cpu}))
        if contributions:  # the only client of a relay's session may have dropped out
            mean = Mean().aggregate(contributions, contributions[0].tensors, ())
            load_values(server.state, mean.tensors)

    def _bodies(self, server: Server, parts: Parts, clients: Sequence[str]) -> dict[str, Body]:
        """Return the server part that serves each client: a shared one, or copies of its own."""
        if self.mode != "splitfed_v1":
            return dict.fromkeys(clients, self._body(server, parts, server.state, SHARED))
        current = values(server.state)
        return {c: self._body(server, parts, server.model.state(current), c) for c in clients}

    def _body(self, server: Server, parts: Parts, state: State, owner: str) -> Body:
        names = parts.body.names
        own = train_only(
            {name: state[name] for name in names}, () if self.train == "client" else names
        )
        saved = server.store.get("optimizers", {}).get(owner)
        return Body(owner, parts, own, server.training.optimizer, saved, server.meter)

    # The client

    @client_verb
    def begin(self, client: Client, message: Message) -> Message:
        """Take the client part and prepare the batches of a round."""
        parts = self._parts(client.model, client.examples)
        names = self._client_names(parts)
        received = message.expect("parameters", {n: client.initial[n] for n in names})
        mounted = {*parts.head.names, *parts.tail.names}
        initial = client.model.state(client.initial)
        state = train_only({name: initial[name] for name in sorted(mounted)}, names)
        load_values(state, received)
        trained = [state[name] for name in names]
        saved = client.store.get("optimizer")
        client.scratch = {
            "state": state,
            "optimizer": client.training.optimizer.build(trained, saved) if trained else None,
            "batches": batches(client.examples, client.training, client.generator("batches")),
        }
        num_steps = client.training.num_steps(len(client.examples))
        return Message("begin", {"control/num_steps": scalar(num_steps)})

    @client_verb
    def forward(self, client: Client, message: Message) -> Message:
        """Take the step that is due, then run the first blocks on the next batch."""
        self._take_step(client, message)
        parts = self._parts(client.model, client.examples)
        chunk = next(client.scratch["batches"], None)
        if chunk is None:
            raise MessageError("forward: the round has no batches left")
        batch = collate(chunk, client.model.tokenizer.pad_token_id, client.model.device)
        parts.head.mount(client.scratch["state"])
        head = parts.split.head.train()
        measured = self._measured(client, "head forward", batch, head)
        with measured, torch.set_grad_enabled(self._head_trains(parts)):
            hidden = head(None, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        client.scratch["pending"] = (batch, hidden)
        tensors = {
            "activations/hidden": hidden.detach(),
            "control/mask": batch.attention_mask.to(torch.uint8),
        }
        if self.shape == "two_part":
            tensors["labels/labels"] = batch.labels.int()
        else:
            tensors["control/count"] = scalar(client.task.num_supervised(batch.labels))
        return Message("forward", tensors)

    @client_verb
    def finish_batch(self, client: Client, message: Message) -> Message:
        """Run the last blocks and the loss on the server's output; answer with its gradient."""
        parts = self._parts(client.model, client.examples)
        tail = parts.split.tail
        if tail is None or "pending" not in client.scratch:
            raise MessageError("finish_batch: there is no batch that ends at the client")
        batch, hidden = client.scratch["pending"]
        share = message.positive("control/share")
        output = message.floats("activations/output", tuple(hidden.shape))
        output = output.to(hidden.device, hidden.dtype).requires_grad_()
        state: State = client.scratch["state"]
        parts.tail.mount(state)
        with self._measured(client, "tail", batch, tail.train()):
            logits = tail(output, **batch.inputs)
            loss, count = client.task.loss_sum(logits, batch.labels)
            (loss / max(count, 1)).backward()  # type: ignore[no-untyped-call]
        assert output.grad is not None
        return Message(
            "finish_batch",
            {
                # The server's gradients are of the mean over all clients' predictions.
                "gradients/output": output.grad * share,
                "control/loss": scalar(float(loss.detach())),
                "control/squared_norm": scalar(squared_norm(state[n] for n in parts.tail.names)),
            },
        )

    @client_verb
    def backward(self, client: Client, message: Message) -> Message:
        """Take the gradient of the activations through the first blocks."""
        if "pending" not in client.scratch:
            raise MessageError("backward: there is no batch under way")
        parts = self._parts(client.model, client.examples)
        batch, hidden = client.scratch["pending"]
        gradient = message.floats("gradients/hidden", tuple(hidden.shape))
        if not hidden.requires_grad:
            raise MessageError("backward: the first blocks of this client are frozen")
        parts.head.mount(client.scratch["state"])  # another client's may be there since `forward`
        with self._measured(client, "head backward", batch, parts.split.head):
            hidden.backward(gradient.to(hidden.device, hidden.dtype))
        del client.scratch["pending"]
        state: State = client.scratch["state"]
        norm = squared_norm(state[name] for name in parts.head.names)
        return Message("backward", {"control/squared_norm": scalar(norm)})

    @client_verb
    def finish(self, client: Client, message: Message) -> Message:
        """Take the last step and hand back the client part."""
        self._take_step(client, message)
        names = self._client_names(self._parts(client.model, client.examples))
        trained = values({name: client.scratch["state"][name] for name in names})
        if client.scratch["optimizer"] is not None:
            client.store["optimizer"] = client.scratch["optimizer"].state_dict()
        client.scratch = {}
        weight = {"control/weight": scalar(client.weight)}
        return Message("finish", {**named("parameters", trained), **weight})

    def _take_step(self, client: Client, message: Message) -> None:
        """Step with the scale and learning rate of the server, if a gradient is waiting."""
        if "state" not in client.scratch:
            raise MessageError(f"{message.verb}: no round was begun with this client")
        scale, rate = message.tensor("control/step", torch.float64, (2,)).tolist()
        optimizer = client.scratch["optimizer"]
        due = any(parameter.grad is not None for parameter in client.scratch["state"].values())
        if optimizer is not None and due:
            with client.meter.measure("client step"):
                scaled_step(optimizer, scale, rate)

    def _measured(
        self, client: Client, what: str, batch: Batch, part: nn.Module
    ) -> AbstractContextManager[None]:
        optimizer = client.scratch["optimizer"]
        optimizers = [optimizer] if optimizer is not None else []
        stepped = any(optimizer.state for optimizer in optimizers)  # its moments take memory then
        key = (what, batch.layout, self.cut, self.tail, self.train, stepped)
        return client.meter.measure(key, lambda: resident_tensors(part, *optimizers))

    def once_bytes(self, side: Side) -> dict[str, int]:
        """Return the weight of the frozen tensors of the client's parts."""
        split = self._parts(side.model, side.test).split
        client_parts = [split.head] if split.tail is None else [split.head, split.tail]
        return {"base_model": sum(weigh(part) for part in client_parts)}

    # Both

    def _parts(self, model: LanguageModel, examples: Sequence[Example]) -> Parts:
        """Return the cut model; the first call in a process checks it on a few examples."""
        tail = self.tail
        if self.shape == "u" and tail is None:
            tail = model.num_blocks
        return model.parts(self.cut, tail, examples[:2])

    def _head_trains(self, parts: Parts) -> bool:
        return self.train != "server" and bool(parts.head.names)

    def _client_names(self, parts: Parts) -> list[str]:
        """Return the names of the parameters that train at the clients, sorted."""
        head = parts.head.names if self._head_trains(parts) else ()
        return sorted({*head, *parts.tail.names})


def _read_num_steps(reply: Message) -> int:
    steps = reply.positive("control/num_steps")
    if steps > MAX_STEPS or not steps.is_integer():
        raise MessageError(f"begin: {steps} is no number of steps")
    return int(steps)


def _shuffled(names: Sequence[str], order: torch.Generator) -> list[str]:
    return [names[index] for index in torch.randperm(len(names), generator=order).tolist()]
