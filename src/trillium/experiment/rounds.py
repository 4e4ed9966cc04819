"""The rounds of one run: evaluate, write down, skip, go on after a stop, and keep what was trained."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Set
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

import torch

from trillium.config.experiment import ExperimentConfig
from trillium.config.places import located
from trillium.data.federated import FederatedData
from trillium.experiment.best import Rounds
from trillium.experiment.card import write_cards
from trillium.experiment.folder import RunFolder
from trillium.experiment.kept import keep_models
from trillium.experiment.tracking import Tracking
from trillium.federation.agreed import lower_median
from trillium.federation.client import Client
from trillium.federation.cohort import Turns
from trillium.federation.engine import MendingEngine
from trillium.federation.failed import RoundFailed, RoundUndone
from trillium.federation.fleet import Fleet
from trillium.federation.server import Server
from trillium.federation.side import Metrics
from trillium.files import SERVER
from trillium.frameworks import SERVER_MODEL, everyone
from trillium.frameworks.finetuning import finetune_all
from trillium.models.load import LanguageModel
from trillium.models.slots import values
from trillium.report.measure import MAIN
from trillium.report.read import ANSWERS, FINETUNED
from trillium.rng import scoped_rng
from trillium.training.meters import Cost

log = logging.getLogger(__name__)
EXPLODED = 100  # times the loss of before, and of the start
WORSE = 3  # where a client has sent what stands out by far
Observer = Callable[[Metrics], None]


@dataclass
class Experiment:
    """A federation that is ready to run.

    Attributes:
        data: test and public set, and in a simulation the rows of the clients.
        folder: where the run is written, if anywhere.
        clients: the data owners, as far as they live in this process.
        history: one line per evaluation, as in `metrics.jsonl`.
        tracking: where else the measures go.
        repeats: how often a round in which clients were lost is repeated by itself.
        finetuned: what clients measured `before` and `after` they went on by themselves, if they did.
    """

    config: ExperimentConfig
    data: FederatedData
    server: Server
    fleet: Fleet
    folder: RunFolder | None = None
    clients: list[Client] = field(default_factory=list)
    history: list[Metrics] = field(default_factory=list)
    tracking: Tracking | None = None
    repeats: int = 0
    finetuned: Metrics = field(default_factory=dict)
    _seconds: float = 0.0
    _started: bool = False

    @property
    def model(self) -> LanguageModel:
        """The resident model."""
        return self.server.model

    @property
    def rounds(self) -> Rounds:
        """Which of the rounds is the best one."""
        return Rounds(self.config, self.server, self.clients)

    def run(self, observe: Observer | None = None) -> list[Metrics]:
        """Run the rounds that are left and return all evaluations.

        Args:
            observe: called with each evaluation as soon as there is one.

        Raises:
            RoundFailed: too few clients stayed in a round; what was measured so far is written.
        """
        framework, rounds = self.config.framework, self.config.rounds
        try:
            if isinstance(self.fleet.engine, MendingEngine):
                self.fleet.engine.ready()  # or the first message would be said to take as long
            if self.tracking is not None:
                self.tracking.begin(located(self.config).tree())
            if not self._started:
                start = time.perf_counter()
                self.config.head.start(self.server, self.fleet)
                framework.start(self.server, self.fleet)
                self._seconds += time.perf_counter() - start
                self._save()
                self._evaluate({}, observe)
                self._checkpoint()
            for number in range(self.server.round + 1, (rounds if framework.trains else 0) + 1):
                if self.rounds.have_ended:
                    break
                found: Metrics | None = None
                try:
                    figures, found = self._round_and_again(number)
                except RoundFailed:
                    if self.folder is None or self.config.fleet.on_failure == "stop":
                        raise
                    figures = self._skip(number)
                if found is not None or "skipped" in figures or self.fleet.gone:
                    self._evaluate(figures, observe, found)
                    if self.clients and self.config.evaluation.keep == "best":
                        self._save()  # simulated clients keep the models of the best round, too
                self._checkpoint()
            self._finish()
        except BaseException as error:
            if self.folder is not None:
                if isinstance(error, RoundFailed):
                    self._count_failed()
                self.folder.ended(error)
            raise
        finally:
            self.fleet.ledger.close()
            if self.tracking is not None:
                self.tracking.end()
        return self.history

    def _count_failed(self) -> None:
        assert self.folder is not None
        failed, number = self.folder.failed_rounds, self.server.round
        failed[number] = failed.get(number, 0) + 1

    def _round_and_again(self, number: int) -> tuple[Metrics, Metrics | None]:
        """Run one round and measure it if that is due; where clients were lost, again."""
        is_due = number % self.config.evaluation.every == 0 or number == self.config.rounds
        for num_before in count():
            try:
                figures = self._round(number)
                return figures, self._sane(self._measured()) if is_due else None
            except RoundUndone:
                raise
            except RoundFailed as error:
                left = self._repeats() - num_before
                if left <= 0 or self.folder is None or self.fleet.short:
                    raise
                log.warning("%s; the round is repeated, %d times at most", error, left)
                self._count_failed()
                self._back_to_last()
        raise AssertionError("a try returns or raises")

    def _repeats(self) -> int:
        engine = self.fleet.engine
        return engine.repeats if isinstance(engine, MendingEngine) else self.repeats

    def _round(self, number: int) -> Metrics:
        """Run one round."""
        self.server.round = number
        start = time.perf_counter()
        try:
            self.fleet.begin_round(number)
            self.config.head.inform(self.server, self.fleet)
            with scoped_rng(self.config.seed, "server", number):
                figures = self.config.framework.round(self.server, self.fleet)
            if not all(torch.isfinite(tensor).all() for tensor in self.server.state.values()):
                raise self.fleet.undo("the new state is not finite")
            self._save()
        finally:
            self._seconds += time.perf_counter() - start
        return figures

    def _sane(self, found: Metrics) -> Metrics:
        """Return what was measured; a loss that has exploded undoes the round."""
        before = [self._loss(line) for line in (*self.history[:1], *self.history[-1:])]
        loss, known = self._loss(found), [value for value in before if value is not None]
        if loss is None or not known or loss <= WORSE * (most := max(*known, 1.0)):
            return found
        if loss <= EXPLODED * most and self.fleet.sizes.suspect() is None:
            return found
        raise self.fleet.undo(f"the loss went from {known[-1]:.4g} to {loss:.4g}")

    def _loss(self, line: Metrics) -> float | None:
        """Return the loss of what would be shipped; of clients, who say it, the one in the middle."""
        own = [of["loss"] for of in line.get("clients", {}).values() if "loss" in of]
        if own and self.config.framework.ships != SERVER_MODEL:
            return lower_median(own)
        return line.get("loss")

    def _skip(self, number: int) -> Metrics:
        """Take all sides back to before a round that has failed, and let it be over.

        What it has cost stays in the ledger, and on the server's meter.
        """
        missing = self.fleet.missing
        self._back_to_last(skips=True)
        # The clients are looked at as they are now: who was missing before may well be there.
        self.server.round, self.fleet.missing, self.fleet.staleness = number, {}, {}
        return {"skipped": True, "missing": missing}

    def _back_to_last(self, *, skips: bool = False) -> None:
        """Take all sides back to the last complete round; what was spent since then stays spent."""
        cost, seconds, late = self.server.meter.read(), self._seconds, self.fleet.dump()
        back = self.restore(skips=skips)
        self.fleet.load(late)
        self.server.scratch, self._seconds = {}, seconds
        self.server.meter.reset(cost)
        self.fleet.unsure |= {*self.fleet.asked, *self.fleet.under_way} - back

    def _measured(self) -> Metrics:
        """Return the metrics of the model that would be shipped."""
        framework, number, missing = self.config.framework, self.server.round, self.fleet.missing
        last = number == self.config.rounds or not framework.trains or self.rounds.may_end(number)
        self.fleet.missing = dict(missing)
        found = framework.evaluate(self.server, self.fleet, self.config.evaluation, last)
        self.fleet.missing = missing  # of the round, not of what a simulation looks at
        return found

    def _evaluate(
        self, figures: Metrics, observe: Observer | None, found: Metrics | None = None
    ) -> None:
        """Write a line about the model that would be shipped, which is measured unless it was."""
        framework, number = self.config.framework, self.server.round
        missing = {**figures.get("missing", self.fleet.missing)}
        found = self._measured() if found is None else found
        line = {
            "round": number,
            **found,
            **figures,
            **({} if self.fleet.guard is None else self.fleet.guard.measures()),
            **({} if self.fleet.masks is None else self.fleet.masks.told),
            "shipped": framework.ships,
            "asked": len(self.fleet.asked) if number else 0,
            "replied": self.fleet.num_replied(missing) if number else 0,
            "missing": missing,
            "seconds": self._seconds,
            **({} if self.fleet.clock is None else {"simulated_seconds": self.fleet.clock.seconds}),
            "server_flops": self.server.meter.read().flops,
        }
        shown = (f"{name} {found[name]:.4g}" for name in (*MAIN, "loss") if name in found)
        log.info("round %d of %d: %s", number, self.config.rounds, ", ".join(shown))
        self.rounds.note(line)
        self.history.append(line)
        if self.folder is not None:
            self.folder.metrics(line)
        if self.tracking is not None:
            self.tracking.observe(line)
        if observe is not None:
            observe(line)

    def _save(self) -> None:
        """Let the clients write down what they hold; whoever cannot was not in the round."""
        self.fleet.save()

    def _checkpoint(self) -> None:
        """Write down what the server holds after this round, which completes it."""
        self.fleet.ledger.flush()
        if self.folder is None:
            return
        cost = self.server.meter.read()
        content = {
            "state": values(self.server.state),
            "store": self.server.store,
            "seconds": self._seconds,
            "cost": [cost.flops, cost.seconds, cost.peak_bytes],
            "positions": self.folder.positions(),
            "unsure": sorted(self.fleet.unsure),
            "held": self.fleet.held,
            "examples": self.fleet.agreed.examples,
            "banned": self.fleet.banned,
            "turns": asdict(self.fleet.turns),
            "late": self.fleet.dump(),
        }
        self.folder.checkpoints.keep(SERVER, self.server.round, content)

    def restore(self, *, skips: bool = False) -> Set[str]:
        """Go back to the last complete round of the folder, or to the beginning if there is none.

        Args:
            skips: whether it is not tried again: who was found to be behind since then begins anew.

        Returns:
            The clients that are known to be back there, too.

        Raises:
            UserError: the checkpoint cannot be read or is not of this configuration.
        """
        assert self.folder is not None
        found = self.folder.checkpoints.newest(SERVER)
        if found is None:
            return frozenset()
        number, content = found
        self.server.round = number
        self.server.state = self.model.state(content["state"])
        self.server.store = content["store"]
        flops, seconds, peak = content["cost"]
        self.server.meter.reset(Cost(flops, seconds, peak))
        self._seconds = content["seconds"]
        self.history = self.folder.evaluations()
        self.fleet.unsure = frozenset(content["unsure"])
        self.fleet.agreed.examples = content["examples"]
        self.fleet.banned = {**content["banned"], **self.fleet.banned}
        self.fleet.turns = Turns(**content.get("turns", {}))
        self.fleet.load(content.get("late", {}))
        held: dict[str, int] = content["held"]
        if skips:
            self.fleet.unsure |= held.keys() - self.fleet.held.keys()
            held = {name: held[name] for name in held.keys() & self.fleet.held.keys()}
        self.fleet.held, self._started = held, True
        return self.fleet.engine.restore(number, held) or frozenset()

    def _answers(self) -> dict[str, Any]:
        """Return what the model says that is shipped; of clients' own ones, what the first writes."""
        batch_tokens = self.config.evaluation.batch_tokens
        if self.config.framework.ships == SERVER_MODEL:
            return self.server.answers(self.server.state, batch_tokens)
        for client in self.clients:
            if "tensors" in client.store:
                state = client.model.state(client.store["tensors"])
                texts = client.answers(state, batch_tokens).get("texts")
                return {"texts": texts, "client": client.name} if texts else {}
        return {}

    def _finish(self) -> None:
        kept = self.rounds.kept
        self.rounds.take()
        if self.config.finetune.local_steps is not None:
            clients = everyone(self.fleet)
            self.finetuned = finetune_all(self.server, self.fleet, clients, self.config)
            self._save()
        if self.folder is None:
            return
        self.folder.kept_round = kept
        self.folder.status("running")
        log.info("writing the model into %s", self.folder.path)
        keep_models(self.config.framework, self.server, self.clients, self.folder.path)
        write_cards(self.folder.path, self.config)
        if self.finetuned:
            self.folder.json(FINETUNED, self.finetuned)
        if answers := self._answers():
            self.folder.json(ANSWERS, answers)
        self.folder.status("finished")
        if self.tracking is not None:
            self.tracking.finish()
        self.config.framework.finish_run(self.server)
        self.folder.checkpoints.clear()
