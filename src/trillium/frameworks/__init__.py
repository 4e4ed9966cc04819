"""Frameworks: both halves of a protocol, the server's round and the client's verbs.

Imports `federation`, `data` and what is below them; no room of a framework imports another's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from types import ModuleType
from typing import ClassVar

import torch
from peft import PeftModel
from torch import nn

from trillium.component import Component
from trillium.errors import UserError
from trillium.federation.client import Client, client_verb
from trillium.federation.fleet import Fleet
from trillium.federation.server import Server
from trillium.federation.setting import Evaluation, Setting
from trillium.federation.side import Metrics, Side
from trillium.federation.tiers import Tier
from trillium.frameworks.effects import (
    Crosses,
    Crossing,
    Crossings,
    NoEffect,
    check_codecs,
    idle,
    unread,
)
from trillium.frameworks.finetuning import check_finetune, finetuned
from trillium.frameworks.late import check_late
from trillium.frameworks.masked import check_masked
from trillium.frameworks.measuring import (
    Tally,
    check_measuring,
    measured,
    pooled,
    snapshot_of,
    tally_readers,
)
from trillium.frameworks.pairs import check_pairs
from trillium.frameworks.private import check_private
from trillium.models.own import Ends
from trillium.wire.message import Message, named

SERVER_MODEL = "server model"
CLIENT_MODELS = "mean of the clients' models"


class Framework(Component, kind="framework", package="trillium.frameworks"):
    """How a federation learns; the object is the configuration, state is with server and clients."""

    cuts_models: ClassVar[bool] = False  # whether clients may hold fewer blocks than others
    slices_adapters: ClassVar[bool] = False  # whether clients may hold parts of the adapter
    mixes_models: ClassVar[bool] = False  # whether sides may have different models
    trains: ClassVar[bool] = True
    compares: ClassVar[bool] = True  # whether it can train on pairs of texts
    client_half: ClassVar[Sequence[ModuleType]] = ()  # modules of verbs, beside its own methods
    hides_units: ClassVar[frozenset[str]] = frozenset()  # of what one more or less can be hidden
    only_adds: ClassVar[bool] = False  # whether all that clients send is only added up
    takes_first: ClassVar[bool] = False  # whether a round can be of those that answer first

    @property
    def accumulates(self) -> bool:
        """Whether the sums of all rounds have the same entries, and are added up in the model."""
        return False

    @property
    def needs_public(self) -> bool:
        """Whether there is to be a public set."""
        return False

    @property
    def hides(self) -> bool:
        """Whether noise is to hide something: each side then has a secret from the start."""
        return False

    @property
    def ships(self) -> str:
        """Whose accuracy is reported."""
        return SERVER_MODEL

    def crossings(self, config: Setting) -> Crossings | None:
        """Return what crosses beside control, by direction and kind; None lets all codecs be."""
        return None

    def no_effect(self, config: Setting) -> Mapping[str, str]:
        """Return the settings that a run never reads, by path, and why."""
        found = {}
        if config.training.local_steps is not None:
            found["training.local_epochs"] = "training.local_steps says how long a round is"
        if config.finetune.local_steps is None:
            found["finetune.tensors"] = "finetune.local_steps is left out, so nothing moves"
        if config.evaluation.where == "server":
            found["evaluation.held_back"] = "evaluation.where=server measures on the server's rows"
        return found

    def without_effect(self, config: Setting) -> Iterator[NoEffect]:
        """Yield what is set and acts nowhere in this run."""
        assert isinstance(config.head, Crosses)
        idle_of_head = config.head.no_effect(config)
        yield from unread(self.name, config, {**self.no_effect(config), **idle_of_head})
        if (found := self.all_crossings(config)) is not None:
            yield from idle(self.name, config, found)

    def all_crossings(self, config: Setting) -> Crossings | None:
        """Return what crosses in a run, what the head asks for with it, as `crossings` does."""
        assert isinstance(config.head, Crosses)
        own = self.crossings(config)
        if own is None:
            return None
        found = {**config.head.crossings(config), **own}
        if not config.sums.hides:
            return found
        down = {way: what for way, what in found.items() if way[0] == "down"}
        return {**down, ("up", "sums"): Crossing("values")}

    def check(self, config: Setting) -> None:
        """Refuse settings that contradict each other."""
        if (found := self.all_crossings(config)) is not None:
            check_codecs(self.name, config, found)
        if config.evaluation.where != "server":
            check_measuring(self.ships == SERVER_MODEL, config)
        elif config.data.test_fraction == 0:
            raise UserError(
                "data.test_fraction=0 with evaluation.where=server",
                "there may be no rows to measure on",
                "Leave it out, or write evaluation.where=clients",
            )
        if config.finetune.local_steps is not None:
            ships = self.ships == SERVER_MODEL
            check_finetune(self.trains, ships, self.cuts_models, config)
        if isinstance(config.data.labels, str) and (config.privacy.unit or config.sums.hides):
            raise UserError(
                f"data.labels={config.data.labels} with privacy={config.privacy.name}, "
                f"sums={config.sums.name}",
                "which classes a client has would leave it in the open",
                "Name the classes: data.labels=[…]",
            )
        if config.task.compares:
            check_pairs(self.compares, config)
        if config.privacy.unit:
            check_private(self.name, self.hides_units, config)
        if config.sums.hides:
            check_masked(self.name, self.only_adds, config)
        if config.late:
            check_late(self.name, self.takes_first, config)
        for label, tier in config.tiers.items():
            has_part = tier.rank is not None or tier.layers is not None
            if has_part and not self.slices_adapters:
                raise UserError(
                    f"tiers.{label} with rank or layers under framework={self.name}",
                    "only fedllm has clients that hold a part of the adapter",
                    "Leave rank and layers out, or write framework=fedllm",
                )
        for label, tier in config.tiers.items():
            if tier.cut is not None and not self.cuts_models:
                raise UserError(
                    f"tiers.{label}.cut under framework={self.name}",
                    "only split divides the model",
                    "Leave cut out there, or write framework=split",
                )
        if config.has_other_models and not self.mixes_models:
            raise UserError(
                f"server or tiers with model or adapter under framework={self.name}",
                "it exchanges parameters or activations, which are meaningful in one model only",
                "Leave model and adapter out there, or write framework=kd",
            )
        if self.needs_public and config.public_size == 0:
            raise UserError(
                f"framework={self.name} with data.public_size=0",
                "it needs a public set, of texts that are not the clients'",
                "Write data.public_size=200 or more",
            )

    def start(self, server: Server, fleet: Fleet) -> None:
        """Prepare before the first round; a run that goes on from a checkpoint does not come here."""

    def round(self, server: Server, fleet: Fleet) -> Metrics:
        """Run one round with the cohort of the fleet; return figures of the training, if any."""
        raise NotImplementedError

    def evaluate(self, server: Server, fleet: Fleet, evaluation: Evaluation, last: bool) -> Metrics:
        """Return the metrics of the model that would be shipped, on held-out data."""
        return self.measure_shared(server, fleet, evaluation)

    def measure_shared(self, server: Server, fleet: Fleet, evaluation: Evaluation) -> Metrics:
        """Return the metrics of the server's model, on the server's rows or on those of the clients.

        With both, the clients' stand below `clients` alone.
        """
        tokens = evaluation.batch_tokens
        own = {} if evaluation.where == "clients" else server.evaluate(server.state, tokens)
        if evaluation.where == "server":
            return own
        tallies = self.tallies(server, fleet, tokens)
        return {**pooled(server.task, tallies), **own}

    def tallies(self, server: Server, fleet: Fleet, batch_tokens: int) -> dict[str, Tally]:
        """Return the counts and sums of the server's model by each client that has measured it."""
        asks = dict.fromkeys(everyone(fleet), snapshot_of(server, batch_tokens))
        found = fleet.ask_all(asks, tally_readers(server, fleet, asks), "evaluate")
        return {client: tally for client, tally in found.items() if tally}

    @client_verb
    def finetune(self, client: Client, message: Message) -> Message:
        """Go on with some tensors of the model that comes; answer with measures before and after."""
        return finetuned(client, message)

    @client_verb
    def measure(self, client: Client, message: Message) -> Message:
        """Answer with counts and sums of the model that comes, on the client's held-out rows."""
        return measured(client, message)

    def ends(self, tier: Tier) -> Ends | None:
        """Return what a client of a tier holds of the model, where that is not the whole."""
        return None

    def finish_run(self, server: Server) -> None:
        """Remove what the server has laid down in `server.folder`; the run has come to its end."""

    def once_bytes(self, side: Side) -> dict[str, int]:
        """Return what a client must hold before the run beside what messages bring, in bytes.

        The weight of the tensors of its part of the model; they count once and apart, because a
        client may well have them already. `side` is any one with the model.
        """
        drawn = isinstance(side.model.module, PeftModel)  # adapters follow from the seed
        trained = 0 if drawn else sum(tensor.nbytes for tensor in side.model.initial.values())
        return {"base_model": weigh(side.model.module) + trained}


