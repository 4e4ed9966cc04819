"""The baselines on paper: nobody trains, everybody alone, or all data in one place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trillium.federation.client import Client
from trillium.frameworks import Framework
from trillium.plan.cohorts import Cohort
from trillium.plan.federation import Federation
from trillium.plan.waves import Ask, Memory, Wave, Work
from trillium.tasks import Example
from trillium.training.loop import batches, task_objective
from trillium.wire.message import Message, scalar


@dataclass
class BaselineRounds:
    """The rounds of `zero_shot`, `local_only` and `centralised`.

    Attributes:
        framework: which of them.
        federation: both sides.
    """

    framework: Framework
    federation: Federation

    upper_bound = False

    def start(self) -> Iterator[Wave]:
        """Return what crosses before the first round: nothing."""
        yield from ()

    def round(self, number: int, cohort: Cohort) -> Iterator[Wave]:
        """Return the messages of a round: of `local_only` a loss, of the others none."""
        if self.framework.name == "local_only":
            yield Wave(tuple(self._alone(name, name in cohort.lost) for name in cohort.asked))
        elif self.framework.name == "centralised":
            yield Wave((), self._pooled(cohort))

    def memory(self, client: Client, peak_bytes: int) -> Memory:
        """Divide the most that a client holds into its parts."""
        if self.framework.name != "local_only":
            return Memory()
        state = self.federation.models.state(client.model)
        return self.federation.memory(client, peak_bytes, state, client.training.optimizer)

    def _alone(self, name: str, lost: bool) -> Ask:
        client, federation = self.federation.clients[name], self.federation
        down = federation.down(name, Message("train_alone"))
        if lost:
            return Ask(name, "train_alone", down, None)
        up = federation.up(name, Message("train_alone", {"control/loss": scalar(0.0)}))
        return Ask(name, "train_alone", down, up, self._train(client))

    def _train(self, client: Client) -> Work:
        objective = task_objective(client.task, client.examples)

        def run(chunk: list[Example]) -> None:
            loop = client.loop("train", client.model.state())
            loop.fit([chunk], objective, client.training, client.progress, 1)

        return self.federation.summed(
            self.federation.chunks(client),
            self.federation.training_key(client, client.model.initial),
            run,
        )

    def _pooled(self, cohort: Cohort) -> Work:
        """As `Centralised.round`: as many steps as the clients of a round take together."""
        server, training = self.federation.server, self.federation.config.training
        if training.local_steps is None:
            share = len(cohort.asked) / len(self.federation.clients)
            num_examples = share * training.local_epochs * len(server.pooled)
            num_steps = -int(-num_examples // training.batch_size)
        else:
            num_steps = training.local_steps * len(cohort.asked)
        budget = training.model_copy(update={"local_steps": num_steps})
        objective = task_objective(server.task, server.pooled)

        def run(chunk: list[Example]) -> None:
            loop = server.loop("train", server.state)
            loop.fit([chunk], objective, training, server.progress, 1)

        chunks = batches(server.pooled, budget, server.generator("batches"))
        return self.federation.summed(
            self.federation.chunked(chunks, "clients"), ("pooled", id(server.model)), run
        )
