"""Baselines on the same data, model and budget: no training, no exchange, no owners."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from trillium.federation.client import Client, client_verb
from trillium.federation.fleet import Fleet
from trillium.federation.server import Server
from trillium.federation.setting import Evaluation, Setting
from trillium.federation.side import Metrics, Side
from trillium.frameworks import (
    CLIENT_MODELS,
    Framework,
    OwnModels,
)
from trillium.frameworks.effects import Crosses, Crossings
from trillium.models.slots import values
from trillium.rng import generator
from trillium.tasks.batches import of_sizes
from trillium.training.loop import batches, task_objective
from trillium.wire.message import Message, scalar


class ZeroShot(Framework, name="zero_shot"):
    """The model as it is loaded: what the federation starts from.

    Where the task head is new, as that of a classifier is, it is drawn at random, and this is what
    guessing gives; with a head in closed form (`head`) it is what that head gives.
    """

    trains: ClassVar[bool] = False

    def crossings(self, config: Setting) -> Crossings:
        """Nothing beside control."""
        return {}

    def no_effect(self, config: Setting) -> Mapping[str, str]:
        """Return what rounds and training are set to."""
        names = [f"training.{name}" for name in type(config.training).model_fields]
        names.remove("training.max_length")
        names += ["rounds", "evaluation.every", "evaluation.keep", "evaluation.patience"]
        names += ["tiers.*.local_steps", "model.dropout"]
        if config.adapter.goes_on_from is None:  # adapters begin as no change
            options = ("dropout", "r", "alpha", "rslora", "activation")
            names += [f"adapter.{name}" for name in options]
        assert isinstance(config.head, Crosses)
        if not config.head.crossings(config):  # one in closed form is made of what clients send
            names.append("fleet")
        return dict.fromkeys(names, "nothing trains, and there are no rounds")

    def round(self, server: Server, fleet: Fleet) -> Metrics:
        """Do nothing."""
        return {}


class LocalOnly(OwnModels, name="local_only"):
    """Every client trains alone and shares nothing: what a client has without the federation."""

    mixes_models: ClassVar[bool] = True

    def crossings(self, config: Setting) -> Crossings:
        """Nothing beside control."""
        return {}

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

    def evaluate(self, server: Server, fleet: Fleet, evaluation: Evaluation, last: bool) -> Metrics:
        """Return the metrics of the clients' own models, which begin as the server's."""
        if server.round == 0:
            return self.measure_shared(server, fleet, evaluation)
        return self.measure_own(server, fleet, evaluation)

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
    """All data in one place: the ceiling.

    A round takes as many steps as its clients together, without those that drop out, on batches of
    the same sizes, so it sees as many examples. These are drawn from all of the data, shuffled. One
    optimiser, kept from round to round.
    """

    def crossings(self, config: Setting) -> Crossings:
        """Nothing beside control."""
        return {}

    def round(self, server: Server, fleet: Fleet) -> Metrics:
        """Take the steps of one round on pooled data."""
        training = server.training
        sizes = [size for client in fleet.attend() for size in _batch_sizes(server, client)]
        pooled = [example for own in server.pooled.values() for example in own]
        optimizer = training.build(server.state, server.store.get("optimizer"))
        trained = server.loop("train", server.state).run(
            of_sizes(pooled, sizes, server.generator("batches")),
            task_objective(server.task, pooled),
            optimizer,
            max_grad_norm=training.max_grad_norm,
            learning_rate=lambda step: training.learning_rate(server.progress(step / len(sizes))),
        )
        server.store["optimizer"] = optimizer.state_dict()
        return {"train_loss": trained.loss}

    def once_bytes(self, side: Side) -> dict[str, int]:
        """Return nothing: clients give their data away and hold no model."""
        return {}


def _batch_sizes(server: Server, client: str) -> list[int]:
    """Return how many examples each step of a client would see in this round."""
    training = server.tiers[client].training(server.training)
    draw = generator(server.seed, "batches", client, server.round)
    return [len(chunk) for chunk in batches(server.pooled[client], training, draw)]
