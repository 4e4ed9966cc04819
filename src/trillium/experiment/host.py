"""Where the clients of a simulation work; by default in the process that runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from trillium.config.experiment import ExperimentConfig
from trillium.federation.checkpoint import Checkpoints
from trillium.federation.client import Client
from trillium.federation.engine import Engine
from trillium.federation.local import LocalEngine

MakeEngine = Callable[
    [ExperimentConfig, Sequence[str], Sequence[Client], Checkpoints | None], Engine
]
"""Gives clients that were set up here a place to work; they come with their settings and classes."""

Host = Callable[[], AbstractContextManager[MakeEngine]]
"""What holds the clients of one run after the other; it can be sent to another process."""


def local_engine(
    config: ExperimentConfig,
    labels: Sequence[str],
    clients: Sequence[Client],
    checkpoints: Checkpoints | None,
) -> LocalEngine:
    """Let clients work one after the other, where they are."""
    return LocalEngine(clients, checkpoints)


@contextmanager
def in_process() -> Iterator[MakeEngine]:
    """Let clients work in this process."""
    yield local_engine
