"""One run: load data and models, set up both sides, or a server whose clients are elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from trillium.config.experiment import ExperimentConfig
from trillium.config.places import located
from trillium.config.texts import Texts, in_model_order, usable
from trillium.data.federated import FederatedData
from trillium.data.load import load_data
from trillium.experiment.best import check_measured
from trillium.experiment.environment import environment
from trillium.experiment.fit import (
    check_answers,
    check_lengths,
    check_names,
    check_ready,
    check_tiers,
    padding_of,
)
from trillium.experiment.folder import RunFolder
from trillium.experiment.held_out import about, keep_rows
from trillium.experiment.host import MakeEngine, local_engine
from trillium.experiment.residents import Residents
from trillium.experiment.residents import resident_model as resident_model
from trillium.experiment.rounds import Experiment as Experiment
from trillium.experiment.rounds import Observer as Observer
from trillium.experiment.tracking import Tracking
from trillium.experiment.written import with_public
from trillium.federation.agreed import Agreed
from trillium.federation.client import Client, verbs_of
from trillium.federation.clock import clock_of
from trillium.federation.engine import BoundedEngine, Engine
from trillium.federation.fleet import Fleet
from trillium.federation.parts import SAMPLES, limits_of, reply_limits
from trillium.federation.server import Server
from trillium.federation.side import new_secret
from trillium.federation.tiers import ByClient, tier_of
from trillium.files import SERVER as SERVER
from trillium.frameworks import once_bytes
from trillium.frameworks.kd.dialect import find_dialects
from trillium.frameworks.masked import masks_of, sums_of
from trillium.frameworks.private import guard_of, steps_of
from trillium.models.load import LanguageModel
from trillium.privacy.account import FILE, Account
from trillium.report.summary import said_of
from trillium.tasks import Example
from trillium.tasks.ends import warn_unless_ended
from trillium.tasks.language import LanguageTask
from trillium.training.meters import CostCache, Meter
from trillium.wire.kinds import Limits
from trillium.wire.ledger import Entry, Ledger
from trillium.wire.wire import Wire

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)


def build(
    config: ExperimentConfig,
    folder: RunFolder | None = None,
    watch: Callable[[Entry], None] | None = None,
    argv: Sequence[str] = (),
    engine: MakeEngine = local_engine,
) -> Experiment:
    """Load data and model and set up both sides.

    A folder that was reopened, and holds a checkpoint, is gone on with.

    Args:
        folder: where to write; nowhere without one.
        watch: called with every entry of the ledger, for progress bars.

    Raises:
        UserError: data, model and framework do not fit together.
    """
    check_ready(config)
    if folder is not None:
        folder.asked(located(config).tree())
    log.info("reading data: %s", config.data.source.name)
    data = load_data(config.data, config.task.data_form, config.seed, config.public_size)
    check_tiers(config, data.clients)
    data = in_model_order(config, data)
    return assemble(config, data, folder, watch, argv, engine)


def assemble(
    config: ExperimentConfig,
    data: FederatedData,
    folder: RunFolder | None = None,
    watch: Callable[[Entry], None] | None = None,
    argv: Sequence[str] = (),
    engine: MakeEngine = local_engine,
) -> Experiment:
    """Load the model and set up both sides; the arguments are those of `build`."""
    texts = Texts(config, data.labels)
    config, data = texts.fit(data), texts.counted(data)
    for line in said_of(data.summary(), config.data.model_dump()):
        log.warning(line)
    residents = Residents(config, data.labels, lambda model: texts.examples(model, data.test))
    clients = []
    for name, rows in data.clients.items():
        own, examples = residents.of(name), texts.examples(config.of(name).model, rows)
        test = own.test
        if name in data.held:
            test = texts.examples(config.of(name).model, data.held[name])
        clients.append(build_client(config, own.model, name, examples, cache=own.cache, test=test))
    made = engine(config, data.labels, clients, None if folder is None else folder.checkpoints)
    model = residents.of(None).model
    return build_server(config, model, data, made, folder, watch, argv, clients)


def build_server(
    config: ExperimentConfig,
    model: LanguageModel,
    data: FederatedData,
    engine: Engine,
    folder: RunFolder | None = None,
    watch: Callable[[Entry], None] | None = None,
    argv: Sequence[str] = (),
    clients: Sequence[Client] = (),
) -> Experiment:
    """Set up the server of a federation over an engine.

    Args:
        config, folder, watch, argv: as in `build`.
        data: of it the test and the public set; the clients' rows only in a simulation.
    """
    tiers = ByClient(lambda client: tier_of(config.tiers, client), engine.clients)
    meter = Meter({}, model.device)
    newest = None if folder is None else folder.checkpoints.newest(SERVER)
    path = None if folder is None else folder.path
    data = with_public(config, model, data, meter, path, resumes=newest is not None)
    public = tokenize(config, model, data.public)
    test = usable(config, tokenize(config, model, data.test))
    if clients or not config.has_other_models:
        check_names(config, {*model.initial, *(n for c in clients for n in c.model.initial)})
    check_lengths(config.of(None), model, [public, test])
    check_answers(config.of(None), model, test)
    check_measured(config, clients)
    if isinstance(config.task, LanguageTask):
        taught = [example for client in clients for example in client.examples]
        warn_unless_ended(taught or test, model.tokenizer)
    server = Server(
        model=model,
        task=config.task,
        state=model.state(),
        public=public,
        public_rows=data.public,
        test=test,
        pooled={client.name: client.examples for client in clients},
        tiers=tiers,
        folder=None if folder is None else folder.checkpoints.folder,
        groups=config.groups(engine.clients),
        dialects=find_dialects(config, model, public, data.public, engine.clients),
        training=config.training,
        meter=meter,
        seed=config.seed,
        num_rounds=config.rounds,
        store={"secret": new_secret()} if config.hides else {},
    )
    if folder is not None:
        folder.cut({} if newest is None else newest[1]["positions"])
        folder.config(located(config).tree())
        if newest is None:
            folder.json("env.json", environment(device_name(model.device), argv))
        keep_rows(folder.path, data)
        found = padding_of(server, clients, config.evaluation.batch_tokens)
        folder.json("data.json", {**about(data), "padding": found})
        folder.json("once.json", once_bytes(config.framework, server, clients))
    tracking = None
    if folder is not None and config.report.track:
        tracking = Tracking(config.report.track, folder.path)
    watching = [watch, None if tracking is None else tracking.watch]
    ledger = Ledger(
        folder.path / "wire.jsonl" if folder is not None else None,
        [found for found in watching if found is not None],
    )
    made: dict[int, Wire] = {}

    def wire_of(client: str) -> Wire:
        tier = tiers[client]
        return made.setdefault(id(tier), tier.wire(config.wire))

    wires = ByClient(wire_of, engine.clients)
    fleet = Fleet(engine, config.wire, ledger, config.fleet, config.seed, wires)
    account = Account(None if path is None else path / FILE)
    fleet.guard = guard_of(config, server, account, deployed=not clients)
    fleet.masks = sums_of(config, server)
    fleet.limits = limits_of(model)
    if clients:
        fleet.clock = clock_of(config, engine.clients, lambda: meter.read().flops, fleet.worked)
    fleet.most = most_of(config, model, sum(config.task.num_targets(example) for example in public))
    fleet.agreed = Agreed(
        config.task.most_targets(config.training.limit, model.num_classes),
        lambda client, n: tier_of(config.tiers, client).training(config.training).num_steps(n),
    )
    fleet.agree()
    if isinstance(engine, BoundedEngine):
        engine.most_bytes = fleet.most.max_bytes
    if folder is not None:
        fleet.failed = folder.failed_rounds
    built = Experiment(config, data, server, fleet, folder, list(clients), tracking=tracking)
    if folder is not None:
        built.restore()
    return built


def most_of(config: ExperimentConfig, model: LanguageModel, predictions: int) -> Limits:
    """Return what one side accepts of the other in a message, with so many of the public set."""
    tokens = max(SAMPLES, config.training.batch_size) * config.training.limit
    tokens = max(tokens, config.evaluation.batch_tokens)
    return reply_limits(model, limits_of(model), tokens=tokens, predictions=predictions)


def build_client(
    config: ExperimentConfig,
    model: LanguageModel,
    name: str,
    examples: list[Example],
    *,
    cache: CostCache | None = None,
    test: list[Example] | None = None,
) -> Client:
    """Set up one client.

    Args:
        test: held-out data, if the client has any, to look at its own model; texts of a length that
            the model has positions for.
    """
    tier = tier_of(config.tiers, name)
    check_lengths(config.of(name), model, [examples, test or []])
    client = Client(
        name=name,
        model=model,
        task=config.task,
        examples=examples,
        test=test or [],
        verbs=verbs_of(config.framework, config.head),
        training=tier.training(config.training),
        wire=tier.wire(config.wire),
        tier=tier,
        meter=Meter({} if cache is None else cache, model.device),
        seed=config.seed,
        num_rounds=config.rounds,
        store={"secret": new_secret()} if config.hides else {},
        privacy=config.privacy,
    )
    client.steps = steps_of(config, client)
    client.masks = masks_of(config, client)
    return client


def device_name(device: torch.device) -> str:
    """Return a device with the name of its maker, where it has one."""
    return (
        f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
    )


def tokenize(config: ExperimentConfig, model: LanguageModel, rows: Dataset) -> list[Example]:
    """Return rows in the columns of the task as examples."""
    limit = config.training.limit
    return config.task.tokenize(rows, model.tokenizer, limit, model.num_classes)
