"""KD-FedLLM: clients upload soft labels on a public set; distillation shares what they have learnt.

FedMD (Li and Wang, 2019, arXiv 1910.03581) and DS-FL (Itahara et al., 2020, arXiv 2008.06180) for
the exchange, Hinton et al. (2015, arXiv 1503.02531) for the loss. The second of the three frameworks
of Yan et al. (2025, arXiv 2501.04436). No parameter ever travels.

Once: the public set, down. Then, each round, down: of which examples the server wants to hear; up: a
client's log-probabilities for those, and one weight; down, where the clients distil: the teacher, a
distribution for every prediction of this round's examples. docs/kd.md says which
published method is which setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch

from trillium.federation.client import Client, client_verb
from trillium.federation.fleet import Fleet
from trillium.federation.server import Server
from trillium.federation.setting import Evaluation, Setting
from trillium.federation.side import Metrics, Side
from trillium.frameworks.effects import Crossing, Crossings
from trillium.frameworks.kd.cache import LabelCache
from trillium.frameworks.kd.checks import check_kd
from trillium.frameworks.kd.dialects import describe_dialects, read_classes, with_classes
from trillium.frameworks.kd.distillation import Loss, distillation_objective, predict
from trillium.frameworks.kd.lesson import read_lesson, send_lessons
from trillium.frameworks.kd.opinions import ask_opinions
from trillium.frameworks.kd.public import (
    decode_public,
    encode_public,
    examples_at,
    read_mask,
    row_slices,
)
from trillium.frameworks.kd.settings import KDSettings
from trillium.frameworks.kd.teacher import (
    class_counts,
    make_teacher,
    predictions,
    warn_of_flattening,
)
from trillium.models.slots import State, values
from trillium.rng import generator
from trillium.tasks import Example
from trillium.training.loop import batches, task_objective
from trillium.wire.addend import Addend
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message
from trillium.wire.soft_labels import Teacher


class KD(KDSettings, name="kd"):
    """Exchange of soft labels on a public set."""

    compares: ClassVar[bool] = False
    only_adds: ClassVar[bool] = True
    takes_first: ClassVar[bool] = True
    hides_units: ClassVar[frozenset[str]] = frozenset({"client"})

    def crossings(self, config: Setting) -> Crossings:
        """Return that the public set comes down, opinions go up, and lessons come down."""
        said = Crossing("log_probabilities")
        found: Crossings = {("down", "public"): Crossing("values"), ("up", "logits"): said}
        return found if self.direction == "server" else {**found, ("down", "logits"): said}

    def no_effect(self, config: Setting) -> Mapping[str, str]:
        """Return what an ensemble of one form, and votes, which have one length, do not read."""
        found = {**super().no_effect(config)}
        if config.privacy.unit:
            found["privacy.clip"] = (
                "votes of all clients have one length, and only their shares count"
            )
        if config.task.says_values:
            found["framework.temperature"] = "numbers are averaged and compared as they are"
        if self.ensemble.averages:
            return found
        why = f"framework.ensemble={self.ensemble.name} has a mean of its own"
        return {**found, "framework.average": why}

    def check(self, config: Setting) -> None:
        """Refuse settings that contradict each other."""
        super().check(config)
        check_kd(self, config)

    # The server

    def start(self, server: Server, fleet: Fleet) -> None:
        """Send the public set to every client, once."""
        outcomes = server.task.num_outcomes(server.model.num_classes)
        warn_of_flattening(self.sharpening, outcomes)
        describe_dialects(server)
        server.store["informed"] = []
        self._inform(server, fleet)

    def _inform(self, server: Server, fleet: Fleet) -> None:
        """Send the public set to those of the cohort who do not have it yet."""
        informed = {*server.store["informed"]} - fleet.newcomers
        message = encode_public(server.public_rows, labelled=self.public_labels)
        asks = {client: message for client in fleet.cohort if client not in informed}
        if self.direction != "server":
            asks = {client: with_classes(asks[client], server, client) for client in asks}
        server.store["informed"] = sorted(informed | fleet.tell(asks, "once"))

    def public_set(self, server: Server) -> list[Example]:
        """Return the public set as all sides use it: without classes where labels may not be used.

        What says which predictions count stays, such as the response in language modelling.
        """
        if self.public_labels:
            return server.public
        return [server.task.unlabelled(example) for example in server.public]

    def chosen(self, server: Server) -> list[int]:
        """Return the public examples that this round is about, sorted."""
        count = len(server.public)
        if self.public_per_round is None or self.public_per_round >= count:
            return list(range(count))
        draw = generator(server.seed, "public", server.round)
        return sorted(torch.randperm(count, generator=draw)[: self.public_per_round].tolist())

    def round(self, server: Server, fleet: Fleet) -> Metrics:
        """Let clients train and predict, make a teacher of their predictions, distil from it."""
        self._inform(server, fleet)
        public, chosen = self.public_set(server), self.chosen(server)
        cache, wanted = self._cache(server), chosen
        if cache is not None:
            for client in fleet.newcomers:
                cache.lose(client)
            wanted = [index for index in chosen if not cache.is_fresh(index, server.round)]
        examples = [public[index] for index in wanted]
        said, metrics = ask_opinions(self, server, fleet, wanted)
        shape = predictions(server, examples)
        writer = fleet.wire.writer("learn", "logits/teacher", server.round, shape, "down")
        used, teacher = make_teacher(self, server, said, examples, writer)
        if cache is not None:
            slices = row_slices(server.task, examples_at(public, used))
            cache.keep(server.round, used, teacher, slices)
            used = [index for index in chosen if cache.is_fresh(index, server.round)]
        if not used:
            return metrics
        if cache is not None:
            teacher = cache.teacher(used, teacher.labels.codec, shape[1])
        if self.direction != "server":
            send_lessons(server, fleet, cache, used, teacher)
        if self.direction != "client":
            metrics["distil_loss"] = self._distil(
                server, server.state, examples_at(public, used), teacher
            )
        return metrics

    def evaluate(self, server: Server, fleet: Fleet, evaluation: Evaluation, last: bool) -> Metrics:
        """Return the metrics of the server's model, and in the end of the clients' own models.

        These are not looked at where the clients measure the server's.
        """
        if self.direction == "client" and server.round > 0:
            return self.measure_own(server, fleet, evaluation)
        metrics = self.measure_shared(server, fleet, evaluation)
        if last and evaluation.where == "server" and not fleet.adds_only:
            metrics["clients"] = self.measure_own(server, fleet, evaluation)["clients"]
        return metrics

    # The clients

    @client_verb
    def receive_public(self, client: Client, message: Message) -> Message:
        """Keep the public set."""
        client.scratch["public"] = client.tokenize(_public_columns(client, message))
        client.store["public"], client.store["labels"] = message.tensors["public/rows"], {}
        outcomes = client.task.num_outcomes(client.model.num_classes)
        client.store["classes"] = read_classes(message, outcomes)
        return Message("receive_public")

    @client_verb
    def teach(self, client: Client, message: Message) -> Message:
        """Train on the client's own data and answer with soft labels of the wanted examples."""
        public = self._received(client)
        wanted = examples_at(public, read_mask(message, "control/wanted", len(public)))
        state = client.model.state(client.store.get("tensors", client.initial))
        trained = client.loop("train", state).fit(
            batches(client.examples, client.training, client.generator("batches")),
            task_objective(client.task, client.examples),
            client.training,
            client.progress,
            client.training.num_steps(len(client.examples)),
        )
        client.store["tensors"] = values(state)
        shape = predictions(client, wanted)
        writer = client.wire.writer("teach", "logits/public", client.round, shape, "up")
        found = predict(client.loop("predict", state), client.task, wanted, writer)
        addend = Addend(
            {},
            client.weight,
            {"loss": trained.loss},
            labels={"logits/public": found},
            of_row=partial(
                self.ensemble.of_row, temperature=self.temperature, average=self.average
            ),
        )
        if self.ensemble.adds:
            return Message("teach", summed=addend)
        counts = {"control/counts": class_counts(client)} if self.ensemble.needs_counts else {}
        return Message("teach", counts, summed=addend).opened()

    @client_verb
    def learn(self, client: Client, message: Message) -> Message:
        """Distil the teacher into the client's own model."""
        public = self._received(client)
        own = _kept(client, "tensors", "teach")
        classes, num_classes = _kept(client, "classes", "receive_public")
        used, teacher = read_lesson(message, client, public, self._cache(client), num_classes)
        state = client.model.state(own)
        learnt = examples_at(public, used)
        self._distil(client, state, learnt, replace(teacher, classes=classes))
        client.store["tensors"] = values(state)
        return Message("learn")

    def _received(self, client: Client) -> list[Example]:
        """Return the public set as this client has received it, in the tokens of its model."""
        public = {"public/rows": _kept(client, "public", "receive_public")}
        if "public" not in client.scratch:
            columns = _public_columns(client, Message("receive_public", public))
            client.scratch["public"] = client.tokenize(columns)
        found: list[Example] = client.scratch["public"]
        return found

    # Both

    def _cache(self, side: Side) -> LabelCache | None:
        """Return the labels of earlier rounds, where they serve for more than one."""
        if self.cache_rounds == 1:
            return None
        return LabelCache(side.store.setdefault("labels", {}), self.cache_rounds)

    def _distil(self, side: Side, state: State, public: list[Example], teacher: Teacher) -> float:
        """Distil a teacher into a state and return the mean loss."""
        training = side.training.model_copy(
            update={"local_epochs": self.distill_epochs, "local_steps": None}
        )
        loss = Loss(self.temperature, self.weight, self.public_labels)
        loop = side.loop("distil", state)
        objective = distillation_objective(side.task, public, teacher, loss)
        trained = loop.fit(
            batches(public, training, side.generator("distil")),
            objective,
            training,
            side.progress,
            training.num_steps(len(public)),
            even=bool(teacher.present.all()),
        )
        return trained.loss


def _public_columns(client: Client, message: Message) -> dict[str, list[Any]]:
    return decode_public(message, client.task.data_form, client.model.num_classes)


def _kept(client: Client, what: str, verb: str) -> Any:
    """Return what an earlier verb has left with a client."""
    if what not in client.store:
        raise MessageError(f"this client was not asked to {verb} before")
    return client.store[what]
