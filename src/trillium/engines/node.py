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
from typing import TYPE_CHECKING, Any, Final

from trillium.config.experiment import ExperimentConfig, experiment
from trillium.config.texts import Texts
from trillium.data.deployed import read_rows
from trillium.engines.certified import Certified
from trillium.engines.gate import Gate
from trillium.engines.memory import free_at_once
from trillium.engines.node_settings import NodeConfig
from trillium.engines.opening import Arrival, Opening
from trillium.engines.policy import Forbidden, Policy, what_is_asked
from trillium.engines.writing import read_tokens
from trillium.errors import PeerError, doing, shareable
from trillium.experiment.fit import check_lengths
from trillium.experiment.run import build_client, most_of, resident_model
from trillium.federation.checkpoint import Checkpoints
from trillium.federation.client import Client
from trillium.federation.parts import CARRIED_BYTES
from trillium.federation.tiers import tier_of
from trillium.frameworks.finetuning import OWN
from trillium.frameworks.split.generate import give_prompts, texts_of
from trillium.privacy.masks import Masks

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)
RUNS: Final = "runs"  # in the folder of the state: what is kept of each run
MODELS: Final = "models"  # and the models that the node has fine-tuned for itself


class Node:
    """One client of a run, kept in memory between asks."""

    def __init__(self, settings: NodeConfig, opening: Opening) -> None:
        self._gate = Gate(Policy.read(settings.policy), settings.state, opening.run)
        with doing("recipe"):
            config = experiment(opening.tree)
        asked = what_is_asked(config)
        log.info("run %s: asked for %s", opening.run, asked)
        try:
            self._gate.open(config, opening.signature)
            self.name, self.client, self.counts = _client(settings, opening, config)
            self._gate.guard(self.client)
        except Forbidden as error:
            self._gate.asked(asked, refused=str(error))
            raise
        self._gate.asked(asked)
        self.client.describe = self._told
        if isinstance(self.client.masks, Masks):
            self.client.masks.vouching = Certified.read(settings, opening.run)
        model = self.client.model
        each = config.task.most_targets(config.training.limit, model.num_classes)
        limits = most_of(config, model, config.public_size * each)
        self.most_bytes = min(limits.max_bytes, CARRIED_BYTES)  # of a message, either way
        self._settled = False
        self._round: int | None = None  # that what it holds is of
        self._folder = None if settings.state is None else settings.state / RUNS / opening.run
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
        if self.client.last_verb == "finetune":
            self._keep_own()
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
        self._gate.sync()
        return number if self.client.store else None

    def _keep_own(self) -> None:
        """Write the model that the client has fine-tuned for itself; it outlasts the run."""
        if self._folder is None or OWN not in self.client.store:
            log.warning("%s: its own model is not kept: there is no state in node.toml", self.name)
            return
        path, model = self._folder.parents[1] / MODELS / self._folder.name, self.client.model
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(model.state(self.client.store[OWN]), path, self.client.folds)
        log.info("%s: its own model is in %s", self.name, path)

    def forget(self) -> None:
        """Remove what is kept: the run has finished."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def control(self, data: bytes) -> bytes:
        """Answer what the engine, not the framework, asks: `[verb, round]` as JSON.

        For texts the verb is `prompts`, with those of the server's operator as tokens, or `texts`.
        """
        verb, value = json.loads(data)
        if verb in ("prompts", "texts"):
            answer = self._texts(verb, value)
            self._gate.told(verb, self.client.round, len(data), answer)
            return answer
        if type(value) is not int or verb not in ("settle", "restore", "save", "forget"):
            raise PeerError(f"{str(verb)[:40]!r} is nothing that a node is asked")
        if verb == "forget":
            self.forget()
            return b"true"
        with doing("state"):
            done: int | None = getattr(self, verb)(value)
        if verb == "settle":
            return Arrival(done, self.counts).encode().encode()
        return json.dumps(done).encode()

    def _texts(self, verb: str, value: object) -> bytes:
        """Take the operator's prompts, or give back what was written on from them."""
        if not self._gate.policy.prompts:
            raise Forbidden("prompts")
        if verb == "prompts":
            give_prompts(self.client, read_tokens(value, self.client.model.num_classes))
            return b"true"
        return json.dumps(texts_of(self.client)).encode()


def _client(
    settings: NodeConfig, opening: Opening, config: ExperimentConfig
) -> tuple[str, Client, dict[str, int]]:
    with doing("rows"):
        name, rows, test = _rows(settings, config, opening.labels)
        if test is None and config.evaluation.where != "server":
            rows, test = Texts(config, opening.labels).divided(name, rows)
    own = config.of(name)
    if settings.model is not None:
        changes = {"id": settings.model}
        own = own.model_copy(update={"model": own.model.model_copy(update=changes)})
    with doing("model"):
        texts = Texts(config, opening.labels)
        examples, counts = texts.examples(own.model, rows), texts.count(own.model, rows)
        if not examples:
            raise texts.useless(name, rows)
        held_out = [] if test is None else texts.examples(own.model, test)
        held = {} if config.evaluation.where == "server" else {"held_out": len(held_out)}
        counts = {"num_examples": len(rows), **held, **counts}
        log.info("%s: %s", name, ", ".join(f"{what} {count}" for what, count in counts.items()))
        whole = config.head.runs_model
        ends = None if whole else config.framework.ends(tier_of(config.tiers, name))
        if ends is not None:
            free_at_once()
        model = resident_model(own, opening.labels, ends)
        check_lengths(own, model, [held_out])
        client = build_client(config, model, name, examples, test=held_out)
        return name, client, {} if config.privacy.unit else counts


def _rows(
    settings: NodeConfig, config: ExperimentConfig, labels: Sequence[str]
) -> tuple[str, Dataset, Dataset | None]:
    """Return the node's name, its rows, and those to look at its own model, if there are any."""
    form, source = config.task.data_form, config.data.source
    assert settings.name is not None
    assert settings.data is not None
    test = None if settings.test is None else read_rows(settings.test, source, form, labels)
    return settings.name, read_rows(settings.data, source, form, labels), test
