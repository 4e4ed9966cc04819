"""The Ray engine: clients in workers, each with a model of its own; the server stays in this process.

Each client is pinned to a worker. What clients hold lies here as well, as of the last complete round:
from it they go on elsewhere when their worker has died.
"""

from __future__ import annotations

import heapq
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, Final

import ray
from ray.exceptions import RayError

from trillium.engines.actors.cluster import Workers, got, last_line
from trillium.engines.actors.worker import Sent, Setup
from trillium.errors import UserError
from trillium.experiment.best import BEST
from trillium.federation.checkpoint import Checkpoints, dump, load
from trillium.federation.client import Client
from trillium.federation.engine import Gathered, Saved
from trillium.federation.local import LocalEngine
from trillium.federation.parts import Lost

log = logging.getLogger(__name__)

REPEATS: Final = 2  # of a round in which a worker has died
PATIENCE: Final = 60.0  # seconds until it is said that a worker is waited for
SHARED_BYTES: Final = 100_000  # from which on what goes to many is handed to Ray once
DIED: Final = "its worker has died, perhaps for want of memory"


class RayEngine(LocalEngine):
    """Runs clients in workers, and keeps here what they hold after each round."""

    def __init__(
        self,
        workers: Workers,
        setup: Setup,
        clients: Sequence[Client],
        checkpoints: Checkpoints | None,
    ) -> None:
        super().__init__(clients, checkpoints)
        self._workers, self._setup = workers, setup
        self._number = 0  # the round that what lies here is of
        self._pinned = pinned(clients, workers.size)
        self._took = set[str]()  # have answered since the last round was complete
        self._out: dict[str, str] = {}  # have lost what they did since then, and why
        self._died = False
        self._ready: dict[int, tuple[int, Any]] = {}  # tries that are left, and what comes
        for number in sorted(set(self._pinned.values())):
            self._begin(number)

    @property
    def repeats(self) -> int:
        """How often the round that is under way is worth a new try."""
        return REPEATS if self._died else 0

    def carry(  # type: ignore[override]  # others than local clients may be lost
        self, requests: Mapping[str, bytes]
    ) -> Iterator[tuple[str, bytes | Lost]]:
        """Ask the clients, and yield their replies in the order of the requests."""
        yield from self.post(requests)

    def post(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Lost]]:
        """Send the requests now, and return what yields the replies as `carry` does."""
        self.ready()
        asked: dict[str, tuple[int, Any, Any]] = {}
        shared: dict[int, Any] = {}
        for name, data in requests.items():
            number = self._pinned[name]
            worker, given = self._workers[number], data  # or where Ray has that
            if name in self._out:
                asked[name] = number, worker, None
                continue
            if len(data) > SHARED_BYTES:
                if id(data) not in shared:
                    shared[id(data)] = ray.put(data)
                given = shared[id(data)]
            self._changed.add(name)
            asked[name] = number, worker, worker.handle.remote(name, given)
        return self._replies(asked)

    def _replies(
        self, asked: dict[str, tuple[int, Any, Any]]
    ) -> Iterator[tuple[str, bytes | Lost]]:
        for name in [*asked]:
            number, worker, coming = asked.pop(name)
            if coming is None:
                yield name, Lost(self._out[name], sent=False)
                continue
            try:
                reply, said = got(coming)
            except RayError:
                self._took.discard(name)
                self._replace(number, worker)
                yield name, Lost(DIED)
                continue
            for record in said:
                logging.getLogger(record.name).handle(record)
            self._took.add(name)
            yield name, reply

    def gather(self, need: int) -> Gathered:
        """Return everybody; who has lost a worker has another by now."""
        for number in {*self._pinned.values()} - self._ready.keys():
            worker = self._workers[number]
            try:
                got(worker.save.remote([]))
            except RayError:
                self._replace(number, worker)
        self.ready()
        self._out, self._died = {}, False
        return super().gather(need)

    def save(self, number: int) -> Saved:
        """Take what those clients hold that were asked since the last time, and write it down."""
        self.ready()
        coming = []
        for worker_number, names in self._by_worker(self._changed - self._out.keys()).items():
            worker = self._workers[worker_number]
            coming.append((worker_number, worker, names, worker.save.remote(names)))
        for worker_number, worker, names, stores in coming:
            try:
                for name, store in zip(names, got(stores), strict=True):
                    self._take(name, load(store))
            except RayError:
                self._replace(worker_number, worker)
        lost = {name: why for name, why in self._out.items() if name in self._took}
        self._changed -= self._out.keys()
        self._number = number
        saved = super().save(number)
        self._changed.clear()
        self._took.clear()
        return Saved({} if saved is None else saved.held, lost)

    def restore(self, number: int, held: Mapping[str, int]) -> Set[str]:
        """Take the clients back, here and in their workers."""
        back = super().restore(number, held)
        if back:
            self._number, self._out = number, {}
            self._took.clear()
            self._changed.clear()
            for worker_number, names in self._by_worker(back).items():
                worker = self._workers[worker_number]
                stores = {name: dump(self._clients[name].store) for name in names}
                try:
                    got(worker.restore.remote(stores, number))
                except RayError:
                    self._replace(worker_number, worker)
        return back

    def _take(self, name: str, store: dict[str, Any]) -> None:
        """Hold what a client holds, and the model of its best round, which the server notes here."""
        best = {BEST: found} if (found := self._clients[name].store.get(BEST)) else {}
        self._clients[name].store = {**store, **best}

    def _by_worker(self, names: Iterable[str]) -> dict[int, list[str]]:
        found = defaultdict[int, list[str]](list)
        for name in sorted(names):
            found[self._pinned[name]].append(name)
        return found

    def _begin(self, number: int, tries: int = 2) -> None:
        """Let a worker set up its clients as they are here; nobody waits for that yet."""
        names = self._by_worker(self._pinned)[number]
        sent = [Sent.of(self._clients[name], self._number) for name in names]
        self._ready[number] = tries - 1, self._workers[number].begin.remote(self._setup, sent)

    def _replace(self, number: int, worker: Any) -> None:
        """Put another worker in the place of one that has died, unless that was done."""
        if worker is not self._workers[number]:
            return
        log.warning("a worker has died; another takes its clients back to round %d", self._number)
        self._died = True
        lost = self._changed.intersection(self._by_worker(self._pinned)[number])
        self._out |= dict.fromkeys(lost, DIED)
        self._workers.let_go(number)
        self._begin(number)

    def ready(self) -> None:
        """Wait for workers that set up their clients.

        Raises:
            UserError: one cannot, or has died of it more than once.
        """
        while self._ready:
            number, (tries, coming) = next(iter(self._ready.items()))
            if not ray.wait([coming], timeout=PATIENCE)[0]:
                log.warning("waiting for a worker: it loads its model, or Ray has no room for it")
            try:
                got(coming)
            except RayError as error:
                if not tries:
                    raise UserError(
                        "--engine ray",
                        f"a worker dies when it sets up its clients ({last_line(error)})",
                        "Use fewer --workers if memory is short, and go on with trillium resume",
                    ) from None
                self._workers.let_go(number)
                self._begin(number, tries)
            else:
                del self._ready[number]


def pinned(clients: Sequence[Client], num_workers: int) -> dict[str, int]:
    """Return the worker of each client, so that all workers have about as many steps to take."""
    steps = {client.name: client.training.num_steps(len(client.examples)) for client in clients}
    loads = [(0, number) for number in range(min(num_workers, len(clients)))]
    found = {}
    for name in sorted(steps, key=lambda name: (-steps[name], name)):
        taken, number = heapq.heappop(loads)
        found[name] = number
        heapq.heappush(loads, (taken + max(steps[name], 1), number))
    return found
