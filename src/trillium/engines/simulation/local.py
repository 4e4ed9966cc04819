"""All clients in the process of the run, one after the other; several runs have a process each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from trillium.config.experiment import ExperimentConfig
from trillium.engines.simulation import Simulation
from trillium.experiment.host import Host, in_process


class Local(Simulation, name="local"):
    """All clients in the process of the run, one after the other."""

    @contextmanager
    def opened(self, workers: int, runs: Sequence[ExperimentConfig]) -> Iterator[tuple[int, Host]]:
        """Give each worker a run."""
        yield min(workers, len(runs)), in_process
