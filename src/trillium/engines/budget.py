"""What a data owner lets all runs on a node spend of the privacy of its data, and what they have.

On examples the node draws the noise, and counts what it draws before it lets an answer leave. At client
level the server does, which is trusted then: all that a run is to release counts from its beginning.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from trillium.config.experiment import ExperimentConfig
from trillium.engines.policy import Forbidden, Limit
from trillium.federation.client import Client
from trillium.frameworks.private import noise_of, releases_of
from trillium.privacy.account import FILE, Account, Release, epsilon, releases_in


class Budget:
    """The account of a node over all runs: `privacy.jsonl` in the folder of its state."""

    def __init__(self, limit: Limit, state: Path, run: str, config: ExperimentConfig) -> None:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._limit, self._path, self._run = limit, state / FILE, run
        self._lock = FileLock(state / f"{FILE}.lock", mode=0o600)
        noise = noise_of(config)
        self._planned = [replace(each, noise=each.noise * noise) for each in releases_of(config)]
        self._drawn = Counter[tuple[float, float]]()

    def open(self) -> None:
        """Look at what a run is to release, with all that runs have released before.

        Raises:
            Forbidden: together they would spend too much.
        """
        with self._lock:
            account = Account(self._path)
            own = [line for line in account.lines if line["what"] == self._run]
            others = [line for line in account.lines if line["what"] != self._run]
            self._check([*releases_in(others), *self._planned])
            if self._limit.unit == "client" and releases_in(own) != self._planned:
                self._check([*releases_in(account.lines), *self._planned])
                self._write(0, self._planned)

    def watch(self, client: Client) -> None:
        """Count what a client draws from now on."""
        if client.steps is not None:
            client.steps.spend = self._spend

    def leave(self, number: int) -> None:
        """Write down what was drawn for an answer, before it leaves.

        Raises:
            Forbidden: with all that has been released it would be too much.
        """
        if not self._drawn:
            return
        drawn = [Release(*event, count) for event, count in self._drawn.items()]
        with self._lock:
            self._check([*releases_in(Account(self._path).lines), *drawn])
            self._write(number, drawn)
        self._drawn.clear()

    def _spend(self, release: Release) -> None:
        self._drawn[release.noise, release.rate] += release.count

    def _check(self, releases: list[Release]) -> None:
        spent = epsilon(releases, self._limit.delta)
        if spent > self._limit.epsilon:
            raise Forbidden(
                f"all runs together to spend ε={spent:.3g}, more than {self._limit.epsilon:g}"
            )

    def _write(self, number: int, releases: list[Release]) -> None:
        account = Account(self._path)
        for release in releases:
            account.note(number, self._run, release)
