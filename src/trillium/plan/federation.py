"""A federation on paper: the real server, clients and fleet of a run without weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trillium.config.experiment import ExperimentConfig
from trillium.errors import UserError
from trillium.federation.client import Client, verbs_of
from trillium.federation.clock import clock_of
from trillium.federation.failed import RoundFailed
from trillium.federation.fleet import Fleet
from trillium.federation.parts import limits_of
from trillium.federation.server import Server
from trillium.federation.side import Metrics, Side
from trillium.federation.tiers import tier_of
from trillium.frameworks import OwnModels, everyone, once_bytes
from trillium.frameworks.finetuning import finetune_all
from trillium.frameworks.masked import masks_of, sums_of
from trillium.frameworks.private import guard_of, steps_of
from trillium.models.load import LanguageModel
from trillium.models.slots import State
from trillium.plan.course import Course, PaperEngine
from trillium.plan.data import TOKENS, Texts
from trillium.plan.models import Models
from trillium.plan.paper import PaperWire, forming, on_paper
from trillium.plan.phases import Known, PhaseMeter
from trillium.plan.sizes import Scales
from trillium.privacy.account import Account
from trillium.rng import scoped_rng
from trillium.tasks import Example
from trillium.tasks.vocabulary import is_wide
from trillium.training.settings import Training
from trillium.wire.kinds import Tensors
from trillium.wire.ledger import Ledger


@dataclass
class Shared:
    """What several federations of one run have in common.

    Attributes:
        known: what work costs, by all that is not in its key.
        outcomes: of runs that are made already.
        scales: what messages weigh, by size of the vocabulary.
        metrics: the names of what is measured, by model.
        tallies: counts and sums of it, by model.
    """

    models: Models
    known: dict[tuple[object, ...], Known] = field(default_factory=dict)
    outcomes: dict[str, Any] = field(default_factory=dict)
    scales: dict[int, Scales] = field(default_factory=dict)
    metrics: dict[int, Metrics] = field(default_factory=dict)
    tallies: dict[int, Tensors] = field(default_factory=dict)


@dataclass(kw_only=True)
class _OnPaper(Side):
    """What both sides do otherwise where there are no values."""

    meter: PhaseMeter
    shared: Shared
    public_set: Sequence[Example] = ()

    def tokenize(self, columns: Mapping[str, Sequence[Any]]) -> list[Example]:
        """Return the public set, the only text that crosses, as it has been tokenised before."""
        return list(self.public_set)

    def evaluate(self, state: State, batch_tokens: int) -> Metrics:
        """Return metrics of the right names."""
        known = self.shared.metrics
        if id(self.model) not in known:
            known[id(self.model)] = super().evaluate(state, batch_tokens)
        return known[id(self.model)]


@dataclass(kw_only=True)
class PaperClient(_OnPaper, Client):
    """A client on paper, whose costs are no secret of anybody's."""

    def tally(
        self, state: State, base: Tensors, batch_tokens: int, *, metered: bool = True
    ) -> Tensors:
        """Return counts and sums of the right form; what counts as no work is done once."""
        known = self.shared.tallies
        if metered or id(self.model) not in known:
            known[id(self.model)] = super().tally(state, base, batch_tokens, metered=metered)
        return known[id(self.model)]

    def _cost(self) -> tuple[float, float, float]:
        cost = self.meter.read()
        return cost.flops, cost.seconds, cost.peak_bytes


@dataclass(kw_only=True)
class PaperServer(_OnPaper, Server):
    """A server on paper."""


