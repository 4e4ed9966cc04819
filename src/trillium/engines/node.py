"""A node: one data owner's process in a deployment, whatever brings it the bytes.

The server says what the run is; the node's own settings say where its data, its keys and its state
are. None of these, and no path of the node, ever leaves it.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trillium.config.experiment import ExperimentConfig, experiment
from trillium.config.texts import Texts
from trillium.data.deployed import read_rows
from trillium.data.federated import load_data
from trillium.engines.memory import free_at_once
from trillium.engines.opening import Arrival, Opening
from trillium.engines.writing import read_tokens
from trillium.errors import PeerError, UserError, doing, shareable, suggest
from trillium.experiment.run import build_client, resident_model
from trillium.federation.checkpoint import Checkpoints
from trillium.federation.client import Client
from trillium.federation.tiers import tier_of
from trillium.frameworks.split.generate import give_prompts, texts_of
from trillium.models.load import LanguageModel
from trillium.models.own import Ends

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

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


class Node:
    """One client of a run, kept in memory between asks."""

    def __init__(self, settings: NodeConfig, opening: Opening) -> None:
        self.name, self.client, self.counts = _client(settings, opening)
        self.client.describe = self._told
        self._settled = False
        self._round: int | None = None  # that what it holds is of
        self._folder = None if settings.state is None else settings.state / opening.run
        self._checkpoints = None if self._folder is None else Checkpoints(self._folder)
        if self._checkpoints is not None:
            self._checkpoints.clear_leftovers()
        num_examples = len(self.client.examples)
        log.info("run %s: %s is ready with %d examples", opening.run, self.name, num_examples)

    def handle(self, data: bytes) -> bytes:
        """Answer one message of the server."""
        self._check_settled()
        start = time.perf_counter()
        reply = self.client.handle(data)
        self._round = self.client.round
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

    def settle(self, number: int) -> int | None:
        """Do as `restore` does, once in this process; return the round that the state is of."""
        return self._round if self._settled else self.restore(number)

    def restore(self, number: int) -> int | None:
        """Go back to the newest state of a round or before, and return its round, if there is one."""
        found = None if self._checkpoints is None else self._checkpoints.back_to(self.name, number)
        self.client.go_back({} if found is None else found[1], number)
        if found is not None:
            log.info("%s: goes on from its state after round %d", self.name, found[0])
        self._settled, self._round = True, None if found is None else found[0]
        return self._round

    def load(self, content: Mapping[str, Any]) -> None:
        """Go on from what `dump` of the client returned."""
        self.client.load(content)
        self._settled, self._round = True, self.client.round

    def _check_settled(self) -> None:
        """Refuse to go on from nothing, which would in the end replace what is kept."""
        if not self._settled:
            raise PeerError("it has not been told yet where the run is")

    def save(self, number: int) -> int | None:
        """Keep what the client holds after a round.

        Returns:
            The round; `None` if there is nothing to keep, or no place for it.
        """
        self._check_settled()
        self._round = number
        if self._checkpoints is None:
            return None
        self._checkpoints.keep(self.name, number, self.client.store)
        return number if self.client.store else None

    def forget(self) -> None:
        """Remove what is kept: the run has finished."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def control(self, data: bytes) -> bytes:
        """Answer what the engine, not the framework, asks: `[verb, round]` as JSON.

        For texts the verb is `prompts`, with those of the server's operator as tokens, or `texts`.
        """
        verb, number = json.loads(data)
        if verb == "prompts":
            give_prompts(self.client, read_tokens(number, self.client.model.num_classes))
            return b"true"
        if verb == "texts":
            return json.dumps(texts_of(self.client)).encode()
        if type(number) is not int or verb not in ("settle", "restore", "save", "forget"):
            raise PeerError(f"{str(verb)[:40]!r} is nothing that a node is asked")
        if verb == "forget":
            self.forget()
            return b"true"
        with doing("state"):
            done: int | None = getattr(self, verb)(number)
        if verb == "settle":
            return Arrival(done, self.counts).encode().encode()
        return json.dumps(done).encode()


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
        if ends is not None:
            free_at_once()
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
