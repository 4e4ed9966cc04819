"""Texts across a deployment: the server's operator hands prompts to a node, whose blocks read them.

What crosses between the parts is as in one process (`frameworks/split/generate.py`); prompts and texts
themselves cross as tokens, beside it. Only the operator's own prompts are continued: no row of a node.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict

from trillium.errors import PeerError, UserError
from trillium.experiment.generation import (
    Crossed,
    Generated,
    check_writes,
    generated,
    prompt_tokens,
)
from trillium.experiment.trained import about_data, rebuild_server, run_config
from trillium.files import write_atomic
from trillium.frameworks.split.generate import MAX_TEXTS, write_texts
from trillium.frameworks.split.protocol import Split
from trillium.tasks.writing import Writing

if TYPE_CHECKING:
    from trillium.config.experiment import ExperimentConfig
    from trillium.engines.distributed import SessionEngine

BYTES_OF_A_TOKEN: Final = 12  # as a number in JSON


class Request(BaseModel):
    """What `trillium generate --node` asks the server's process, in a file that it reads.

    Attributes:
        folder: of the run.
        node: the name of the one whose blocks read the prompts.
        answer: file for what was written, as JSON of `Generated`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    node: str
    prompts: tuple[str, ...]
    max_new_tokens: int
    temperature: float
    top_p: float
    answer: Path

    @property
    def run(self) -> str:
        """What the node is told that the run is called; nothing is kept under this name."""
        return f"texts_{self.folder.name}"[:200]

    def config(self) -> ExperimentConfig:
        """Return the configuration of the run.

        Raises:
            UserError: its model cannot write, or is not cut.
        """
        config = run_config(self.folder)
        check_writes(config, self.folder)
        if not isinstance(config.framework, Split):
            raise UserError(
                f"--node {self.node} with framework={config.framework.name}",
                "the server has the whole model, and no node has a part in its texts",
                "Leave --node out",
            )
        return config

    def labels(self) -> list[str]:
        """Return the classes of the run, of which a language model has none."""
        return list(about_data(self.folder)["labels"])

    def fulfil(self, engine: SessionEngine) -> None:
        """Let the cut model write, with a node that the engine has gathered.

        Raises:
            RoundFailed: the node did not stay.
            UserError: a prompt is empty or too long.
        """
        split = self.config().framework
        assert isinstance(split, Split)
        built = rebuild_server(self.folder, engine)
        writing = Writing(self.max_new_tokens, self.temperature, self.top_p)
        given = prompt_tokens(built.model, self.folder, self.prompts, writing)
        engine.say(self.node, "prompts", given)
        write_texts(split, built.server, built.fleet, [self.node], writing)
        most = len(given) * (writing.max_new_tokens + 1) * BYTES_OF_A_TOKEN
        answer = engine.say(self.node, "texts", None, most)
        written = read_tokens(json.loads(answer), built.model.num_classes)
        if max(map(len, written)) > writing.max_new_tokens or len(written) != len(given):
            raise PeerError("the texts of the node are not those that were asked for")
        found = generated(built.model, written, built.fleet.ledger.entries)
        write_atomic(self.answer, json.dumps(asdict(found)))


def read_answer(path: Path) -> Generated:
    """Return what was written, from the file of an answer."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return Generated(**{**content, "crossed": Crossed(**content["crossed"])})


def read_tokens(value: object, num_tokens: int) -> list[list[int]]:
    """Return texts as tokens, as a peer says them.

    Raises:
        PeerError: they are none.
    """
    if not (
        isinstance(value, list)
        and 0 < len(value) <= MAX_TEXTS
        and all(isinstance(text, list) and text for text in value)
        and all(type(token) is int and 0 <= token < num_tokens for text in value for token in text)
    ):
        raise PeerError("these are no tokens of this model")
    return value