def weigh(module: nn.Module, slots: Collection[str] = ()) -> int:
    """Return the bytes of the frozen tensors of a module, tied ones once.

    Args:
        slots: names of what may train, whatever is mounted there.
    """
    own = module.named_parameters()
    frozen = [p for name, p in own if not p.requires_grad and name not in slots]
    return sum(tensor.nbytes for tensor in [*frozen, *module.buffers()])


def once_bytes(framework: Framework, server: Server, clients: Sequence[Client]) -> dict[str, int]:
    """Return what a client must hold before the run, the most that any does.

    Empty where that is not known: a server whose clients are elsewhere knows no model but its own.
    """
    by_model: dict[int, Side] = {id(client.model): client for client in clients}
    if not clients and server.groups[0]:
        by_model = {id(server.model): server}
    found = [framework.once_bytes(side) for side in by_model.values()]
    return max(found, key=lambda parts: sum(parts.values()), default={})


class OwnModels(Framework):
    """A framework whose clients keep models of their own, which a simulation can look at."""

    @client_verb
    def evaluate_own(self, client: Client, message: Message) -> Message:
        """Answer with counts and sums of the client's own model.

        With none if it has no held-out data, or has never trained, so that there is no own model yet.
        """
        if not client.test or "tensors" not in client.store:
            return Message("evaluate_own")
        state, meta = client.model.state(client.store["tensors"]), message.meta
        tokens, metered = int(meta["batch_tokens"]), bool(meta["metered"])
        tally = client.tally(state, client.base, tokens, metered=metered)
        return Message("evaluate_own", named("measures", tally))

    def measure_own(self, server: Server, fleet: Fleet, evaluation: Evaluation) -> Metrics:
        """Return the metrics of every client's own model; nothing of it counts as communication.

        On the same rows they are a mean over the clients; where each has rows of its own, those of all
        rows together.
        """
        apart = evaluation.where != "server"
        meta = {"batch_tokens": evaluation.batch_tokens, "metered": apart}
        whom = everyone(fleet) if apart else fleet.engine.clients
        asks = dict.fromkeys(whom, Message("evaluate_own", meta=meta))
        answers = fleet.ask_all(asks, tally_readers(server, fleet, asks), "evaluate")
        found = {client: tally for client, tally in answers.items() if tally}
        if apart:
            return pooled(server.task, found)
        clients = {client: server.task.metrics(tally) for client, tally in found.items()}
        return {**mean_metrics(clients), "clients": clients}


def everyone(fleet: Fleet) -> list[str]:
    """Return the clients that may be asked to measure: all but those that are left out."""
    return [client for client in fleet.engine.clients if client not in fleet.banned]


def mean_metrics(clients: dict[str, Metrics]) -> Metrics:
    """Return the mean of each metric over clients."""
    names = next(iter(clients.values())) if clients else ()
    return {
        name: float(torch.tensor([metrics[name] for metrics in clients.values()]).double().mean())
        for name in names
    }
