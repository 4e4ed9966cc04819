"""A worker of the Ray engine: the clients that are pinned to it, and one model for all of them.

It answers what any client is asked, writes down what they hold, and takes them back to that.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging.handlers import QueueHandler
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from trillium.config.experiment import ExperimentConfig
from trillium.experiment.residents import Residents
from trillium.experiment.run import build_client
from trillium.federation.checkpoint import dump, load
from trillium.federation.client import Client
from trillium.models.base import ModelConfig
from trillium.quiet import quiet
from trillium.tasks import Example

Records = list[logging.LogRecord]


@dataclass(frozen=True)
class Setup:
    """A run, as workers are told of it.

    Attributes:
        models: folder of this machine in which the folders of models are; `None` where they are where
            the configuration says.
        threads: with which to compute.
        level: of the log that is wanted.
    """

    config: ExperimentConfig
    labels: Sequence[str]
    models: Path | None
    threads: int
    level: int


@dataclass(frozen=True)
class Sent:
    """A client as a worker gets it: its data, what it holds, and the round which that is of."""

    name: str
    examples: list[Example]
    test: list[Example]
    store: bytes
    number: int

    @classmethod
    def of(cls, client: Client, number: int) -> Sent:
        """Return a client of this process for another one."""
        return cls(client.name, client.examples, client.test, dump(client.store), number)


class Worker:
    """Clients of one run after the other."""

    def __init__(self) -> None:
        quiet()
        self._clients: dict[str, Client] = {}
        self._heard: SimpleQueue[logging.LogRecord] = SimpleQueue()
        logging.getLogger("trillium").addHandler(QueueHandler(self._heard))

    def begin(self, setup: Setup, sent: Iterable[Sent]) -> None:
        """Set up the clients of a run.

        Raises:
            UserError: the model cannot be had here.
        """
        self._clients = {}  # those of the run before, and their model
        torch.set_num_threads(setup.threads)
        logging.getLogger("trillium").setLevel(setup.level)
        config = here(setup.config, setup.models)
        residents = Residents(config, setup.labels, lambda model: [])
        for one in sent:
            own = residents.of(one.name)
            client = build_client(
                config, own.model, one.name, one.examples, cache=own.cache, test=one.test
            )
            client.go_back(load(one.store), one.number)
            self._clients[one.name] = client
        self._said()  # each worker would say the same of its model as the server does

    def handle(self, name: str, data: bytes) -> tuple[bytes, Records]:
        """Return what a client answers, and what was logged."""
        return self._clients[name].handle(data), self._said()

    def save(self, names: Sequence[str]) -> list[bytes]:
        """Return what clients hold."""
        return [dump(self._clients[name].store) for name in names]

    def restore(self, stores: Mapping[str, bytes], number: int) -> None:
        """Take clients back to what they held after a round."""
        for name, store in stores.items():
            self._clients[name].go_back(load(store), number)

    def _said(self) -> Records:
        return [self._heard.get() for _ in range(self._heard.qsize())]


def here(config: ExperimentConfig, models: Path | None) -> ExperimentConfig:
    """Return a configuration as it is on this machine: where its models are, and on which device.

    A worker sees no other GPU than its own, so that one has no number.
    """

    def own(model: ModelConfig) -> ModelConfig:
        changes: dict[str, Any] = {}
        if models is not None and Path(model.id).is_absolute():
            changes["id"] = str(models / Path(model.id).name)
        if model.device.startswith("cuda"):
            changes["device"] = "cuda"
        return model.model_copy(update=changes)

    tiers = {
        label: tier if tier.model is None else tier.model_copy(update={"model": own(tier.model)})
        for label, tier in config.tiers.items()
    }
    return config.model_copy(update={"model": own(config.model), "tiers": tiers})
