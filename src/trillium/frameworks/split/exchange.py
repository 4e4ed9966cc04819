"""The server's half of Split-FedLLM batch by batch: activations up, gradients down.

The client's half is `trillium.frameworks.split.client`; what crosses is drawn in docs/concepts.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from trillium.federation.fleet import Fleet
from trillium.federation.means import Contribution, weighted_mean
from trillium.federation.server import Server
from trillium.frameworks.split.bodies import bodies_of
from trillium.frameworks.split.body import Body, Step
from trillium.frameworks.split.delta import GRADIENT, SAMPLES, Copies, compensated
from trillium.frameworks.split.kept import KeptBatches
from trillium.frameworks.split.pooled import Forwarded, Pooled
from trillium.frameworks.split.ragged import spread
from trillium.frameworks.split.settings import SplitSettings
from trillium.frameworks.split.turns import arrivals, num_turns, shuffled, turns
from trillium.models.parts import Parts, load_values
from trillium.models.slots import values
from trillium.tasks import Task
from trillium.wire.kinds import MessageError, Tensors
from trillium.wire.message import Message, named, scalar

MAX_STEPS = 1_000_000  # of one client in one round; more can only be an error


@dataclass(frozen=True)
class Exchange:
    """One round of a cut model with the cohort.

    Attributes:
        server, fleet: who works with whom.
        kept: the batches, where activations are sent once; else clients send them.
    """

    split: SplitSettings
    server: Server
    fleet: Fleet
    parts: Parts
    order: torch.Generator
    kept: KeptBatches | None = None

    def run(self) -> tuple[float, int]:
        """Train with the cohort and bring the parts of the clients together.

        Returns:
            The summed loss and the number of predictions.
        """
        cohort = shuffled(self.fleet.cohort, self.order)
        sessions = [[client] for client in cohort] if self.split.mode == "relay" else [cohort]
        loss, count = 0.0, 0
        for position, clients in enumerate(sessions):
            share = 1.0 / len(sessions)
            for lost, predictions in self._session(clients, position * share, share):
                loss, count = loss + lost, count + predictions
        return loss, count

    def _session(
        self, clients: Sequence[str], start: float, share: float
    ) -> list[tuple[float, int]]:
        """Hand out the client part, train batch by batch, average what the clients hand back."""
        server, fleet = self.server, self.fleet
        part = {
            n: server.state[n].detach()
            for n in self.split.client_names(self.parts, server.training)
        }
        num_steps = self._open(clients, named("parameters", part))
        bodies = bodies_of(self.split, server, self.parts, sorted(num_steps))

        due: dict[str, Step] = {}  # what each client is to do with its last gradient
        seen: list[tuple[float, int]] = []
        one_by_one = self.split.mode in ("relay", "splitfed_v2")
        total = num_turns(num_steps, one_by_one)
        taking = turns(num_steps, one_by_one, self.order)
        if self.kept is not None:
            arriving = self.kept.arrivals(fleet, taking)
        else:
            arriving = arrivals(
                fleet,
                taking,
                lambda client: Message("forward", due.pop(client, Step()).tensors()),
                self._reader,
                ahead=self.split.staleness > 0,
            )
        for done, batches in enumerate(arriving):
            rate = server.training.learning_rate(server.progress(start + share * done / total))
            seen += self._step(batches, bodies, due, rate)

        present = {client: body for client, body in bodies.items() if client in fleet.cohort}
        self._finish(part, present, due)
        kept = server.store.setdefault("optimizers", {})
        kept.update({body.owner: body.optimizer_state() for body in bodies.values()})
        return seen

    @property
    def _alone(self) -> KeptBatches | None:
        """The batches, where nothing is left for clients to do."""
        return self.kept if self.split.shape == "two_part" else None

    def _open(self, clients: Sequence[str], part: Tensors) -> dict[str, int]:
        """Open the round with clients, if they are needed; return how many steps each takes."""
        if (alone := self._alone) is not None:
            return {c: alone.num_steps(c) for c in clients if c in self.fleet.cohort}

        def reader(client: str) -> Callable[[Message], int]:
            known = None if self.kept is None else self.kept.num_steps(client)
            return partial(_read_num_steps, known=known)

        readers = {client: reader(client) for client in clients}
        return self.fleet.ask_all(self._begin(clients, part), readers)

    def _begin(self, clients: Sequence[str], part: Tensors) -> dict[str, Message]:
        """Return what opens the round with each client."""
        if self.split.delta is None:
            return dict.fromkeys(clients, Message("begin", part))
        skip = self.split.delta.threshold(self.server.store.get("losses", ()))
        asks = {}
        for client in clients:
            copies = scalar(self._copies(client).count)
            control = {"control/copies": copies, "control/skip": scalar(skip)}
            asks[client] = Message("begin", {**part, **control})
        return asks

    def _copies(self, client: str) -> Copies:
        """Return the server's copies of a client's activations."""
        every = self.server.store.setdefault("copies", {})
        return Copies(every.setdefault(client, {}))

    @property
    def _task(self) -> Task | None:
        """The task, if the server has the labels."""
        return self.server.task if self.split.shape == "two_part" else None

    def _step(
        self,
        batches: dict[str, Forwarded],
        bodies: dict[str, Body],
        due: dict[str, Step],
        rate: float,
    ) -> list[tuple[float, int]]:
        """Take one batch of each client through the model and back, and step every body."""
        server, wanted = self.server, self.split.head_trains(self.parts, self.server.training)
        work: list[tuple[Body, Pooled]] = []
        present = {c: batch for c, batch in batches.items() if c in self.fleet.cohort}
        for body in dict.fromkeys(bodies[client] for client in present):  # each body once, in order
            members = {c: batch for c, batch in present.items() if bodies[c] is body}
            work.append((body, Pooled(members)))
        for body, pooled in work:
            if server.task.compares:
                body.refer(pooled, self._task)
            body.forward(pooled, gradient=wanted)
        if self.split.shape == "u":
            self._ask_tails([pooled for _, pooled in work], due)
        for body, pooled in work:
            body.backward(pooled, self._task)
        if wanted:
            self._send_gradients([pooled for _, pooled in work], due)
        for body, pooled in work:
            step = body.step(pooled, rate, server.training.max_grad_norm)
            due.update(dict.fromkeys(pooled.members, step))
        return [(pooled.loss, pooled.count) for _, pooled in work]

    def _reader(self, client: str) -> Callable[[Message], Forwarded]:
        """Return what checks a batch of a client."""
        copies = None if self.split.delta is None else self._copies(client)
        changes = None if copies is None else partial(copies.read, width=self.parts.width)

        def read(reply: Message) -> Forwarded:
            task, training = self.server.task, self.server.training
            found = Forwarded.read(
                reply,
                task,
                training,
                width=self.parts.width,
                num_classes=self.parts.num_classes,
                with_labels=self._task is not None,
                with_reference=self.split.sends_reference(task, self.parts, training),
                changes=changes,
            )
            return found.to(self.server.model.device, self.server.model.dtype)

        return read

    def _ask_tails(self, work: Sequence[Pooled], due: dict[str, Step]) -> None:
        """Let the clients run their last part on the body's output and collect its gradient."""
        pooled_of = {client: pooled for pooled in work for client in pooled.members}
        asks = {
            client: Message(
                "finish_batch",
                {
                    "activations/output": pooled.tokens(client, pooled.output.detach()),
                    "control/share": scalar(pooled.share(client)),
                    **self._named(pooled.members[client]),
                    **pooled.told(client),
                    **_late(due, client),
                },
            )
            for client, pooled in pooled_of.items()
        }

        def reader(ask: Message) -> Callable[[Message], tuple[torch.Tensor, float, float]]:
            sent = tuple(ask.tensors["activations/output"].shape)

            def read(reply: Message) -> tuple[torch.Tensor, float, float]:
                gradient = reply.floats("gradients/output", sent)
                loss = reply.scalar("control/loss")
                return gradient, loss, reply.not_negative("control/squared_norm")

            return read

        readers = {client: reader(ask) for client, ask in asks.items()}
        for client, (gradient, loss, norm) in self.fleet.ask_all(asks, readers).items():
            pooled = pooled_of[client]
            rows, mask = pooled.rows(client, pooled.output_gradient), pooled.members[client].mask
            if gradient.shape != (int(mask.sum()), rows.shape[-1]):
                self.fleet.missing[client] = f"finish_batch: a gradient of {tuple(gradient.shape)}"
                continue
            rows.copy_(spread(gradient.to(mask.device), mask))
            pooled.loss += loss
            pooled.client_squared_norm += pooled.share(client) * norm

    def _named(self, batch: Forwarded) -> Tensors:
        """Return what tells a client which batch this is, if it has not sent it."""
        if self.kept is None:
            return {}
        return {SAMPLES: torch.tensor(batch.samples, dtype=torch.int32)}

    def _send_gradients(self, work: Sequence[Pooled], due: dict[str, Step]) -> None:
        """Send the clients the gradients of their activations, of the mean over their own batch."""
        asks, pooled_of = {}, {}
        for pooled in work:
            gradient = pooled.hidden.grad
            assert gradient is not None
            for client in pooled.members:
                if client in self.fleet.cohort:
                    own = pooled.tokens(client, gradient) / pooled.share(client)
                    found = self._compensated(client, pooled.members[client], own)
                    tensors = {**found.tensors, **_late(due, client)}
                    asks[client] = replace(found, tensors=tensors)
                    pooled_of[client] = pooled
        norms = self.fleet.ask_all(asks, lambda reply: reply.not_negative("control/squared_norm"))
        for client, norm in norms.items():
            pooled = pooled_of[client]
            pooled.client_squared_norm += pooled.share(client) * norm

    def _compensated(self, client: str, member: Forwarded, gradient: Tensor) -> Message:
        """Add to the gradient of a batch what codecs took from earlier ones of its samples."""
        if self.split.delta is None:
            return Message("backward", {GRADIENT: gradient})
        lost = self.server.store.setdefault("lost", {}).setdefault(client, {})
        lengths, wire = member.mask.sum(1).tolist(), self.fleet.wire_of(client)
        share = self.split.delta.feedback
        return compensated(lost, share, gradient, member.samples, lengths, wire, self.fleet.round)

    def _finish(self, part: Tensors, bodies: dict[str, Body], due: dict[str, Step]) -> None:
        """Average the client parts, and in SplitFed v1 the server's copies, by examples."""
        alone, is_v1 = self._alone, self.split.mode == "splitfed_v1"
        if alone is not None and not is_v1:
            return  # there is one server part, and clients have none that trains

        def read(reply: Message) -> tuple[float, Tensors]:
            return reply.positive("control/weight"), reply.near("parameters", part, replaces=True)

        replies: dict[str, tuple[float, Tensors]]
        if alone is not None:
            replies = {client: (alone.weight(client), {}) for client in sorted(bodies)}
        else:
            asks = {c: Message("finish", due.get(c, Step()).tensors()) for c in bodies}
            replies = self.fleet.ask_all(asks, read)
        contributions = []
        for client, (weight, tensors) in replies.items():
            body = values(bodies[client].state) if is_v1 else {}
            on_cpu = {name: tensor.cpu() for name, tensor in body.items()}
            contributions.append(Contribution(client, weight, {**tensors, **on_cpu}))
        if contributions:  # the only client of a relay's session may have dropped out
            mean = weighted_mean(contributions, contributions[0].tensors)
            load_values(self.server.state, mean)


def _late(due: dict[str, Step], client: str) -> dict[str, Tensor]:
    """Return the step that no other message has taken to the client: it has nothing left to run."""
    return due.pop(client).tensors() if client in due else {}


def _read_num_steps(reply: Message, known: int | None) -> int:
    steps = reply.positive("control/num_steps")
    if steps > MAX_STEPS or not steps.is_integer():
        raise MessageError(f"begin: {steps} is no number of steps")
    if known is not None and steps != known:
        raise MessageError(f"begin: {steps:.0f} steps with samples that make {known}")
    return int(steps)
