"""FedLLM: clients fine-tune with PEFT and upload parameters or gradients; the server aggregates.

Federated averaging of McMahan et al. (2017, arXiv 1602.05629) on the trainable state alone, as in
FedIT (Zhang et al., 2023, arXiv 2305.05644), with a server optimiser as in Reddi et al. (2021, arXiv
2003.00295). The first of the three frameworks of Yan et al. (2025, arXiv 2501.04436).

Down: the trainable state. Up: the new state, its change, or a gradient; and one weight.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from trillium.aggregators import Aggregator, Contribution
from trillium.aggregators.mean import Mean
from trillium.client import Client
from trillium.component import Choice
from trillium.fleet import Fleet
from trillium.frameworks import Framework, client_verb
from trillium.message import Message, named, scalar
from trillium.models.slots import Tensors, values
from trillium.server import Server
from trillium.side import Metrics
from trillium.training.loop import batches, task_objective
from trillium.training.optimizers import Optimizer, set_learning_rate


class FedLLM(Framework, name="fedllm"):
    """Exchange of trainable parameters (adapter and task head).

    Attributes:
        upload: `update` (new minus received), `parameters` (new), or `gradient` (of the mean loss over
            the round's batches at the received parameters; the server takes the optimiser step).
        aggregator: how the server reduces what came.
        server_optimizer: steps along the aggregated change, as a negative gradient; plain SGD with
            learning rate 1, which is federated averaging, where it is left out. For `gradient` the
            default is the clients' optimiser with its schedule.
    """

    upload: Literal["update", "parameters", "gradient"] = "update"
    aggregator: Choice[Aggregator] = Mean()
    server_optimizer: Optimizer | None = None

    # The server

    def round(self, server: Server, fleet: Fleet) -> Metrics:
        """Send the state to the cohort, aggregate what comes back, take one server step."""
        current = values(server.state)
        message = Message("train", named("parameters", current))

        def read(reply: Message) -> tuple[float, float, Tensors]:
            tensors = reply.expect(self._kind, current)
            return reply.positive("control/weight"), reply.scalar("control/loss"), tensors

        replies = dict(fleet.ask(dict.fromkeys(fleet.cohort, message), read))
        contributions = [
            Contribution(client, weight, tensors)
            for client, (weight, _, tensors) in sorted(replies.items())
        ]
        self._step(server, current, self.aggregator.aggregate(contributions))
        total = sum(weight for weight, _, _ in replies.values())
        loss = sum(weight * loss for weight, loss, _ in replies.values())
        return {"train_loss": loss / total}

    def _step(self, server: Server, current: Tensors, aggregated: Tensors) -> None:
        """Let the server optimiser step along the aggregate, read as a negative gradient."""
        optimizer = self._optimizer(server)
        for name, parameter in server.state.items():
            found = aggregated[name].to(parameter.device)
            if self.upload == "gradient":
                parameter.grad = found
            else:
                parameter.grad = current[name] - found if self.upload == "parameters" else -found
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
        default = (
            server.training.optimizer
            if self.upload == "gradient"
            else Optimizer(name="sgd", lr=1.0)
        )
        chosen = self.server_optimizer or default
        return chosen.build(server.state.values(), server.store.get("optimizer"))

    @property
    def _kind(self) -> Literal["gradients", "parameters"]:
        return "gradients" if self.upload == "gradient" else "parameters"

    # The client

    @client_verb
    def train(self, client: Client, message: Message) -> Message:
        """Train the received state on the client's data and answer with what it became."""
        received = message.expect("parameters", client.model.initial)
        state = client.model.state(received)
        loop = client.loop("train", state)
        objective = task_objective(client.task)
        chunks = batches(client.examples, client.training, client.generator("batches"))
        weight = client.weight
        if self.upload == "gradient":
            trained = loop.gradient(chunks, objective)
            weight = trained.weight
            tensors = {
                name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in state.items()
            }
        else:
            num_steps = client.training.num_steps(len(client.examples))
            trained = loop.fit(chunks, objective, client.training, client.progress, num_steps)
            tensors = values(state)
            if self.upload == "update":
                tensors = {
                    name: tensor - received[name].to(tensor.device)
                    for name, tensor in tensors.items()
                }
        control = {"control/weight": scalar(weight), "control/loss": scalar(trained.loss)}
        return Message("train", {**named(self._kind, tensors), **control})
