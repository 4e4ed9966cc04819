"""KD-FedLLM: clients upload soft labels on a public set; distillation shares what they have learnt.

FedMD (Li and Wang, 2019, arXiv 1910.03581) and DS-FL (Itahara et al., 2020, arXiv 2008.06180) for
the exchange, Hinton et al. (2015, arXiv 1503.02531) for the loss. The second of the three frameworks
of Yan et al. (2025, arXiv 2501.04436). No parameter ever travels.

Once: the public set, down. Then, each round, down: of which examples the server wants to hear; up: a
client's log-probabilities for those, and one weight; down, where the clients distil: the teacher, a
distribution for every prediction of this round's examples. docs/kd.md says which published method is
which setting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from trillium.client import Client, client_verb
from trillium.component import Choice
from trillium.ensembles import Average, Ensemble
from trillium.ensembles.size_weighted import SizeWeighted
from trillium.filters import Filter
from trillium.filters.none import NoFilter
from trillium.fleet import Fleet
from trillium.frameworks import CLIENT_MODELS, SERVER_MODEL, OwnModels, mean_metrics
from trillium.frameworks.kd_cache import LabelCache
from trillium.frameworks.kd_checks import check_kd
from trillium.frameworks.kd_teacher import (
    Opinion,
    class_counts,
    make_teacher,
    predictions,
    read_opinion,
    warn_of_flattening,
)
from trillium.message import Message, MessageError, named, scalar
from trillium.models.slots import State, values
from trillium.rng import generator
from trillium.server import Server
from trillium.sharpenings import Sharpening
from trillium.sharpenings.none import NoSharpening
from trillium.side import Metrics, Side
from trillium.soft_labels import SoftLabels, received
from trillium.tasks import IGNORE, Example
from trillium.tasks.public import (
    choice,
    decode_public,
    encode_public,
    read_mask,
    row_slices,
    write_mask,
)
from trillium.training.distillation import Loss, distillation, predict
from trillium.training.loop import batches, task_objective

if TYPE_CHECKING:
    from trillium.config import ExperimentConfig


class KD(OwnModels, name="kd"):
    """Exchange of soft labels on a public set.

    Attributes:
        direction: who distils from the teacher: the `server` into its own model, the `client`s into
            theirs, or `both`.
        temperature: softens teacher and student.
        weight: factor of the distillation loss `weight * T^2 * KL(teacher || student)`.
        public_labels: whether the public set's labels may be used; cross-entropy is added then.
        ensemble: how the clients' opinions are weighed.
        average: the teacher is the mean of softened probabilities, or of logits.
        sharpening: what is done to the mean, which is flatter than any opinion in it.
        filter: of which public examples a client says nothing.
        max_entropy: public examples on which the teacher's entropy is above this share of the largest
            possible one are left out of distillation (Selective-FD's server); null keeps all.
        public_per_round: how many public examples a round is about, drawn anew each time; null is all.
        cache_rounds: rounds that the teacher's label of an example serves; with more than 1, clients
            keep labels, and are asked only about examples whose label has expired.
        distill_epochs: passes over this round's public examples.
    """

    direction: Literal["server", "client", "both"] = "both"
    temperature: float = Field(default=2.0, gt=0)
    weight: float = Field(default=1.0, gt=0)
    public_labels: bool = False
    ensemble: Choice[Ensemble] = SizeWeighted()
    average: Average = "probabilities"
    sharpening: Choice[Sharpening] = NoSharpening()
    filter: Choice[Filter] = NoFilter()
    max_entropy: float | None = Field(default=None, gt=0, le=1)
    public_per_round: int | None = Field(default=None, ge=1)
    cache_rounds: int = Field(default=1, ge=1)
    distill_epochs: int = Field(default=1, ge=1)

    needs_public: ClassVar[bool] = True

    @property
    def ships(self) -> str:
        """The server's model, if it distils, else the clients' own."""
        return CLIENT_MODELS if self.direction == "client" else SERVER_MODEL

    def check(self, config: ExperimentConfig) -> None:
        """Refuse settings that contradict each other."""
        super().check(config)
        check_kd(self, config)

    # The server

    def start(self, server: Server, fleet: Fleet) -> None:
        """Send the public set to every client, once."""
        warn_of_flattening(self.sharpening, server.model.num_classes)
        server.store["informed"] = []
        self._inform(server, fleet)

    def _inform(self, server: Server, fleet: Fleet) -> None:
        """Send the public set to those of the cohort who do not have it yet."""
        informed = {*server.store["informed"]} - fleet.newcomers
        message = encode_public(self.public_set(server))
        asks = {client: message for client in fleet.cohort if client not in informed}
        for client, _ in fleet.ask(asks, lambda reply: None, "once"):
            informed.add(client)
        server.store["informed"] = sorted(informed)

    def public_set(self, server: Server) -> list[Example]:
        """Return the public set as the clients get it: without classes where labels may not be used.

        In language modelling the labels stay: they say which tokens the response is.
        """
        if self.public_labels:
            return server.public
        return [
            e if e.labels.dim() else Example(e.index, e.input_ids, torch.tensor(IGNORE))
            for e in server.public
        ]

    def chosen(self, server: Server) -> list[int]:
        """Return the public examples that this round is about, sorted."""
        count = len(server.public)
        if self.public_per_round is None or self.public_per_round >= count:
            return list(range(count))
        draw = torch.randperm(count, generator=generator(server.seed, "public", server.round))
        return sorted(draw[: self.public_per_round].tolist())

    def round(self, server: Server, fleet: Fleet) -> Metrics:
        """Let clients train and predict, make a teacher of their predictions, distil from it."""
        self._inform(server, fleet)
        public, chosen = self.public_set(server), self.chosen(server)
        store = server.store.setdefault("labels", {}) if self.cache_rounds > 1 else {}
        cache = LabelCache(store, self.cache_rounds)
        for client in fleet.newcomers:
            cache.lose(client)
        wanted = [index for index in chosen if not cache.is_fresh(index, server.round)]
        examples = [public[index] for index in wanted]
        opinions = self._ask(server, fleet, examples)
        shape = predictions(server, examples)
        writer = fleet.wire.writer("learn", "logits/teacher", server.round, shape, "down")
        made, labels = make_teacher(self, server, opinions, examples, writer)
        cache.keep(server.round, made, labels, row_slices(server.task, public))
        used = [index for index in chosen if cache.is_fresh(index, server.round)]
        metrics: Metrics = {"train_loss": sum(o.loss for o in opinions) / len(opinions)}
        if not used:
            return metrics
        teacher = cache.labels(used, labels.codec, shape[1])
        if self.direction != "server":
            self._send(server, fleet, cache, used, teacher)
        if self.direction != "client":
            examples = [public[index] for index in used]
            metrics["distil_loss"] = self._distil(server, server.state, examples, teacher)
        return metrics

    def _ask(self, server: Server, fleet: Fleet, examples: list[Example]) -> list[Opinion]:
        """Return what the clients say of examples, sorted by name."""
        indices = [example.index for example in examples]
        message = Message("teach", choice("control/wanted", indices, len(server.public)))

        def read(reply: Message) -> Opinion:
            return read_opinion(reply, server, examples, self.ensemble)

        replies = dict(fleet.ask(dict.fromkeys(fleet.cohort, message), read))
        return [replies[client] for client in sorted(replies)]

    def _send(
        self, server: Server, fleet: Fleet, cache: LabelCache, used: list[int], teacher: SoftLabels
    ) -> None:
        """Send each client those labels of the round that it does not hold, and let it distil."""
        count = len(server.public)
        slices = row_slices(server.task, [server.public[index] for index in used])
        asks, sent = {}, {}
        for client in fleet.cohort:
            sent[client] = cache.lacking(client, used)
            tensors, labels = choice("control/used", used, count), teacher
            if sent[client] != used:
                tensors["control/sent"] = write_mask(sent[client], count)
                labels = teacher.of(slices, sent[client])
            asks[client] = Message("learn", tensors, encoded={"logits/teacher": labels})
        done = [client for client, _ in fleet.ask(asks, lambda reply: None)]
        for client in done if self.cache_rounds > 1 else []:
            cache.confirm(client, sent[client])
        for client in asks.keys() - done:
            cache.lose(client)

    def evaluate(self, server: Server, fleet: Fleet, batch_size: int, last: bool) -> Metrics:
        """Return the metrics of the server's model, and in the end of the clients' own models."""
        if self.direction == "client" and server.round > 0:
            clients = self.clients_metrics(fleet, batch_size)
            return {**mean_metrics(clients), "clients": clients}
        metrics = server.evaluate(server.state, batch_size)
        if last:
            metrics["clients"] = self.clients_metrics(fleet, batch_size)
        return metrics

    # The clients

    @client_verb
    def receive_public(self, client: Client, message: Message) -> Message:
        """Keep the public set."""
        decode_public(message, len(client.model.tokenizer))
        client.store["public"], client.store["labels"] = message.group("public"), {}
        return Message("receive_public")

    @client_verb
    def teach(self, client: Client, message: Message) -> Message:
        """Train on the client's own data and answer with soft labels of the wanted examples."""
        public = self._received(client)
        wanted = [public[index] for index in read_mask(message, "control/wanted", len(public))]
        state = client.model.state(client.store.get("tensors", client.initial))
        trained = client.loop("train", state).fit(
            batches(client.examples, client.training, client.generator("batches")),
            task_objective(client.task, client.examples),
            client.training,
            client.progress,
            client.training.num_steps(len(client.examples)),
        )
        client.store["tensors"] = values(state)
        tensors = {"control/weight": scalar(client.weight), "control/loss": scalar(trained.loss)}
        kept = self.filter.keep(client, client.examples, wanted)
        if kept is not None:
            places = kept.nonzero()[:, 0].tolist()
            tensors["control/kept"] = write_mask(places, len(wanted))
            wanted = [wanted[place] for place in places]
        if self.ensemble.needs_counts:
            tensors["control/counts"] = class_counts(client)
        shape = predictions(client, wanted)
        writer = client.wire.writer("teach", "logits/public", client.round, shape, "up")
        found = predict(client.loop("predict", state), client.task, wanted, writer)
        return Message("teach", tensors, encoded={"logits/public": found})

    @client_verb
    def learn(self, client: Client, message: Message) -> Message:
        """Distil the teacher into the client's own model."""
        public = self._received(client)
        own = _kept(client, "tensors", "teach")
        used = read_mask(message, "control/used", len(public))
        which = "control/sent" if "control/sent" in message.tensors else "control/used"
        sent = read_mask(message, which, len(public))
        examples = [public[index] for index in sent]
        labels = received(message, "logits/teacher", *predictions(client, examples))
        records: dict[int, Tensor] = client.store["labels"] if self.cache_rounds > 1 else {}
        for index, rows in row_slices(client.task, examples).items():
            records[index] = labels.records[rows].clone()
        if not set(used) <= records.keys() or not used:
            raise MessageError("the server relies on labels that this client does not hold")
        teacher = labels.joined([records[index] for index in used])
        state = client.model.state(own)
        self._distil(client, state, [public[index] for index in used], teacher)
        client.store["tensors"] = values(state)
        return Message("learn")

    def _received(self, client: Client) -> list[Example]:
        """Return the public set as this client has received it."""
        public = named("public", _kept(client, "public", "receive_public"))
        return decode_public(Message("receive_public", public), len(client.model.tokenizer))

    # Both

    def _distil(
        self, side: Side, state: State, public: list[Example], teacher: SoftLabels
    ) -> float:
        """Distil a teacher into a state and return the mean loss."""
        training = side.training.model_copy(
            update={"local_epochs": self.distill_epochs, "local_steps": None}
        )
        loss = Loss(self.temperature, self.weight, self.public_labels)
        loop, objective = distillation(side.loop("distil", state), side.task, public, teacher, loss)
        trained = loop.fit(
            batches(public, training, side.generator("distil")),
            objective,
            training,
            side.progress,
            training.num_steps(len(public)),
        )
        return trained.loss


def _kept(client: Client, what: str, verb: str) -> Any:
    """Return what an earlier verb has left with a client."""
    if what not in client.store:
        raise MessageError(f"this client was not asked to {verb} before")
    return client.store[what]
