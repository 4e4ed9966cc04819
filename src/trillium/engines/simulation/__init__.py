"""Where the clients of a simulation are: in this process, or in others. One file each.

The same bytes cross, and the same comes of it. An engine of your own is a file here, or a class that a
package registers as an entry point of `trillium.engine`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from trillium.component import Choice, Component
from trillium.config.experiment import ExperimentConfig
from trillium.config.explained import explained
from trillium.experiment.host import Host

LOCAL: Final = "local"


class Simulation(Component, kind="engine", package="trillium.engines.simulation"):
    """Where the clients of a simulation are."""

    @abstractmethod
    def opened(
        self, workers: int, runs: Sequence[ExperimentConfig]
    ) -> AbstractContextManager[tuple[int, Host]]:
        """Divide workers among runs, for as long as the block lasts.

        Yields:
            How many runs go on at a time, and what holds the clients of one after the other of them.

        Raises:
            UserError: it cannot be had here.
        """


class _Asked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Choice[Simulation]


def simulation(value: object) -> Simulation:
    """Return what a name, `{name: …, option: value}` or a component stands for.

    Raises:
        UserError: there is none of that name, or an option cannot be.
    """
    tree = {"engine": value}
    try:
        return _Asked.model_validate(tree).engine
    except ValidationError as error:
        raise explained(error, tree, _Asked.model_validate({"engine": LOCAL})) from error
