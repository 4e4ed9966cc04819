"""Baselines on the same data, model and budget: no training, no exchange, no owners."""

from __future__ import annotations

from typing import ClassVar

from trillium.federation.client import Client, client_verb
from trillium.federation.fleet import Fleet
from trillium.federation.server import Server
from trillium.federation.side import Metrics, Side
from trillium.frameworks import (
    CLIENT_MODELS,
    Framework,
    OwnModels,
    mean_metrics,
)
from trillium.models.slots import values
from trillium.training.loop import batches, task_objective
from trillium.wire.message import Message, scalar


class ZeroShot(Framework, name="zero_shot"):
    """The model as it is loaded: what the federation starts from."""

    trains: ClassVar[bool] = False

    def round(self, server: Server, fleet: Fleet) -> Metrics:
        """Do nothing."""
        return {}


class LocalOnly(OwnModels, name="local_only"):
    """Every client trains alone and shares nothing: what a client has without the federation."""

    mixes_models: ClassVar[bool] = True

    @property
    def ships(self) -> str:
        """The clients' own models."""
        return CLIENT_MODELS

    def round(self, server: Server, fleet: Fleet) -> Metrics:
        """Let the cohort train; only a loss comes back."""
        message = Message("train_alone")
        asks = dict.fromkeys(fleet.cohort, message)
        losses = fleet.ask_all(asks, lambda reply: reply.scalar("control/loss"))
        return {"train_loss": sum(losses.values()) / len(losses)}

    def evaluate(self, server: Server, fleet: Fleet, batch_size: int, last: bool) -> Metrics:
        """Return the mean over the clients' own models, which begin as the server's."""
        if server.round == 0:
            return server.evaluate(server.state, batch_size)
        clients = self.clients_metrics(fleet, batch_size)
        return {**mean_metrics(clients), "clients": clients}

    @client_verb
    def train_alone(self, client: Client, message: Message) -> Message:
        """Train the client's own model on its own data."""
        state = client.model.state(client.store.get("tensors", client.initial))
        num_steps = client.training.num_steps(len(client.examples))
        trained = client.loop("train", state).fit(
            batches(client.examples, client.training, client.generator("batches")),
            task_objective(client.task, client.examples),
            client.training,
            client.progress,
            num_steps,
        )
        client.store["tensors"] = values(state)
        return Message("train_alone", {"control/loss": scalar(trained.loss)})


class Centralised(Framework, name="centralised"):
    """All data in one place, as many steps as the clients of a round take together: the ceiling.

    One optimiser, kept from round to round, on shuffled batches of the pooled data.
    """

    def round(self, server: Server, fleet: Fleet) -> Metrics:
        """Take the steps of one round on pooled data."""
        training = server.training
        share = len(fleet.cohort) / len(fleet.engine.clients)
        if training.local_steps is None:
            num_examples = share * training.local_epochs * len(server.pooled)
            num_steps = -int(-num_examples // training.batch_size)
        else:
            num_steps = training.local_steps * len(fleet.cohort)
        budget = training.model_copy(update={"local_steps": num_steps})
        saved = server.store.get("optimizer")
        optimizer = training.build(server.state, saved)
        trained = server.loop("train", server.state).run(
            batches(server.pooled, budget, server.generator("batches")),
            task_objective(server.task, server.pooled),
            optimizer,
            max_grad_norm=training.max_grad_norm,
            learning_rate=lambda step: training.learning_rate(server.progress(step / num_steps)),
        )
        server.store["optimizer"] = optimizer.state_dict()
        return {"train_loss": trained.loss}

    def once_bytes(self, side: Side) -> dict[str, int]:
        """Return nothing: clients give their data away and hold no model."""
        return {}
