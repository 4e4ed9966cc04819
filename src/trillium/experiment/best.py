"""The best round so far, by the measure of the task; all of it lies where checkpoints find it.

The server's store holds which round that was and how good, and its model then; a client's store holds
the client's own model, where it is these that a run is about.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from trillium.config.experiment import ExperimentConfig
from trillium.errors import UserError
from trillium.federation.client import Client
from trillium.federation.server import Server
from trillium.federation.side import Metrics
from trillium.frameworks import SERVER_MODEL
from trillium.models.slots import values

BEST: Final = "best"


@dataclass(frozen=True)
class Rounds:
    """Which round is the best one, and whether more of them are worth their price.

    Rounds count from the first: what all begin with is nobody's result.
    """

    config: ExperimentConfig
    server: Server
    clients: Sequence[Client]

    @property
    def _found(self) -> dict[str, Any]:
        found: dict[str, Any] = self.server.store.get(BEST, {})
        return found

    @property
    def kept(self) -> int:
        """The round whose model the run ships."""
        best = self.config.evaluation.keep == "best" and self._found.get("round", 0)
        return int(best or self.server.round)

    def may_end(self, number: int) -> bool:
        """Whether a round is the last one unless it brings a gain."""
        patience = self.config.evaluation.patience
        return patience is not None and number - int(self._found.get("round", 0)) >= patience

    @property
    def have_ended(self) -> bool:
        """Whether the last evaluation was one too many without a gain."""
        return self.may_end(int(self._found.get("measured", 0)))

    def note(self, line: Metrics) -> None:
        """Look at an evaluation, and keep the models of its round if none was better."""
        evaluation, number = self.config.evaluation, self.server.round
        if number == 0 or (evaluation.keep == "last" and evaluation.patience is None):
            return
        task, found = self.config.task, {"round": 0, "value": None, **self._found}
        value = float(line[task.measure])
        if not math.isnan(value) and (
            found["value"] is None
            or (value > found["value"] if task.more_is_better else value < found["value"])
        ):
            found |= {"round": number, "value": value}
            if evaluation.keep == "best":
                self._remember(found)
        self.server.store[BEST] = {**found, "measured": number}

    def _remember(self, found: dict[str, Any]) -> None:
        """Keep the models; tensors in a store are replaced, and never written to."""
        if self.config.framework.ships == SERVER_MODEL:
            store = self.server.store
            num_folds = store.get("dropped_folds", 0) + len(store.get("folds", ()))
            tensors = values(self.server.state)
            found |= {"tensors": tensors, "base": self.server.base, "num_folds": num_folds}
            return
        for client in self.clients:
            if "tensors" in client.store:
                client.store[BEST] = {"tensors": client.store["tensors"], "base": client.base}

    def take(self) -> None:
        """Put the best models in place of the last ones."""
        if self.config.evaluation.keep == "last" or not self._found.get("round"):
            return
        for client in self.clients:
            if BEST in client.store:
                client.store |= client.store[BEST]
        if "tensors" in (best := self._found):
            store = self.server.store
            self.server.state = self.server.model.state(best["tensors"])
            store["base"] = best["base"]
            if not store.get("dropped_folds"):
                store["folds"] = store.get("folds", [])[: best["num_folds"]]


def check_measured(config: ExperimentConfig, clients: Sequence[Client]) -> None:
    """Refuse to go by the measure of models that nobody here can measure.

    Raises:
        UserError: the clients' models are meant, and the clients are elsewhere.
    """
    evaluation = config.evaluation
    if clients or config.framework.ships == SERVER_MODEL:
        return
    for name, given in (("keep", evaluation.keep != "last"), ("patience", evaluation.patience)):
        if given:
            raise UserError(
                f"evaluation.{name}={getattr(evaluation, name)} with framework={config.framework.name}",
                "it concerns the clients' own models, and only a simulation measures these",
                "Leave it out",
            )
