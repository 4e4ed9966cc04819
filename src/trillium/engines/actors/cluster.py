"""Ray, and the workers in it: started, waited for, let go."""

from __future__ import annotations

import logging
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import ray
from ray.exceptions import RayTaskError

from trillium.engines.actors.worker import Worker
from trillium.errors import UserError

KNOCK_SECONDS: Final = 5.0


class Workers:
    """The workers of this process, made when they are needed, for one run after the other."""

    def __init__(self, size: int, cpus: int, gpus: float) -> None:
        self.size = size
        self._made = ray.remote(Worker).options(
            num_cpus=cpus, num_gpus=gpus, max_restarts=0, scheduling_strategy="SPREAD"
        )
        self._actors: dict[int, Any] = {}

    def __getitem__(self, number: int) -> Any:
        """Return a worker."""
        if number not in self._actors:
            self._actors[number] = self._made.remote()
        return self._actors[number]

    def let_go(self, number: int) -> None:
        """End a worker, if it has not died; the next of its number is another one."""
        ray.kill(self._actors.pop(number))

    def close(self) -> None:
        """End them all."""
        for number in [*self._actors]:
            self.let_go(number)


def got(coming: Any) -> Any:
    """Wait for what a worker returns; an error in its work is raised as if it were of this process.

    Raises:
        RayError: it has died.
    """
    try:
        return ray.get(coming)
    except RayTaskError as error:
        raise error.cause from None


def last_line(error: Exception) -> str:
    """Return what an error of Ray's comes down to."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return said[-1] if said else type(error).__name__


@contextmanager
def started(address: str | None, cpus: int) -> Iterator[dict[str, float]]:
    """Connect to a cluster, or start Ray on this machine; take what this process has, if it has.

    Args:
        cpus: that all workers take together.

    Yields:
        What there is of each resource.

    Raises:
        UserError: there is no cluster at this address.
    """
    if ray.is_initialized():
        yield dict(ray.cluster_resources())  # type: ignore[no-untyped-call]
        return
    said: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    # A socket's path may have 107 characters, of which Ray takes half.
    short = "/tmp" if Path("/tmp").is_dir() else None
    with tempfile.TemporaryDirectory(
        prefix="ray-", dir=short, ignore_cleanup_errors=True
    ) as folder:
        if address is None:
            said |= {"num_cpus": cpus, "include_dashboard": False, "_temp_dir": folder}
        before = signal.getsignal(signal.SIGTERM)
        try:
            _knock(address)
            ray.init(address or "local", logging_level=logging.ERROR, **said)
        except Exception as error:  # Ray has no class for what can go wrong here
            raise UserError(
                "--engine ray" if address is None else f"engine.address={address}",
                f"Ray cannot be had there ({last_line(error)})",
                "Start it with `ray start`, or leave the address out to have it here for the run",
            ) from error
        finally:
            with suppress(ValueError):  # of a thread that is not the main one
                signal.signal(signal.SIGTERM, before)  # Ray's own ends this process at once
        try:
            yield dict(ray.cluster_resources())  # type: ignore[no-untyped-call]
        finally:
            ray.shutdown()


def address() -> str:
    """Return where the cluster is that this process is connected to."""
    return str(ray.get_runtime_context().gcs_address)


def _knock(address: str | None) -> None:
    """See whether anybody listens at `host:port`; Ray itself would try for ten minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), KNOCK_SECONDS).close()
