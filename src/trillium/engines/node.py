"""A node: one data owner's process in a deployment, whatever brings it the bytes.

The server says what the run is; the node's own settings say where its data, its keys and its state
are. None of these, and no path of the node, ever leaves it.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trillium.config.experiment import ExperimentConfig, experiment
from trillium.config.texts import COUNTED, Texts
from trillium.data.deployed import read_rows
from trillium.data.federated import load_data
from trillium.errors import PeerError, UserError, doing, shareable, suggest
from trillium.experiment.run import build_client, resident_model
from trillium.federation.checkpoint import Checkpoints
from trillium.federation.client import Client
from trillium.federation.tiers import tier_of
from trillium.models.load import LanguageModel
from trillium.models.own import Ends

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

RUN: Final = re.compile(r"[\w.-]{1,200}")
EXAMPLE: Final = 'Write for example --node-config \'name="hospital-a" data="data/train.csv"\''


class NodeConfig(BaseModel):
    """What a data owner tells its own node.

    Attributes:
        name: as it stands in the node's certificate and in its registration.
        data: the node's rows: csv, jsonl, json or parquet, in the columns that the recipe names.
        test: held-out rows of the node, to look at its own model.
        model: folder of the model on this machine, in place of the one that the recipe names.
        certificate, key, authority: for the session.
        state: folder for what the node keeps between rounds and runs.
        partition_id, num_partitions: which of the recipe's clients a simulated node is; Flower's
            simulation sets them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: str | None = None
    data: Path | None = None
    test: Path | None = None
    model: str | None = None
    certificate: Path = Path("keys/client.crt")
    key: Path = Path("keys/client.key")
    authority: Path = Path("keys/ca.crt")
    state: Path | None = None
    partition_id: int | None = Field(default=None, alias="partition-id")
    num_partitions: int | None = Field(default=None, alias="num-partitions")

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> NodeConfig:
        """Check a node configuration: its keys, its values, and that the node has data."""
        known = {field.alias or name for name, field in cls.model_fields.items()}
        for key in values:
            if key not in known:
                raise UserError(
                    f"node configuration {key}={values[key]!r}",
                    "a node has no such setting",
                    suggest(key, known),
                    code="settings",
                )
        try:
            found = cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(
                f"node configuration {first['loc'][0]}={first['input']!r}",
                first["msg"],
                EXAMPLE,
                code="settings",
            ) from error
        if found.partition_id is None and (found.name is None or found.data is None):
            missing = "name" if found.name is None else "data"
            raise UserError(
                f"node configuration without {missing}",
                "the node would not know who it is or what to train on; no data comes from the server",
                EXAMPLE,
                code="settings",
            )
        return found


@dataclass(frozen=True)
class Opening:
    """What the server tells a node at the beginning: `number` is the last complete round."""

    run: str
    tree: Mapping[str, Any]
    labels: Sequence[str]
    number: int

    def encode(self) -> str:
        """Return it as JSON."""
        return json.dumps(vars(self), sort_keys=True)

    @classmethod
    def decode(cls, text: str) -> Opening:
        """Check what came from the server; `ValueError` if it is no opening."""
        content = json.loads(text)
        found = cls(**content)
        labels_fit = isinstance(found.labels, list) and all(
            isinstance(label, str) for label in found.labels
        )
        if not (
            isinstance(found.run, str)
            and RUN.fullmatch(found.run)
            and found.run.strip(".")
            and isinstance(found.tree, dict)
            and labels_fit
            and type(found.number) is int
        ):
            raise ValueError("the server's opening is malformed")
        return found


@dataclass(frozen=True)
class Arrival:
    """What a node says when it has gone back to where the run is.

    Attributes:
        had: whether it holds what it kept.
        counts: its texts: how many, how many of them are cut, how many are left out.
    """

    had: bool
    counts: Mapping[str, int]

    def encode(self) -> str:
        """Return it as JSON."""
        return json.dumps(vars(self))

    @classmethod
    def decode(cls, text: str | bytes) -> Arrival:
        """Check what came from a node; `ValueError` if it is no arrival."""
        content = json.loads(text)
        if not isinstance(content, dict) or {*content} != {"had", "counts"}:
            raise ValueError("the node's arrival is malformed")
        had, counts = content["had"], content["counts"]
        if type(had) is not bool or not isinstance(counts, dict) or not {*counts} <= COUNTED:
            raise ValueError("the node's arrival is malformed")
        if not all(type(count) is int and 0 <= count < 2**53 for count in counts.values()):
            raise ValueError("the node's counts are malformed")
        return cls(had, counts)


