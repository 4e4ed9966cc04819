"""KD-FedLLM: clients upload logits on a public set; distillation shares what they have learnt.

FedMD (Li and Wang, 2019, arXiv 1910.03581) and DS-FL (Itahara et al., 2020, arXiv 2008.06180) for
the exchange, Hinton et al. (2015, arXiv 1503.02531) for the loss. The second of the three frameworks
of Yan et al. (2025, arXiv 2501.04436). No parameter ever travels.

Once: the public set, down. Then, each round, up: a client's logits on the public set, and one weight;
down, where the clients distil: the teacher, a distribution for every prediction of the public set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from trillium.client import Client, client_verb
from trillium.fleet import Fleet
from trillium.frameworks import (
    CLIENT_MODELS,
    SERVER_MODEL,
    OwnModels,
    mean_metrics,
)
from trillium.message import Message, MessageError, named, scalar
from trillium.models.slots import State, values
from trillium.server import Server
from trillium.side import Metrics, Side
from trillium.tasks import IGNORE, Batch, Example, Task
from trillium.tasks.batches import collate, in_order
from trillium.tasks.public import decode_public, encode_public
from trillium.training.loop import Loop, Objective, batches, task_objective
from trillium.training.meters import resident_tensors

PREDICT_BATCH = 32  # examples at once when logits are computed; changes memory, not results


class KD(OwnModels, name="kd"):
    """Exchange of logits on a public set.

    Attributes:
        direction: who distils from the teacher: the `server` into its own model, the `client`s into
            theirs, or `both`.
        temperature: softens teacher and student.
        weight: factor of the distillation loss `weight * T^2 * KL(teacher || student)`.
        public_labels: whether the public set's labels may be used; cross-entropy is added then.
        teacher: the clients' weighted mean of softened probabilities, or of logits.
        distill_epochs: passes over the public set in one round.
    """

    direction: Literal["server", "client", "both"] = "both"
    temperature: float = Field(default=2.0, gt=0)
    weight: float = Field(default=1.0, gt=0)
    public_labels: bool = False
    teacher: Literal["mean_probabilities", "mean_logits"] = "mean_probabilities"
    distill_epochs: int = Field(default=1, ge=1)

    needs_public: ClassVar[bool] = True

    @property
    def ships(self) -> str:
        """The server's model, if it distils, else the clients' own."""
        return CLIENT_MODELS if self.direction == "client" else SERVER_MODEL

    # The server

    def start(self, server: Server, fleet: Fleet) -> None:
        """Send the public set to every client, once."""
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

    def round(self, server: Server, fleet: Fleet) -> Metrics:
        """Let clients train and predict, average their predictions, distil from the average."""
        self._inform(server, fleet)
        public = self.public_set(server)
        num_rows = sum(server.task.num_targets(example) for example in public)
        num_classes = server.model.num_classes

        def read(reply: Message) -> tuple[float, float, Tensor]:
            logits = reply.floats("logits/public", (num_rows, num_classes)).float()
            return reply.positive("control/weight"), reply.scalar("control/loss"), logits

        replies = dict(fleet.ask(dict.fromkeys(fleet.cohort, Message("teach")), read))
        ordered = [replies[client] for client in sorted(replies)]
        teacher = self.average([(weight, logits) for weight, _, logits in ordered])
        if self.direction != "server":
            message = Message("learn", {"logits/teacher": teacher})
            for _ in fleet.ask(dict.fromkeys(fleet.cohort, message), lambda reply: None):
                pass
        metrics = {"train_loss": sum(loss for _, loss, _ in ordered) / len(ordered)}
        if self.direction != "client":
            metrics["distil_loss"] = self._distil(server, server.state, public, teacher)
        return metrics

    def average(self, predictions: Sequence[tuple[float, Tensor]]) -> Tensor:
        """Return the teacher: softened probabilities `(rows, classes)`, averaged by weight.

        Args:
            predictions: weight and logits `(rows, classes)` of each client.
        """
        total = sum(weight for weight, _ in predictions)
        mean = torch.zeros_like(predictions[0][1], dtype=torch.float64)
        for weight, logits in predictions:
            softened = logits.double() / self.temperature
            if self.teacher == "mean_probabilities":
                softened = softened.softmax(-1)
            mean.add_(softened, alpha=weight / total)
        if self.teacher == "mean_logits":
            mean = mean.softmax(-1)
        return mean.float()

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
        vocabulary = len(client.model.tokenizer)
        decode_public(message, vocabulary)
        client.store["public"] = message.group("public")
        return Message("receive_public")

    @client_verb
    def teach(self, client: Client, message: Message) -> Message:
        """Train on the client's own data and answer with logits on the public set."""
        public = self._received(client)
        state = client.model.state(client.store.get("tensors", client.initial))
        trained = client.loop("train", state).fit(
            batches(client.examples, client.training, client.generator("batches")),
            task_objective(client.task, client.examples),
            client.training,
            client.progress,
            client.training.num_steps(len(client.examples)),
        )
        client.store["tensors"] = values(state)
        logits = predict(client.loop("predict", state), client.task, public)
        return Message(
            "teach",
            {
                "logits/public": logits,
                "control/weight": scalar(client.weight),
                "control/loss": scalar(trained.loss),
            },
        )

    @client_verb
    def learn(self, client: Client, message: Message) -> Message:
        """Distil the teacher into the client's own model."""
        public = self._received(client)
        own = _kept(client, "tensors", "teach")
        num_rows = sum(client.task.num_targets(example) for example in public)
        teacher = message.floats("logits/teacher", (num_rows, client.model.num_classes)).float()
        state = client.model.state(own)
        self._distil(client, state, public, teacher)
        client.store["tensors"] = values(state)
        return Message("learn")

    def _received(self, client: Client) -> list[Example]:
        """Return the public set as this client has received it."""
        public = named("public", _kept(client, "public", "receive_public"))
        return decode_public(Message("receive_public", public), len(client.model.tokenizer))

    # Both

    def _distil(self, side: Side, state: State, public: list[Example], teacher: Tensor) -> float:
        """Distil a teacher into a state and return the mean loss."""
        training = side.training.model_copy(
            update={"local_epochs": self.distill_epochs, "local_steps": None}
        )
        trained = side.loop("distil", state).fit(
            batches(public, training, side.generator("distil")),
            self.objective(side.task, public, teacher),
            training,
            side.progress,
            training.num_steps(len(public)),
        )
        return trained.loss

    def objective(self, task: Task, public: Sequence[Example], teacher: Tensor) -> Objective:
        """Return the distillation loss, summed over the predictions of a batch.

        Args:
            task: chooses the predictions that count, equally for teacher and student.
            public: the public set, in the order of the teacher's rows.
            teacher: softened probabilities `(rows, classes)`.
        """
        rows = _rows(task, public)

        def loss(module: nn.Module, batch: Batch) -> tuple[Tensor, int]:
            logits = module(**batch.inputs).logits
            student, targets = task.select(logits, batch.labels)
            wanted = torch.cat([teacher[rows[index]] for index in batch.indices])
            total = self.weight * distillation_loss(
                student, wanted.to(student.device), self.temperature
            )
            if self.public_labels:
                total = total + functional.cross_entropy(
                    student, targets, reduction="sum", ignore_index=IGNORE
                )
            return total, len(student)

        return loss


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return `T^2 * KL(teacher || softmax(student / T))`, summed over rows.

    Args:
        student: logits `(rows, classes)`.
        teacher: softened probabilities `(rows, classes)`; no gradient flows into them.
        temperature: T; the factor T^2 keeps the gradient's size when T changes (Hinton et al., 2015).
    """
    wide = student if student.dtype == torch.float64 else student.float()
    log_student = functional.log_softmax(wide / temperature, dim=-1)
    divergence = functional.kl_div(log_student, teacher.detach().to(wide.dtype), reduction="sum")
    return divergence * temperature**2


@torch.no_grad()
def predict(loop: Loop, task: Task, public: Sequence[Example]) -> Tensor:
    """Return the logits `(rows, classes)` of the predictions that count, float32, in order."""
    loop.module.eval()
    found = []
    for chunk in in_order(public, PREDICT_BATCH):
        batch = collate(chunk, loop.pad_id, loop.device)
        resident = lambda: resident_tensors(loop.module)  # noqa: E731
        with loop.meter.measure((loop.label, batch.layout), resident):
            found.append(task.select(loop.module(**batch.inputs).logits, batch.labels)[0].float())
    return torch.cat(found).cpu()


def _kept(client: Client, what: str, verb: str) -> Any:
    """Return what an earlier verb has left with a client."""
    if what not in client.store:
        raise MessageError(f"this client was not asked to {verb} before")
    return client.store[what]


def _rows(task: Task, public: Sequence[Example]) -> dict[int, slice]:
    """Return which rows of the teacher belong to which example."""
    rows, start = {}, 0
    for example in public:
        end = start + task.num_targets(example)
        rows[example.index] = slice(start, end)
        start = end
    return rows