class PaperFederation:
    """Both sides of a run on paper.

    Attributes:
        course: what has happened.

    Args:
        texts: who has which data.
        num_blocks: how many blocks the model has here; as the architecture says by default.
    """

    def __init__(
        self, config: ExperimentConfig, texts: Texts, shared: Shared, num_blocks: int | None = None
    ) -> None:
        longest = max((e.num_tokens for own in texts.clients.values() for e in own), default=TOKENS)
        config = config.with_length(longest)
        self.config, self.texts, self.shared = config, texts, shared
        self._num_blocks, self._paper = num_blocks, shared.models.paper
        self.model = self._model(None)
        self.framework = forming(config.framework, self._paper)
        meter = self._meter(self.model, "server", config.training)
        self.course = Course(lambda: meter.read().flops)
        with self._paper.running():
            tiers = {name: tier_of(config.tiers, name) for name in texts.clients}
            wires = {id(tier): self._wire(tier.wire(config.wire)) for tier in tiers.values()}
            self.clients = {name: self._client(name, wires) for name in texts.clients}
            self.server = PaperServer(
                **self._side("server", self.model, meter, texts.public),
                training=on_paper(config.training, self._paper),
                test=_some(texts),
                state=self.model.state(),
                public=texts.public,
                public_rows=texts.public_rows,
                pooled=texts.clients,
                tiers=tiers,
                groups=config.groups(sorted(texts.clients)),
                dialects=texts.dialects,
                store=_secret(config),
            )
        self.engine = PaperEngine(list(self.clients.values()), self.course)
        ledger = Ledger(watch=[self.course.book])
        self.fleet = Fleet(
            self.engine,
            self._wire(config.wire),
            ledger,
            config.fleet,
            config.seed,
            {name: wires[id(tier)] for name, tier in tiers.items()},
        )
        self.fleet.guard = guard_of(config, self.server, Account())
        self.fleet.masks = sums_of(config, self.server, on_paper=True)
        self.fleet.limits = limits_of(self.server.model)
        self.fleet.clock = clock_of(
            config, self.clients, lambda: meter.read().flops, self.fleet.worked, on_paper=True
        )

    def _model(self, client: str | None) -> LanguageModel:
        config = self.config.of(client) if self.config.has_other_models else self.config
        model = self.shared.models.get(config, self.texts.num_classes, self._num_blocks)
        tokenizer = self.texts.tokenizers.get(client)
        if tokenizer is not None:
            model.tokenizer = tokenizer
        return model

    def _meter(self, model: LanguageModel, side: str, training: Training) -> PhaseMeter:
        # What learns from public examples may hold something for all of them.
        alike = "" if self.texts.assumed else side  # batches of one layout may differ in a run
        own = id(model), alike, repr(self.config.framework)
        first = self.shared.known.setdefault(own, Known())
        known = self.shared.known.setdefault((*own, len(self.texts.public)), first.elsewhere())
        return PhaseMeter(self._paper, known, self._plain(model, training))

    def _plain(self, model: LanguageModel, training: Training) -> Known | None:
        """Return what is known of the task's own steps, if their layouts say what they cost."""
        if not (self.texts.assumed or self.config.task.peft_task != "CAUSAL_LM"):
            with self._paper.running():
                if not is_wide(model.module):  # then the key does not say how many rows count
                    return None
        some = _some(self.texts)[:1] if self.texts.assumed else []
        tokens = [(example.num_tokens, example.prompt_tokens) for example in some]
        own = training.optimizer, training.weight_decay, training.max_grad_norm, training.autocast
        key = id(model), repr((own, tokens))
        return self.shared.models.plain.setdefault(key, Known())

    def _wire(self, wire: Any) -> PaperWire:
        size = len(self.model.tokenizer)
        scales = self.shared.scales.setdefault(size, Scales(self._paper, size))
        return PaperWire.of(wire, scales)

    def _side(
        self, name: str, model: LanguageModel, meter: PhaseMeter, public: Sequence[Example]
    ) -> dict[str, Any]:
        return {
            "name": name,
            "model": model,
            "task": self.config.task,
            "meter": meter,
            "seed": self.config.seed,
            "num_rounds": self.config.rounds,
            "shared": self.shared,
            "public_set": public,
        }

    def _client(self, name: str, wires: Mapping[int, PaperWire]) -> PaperClient:
        config, tier = self.config, tier_of(self.config.tiers, name)
        model = self._model(name)
        public = self.texts.public_of.get(name, self.texts.public)
        training = tier.training(config.training)
        client = PaperClient(
            **self._side(name, model, self._meter(model, "client", training), public),
            training=on_paper(training, self._paper),
            test=self.texts.held.get(name) or _some(self.texts),
            examples=self.texts.clients[name],
            describe=_raise,
            verbs=verbs_of(self.framework, config.head),
            wire=wires[id(tier)],
            tier=tier,
            privacy=config.privacy,
            store=_secret(config),
        )
        client.steps = steps_of(config, client)
        client.masks = masks_of(config, client, on_paper=True)
        return client

    def once_bytes(self) -> dict[str, int]:
        """Return what a client must hold before the run, beside what messages bring."""
        with self._paper.running():
            return once_bytes(self.framework, self.server, list(self.clients.values()))

    def start(self) -> None:
        """Do what comes before the first round."""
        with self._paper.running():
            self.config.head.start(self.server, self.fleet)
            self.framework.start(self.server, self.fleet)
            if self.texts.held:
                self._evaluate(0)

    def round(self, number: int, *, evaluates: bool = False) -> None:
        """Run a round; with `evaluates` clients also look at their own models, as in a simulation.

        Raises:
            UserError: too few clients stay, which ends the run.
        """
        config, self.server.round, self.engine.number = self.config, number, number
        with self._paper.running():
            self.course.begin(number)
            self.fleet.begin_round(number)
            config.head.inform(self.server, self.fleet)
            try:
                with scoped_rng(config.seed, "server", number):
                    self.framework.round(self.server, self.fleet)
            except RoundFailed as error:
                if config.fleet.on_failure == "stop":
                    failing = config.late or f"fleet.failure_rate={config.fleet.failure_rate}"
                    raise UserError(
                        f"{failing} over {config.rounds} rounds",
                        f"the run would end: {error}",
                        "Write fleet.on_failure=skip, a smaller min_replies, or fewer rounds",
                    ) from error
            self.fleet.book_late()
            is_due = number == config.rounds or number % config.evaluation.every == 0
            looks = evaluates and isinstance(self.framework, OwnModels)
            if is_due and (looks or self.texts.held):
                self._evaluate(number)

    def finish(self) -> None:
        """Do what comes after the last round."""
        if self.config.finetune.local_steps is not None and self.texts.held:
            with self._paper.running():
                finetune_all(self.server, self.fleet, everyone(self.fleet), self.config)

    def _evaluate(self, number: int) -> None:
        """Measure as after a round of a run."""
        config, missing = self.config, dict(self.fleet.missing)
        last = number == config.rounds or not self.framework.trains
        self.framework.evaluate(self.server, self.fleet, config.evaluation, last)
        self.fleet.missing = missing


def _secret(config: ExperimentConfig) -> dict[str, Any]:
    """Return what a side has of the start: nobody's secret, so that a plan says the same again."""
    return {"secret": bytes(32).hex()} if config.hides else {}


def _raise(error: Exception) -> str:
    """Let an error on paper end the plan: no client is to be done without."""
    raise error


def _some(texts: Texts) -> list[Example]:
    """Return some examples, for a look at a model: what is measured has no value here, but a name."""
    return (texts.test or texts.public or next(iter(texts.clients.values()), []))[:2]
