"""FedLLM on paper: what its messages weigh, and what training costs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field

from trillium.federation.client import Client
from trillium.frameworks.fedllm.downloads import mark
from trillium.frameworks.fedllm.downloads.change import ChangeDownload
from trillium.frameworks.fedllm.drifts import NoDrift
from trillium.frameworks.fedllm.protocol import FedLLM
from trillium.frameworks.fedllm.shares import Share
from trillium.models.slots import State, train_only, values
from trillium.plan.cohorts import Cohort
from trillium.plan.federation import Federation
from trillium.plan.folds import Folds
from trillium.plan.sizes import Weight
from trillium.plan.waves import FREE, Ask, Memory, Wave, Work
from trillium.tasks import Example
from trillium.training.loop import task_objective
from trillium.wire.codecs.adaptive import Adaptive
from trillium.wire.codecs.random_k import RandomK
from trillium.wire.codecs.top_k import TopK
from trillium.wire.message import Message, named, scalar

_DIGEST = "0" * 16  # as long as what stands for the start values


@dataclass
class FedLLMRounds:
    """The rounds of FedLLM.

    Attributes:
        framework: its settings.
        federation: both sides.
    """

    framework: FedLLM
    federation: Federation
    _changed: dict[str, int] = field(default_factory=dict)  # round in which a value last changed
    _held: dict[str, int] = field(default_factory=dict)  # round whose values a client holds
    _took_part: set[str] = field(default_factory=set)
    _weights: dict[Hashable, tuple[Weight, Weight]] = field(default_factory=dict)
    _moved: dict[Hashable, tuple[str, ...]] = field(default_factory=dict)
    _shares: dict[Hashable, Share] = field(default_factory=dict)
    _totals: dict[Hashable, Work] = field(default_factory=dict)
    _runs: dict[Hashable, Callable[[list[Example]], object]] = field(default_factory=dict)

    _folds: Folds = field(init=False)

    def __post_init__(self) -> None:
        self._folds = Folds(self.framework.aggregator, self.federation)

    @property
    def upper_bound(self) -> bool:
        """Whether a run may take less than is planned: uploads may leave whole tensors as they were."""
        gradients = self.framework.upload == "gradient"
        wires = {id(client.wire): client.wire for client in self.federation.clients.values()}
        return any(
            isinstance(codec, TopK | RandomK | Adaptive)
            for wire in wires.values()
            for codec in wire.up
        ) or (gradients and not all(w.is_lossless("gradients", "up") for w in wires.values()))

    def start(self) -> Iterator[Wave]:
        """Return what crosses before the first round: nothing."""
        yield from ()

    def round(self, number: int, cohort: Cohort) -> Iterator[Wave]:
        """Return the messages of a round."""
        if self.framework.aggregator.folds:
            wave, cohort = self._folds.send(cohort)
            yield wave
        yield Wave(tuple(self._ask(name, number, name in cohort.lost) for name in cohort.asked))
        self._settle(number, cohort)

    def memory(self, client: Client, peak_bytes: int) -> Memory:
        """Divide the most that a client holds into its parts."""
        share, optimizer = self._share(client), client.training.optimizer
        state = self.federation.models.state(client.model)
        if client.tier.rank is not None:  # slices of some
            state = self._state(client, share)
        return self.federation.memory(client, peak_bytes, state, optimizer, share.trained)

    def _ask(self, name: str, number: int, lost: bool) -> Ask:
        client = self.federation.clients[name]
        share = self._share(client)
        since, kind, meta = 0, "parameters", {"start": _DIGEST}
        if isinstance(self.framework.download, ChangeDownload):
            last = self._held.get(name)
            if last is None or number - last > self.framework.download.resync_after:
                kind, meta = "snapshot", {"base": "start", "start": _DIGEST}
            else:
                since, meta = last, {"base": "held"}
        now = (number, id(client.tier), since, kind)
        if now not in self._moved:
            # What a client holds in round r is what was made of rounds up to r - 1.
            # A lossy codec leaves a rest of whatever changed, which is sent again and again.
            exact = client.wire.is_lossless("parameters", "down")
            held = max(since, 1) if exact else 1
            self._moved[now] = tuple(n for n in share.down if self._changed.get(n, 0) >= held)
        moved = self._moved[now]
        key = (id(client.tier), share.up, moved, kind, number == 1, len(str(number)))
        if key not in self._weights:
            self._weights[key] = self._weigh(client, share, moved, kind, meta)
        down, up = self._weights[key]
        if lost:
            return Ask(name, "train", down, None)
        return Ask(name, "train", down, up, self._train(client, share))

    def _share(self, client: Client) -> Share:
        key = (client.round, id(client.tier))
        if key not in self._shares:
            self._shares[key] = self.framework.share(client, client.tier)
        return self._shares[key]

    def _weigh(
        self, client: Client, share: Share, moved: tuple[str, ...], kind: str, meta: dict[str, str]
    ) -> tuple[Weight, Weight]:
        """Return what the message and the reply of a client weigh."""
        framework = self.framework
        like = share.take(client.initial, share.up)
        with self.federation.paper.running():
            beside = framework.drift.send({} if client.round == 1 else {"common": {}}, like)
        tensors = {f"{kind}/{n}": t for n, t in share.take(client.initial, moved).items()}
        message = Message(
            "train",
            {**tensors, **named("gradients", beside)},
            {"sent": mark(list(share.down), set(moved)), **meta},
        )
        extra = named("gradients", like) if framework.drift.answers else {}
        control = {"control/weight": scalar(0.0), "control/loss": scalar(0.0)}
        reply = Message("train", {**named(framework._kind, like), **extra, **control})
        return self.federation.down(client.name, message), self.federation.up(client.name, reply)

    def _settle(self, number: int, cohort: Cohort) -> None:
        """Note which values have changed, and who holds what."""
        rule, clients = self.framework.aggregator, self.federation.clients
        shares = {name: self._share(clients[name]) for name in cohort.present}
        changed: set[str] = set()
        moved = {name for name in shares if self._moves_a(clients[name], number)}
        if rule.reads == "state":
            changed |= self._folds.add(shares, moves_a=bool(moved))
        alike = {(id(share), name in moved): share for name, share in shares.items()}
        for (_, moves_a), share in alike.items():
            changed |= {n for n in share.up if moves_a or not _waits(n, share)}
        self._held |= dict.fromkeys(shares, number)
        self._took_part |= shares.keys()
        if rule.restarts:  # all sides know the factors with which the next round begins
            factors = self.federation.model.factors
            changed -= {name for layer in factors for name in (layer.a, layer.b)}
        self._changed |= dict.fromkeys(changed, number)
        for name in cohort.lost:
            self._held.pop(name, None)

    def _moves_a(self, client: Client, number: int) -> bool:
        """Whether LoRA's `A` moves in a round: as long as `B` is zero, its first gradient is, too.

        It is the same with the first layer of a bottleneck.
        """
        if number > 1 and not self.framework.aggregator.restarts:
            return True
        if self.framework.upload == "gradient":
            return False
        return client.training.num_steps(len(client.examples)) > 1

    def _state(self, client: Client, share: Share) -> State:
        known = client.initial
        state = client.model.state({**known, **share.take(known, share.down)})
        return train_only(state, share.trained)

    def _train(self, client: Client, share: Share) -> Work:
        """Return what a client's training costs in the current round."""
        if not self.federation.counts:
            return FREE
        later, known = client.round > 1, client.name in self._took_part
        key = self.federation.training_key(client, share.trained)
        if client.tier.rank is not None:  # of the same parameters, it trains a slice
            key = (key, client.tier.rank)
        special = (self.framework.upload == "gradient", self.framework.drift)
        if special != (False, NoDrift()):
            key = (key, repr(special), later, known)
        if key not in self._runs:
            self._runs[key] = self._runner(client, share, later, known)
        chunks = self.federation.chunks(client)
        if (key, id(chunks)) not in self._totals:
            self._totals[key, id(chunks)] = self.federation.summed(chunks, key, self._runs[key])
        return self._totals[key, id(chunks)]

    def _runner(
        self, client: Client, share: Share, later: bool, known: bool
    ) -> Callable[[list[Example]], object]:
        """Return what trains a client of this kind on one batch."""
        framework, state = self.framework, self._state(client, share)
        with self.federation.paper.running():
            begun = values(state)
            like = share.take(begun, share.up)
            received = dict(framework.drift.send({"common": {}} if later else {}, like))
        objective, training = task_objective(client.task, client.examples), client.training

        def run(chunk: list[Example]) -> None:
            own = {"own": dict(like)} if known else {}
            correction = framework.drift.correction(own, state, begun, received)
            loop = client.loop(f"train{correction.label}", state)
            if framework.upload == "gradient":
                loop.gradient([chunk], objective)
            else:
                loop.fit([chunk], objective, training, client.progress, 1, correction.apply)

        return run


def _waits(name: str, share: Share) -> bool:
    """Whether a tensor has no gradient as long as the one behind it is zero."""
    return share.factors.get(name) == "A" or "bottleneck_down" in name.split(".")
