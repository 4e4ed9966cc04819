"""Clients in processes of Ray's (Moritz et al., 2018, arXiv 1712.05889), on this machine or several."""

from __future__ import annotations

import logging
import math
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from trillium.config.experiment import ExperimentConfig
from trillium.config.places import located
from trillium.engines.simulation import Simulation
from trillium.errors import UserError
from trillium.experiment.host import Host, MakeEngine
from trillium.extras import install
from trillium.federation.checkpoint import Checkpoints
from trillium.federation.client import Client

if TYPE_CHECKING:
    from trillium.engines.actors.engine import RayEngine

# Before Ray is imported. It would send home how it is used, and print how each worker ends.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS_SKIP_REGEX": "."}


class Ray(Simulation, name="ray"):
    """Clients in workers, processes of Ray's on this machine or on a cluster.

    Attributes:
        cpus: threads with which a worker computes; so many CPUs of the cluster are kept for it.
        gpus: the part of a GPU that a worker gets, such as 0.25; by default all share what there is.
        address: of a cluster that runs, such as `auto` or `10.0.0.1:6379`; by default Ray is started on
            this machine, for as long as it is needed.
        models: folder in which each machine has the folders of models, by their names; by default they
            are where they are here. The server, which is here, takes what the recipe names.
    """

    cpus: int = Field(default=1, ge=1)
    gpus: float | None = Field(default=None, ge=0)
    address: str | None = None
    models: Path | None = None

    @contextmanager
    def opened(self, workers: int, runs: Sequence[ExperimentConfig]) -> Iterator[tuple[int, Host]]:
        """Give each run a worker for each client of a round; others run beside it, if any are left."""
        for name, value in {**QUIET, **({} if self.address else _locked())}.items():
            os.environ.setdefault(name, value)
        try:
            from trillium.engines.actors.cluster import address, started
        except ImportError as error:
            raise UserError(
                "--engine ray", "Ray is not installed", install("simulation")
            ) from error
        at_a_time, size = divided(workers, runs)
        with started(self.address, workers * self.cpus) as there:
            # A run that has a process of its own finds the cluster by its address.
            found = self._fit(workers, there).model_copy(update={"address": address()})
            yield at_a_time, partial(_hosting, found, size)

    def _fit(self, workers: int, there: Mapping[str, float]) -> Ray:
        """Return the same with its share of the GPUs.

        Raises:
            UserError: the cluster has less than workers need.
        """
        gpus, found = self.gpus, math.floor(there.get("GPU", 0))
        if gpus is None:
            gpus = 1 / math.ceil(workers / found) if found else 0.0
        for name, need, has in (
            ("CPU", workers * self.cpus, there.get("CPU", 0)),
            ("GPU", workers * gpus, found),
        ):
            if need > has + 1e-6:
                raise UserError(
                    f"--workers {workers} with engine={self.to_config()}",
                    f"they need {need:g} {name}s, and Ray has {has:g}",
                    f"Use fewer --workers, or fewer {name.lower()}s for each",
                )
        return self.model_copy(update={"gpus": gpus})


def divided(workers: int, runs: Sequence[ExperimentConfig]) -> tuple[int, int]:
    """Return how many runs go on at a time, and how many workers each one has."""
    cohorts = [run.fleet.size(run.data.num_clients) for run in runs]
    at_a_time = max(1, min(len(runs), workers // max(cohorts, default=workers)))
    return at_a_time, workers // at_a_time


def _locked() -> dict[str, str]:
    """Return what lets Ray, which listens on all addresses of a machine, obey this run alone."""
    if {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & os.environ.keys() or "ray" in sys.modules:
        return {}  # it reads them when it is imported
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextmanager
def _hosting(engine: Ray, size: int) -> Iterator[MakeEngine]:
    from trillium.engines.actors.cluster import Workers, started
    from trillium.engines.actors.engine import RayEngine
    from trillium.engines.actors.worker import Setup

    assert engine.gpus is not None
    workers = Workers(size, engine.cpus, engine.gpus)

    def make(
        config: ExperimentConfig,
        labels: Sequence[str],
        clients: Sequence[Client],
        checkpoints: Checkpoints | None,
    ) -> RayEngine:
        level = logging.getLogger("trillium").getEffectiveLevel()
        setup = Setup(located(config), labels, engine.models, engine.cpus, level)
        return RayEngine(workers, setup, clients, checkpoints)

    with started(engine.address, 0), closing(workers):
        yield make
