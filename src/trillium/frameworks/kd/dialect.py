"""How clients of another model read the public set: in other tokens, of another vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from trillium.errors import UserError
from trillium.federation.server import Server
from trillium.federation.setting import Setting
from trillium.frameworks.kd.alignment.pieces import Pieces
from trillium.models.inputs import read_inputs
from trillium.models.load import LanguageModel
from trillium.tasks import Example

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Dialect:
    """What a language model speaks.

    Attributes:
        num_classes: outcomes of a prediction; in language modelling the entries of its logits, at
            least as many as the tokenizer has tokens.
    """

    tokenizer: Any
    num_classes: int
    public: list[Example]

    @cached_property
    def pieces(self) -> Pieces:
        """What its tokens stand for."""
        return Pieces.of(self.tokenizer)

    def equals(self, other: Dialect) -> bool:
        """Whether predictions on the public set mean the same in both."""
        same_tokens = self.tokenizer.get_vocab() == other.tokenizer.get_vocab()
        pairs = zip(self.public, other.public, strict=True)
        return (
            self.num_classes == other.num_classes
            and same_tokens
            and all(torch.equal(a.input_ids, b.input_ids) for a, b in pairs)
        )


def find_dialects(
    config: Setting,
    model: LanguageModel,
    public: list[Example],
    rows: Dataset,
    clients: Iterable[str],
) -> dict[str, Dialect]:
    """Return the dialects of those clients who do not speak the server's.

    With a task head there is one for all: classes are the same whatever the tokens.
    """
    if config.task.peft_task != "CAUSAL_LM" or not config.has_other_models:
        return {}
    own = Dialect(model.tokenizer, model.num_classes, public)
    known = [(config.of(None).model, own)]
    found = {}
    for client in clients:
        wanted = config.of(client).model
        dialect = next((dialect for model_config, dialect in known if model_config == wanted), None)
        if dialect is None:
            inputs = read_inputs(wanted, ())
            examples = config.task.tokenize(rows, inputs.tokenizer, config.training.limit)
            if len(examples) != len(public):
                raise UserError(
                    f"{client}'s model {wanted.id} with a public set of chats",
                    "its chat template makes an example of each response, or the server's does, and "
                    "not both, so predictions do not match",
                    "Choose models whose templates agree, or chats of one response",
                )
            size = int(inputs.hf_config.get_text_config().vocab_size)
            if wanted.resize_embeddings:
                size = max(size, inputs.num_tokens)
            dialect = Dialect(inputs.tokenizer, size, examples)
            dialect = next((other for _, other in known if other.equals(dialect)), dialect)
            known.append((wanted, dialect))
        if dialect is not own:
            found[client] = dialect
    return found


def spoken(server: Server) -> Dialect:
    """Return what the server itself speaks."""
    if "dialect" not in server.scratch:
        server.scratch["dialect"] = Dialect(
            server.model.tokenizer,
            server.task.num_outcomes(server.model.num_classes),
            server.public,
        )
    found: Dialect = server.scratch["dialect"]
    return found