class Node:
    """One client of a run, kept in memory between asks."""

    def __init__(self, settings: NodeConfig, opening: Opening) -> None:
        self.name, self.client, self.counts = _client(settings, opening)
        self.client.describe = self._told
        self._settled: bool | None = None
        self._folder = None if settings.state is None else settings.state / opening.run
        self._checkpoints = None if self._folder is None else Checkpoints(self._folder)
        num_examples = len(self.client.examples)
        log.info("run %s: %s is ready with %d examples", opening.run, self.name, num_examples)

    def handle(self, data: bytes) -> bytes:
        """Answer one message of the server."""
        self._check_settled()
        start = time.perf_counter()
        reply = self.client.handle(data)
        log.info(
            "%s: round %d: %s, %d bytes down, %d bytes up, %.1f s",
            self.name,
            self.client.round,
            self.client.last_verb,
            len(data),
            len(reply),
            time.perf_counter() - start,
        )
        return reply

    def _told(self, error: Exception) -> str:
        """Log an error here, whole, and return what the server is told of it."""
        log.error("%s: %s failed", self.name, self.client.last_verb or "an ask", exc_info=error)
        return shareable(error)

    def settle(self, number: int) -> bool:
        """Do as `restore` does, once in this process."""
        return self.restore(number) if self._settled is None else self._settled

    def restore(self, number: int) -> bool:
        """Go back to the newest state of a round or before; return whether there is one."""
        found = None if self._checkpoints is None else self._checkpoints.newest(self.name, number)
        self.client.store, self.client.scratch = {} if found is None else found[1], {}
        if found is not None:
            log.info("%s: goes on from its state after round %d", self.name, found[0])
        self._settled = found is not None
        return self._settled

    def load(self, content: Mapping[str, Any]) -> None:
        """Go on from what `dump` of the client returned."""
        self.client.load(content)
        self._settled = True

    def _check_settled(self) -> None:
        """Refuse to go on from nothing, which would in the end replace what is kept."""
        if self._settled is None:
            raise PeerError("it has not been told yet where the run is")

    def save(self, number: int) -> None:
        """Keep what the client holds after a round."""
        self._check_settled()
        self._settled = True
        if self._checkpoints is not None:
            self._checkpoints.keep(self.name, number, self.client.store)

    def forget(self) -> None:
        """Remove what is kept: the run has finished."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def control(self, data: bytes) -> bytes:
        """Answer what the engine, not the framework, asks: `[verb, round]` as JSON."""
        verb, number = json.loads(data)
        if type(number) is not int or verb not in ("settle", "restore", "save", "forget"):
            raise PeerError(f"{str(verb)[:40]!r} is nothing that a node is asked")
        if verb == "forget":
            self.forget()
            return b"true"
        with doing("state"):
            done = getattr(self, verb)(number)
        if verb == "settle":
            return Arrival(done, self.counts).encode().encode()
        return json.dumps(done is not False).encode()


def _client(settings: NodeConfig, opening: Opening) -> tuple[str, Client, dict[str, int]]:
    with doing("recipe"):
        config = experiment(opening.tree)
    with doing("rows"):
        name, rows, test = _rows(settings, config, opening.labels)
    own = config.of(name)
    if settings.model is not None:
        changes = {"id": settings.model}
        own = own.model_copy(update={"model": own.model.model_copy(update=changes)})
    with doing("model"):
        texts = Texts(config, opening.labels)
        examples, counts = texts.examples(own.model, rows), texts.count(own.model, rows)
        if not examples:
            raise texts.useless(name, rows)
        counts = {"num_examples": len(rows), **counts}
        log.info("%s: %s", name, ", ".join(f"{what} {count}" for what, count in counts.items()))
        held_out = [] if test is None else texts.examples(own.model, test)
        # The nodes of a simulation share a process, and so one model.
        alone = settings.partition_id is None and not config.head.runs_model
        ends = config.framework.ends(tier_of(config.tiers, name)) if alone else None
        model = _model(json.dumps(own.tree(), sort_keys=True), tuple(opening.labels), ends)
        return name, build_client(config, model, name, examples, test=held_out), counts


def _rows(
    settings: NodeConfig, config: ExperimentConfig, labels: Sequence[str]
) -> tuple[str, Dataset, Dataset | None]:
    """Return the node's name, its rows, and those to look at its own model, if there are any."""
    form, source = config.task.data_form, config.data.source
    if settings.partition_id is None:
        assert settings.name is not None
        assert settings.data is not None
        test = None if settings.test is None else read_rows(settings.test, source, form, labels)
        return settings.name, read_rows(settings.data, source, form, labels), test
    data = load_data(config.data, form, config.seed, config.public_size)
    names = sorted(data.clients)
    if settings.partition_id >= len(names):
        raise UserError(
            f"partition-id={settings.partition_id}",
            f"the recipe divides its data among {len(names)} clients",
            f"Start {len(names)} nodes, or write data.num_clients in the recipe",
        )
    name = names[settings.partition_id]
    return name, data.clients[name], data.test


@lru_cache(maxsize=1)
def _model(tree: str, labels: tuple[str, ...], ends: Ends | None) -> LanguageModel:
    """Return the resident model of this process; simulated nodes that share the process share it."""
    config: ExperimentConfig = experiment(json.loads(tree))
    return resident_model(config, labels, ends)
