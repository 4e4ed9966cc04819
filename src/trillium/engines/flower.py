"""Trillium as a Flower app: the server's side and the node's side of a run across machines.

Flower ships the app, starts it, and knows who the nodes are. What is learnt, and every byte of it, is
Trillium's: the ServerApp runs an `Experiment` over one of the distributed engines, the ClientApp serves
a `Client`.
"""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from threading import current_thread, main_thread
from typing import Final

import yaml
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from trillium.config.experiment import ExperimentConfig, experiment
from trillium.config.texts import Texts, in_model_order
from trillium.data.classes import agreed
from trillium.data.deployed import LABELS, read_server_data
from trillium.data.federated import FederatedData
from trillium.engines.board import Board
from trillium.engines.changes import OnChange
from trillium.engines.distributed import SessionEngine
from trillium.engines.frames import StreamConfig
from trillium.engines.labels import ask_labels, tell_labels
from trillium.engines.logs import log_to_screen
from trillium.engines.messages import MessageEngine
from trillium.engines.node import Node
from trillium.engines.node_settings import NodeConfig
from trillium.engines.opening import Arrival, Opening
from trillium.engines.patience import Patience
from trillium.engines.policy import Forbidden, signature_of
from trillium.engines.progress import log_evaluation
from trillium.engines.roster import Mail, bytes_of, text_of, with_bytes
from trillium.engines.secure import ClientTLS, ServerTLS
from trillium.engines.session import SessionRefused, serve_session
from trillium.engines.settings import Settings
from trillium.engines.unfinished import alone, take_folder
from trillium.engines.writing import Request
from trillium.errors import SAID, UserError, shareable
from trillium.experiment.folder import RunFolder
from trillium.experiment.held_out import about
from trillium.experiment.run import SERVER, build_server, resident_model
from trillium.federation.checkpoint import dump, load
from trillium.federation.side import Metrics
from trillium.quiet import quiet
from trillium.report.write import write_report

log = logging.getLogger(__name__)

PACKAGE: Final = "trillium_app"
# For the record, in place of what this process was started with: that holds a token of Flower.
UNNAMED: Final = ("0", "1")  # in the place of classes that nodes are yet to tell
COMMAND: Final = ("flwr", "run", "app")
WRITE_SECONDS: Final = 120.0  # that a node may take to come for texts

server_app = ServerApp()
client_app = ClientApp()


# The server


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment of the app's recipe."""
    quiet()
    settings = Settings.read(context.run_config)
    log_to_screen({"server": ""}, settings.log_format)
    if settings.write:
        _write(grid, settings)
        return
    text = (files(PACKAGE) / settings.recipe).read_text(encoding="utf-8")
    config = experiment(yaml.safe_load(text) or {})
    if settings.transport == "messages" and config.framework.name == "split":
        raise UserError(
            'transport="messages" with framework=split',
            "a split asks several times for every batch, and each Flower message takes seconds",
            'Write transport="session"',
        )
    if settings.transport == "messages" and config.buffer:
        raise UserError(
            'transport="messages" with framework.asynchronous',
            "an ask of a Flower message is over when its round is",
            'Write transport="session"',
        )
    if settings.transport == "messages" and config.sums.hides:
        raise UserError(
            'transport="messages" with sums=masked',
            "a node keeps the secrets of a sum in memory from one ask to the next",
            'Write transport="session"',
        )
    if config.framework.name == "centralised":
        raise UserError(
            "framework=centralised", "there are no data in one place", "Choose another framework"
        )
    measures = config.evaluation.where != "clients"
    data = read_server_data(settings.server_data, config.task.data_form, measures=measures)
    unnamed = UNNAMED if isinstance(config.data.labels, str) else ()
    config = Texts(config, data.labels or unnamed).fit(data)
    with alone(settings.run_folder):
        _run(Mail(grid), config, data, settings)


