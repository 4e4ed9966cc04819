"""The classes of a federation, asked of its nodes before the run by a Flower message: both halves."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from flwr.app import ConfigRecord, RecordDict

from trillium.config.experiment import experiment
from trillium.data.classes import check_told
from trillium.data.deployed import read_names
from trillium.engines.gate import Gate
from trillium.engines.node_settings import NodeConfig
from trillium.engines.opening import Opening
from trillium.engines.policy import Forbidden, Policy
from trillium.engines.roster import POLL_SECONDS, Mail, opening_record, outcome, text_of
from trillium.errors import UserError, doing
from trillium.federation.parts import Lost

if TYPE_CHECKING:
    from trillium.engines.settings import Settings

log = logging.getLogger(__name__)


def ask_labels(mail: Mail, opening: Opening, settings: Settings) -> dict[str, list[str]]:
    """Return the classes that each node says to have, of as many nodes as the run begins with.

    Raises:
        UserError: fewer have answered in time.
    """
    found: dict[str, list[str]] = {}
    why: dict[int, str] = {}
    asked, ends = set[int](), time.monotonic() + settings.wait_seconds
    while len(found) < settings.min_nodes and time.monotonic() < ends:
        fresh = {node: opening_record(opening) for node in mail.nodes() if node not in asked}
        asked |= fresh.keys()
        for node, content in mail.exchange("labels", fresh, settings.deadline_seconds):
            try:
                name, names = _read(content)
            except ValueError as error:
                why[node] = str(error)
                log.warning("node %d: classes: %s", node, error)
                continue
            log.info("%s has %d classes", name, len(names))
            found[name] = names
        if len(found) < settings.min_nodes and not fresh:
            time.sleep(POLL_SECONDS)
    if len(found) < settings.min_nodes:
        raise UserError(
            f"min-nodes={settings.min_nodes}",
            f"{len(found)} have said in {settings.wait_seconds:g} s which classes they have"
            + "".join(f"; {reason}" for reason in why.values()),
            "Start the nodes, let their policies allow it, or name the classes: data.labels=[…]",
        )
    return found


def _read(content: RecordDict | Lost) -> tuple[str, list[str]]:
    """Return a node's name and its classes; `ValueError` says why there are none."""
    if isinstance(content, Lost):
        raise ValueError(content.reason)
    try:
        told = text_of(content, "node", "labels")
    except ValueError:
        raise ValueError(outcome(content)) from None
    return text_of(content, "node", "name"), check_told(json.loads(told))


def tell_labels(settings: NodeConfig, opening: Opening) -> RecordDict:
    """Return what a node says: its name, and the names of its classes, if its policy allows it.

    Raises:
        Forbidden: it does not.
        UserError: the rows cannot be read, or what they name cannot be told.
    """
    gate = Gate(Policy.read(settings.policy), settings.state, opening.run)
    with doing("recipe"):
        config = experiment(opening.tree)
    what = "names of classes to leave"
    try:
        gate.open(config, opening.signature)
        if not gate.policy.labels or config.data.labels not in ("union", "fixed"):
            raise Forbidden(what)
    except Forbidden as error:
        gate.asked(what, refused=str(error))
        raise
    assert settings.data is not None
    with doing("rows"):
        names = read_names(settings.data, config.data.source, config.task.data_form)
    try:
        told = json.dumps(check_told(names), ensure_ascii=False)
    except ValueError as error:
        raise UserError("the classes of this node", str(error), "Correct them", "rows") from error
    gate.told("labels", 0, 0, told.encode())
    gate.sync()
    record: Mapping[str, str] = {"name": str(settings.name), "labels": told}
    return RecordDict({"node": ConfigRecord({**record})})
