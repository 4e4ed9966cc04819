"""Frameworks: both halves of a protocol, the server's round and the client's verbs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from trillium.client import Client, Verb
from trillium.component import Component
from trillium.fleet import Fleet
from trillium.message import Message, scalar
from trillium.models.load import LanguageModel
from trillium.models.slots import State
from trillium.tasks import Example, Task
from trillium.training.loop import Loop, Training
from trillium.training.meters import Meter

Metrics = dict[str, Any]
SERVER_MODEL = "server model"
CLIENT_MODELS = "mean of the clients' models"
F = TypeVar("F", bound=Callable[..., Message])


@dataclass
class Server:
    """The coordinating side.

    Attributes:
        model: the resident model.
        task: what is learnt.
        state: the server's trainable parameters; at the end of a round those it would ship.
        public: the public set, empty where the run has none.
        test: held-out data.
        pooled: the clients' data in one place, which only a simulation has; for the baseline that
            shows what moving the data would give.
        training: how it trains, where it does.
        meter: what the server computed.
        seed: of the run.
        num_rounds: of the run.
        store: what the framework keeps from one round to the next.
        round: the current round; 0 before the first.
    """

    model: LanguageModel
    task: Task
    state: State
    public: list[Example]
    test: list[Example]
    pooled: list[Example]
    training: Training
    meter: Meter
    seed: int
    num_rounds: int
    store: dict[str, Any] = field(default_factory=dict)
    round: int = 0

    def progress(self, fraction: float) -> float:
        """Return how far the run is, from 0 to 1, at a fraction of this round."""
        return (max(self.round, 1) - 1 + fraction) / self.num_rounds

    def loop(self, label: str, state: State) -> Loop:
        """Return the local loop over a state, mounted into the model."""
        module = self.model.mount(state)
        pad_id = self.model.tokenizer.pad_token_id
        return Loop(module, state, pad_id, self.model.device, self.meter, label)


def client_verb(function: F) -> F:
    """Mark a method of a framework as something the server may ask a client for."""
    function.__dict__["client_verb"] = True
    return function


class Framework(Component, kind="framework", package="trillium.frameworks"):
    """How a federation learns; the object is the configuration, state is with server and clients."""

    needs_public: ClassVar[bool] = False
    trains: ClassVar[bool] = True

    @property
    def ships(self) -> str:
        """Whose accuracy is reported."""
        return SERVER_MODEL

    def verbs(self) -> dict[str, Verb]:
        """Return the client's half: what it can be asked, by verb."""
        marked = (getattr(self, name) for name, value in _methods(type(self)) if value)
        return {method.__name__: method for method in marked}

    def start(self, server: Server, fleet: Fleet) -> None:
        """Prepare before the first round."""

    def round(self, server: Server, fleet: Fleet) -> Metrics:
        """Run one round with the cohort of the fleet; return figures of the training, if any."""
        raise NotImplementedError

    def evaluate(self, server: Server, fleet: Fleet, batch_size: int, last: bool) -> Metrics:
        """Return the metrics of the model that would be shipped, on held-out data."""
        return evaluate_state(server, server.state, batch_size)

    def once_bytes(self, client: Client) -> dict[str, int]:
        """Return what a client must hold before the run beside what messages bring, in bytes.

        The weight of the tensors of its part of the model; they count once and apart, because a
        client may well have them already.
        """
        return {"base_model": weigh(client.model.module)}


def _methods(framework: type[Framework]) -> Iterable[tuple[str, bool]]:
    for base in framework.__mro__:
        for name, value in vars(base).items():
            if callable(value):
                yield name, bool(getattr(value, "__dict__", {}).get("client_verb"))


def weigh(module: nn.Module) -> int:
    """Return the bytes of the frozen tensors of a module, tied ones once."""
    frozen = [p for p in module.parameters() if not p.requires_grad]
    return sum(tensor.nbytes for tensor in [*frozen, *module.buffers()])


def evaluate_state(side: Server | Client, state: State, batch_size: int) -> Metrics:
    """Return the metrics of a state on the held-out data of a side."""
    module = side.model.mount(state).eval()
    return dict(side.task.evaluate(module, side.test, side.model.tokenizer, batch_size))


class OwnModels(Framework):
    """A framework whose clients keep models of their own, which a simulation can look at."""

    @client_verb
    def evaluate_own(self, client: Client, message: Message) -> Message:
        """Answer with the metrics of the client's own model."""
        tensors = client.store.get("tensors", client.model.initial)
        metrics = evaluate_state(
            client, client.model.state(tensors), int(message.meta["batch_size"])
        )
        return Message(
            "evaluate_own", {f"control/{name}": scalar(value) for name, value in metrics.items()}
        )

    def clients_metrics(self, fleet: Fleet, batch_size: int) -> dict[str, Metrics]:
        """Return the metrics of every client's own model; nothing of it counts as communication."""
        message = Message("evaluate_own", meta={"batch_size": batch_size})

        def read(reply: Message) -> Metrics:
            names = sorted(reply.group("control").keys() - {"cost"})
            return {name: reply.scalar(f"control/{name}") for name in names}

        everyone = dict.fromkeys(fleet.engine.clients, message)
        return dict(sorted(fleet.ask(everyone, read, "evaluate")))


def mean_metrics(clients: dict[str, Metrics]) -> Metrics:
    """Return the mean of each metric over clients."""
    names = next(iter(clients.values())) if clients else ()
    return {
        name: float(torch.tensor([metrics[name] for metrics in clients.values()]).double().mean())
        for name in names
    }