def _run(mail: Mail, config: ExperimentConfig, data: FederatedData, settings: Settings) -> None:
    folder = take_folder(config, settings)
    newest = folder.checkpoints.newest(SERVER)
    number = 0 if newest is None else newest[0]
    patience = settings.patience(config)
    board = Board(folder.path, config.rounds, folder.failed_rounds)
    board.round = -1 if newest is None else number
    engine: SessionEngine | MessageEngine | None = None
    finished = False
    try:
        data = _with_labels(mail, config, data, settings, folder)
        data = Texts(config, data.labels).counted(data)
        signature = read_signature(settings.recipe)
        opening = Opening(folder.path.name, config.tree(), list(data.labels), number, signature)
        engine = _engine(mail, opening, settings, patience, board.change)
        log.info("run %s: round %d is complete", folder.path.name, number)
        engine.gather(settings.min_nodes)
        if len(engine.clients) < settings.min_nodes:
            raise UserError(
                f"min-nodes={settings.min_nodes}",
                f"{len(engine.clients)} have come in {settings.wait_seconds:g} s",
                "Start the nodes, or raise wait-seconds; `flwr supernode list` says who is online",
            )
        model = resident_model(config.of(None), data.labels)
        built = build_server(config, model, data, engine, folder, board.watch, COMMAND)
        told: dict[str, Mapping[str, int]] = {}

        def observe(line: Metrics) -> None:
            if told != engine.counts:
                told.update(engine.counts)
                folder.json("data.json", {**about(data), "clients": dict(sorted(told.items()))})
            board.observe(line)
            log_evaluation(board, line)

        built.repeats = settings.repeats
        built.run(observe)
        finished = True
    except BaseException as error:
        folder.ended(error)
        raise
    finally:
        if engine is not None:
            engine.close(finished=finished)
    log.info("report: %s", write_report(folder.path))


def _with_labels(
    mail: Mail,
    config: ExperimentConfig,
    data: FederatedData,
    settings: Settings,
    folder: RunFolder,
) -> FederatedData:
    """Return the server's data with the classes of the federation, which nodes may have to tell.

    A run that goes on keeps those that it began with.
    """
    how, path = config.data.labels, folder.path / LABELS
    if isinstance(how, str) and path.is_file():
        data = data.in_order(json.loads(path.read_text(encoding="utf-8"))["labels"])
    elif isinstance(how, str):
        opening = Opening(folder.path.name, config.tree(), [], 0, read_signature(settings.recipe))
        sets: dict[str, Sequence[str]] = {**ask_labels(mail, opening, settings)}
        if data.labels:
            sets["the server"] = data.labels
        data = data.in_order(agreed(sets, how))
        folder.json(LABELS, {"labels": list(data.labels), "nodes": sets})
    return in_model_order(config, data)


def _write(grid: Grid, settings: Settings) -> None:
    """Let the model of a finished run write on from an operator's prompts, with one node."""
    request = Request.model_validate_json(Path(settings.write).read_text(encoding="utf-8"))
    opening = Opening(request.run, request.config().tree(), request.labels(), 0)
    seconds = min(settings.wait_seconds, WRITE_SECONDS)
    engine = _engine(
        Mail(grid, request.node), opening, settings, Patience(seconds, settings.deadline_seconds)
    )
    assert isinstance(engine, SessionEngine)
    try:
        if not engine.gather(1).present:
            raise UserError(
                f"--node {request.node}",
                f"it has not come in {seconds:g} s",
                "Start it, or name another; `flwr supernode list` says who is online",
            )
        request.fulfil(engine)
    finally:
        engine.close(finished=True)


