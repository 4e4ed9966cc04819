"""Arms and seeds of a comparison side by side, each in a process of its own.

A process is started afresh, since one that is forked would have PyTorch's threads in an unknown state,
computes with one thread, and takes one run after the other. What a run does to the screen it sends
through a pipe.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from trillium.config.experiment import ExperimentConfig, experiment
from trillium.errors import UserError
from trillium.experiment.arm import Begin, Key, Progress, place, reason_of, run_arm
from trillium.experiment.folder import RunFolder
from trillium.experiment.host import Host
from trillium.federation.side import Metrics
from trillium.wire.ledger import Entry

PAUSE = 0.2  # seconds between two reports of messages
PATIENCE = 10.0  # seconds in which a process that is to end may write down that it has


@dataclass
class Worker:
    """A process, and what it runs at present."""

    process: BaseProcess
    pipe: Connection
    key: Key | None = None
    progress: Progress | None = None


def side_by_side(
    experiments: Mapping[Key, ExperimentConfig],
    folder: Path,
    workers: int,
    begin: Begin | None,
    argv: Sequence[str],
    host: Host,
) -> dict[Key, str]:
    """Run so many arms of a comparison at a time, and return the failures."""
    failures: dict[Key, str] = {}
    waiting = list(experiments)[::-1]
    with _pool() as pool:
        while waiting or any(worker.key for worker in pool):
            while waiting and (free := _free(pool, workers, host)) is not None:
                free.key = waiting.pop()
                free.progress = begin(*free.key) if begin is not None else None
                free.pipe.send((free.key, experiments[free.key].tree(), folder, list(argv)))
            busy = {worker.pipe: worker for worker in pool if worker.key}
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                _take(busy[pipe], pool, folder, failures)
    return failures


def _free(pool: list[Worker], most: int, host: Host) -> Worker | None:
    """Return a process that has nothing to do, a new one if there may be one more."""
    for worker in pool:
        if worker.key is None:
            return worker
    if len(pool) == most:
        return None
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, host), daemon=True)
    process.start()
    theirs.close()
    pool.append(Worker(process, ours))
    return pool[-1]


def _take(worker: Worker, pool: list[Worker], folder: Path, failures: dict[Key, str]) -> None:
    """Take what a process has sent: messages and an evaluation, or its end."""
    assert worker.key is not None
    try:
        entries, line, end = worker.pipe.recv()
    except (EOFError, ConnectionError):
        worker.process.join(PATIENCE)
        failures[worker.key] = _died(place(folder, worker.key), worker.process.exitcode)
        pool.remove(worker)
        entries, line, end = [], None, True
    if worker.progress is not None:
        for entry in entries:
            worker.progress.watch(entry)
        if line is not None:
            worker.progress.observe(line)
    if end is None:
        return
    if isinstance(end, str):
        failures[worker.key] = end
    if worker.progress is not None:
        worker.progress.end()
    worker.key = worker.progress = None


def _died(path: Path, code: int | None) -> str:
    """Write down that a run's process has died, and return what to say of it."""
    why = str(
        UserError(
            str(path),
            f"its process has died (exit code {code}); the system may have been out of memory",
            "Use fewer --workers, and continue with `trillium resume`",
        )
    )
    if (path / "status.json").is_file():
        with suppress(UserError):
            RunFolder.reopen(path).status("failed", why)
    return why


@contextmanager
def _pool() -> Iterator[list[Worker]]:
    """Give a list of processes; all of them have ended when the block has, however it does."""
    pool: list[Worker] = []
    try:
        yield pool
    finally:
        for worker in pool:
            worker.process.terminate()  # a run that goes on is written down as interrupted
        until = time.monotonic() + PATIENCE
        for worker in pool:
            worker.process.join(max(until - time.monotonic(), 0.0))
            worker.process.kill()
            worker.pipe.close()


class _Sent:
    """Sends what a run does; messages are many, so they wait for one another a little."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._entries, self._last = pipe, list[Entry](), time.monotonic()

    def observe(self, line: Metrics) -> None:
        self._send(line, None)

    def watch(self, entry: Entry) -> None:
        self._entries.append(entry)
        if time.monotonic() - self._last > PAUSE:
            self._send(None, None)

    def end(self) -> None:
        self.ended(True)

    def ended(self, how: bool | str) -> None:
        self._send(None, how)

    def _send(self, line: Metrics | None, end: Any) -> None:
        self._pipe.send((self._entries, line, end))
        self._entries, self._last = [], time.monotonic()


def work(pipe: Connection, host: Host) -> None:
    """Run what is asked through a pipe, one after the other, until it is closed."""
    # Ctrl-C reaches every process of a terminal; the one that asks decides, and tells this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    import torch

    from trillium.quiet import quiet

    quiet()
    torch.set_num_threads(1)
    with suppress(KeyboardInterrupt, EOFError, BrokenPipeError), host() as engine:
        while True:
            key, tree, folder, argv = pipe.recv()
            sent = _Sent(pipe)
            end: bool | str = True
            try:
                run_arm(key, experiment(tree), folder, sent, argv, engine)
            except Exception as error:  # whatever it is, the other arms are not to blame
                end = reason_of(error)
            sent.ended(end)
