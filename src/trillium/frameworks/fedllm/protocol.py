"""FedLLM: clients fine-tune with PEFT and upload parameters or gradients; the server aggregates.

Federated averaging of McMahan et al. (2017, arXiv 1602.05629) on the trainable state alone, as in
FedIT (Zhang et al., 2023, arXiv 2305.05644), with a server optimiser as in Reddi et al. (2021, arXiv
2003.00295). The first of the three frameworks of Yan et al. (2025, arXiv 2501.04436).

Down: the trainable state, or what changed of it. Up: the new state, its change, or a gradient; and one
weight. docs/fedllm.md says which published method is which setting.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import nn

from trillium.federation.client import Client, client_verb
from trillium.federation.fleet import Fleet
from trillium.federation.means import Contribution
from trillium.federation.server import Server
from trillium.federation.setting import Evaluation, Setting
from trillium.federation.side import Metrics
from trillium.federation.sums import Form, mean_loss
from trillium.federation.tiers import COMMON
from trillium.frameworks.effects import DIRECTIONS, Crossing, Crossings, Direction
from trillium.frameworks.fedllm.aggregators.mean import Mean
from trillium.frameworks.fedllm.aggregators.product_sketch import ProductSketch
from trillium.frameworks.fedllm.checks import check_fedllm, check_shares
from trillium.frameworks.fedllm.drifts import Answered, Correction
from trillium.frameworks.fedllm.folds import keep_fold, receive_folds, send_folds
from trillium.frameworks.fedllm.outgoing import outgoing
from trillium.frameworks.fedllm.settings import FedLLMSettings
from trillium.frameworks.fedllm.shares import Share
from trillium.models.factors import nonlinear_names
from trillium.models.slots import train_only, values
from trillium.training.loop import task_objective
from trillium.training.optimizers import Optimizer, set_learning_rate
from trillium.wire.addend import Addend
from trillium.wire.feedback import Feedback
from trillium.wire.kinds import Kind, Tensors
from trillium.wire.message import Message, named

log = logging.getLogger(__name__)


class FedLLM(FedLLMSettings, name="fedllm"):
    """Exchange of trainable parameters (adapter and task head)."""

    hides_units: ClassVar[frozenset[str]] = frozenset({"client", "example"})
    only_adds: ClassVar[bool] = True
    takes_first: ClassVar[bool] = True

    @property
    def accumulates(self) -> bool:
        """Whether the sums of all rounds are of the same tensors."""
        return not self.mask.alternates

    def crossings(self, config: Setting) -> Crossings:
        """Return what goes up, and how the state comes down."""
        sent: Crossing = {
            "update": Crossing("changes"),
            "parameters": Crossing("values", "framework.upload=update"),
            "gradient": Crossing("gradients"),
        }[self.upload]
        found: dict[tuple[Direction, Kind], Crossing] = {
            ("up", self._kind): sent,
            ("down", "parameters"): Crossing(self.download.sends, "framework.download=change"),
        }
        if self.drift.answers:
            found |= {(way, "gradients"): Crossing("gradients") for way in DIRECTIONS}
        if self.aggregator.folds or self.download.sends == "changes":
            found["down", "snapshot"] = Crossing("values")
        return found

    def no_effect(self, config: Setting) -> Mapping[str, str]:
        """Return what the clients' optimiser is told where the server has its own."""
        found = super().no_effect(config)
        if self.upload != "gradient" or self.server_optimizer is None:
            return found
        why = "framework.server_optimizer steps along the gradient, with its own learning rate"
        names = ("optimizer", "schedule", "warmup", "weight_decay")
        return {**found, **{f"training.{name}": why for name in names}}

    def check(self, config: Setting) -> None:
        """Refuse settings that contradict each other."""
        super().check(config)
        check_fedllm(self, config)

    def start(self, server: Server, fleet: Fleet) -> None:
        """Begin from the values that all sides know."""
        check_shares(self, server)
        server.state = server.model.state(server.initial)
        if nonlinear_names(server.model.module):
            log.warning(
                "DoRA's magnitudes and factors do not enter the model linearly: their mean is not the "
                "mean of what clients have learnt, whichever of them rest"
            )

    # The server

    def round(self, server: Server, fleet: Fleet) -> Metrics:
        """Bring the cohort in step, let it train, aggregate what comes back, take one server step."""
        factors = server.model.factors
        if self.aggregator.restarts:
            known = self.known(server)
            anew = {name: known[name] for layer in factors for name in (layer.a, layer.b)}
            server.state = server.model.state({**values(server.state), **anew})
        current = {name: tensor.cpu() for name, tensor in values(server.state).items()}
        send_folds(server, fleet)
        out = outgoing(self, server, fleet, current)
        forms = {name: self._form(found.like) for name, found in out.items()}
        for name in fleet.under_way:
            share = self.share(server, server.tiers[name])
            forms[name] = self._form(share.take(current, share.up))
        everyones = self.share(server, COMMON)
        common = self._form(everyones.take(current, everyones.up))
        reduction = self.aggregator.begin(current, factors)
        answers: dict[str, Answered] = {}
        figures: dict[str, Addend] = {}
        sketch = ProductSketch(factors, server.seed)
        averages = isinstance(self.aggregator, Mean) and self.upload != "gradient"
        averages = averages and self.asynchronous is None
        requests = {name: found.message for name, found in out.items()}
        for name, addend in fleet.addends(requests, forms, common, self.buffer):
            held = out[name].sent.held if name in out else {}
            tensors, weight = addend.group(self._kind), addend.weight
            change = self._as_read(tensors, held)
            if self.asynchronous is not None:
                change = self.asynchronous.damped(change, fleet.staleness[name])
            reduction.add(Contribution(name, weight, change))
            if averages and name in out and out[name].share.sends_both_factors:
                sketch.add(weight, self._reached(tensors, held))
            answers[name] = Answered(weight, addend.group("gradients"))
            figures[name] = replace(addend, tensors={})
        for name, found in out.items():
            self.download.settle(
                server.store["downloads"], found.parcel, found.sent, name in fleet.cohort
            )
        aggregate = reduction.result()
        self.drift.absorb(server.store.setdefault("drift", {}), answers, len(fleet.engine.clients))
        self._step(server, current, aggregate.tensors)
        if aggregate.folds:
            keep_fold(server, aggregate.folds)
        measures = mean_loss(figures)
        if sketch.error():
            measures["product_error"] = sketch.error()
        if self.asynchronous is not None:
            measures["staleness"] = sum(fleet.staleness.values()) / len(fleet.staleness)
        return measures

    def _form(self, like: Tensors) -> Form:
        """Return what a client adds: its tensors, those of its correction, its loss."""
        beside: dict[Kind, Tensors] = {"gradients": like} if self.drift.answers else {}
        replaces = self.upload == "parameters"
        return Form({self._kind: like, **beside}, figures=("loss",), replaces=replaces)

    def _as_read(self, tensors: Tensors, held: Tensors) -> Tensors:
        """Return what a client sent as the aggregator reads it: changes, or all that it now holds."""
        if self.aggregator.reads == "change":
            if self.upload != "parameters":
                return tensors
            return {name: tensor - held[name] for name, tensor in tensors.items()}
        return self._reached(tensors, held)

    def _reached(self, tensors: Tensors, held: Tensors) -> Tensors:
        """Return all shared values that a client has come to."""
        if self.upload == "update":
            tensors = {name: held[name] + tensor for name, tensor in tensors.items()}
        return {**held, **tensors}

    def _step(self, server: Server, current: Tensors, aggregated: Tensors) -> None:
        """Take the aggregate as the new state, or as a negative gradient for the optimiser."""
        if self.aggregator.reads == "state":
            server.state = server.model.state({**current, **aggregated})
            return
        optimizer = self._optimizer(server)
        for name, tensor in aggregated.items():
            found = tensor.to(server.model.device)
            server.state[name].grad = found if self.upload == "gradient" else -found
        if self.upload == "gradient":
            if server.training.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(server.state.values(), server.training.max_grad_norm)
            if self.server_optimizer is None:
                set_learning_rate(optimizer, server.training.learning_rate(server.progress(0.0)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        server.store["optimizer"] = optimizer.state_dict()

    def _optimizer(self, server: Server) -> torch.optim.Optimizer:
        """Return the server's optimiser as the last round left it."""
        saved = server.store.get("optimizer")
        if self.server_optimizer is None and self.upload == "gradient":
            return server.training.build(server.state, saved)
        chosen = self.server_optimizer or Optimizer(name="sgd", lr=1.0)
        return chosen.build(server.state.values(), saved)

    def evaluate(self, server: Server, fleet: Fleet, evaluation: Evaluation, last: bool) -> Metrics:
        """Return the metrics of the server's model, or of the clients' own where a part is local."""
        if not self.local or server.round == 0:
            return self.measure_shared(server, fleet, evaluation)
        return self.measure_own(server, fleet, evaluation)

    @property
    def _kind(self) -> Kind:
        return "gradients" if self.upload == "gradient" else "parameters"

    # The client

    @client_verb
    def fold(self, client: Client, message: Message) -> Message:
        """Add what comes to the base weights."""
        return receive_folds(client, message)

    @client_verb
    def train(self, client: Client, message: Message) -> Message:
        """Train the received state on the client's data and answer with what it became."""
        share, known = self.share(client, client.tier), self.known(client)
        received = self.download.receive(
            client.store.setdefault("download", {}),
            message,
            share.take(known, share.down),
            client.wire,
        )
        own = share.take(client.store.get("tensors", known), share.local)
        state = train_only(client.model.state({**known, **received, **own}), share.trained)
        begun = values(state)
        variates = share.take(begun, share.up) if message.group("gradients") else {}
        correction = self.drift.correction(
            client.store.setdefault("drift", {}),
            state,
            begun,
            message.expect("gradients", variates),
        )
        loop = client.loop(f"train{correction.label}", state)
        objective = task_objective(client.task, client.examples)
        chunks = client.batches()
        weight = self._weight(client)
        if self.upload == "gradient":
            trained = loop.gradient(chunks, objective)
            if self.weights == "targets":
                weight = trained.weight
            tensors = {n: _gradient(state[n]) for n in share.up}
        else:
            num_steps = client.training.num_steps(len(client.examples))
            trained = loop.fit(
                chunks, objective, client.training, client.progress, num_steps, correction.apply
            )
            tensors = {n: state[n].detach().clone() for n in share.up}
            if self.upload == "update":
                tensors = {n: tensor - begun[n] for n, tensor in tensors.items()}
        if share.local:
            client.store["tensors"] = values(state)
        return self._answer(client, share, tensors, correction, weight, trained.loss)

    def _answer(
        self,
        client: Client,
        share: Share,
        tensors: Tensors,
        correction: Correction,
        weight: float,
        loss: float,
    ) -> Message:
        """Return the reply, and keep what codecs take from it."""
        feedback = Feedback(client.store.setdefault("lost", {}), self.feedback)
        feeds = self.feedback > 0 and self.upload != "parameters"
        feeds = feeds and not client.wire.is_lossless(self._kind, "up")
        tensors = feedback.add(tensors) if feeds else tensors
        extra = {n: tensor for n, tensor in correction.answer().items() if n in share.up}
        sent = {**named(self._kind, tensors), **named("gradients", extra)}
        addend = Addend(sent, weight, {"loss": loss})
        reply = Message("train", meta={"round": client.round}, summed=addend)
        if feeds or extra:
            previewed = client.wire.preview(reply, "up")
            if feeds:
                feedback.keep(tensors, previewed.seen.expect(self._kind, tensors))
            if extra:
                correction.sent(previewed.seen.expect("gradients", extra))
            return previewed.message
        return reply

    def _weight(self, client: Client) -> float:
        if self.weights == "equal":
            return 1.0
        return client.weight if self.weights == "targets" else float(len(client.examples))


def _gradient(parameter: nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