def read_signature(recipe: str) -> str:
    """Return what `trillium keys recipe` has put beside the recipe in the app, if it has."""
    path = files(PACKAGE) / signature_of(recipe)
    return str(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else ""


def _engine(
    mail: Mail,
    opening: Opening,
    settings: Settings,
    patience: Patience,
    on_change: OnChange | None = None,
) -> SessionEngine | MessageEngine:
    if settings.transport == "messages":
        return MessageEngine(mail, opening, patience)
    tls = ServerTLS.read(
        settings.session_authority, settings.session_certificate, settings.session_key
    )
    return SessionEngine(
        mail,
        opening,
        patience,
        bind=settings.session_bind,
        address=settings.session_address,
        tls=tls,
        max_clients=settings.max_clients,
        on_change=on_change,
        revoked=settings.session_revoked,
    )


# The node


@client_app.query("session")
def session(message: Message, context: Context) -> Message:
    """Serve a session, for as long as the run lasts."""

    def serve(settings: NodeConfig, node: Node) -> RecordDict:
        summary = serve_session(
            text_of(message.content, "opening", "address"),
            ClientTLS.read(settings.authority, settings.certificate, settings.key),
            node.name,
            text_of(message.content, "opening", "token"),
            {"message": node.handle, "control": node.control},
            StreamConfig(max_bytes=node.most_bytes),
        )
        log.info("%s: session over: %s", node.name, summary)
        return _closed(summary.closed if summary.complete else SAID["link"])

    return _answer(message, context, serve)


@client_app.query("labels")
def labels(message: Message, context: Context) -> Message:
    """Say which classes the rows have, where the recipe asks for it and the policy allows it."""
    return _guarded(message, context, lambda own: tell_labels(own, _opening(message)))


@client_app.query("settle")
def settle(message: Message, context: Context) -> Message:
    """Go back to the last complete round, and say who this is."""

    def serve(settings: NodeConfig, node: Node) -> RecordDict:
        arrival = Arrival(node.settle(_opening(message).number), node.counts)
        _keep(context, node)
        return RecordDict({"node": ConfigRecord({"name": node.name, "arrival": arrival.encode()})})

    return _answer(message, context, serve)


@client_app.query("ask")
def ask(message: Message, context: Context) -> Message:
    """Answer one ask; what the client holds is kept from one message to the next."""

    def serve(settings: NodeConfig, node: Node) -> RecordDict:
        kept = context.state.get("client")
        if isinstance(kept, ArrayRecord):  # else its SuperNode was started anew, and it must settle
            node.load(load(bytes_of(RecordDict({"data": kept}))))
        reply = node.handle(bytes_of(message.content))
        held = json.dumps(node.save(node.client.round))
        _keep(context, node)
        return with_bytes(RecordDict({"node": ConfigRecord({"kept": held})}), reply)

    return _answer(message, context, serve)


@client_app.query("forget")
def forget(message: Message, context: Context) -> Message:
    """Remove what was kept of a finished run."""

    def serve(settings: NodeConfig, node: Node) -> RecordDict:
        node.forget()
        return _closed("forgotten")

    return _answer(message, context, serve)


def _end_at_once() -> None:
    """Let a signal end this process, as if it were killed.

    Flower's own handlers then say that the task is done, without an answer; its SuperNode waits for
    that, and hears nothing else any more. A SuperExec that dies has its ClientApps interrupted.
    """
    if current_thread() is main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)


def _answer(
    message: Message, context: Context, serve: Callable[[NodeConfig, Node], RecordDict]
) -> Message:
    """Build the node and serve."""
    return _guarded(message, context, lambda own: serve(own, Node(own, _opening(message))))


def _guarded(
    message: Message, context: Context, answer: Callable[[NodeConfig], RecordDict]
) -> Message:
    """Return an answer; what stands in its way is logged here, and told in short there."""
    quiet()
    _end_at_once()
    opening = _opening(message)
    own = context.node_config
    who = {"run": opening.run, "client": str(own.get("name", ""))}
    log_to_screen(who, str(own.get("log_format", "text")))
    try:
        content = answer(NodeConfig.read(context.node_config))
    except Forbidden as error:
        log.error("%s", error)
        content = _closed(f"the node does not take part: {error}")
    except UserError as error:
        log.error("%s", error)
        content = _closed(f"the node cannot take part: {shareable(error)}")
    except SessionRefused as error:
        log.error("the server did not let this node in: %s", error)
        content = _closed(f"the node cannot take part: {SAID['session']}")
    except Exception as error:  # Flower would send its text, which may hold anything
        log.exception("the node has failed")
        content = _closed(f"the node has failed: {shareable(error)}")
    return Message(content, reply_to=message)


def _opening(message: Message) -> Opening:
    return Opening.decode(text_of(message.content, "opening", "opening"))


def _closed(reason: str) -> RecordDict:
    return RecordDict({"summary": ConfigRecord({"closed": reason})})


def _keep(context: Context, node: Node) -> None:
    context.state["client"] = with_bytes(RecordDict(), dump(node.client.dump()))["data"]
