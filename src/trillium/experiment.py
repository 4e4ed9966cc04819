"""One run: build, rounds, evaluate, write down, export."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from trillium.client import Client
from trillium.config import ExperimentConfig
from trillium.data.federated import FederatedData, load_data
from trillium.engines.local import LocalEngine
from trillium.fleet import Fleet
from trillium.frameworks import SERVER_MODEL
from trillium.ledger import Entry, Ledger
from trillium.models.load import LanguageModel, load_model
from trillium.rng import scoped_rng
from trillium.run_folder import RunFolder, environment
from trillium.server import Server
from trillium.side import Metrics
from trillium.tasks import Example
from trillium.training.meters import CostCache, Meter

Observer = Callable[[Metrics], None]


@dataclass
class Experiment:
    """A federation that is ready to run, in this process.

    Attributes:
        config: what to run.
        data: rows of clients, public set and test.
        model: the resident model.
        clients: the data owners.
        server: the coordinating side.
        fleet: the clients as the server sees them.
        history: one line per evaluation, as in `metrics.jsonl`.
    """

    config: ExperimentConfig
    data: FederatedData
    model: LanguageModel
    clients: list[Client]
    server: Server
    fleet: Fleet
    folder: RunFolder | None = None
    history: list[Metrics] = field(default_factory=list)
    _seconds: float = 0.0

    def run(self, observe: Observer | None = None) -> list[Metrics]:
        """Run all rounds and return the evaluations.

        Args:
            observe: called with each evaluation as soon as there is one.

        Raises:
            RoundFailed: too few clients stayed in a round; what was measured so far is written.
        """
        framework, rounds = self.config.framework, self.config.rounds
        try:
            framework.start(self.server, self.fleet)
            self._evaluate({}, observe)
            for number in range(1, (rounds if framework.trains else 0) + 1):
                start = time.perf_counter()
                self.server.round = number
                self.fleet.begin_round(number)
                with scoped_rng(self.config.seed, "server", number):
                    figures = framework.round(self.server, self.fleet)
                self._seconds += time.perf_counter() - start
                if number % self.config.evaluation.every == 0 or number == rounds:
                    self._evaluate(figures, observe)
                self.fleet.ledger.flush()
            self._finish()
        except BaseException as error:
            if self.folder is not None:
                self.folder.status("failed", f"{type(error).__name__}: {error}")
            raise
        finally:
            self.fleet.ledger.close()
        return self.history

    def _evaluate(self, figures: Metrics, observe: Observer | None) -> None:
        """Measure the model that would be shipped, and write a line."""
        framework, number = self.config.framework, self.server.round
        last = number == self.config.rounds or not framework.trains
        missing = dict(self.fleet.missing)
        batch_size = self.config.evaluation.batch_size
        found = framework.evaluate(self.server, self.fleet, batch_size, last)
        line = {
            "round": number,
            **found,
            **figures,
            "shipped": framework.ships,
            "asked": len(self.fleet.asked) if number else 0,
            "replied": len(self.fleet.asked) - len(missing) if number else 0,
            "missing": missing,
            "seconds": self._seconds,
            "server_flops": self.server.meter.read().flops,
        }
        self.history.append(line)
        if self.folder is not None:
            self.folder.metrics(line)
        if observe is not None:
            observe(line)

    def _finish(self) -> None:
        if self.folder is None:
            return
        if self.config.framework.ships == SERVER_MODEL:
            self.model.save(self.server.state, self.folder.path / "adapter")
        self.folder.status("finished")


def build(
    config: ExperimentConfig,
    folder: RunFolder | None = None,
    watch: Callable[[Entry], None] | None = None,
    argv: Sequence[str] = (),
) -> Experiment:
    """Load data and model and set up both sides.

    Args:
        config: what to run.
        folder: where to write; nowhere without one.
        watch: called with every entry of the ledger, for progress bars.
        argv: the command, for the record.

    Raises:
        UserError: data, model and framework do not fit together.
    """
    task, training = config.task, config.training
    data = load_data(config.data, task.data_form, config.seed)
    model = load_model(
        config.model,
        config.adapter,
        auto_class=task.auto_class,
        peft_task=task.peft_task,
        labels=data.labels,
        seed=config.seed,
    )

    def tokenize(rows: Any) -> list[Example]:
        return task.tokenize(rows, model.tokenizer, training.max_length)

    test, public = tokenize(data.test), tokenize(data.public)
    cache: CostCache = {}
    clients = [
        Client(
            name=name,
            model=model,
            task=task,
            examples=tokenize(rows),
            test=test,
            verbs=config.framework.verbs(),
            training=training,
            wire=config.wire,
            meter=Meter(cache, model.device),
            seed=config.seed,
            num_rounds=config.rounds,
        )
        for name, rows in data.clients.items()
    ]
    server = Server(
        model=model,
        task=task,
        state=model.state(),
        public=public,
        test=test,
        pooled=[example for client in clients for example in client.examples],
        training=training,
        meter=Meter({}, model.device),
        seed=config.seed,
        num_rounds=config.rounds,
    )
    ledger = Ledger(folder.path / "wire.jsonl" if folder is not None else None, watch)
    fleet = Fleet(LocalEngine(clients), config.wire, ledger, config.fleet, config.seed)
    if folder is not None:
        folder.config(config.tree())
        folder.json("env.json", environment(str(model.device), argv))
        folder.json("data.json", data.summary())
        folder.json("once.json", config.framework.once_bytes(clients[0]))
    return Experiment(config, data, model, clients, server, fleet, folder)
