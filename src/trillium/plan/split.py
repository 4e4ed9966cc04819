"""Split-FedLLM on paper: what crosses at the cut, batch by batch, and what each part costs."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from trillium.client import Client
from trillium.frameworks.split import Split
from trillium.message import Message, named, scalar
from trillium.models.parts import Body, Parts, Step
from trillium.models.pooled import Forwarded, Pooled
from trillium.models.slots import train_only
from trillium.plan.federation import Chunk, Cohort, Federation, divided, unique_bytes
from trillium.plan.models import cut_model
from trillium.plan.sizes import Weight
from trillium.plan.waves import FREE, Ask, Memory, Wave
from trillium.training.meters import Cost, resident_tensors

Pool = tuple[tuple[int, int, int, bool], ...]
"""Rows, length, predictions and padding of each client's batch that the server takes as one."""


@dataclass(frozen=True)
class _Batch:
    """What one client's batch weighs and costs, by verb."""

    weights: Mapping[str, tuple[Weight, Weight]]
    costs: Mapping[str, Cost]


@dataclass
class SplitRounds:
    """The rounds of Split-FedLLM; the real verbs of its clients run on paper.

    Attributes:
        framework: its settings.
        federation: both sides.
    """

    framework: Split
    federation: Federation
    _known: dict[Hashable, Any] = field(default_factory=dict)
    _stepped: bool = False

    def start(self) -> Iterator[Wave]:
        """Return what crosses before the first round: nothing."""
        yield from ()

    def round(self, number: int, cohort: Cohort) -> Iterator[Wave]:
        """Return the messages of a round."""
        order = self.federation.server.generator("order")
        names = [
            cohort.asked[i] for i in torch.randperm(len(cohort.asked), generator=order).tolist()
        ]
        sessions = [[name] for name in names] if self.framework.mode == "relay" else [names]
        for session in sessions:
            yield from self._session(session, cohort, order)
        self._stepped = True

    def memory(self, client: Client, peak_bytes: int) -> Memory:
        """Divide the most that a client holds into its parts."""
        parts = self._parts.split
        own = [parts.head] if parts.tail is None else [parts.head, parts.tail]
        names = self.framework._client_names(self._parts)
        state = client.model.state({name: client.initial[name] for name in names})
        weights = unique_bytes(tensor for part in own for tensor in resident_tensors(part))
        return divided(
            peak_bytes,
            weights,
            list(state.values()),
            client.training.optimizer,
            self.federation.paper,
        )

    @property
    def _parts(self) -> Parts:
        if "parts" not in self._known:
            framework, model = self.framework, self.federation.model
            tail = framework.tail
            if framework.shape == "u" and tail is None:
                tail = model.num_blocks
            with self.federation.paper.running():
                self._known["parts"] = cut_model(model, framework.cut, tail)
        found: Parts = self._known["parts"]
        return found

    def _session(
        self, names: Sequence[str], cohort: Cohort, order: torch.Generator
    ) -> Iterator[Wave]:
        clients = {name: self.federation.clients[name] for name in names}
        begin, finish = self._begin(next(iter(clients.values())))
        yield Wave(
            tuple(Ask(n, "begin", begin[0], None if n in cohort.lost else begin[1]) for n in names)
        )
        present = {n: c for n, c in clients.items() if n not in cohort.lost}
        chunks = {name: self.federation.chunks(client) for name, client in present.items()}
        num_steps = {name: len(found) for name, found in chunks.items()}
        taken: dict[str, int] = dict.fromkeys(present, 0)
        for group in self.framework._turns(num_steps, order):
            batches = {name: chunks[name][taken[name]] for name in group}
            stepped = {name: self._stepped or taken[name] > 0 for name in group}
            yield from self._turn({n: (present[n], batches[n], stepped[n]) for n in group})
            for name in group:
                taken[name] += 1
        yield Wave(tuple(Ask(name, "finish", *finish) for name in sorted(present)))

    def _turn(self, batches: Mapping[str, tuple[Client, Chunk, bool]]) -> Sequence[Wave]:
        """Return the messages for the batches that the server takes next."""
        key = ("turn", *((name, id(chunk), later) for name, (_, chunk, later) in batches.items()))
        if key not in self._known:
            self._known[key] = list(self._waves(batches))
        found: list[Wave] = self._known[key]
        return found

    def _waves(self, batches: Mapping[str, tuple[Client, Chunk, bool]]) -> Iterator[Wave]:
        found = {name: self._batch(*batch) for name, batch in batches.items()}
        alone = [{name: batch} for name, batch in batches.items()]
        groups = [dict(batches)] if self.framework.mode == "coalesced" else alone
        forward, backward = Cost(), Cost()
        for group in groups:
            costs = self._body([chunk for _, chunk, _ in group.values()])
            forward, backward = forward + costs[0], backward + costs[1]
        verbs = [("forward", forward + backward)]
        if self.framework.shape == "u":
            verbs = [("forward", forward), ("finish_batch", backward)]
        if self._head_trains:
            verbs.append(("backward", Cost()))
        for verb, server in verbs:
            asks = [
                Ask(name, verb, *batch.weights[verb], batch.costs[verb])
                for name, batch in found.items()
            ]
            yield Wave(tuple(asks), server)

    @property
    def _head_trains(self) -> bool:
        return self.framework._head_trains(self._parts)

    def _begin(self, client: Client) -> tuple[tuple[Weight, Weight], tuple[Weight, Weight]]:
        """Return what the messages at both ends of a round weigh."""
        key = ("begin", id(client.tier), len(str(client.round)))
        if key not in self._known:
            names = self.framework._client_names(self._parts)
            part = named("parameters", {name: client.initial[name] for name in names})
            federation, name = self.federation, client.name
            steps = {"control/num_steps": scalar(0.0)}
            weight = {"control/weight": scalar(0.0)}
            self._known[key] = (
                (
                    federation.down(name, Message("begin", part)),
                    federation.up(name, Message("begin", steps)),
                ),
                (
                    federation.down(name, Message("finish", Step().tensors())),
                    federation.up(name, Message("finish", {**part, **weight})),
                ),
            )
        found: tuple[tuple[Weight, Weight], tuple[Weight, Weight]] = self._known[key]
        return found

    def _batch(self, client: Client, chunk: Chunk, stepped: bool) -> _Batch:
        """Return what a client's batch weighs and costs; the verbs run once for each layout."""
        digits = len(str(client.round))
        key = ("batch", id(client.tier), digits, chunk.layout, chunk.count, stepped)
        if key not in self._known:
            with self.federation.paper.running():
                self._known[key] = self._run(client, chunk, stepped)
        found: _Batch = self._known[key]
        return found

    def _run(self, client: Client, chunk: Chunk, stepped: bool) -> _Batch:
        """Run the verbs of a batch, with an optimiser that has taken a step or not."""
        framework = self.framework
        weights: dict[str, tuple[Weight, Weight]] = {}
        costs: dict[str, Cost] = {}

        def ask(message: Message) -> Message:
            self.federation.meter.reset()
            reply: Message = getattr(framework, message.verb)(client, message)
            costs[message.verb] = self.federation.meter.read()
            weights[message.verb] = (
                self.federation.down(client.name, message),
                self.federation.up(client.name, reply),
            )
            return reply

        self._mount(client, chunk, stepped)
        forwarded = ask(Message("forward", Step().tensors()))
        hidden = forwarded.tensors["activations/hidden"]
        if framework.shape == "u":
            tensors = {"activations/output": hidden, "control/share": scalar(1.0)}
            ask(Message("finish_batch", tensors))
        if self._head_trains:
            ask(Message("backward", {"gradients/hidden": torch.zeros_like(hidden)}))
        client.scratch = {}
        return _Batch(weights, costs)

    def _mount(self, client: Client, chunk: Chunk, stepped: bool) -> None:
        """Leave a client as `begin` does, before a batch."""
        framework, parts = self.framework, self._parts
        names = framework._client_names(parts)
        mounted = sorted({*parts.head.names, *parts.tail.names})
        initial = client.model.state({name: client.initial[name] for name in mounted})
        state = train_only(initial, names)
        trained = [state[name] for name in names]
        optimizer = client.training.optimizer.build(trained) if trained else None
        if optimizer is not None and stepped:
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        client.scratch = {"state": state, "optimizer": optimizer, "batches": iter([chunk.examples])}

    def _body(self, chunks: Sequence[Chunk]) -> tuple[Cost, Cost]:
        """Return what the server computes for a pooled batch, forward and backward."""
        if not self.federation.counts:
            return FREE, FREE
        pool, count = [chunk.layout for chunk in chunks], sum(chunk.count for chunk in chunks)
        length = max(found[1] for found in pool)
        is_padded = any(found[2] or found[1] < length for found in pool)
        rows = sum(found[0] for found in pool)
        key = ("body", rows, length, is_padded)
        if key not in self._known:
            with self.federation.paper.running():
                self._known[key] = self._run_body(rows, length, count, is_padded)
        found: tuple[Cost, Cost] = self._known[key]
        return found

    def _run_body(self, rows: int, length: int, count: int, is_padded: bool) -> tuple[Cost, Cost]:
        federation, server, parts = self.federation, self.federation.server, self._parts
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
        meter.reset()
        body.forward(pooled, gradient=self._head_trains)
        forward = meter.read()
        meter.reset()
        body.backward(pooled, task if self.framework.shape == "two_part" else None)
        return forward, meter.read()


def _labels(classifies: bool, rows: int, length: int, count: int) -> torch.Tensor:
    """Return labels of a pooled batch, of which so many are supervised."""
    if classifies:
        return torch.zeros(rows, dtype=torch.int64)
    flat = torch.full((rows, length), -100)
    places = torch.arange(rows * (length - 1))[:count]
    flat[places // (length - 1), 1 + places % (length - 1)] = 0
    return flat
