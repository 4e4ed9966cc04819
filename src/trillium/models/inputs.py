"""What a model takes: its tokenizer and its configuration, read and checked before its weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from tokenizers import pre_tokenizers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from trillium.errors import UserError
from trillium.models.base import ModelConfig
from trillium.models.hub import explained, locate, set_dropout
from trillium.models.onward import Onward, read_onward
from trillium.models.tokenizers import read_tokenizer


@dataclass(frozen=True)
class Inputs:
    """The tokenizer of a model, with a padding token, and its Hugging Face configuration.

    Attributes:
        classes: those of a checkpoint that was trained to classify, in its order.
        order: which of them each class of the federation is, if all of them have its names.
        onward: the adapter that training goes on from; if it has a task head, the classes are its own.
        runs_code: whether code that comes with the model is run.
        named: whether these have names, or are taken to be those of the federation, in its order.
    """

    tokenizer: Any
    hf_config: Any
    classes: tuple[str, ...] = ()
    order: tuple[int, ...] | None = None
    onward: Onward | None = None
    named: bool = True
    runs_code: bool = False

    @cached_property
    def may_lose(self) -> bool:
        """Whether the tokenizer may have no token for a part of a text, not even one that says so."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return False
        told = json.loads(backend.to_str())
        model, known = told["model"], backend.get_vocab()
        if model.get("byte_fallback") or model.get("unk_id") is not None:
            return False
        if model.get("unk_token") in known:  # that of the tokenizer alone replaces nothing
            return False
        makes_bytes = "ByteLevel" in json.dumps([told["normalizer"], told["pre_tokenizer"]])
        return not (makes_bytes and known.keys() >= {*pre_tokenizers.ByteLevel.alphabet()})

    def loses(self, text: str) -> bool:
        """Whether some of a text has no token."""
        try:
            found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        except Exception:  # of the library, which names no kind
            return True
        seen = {at for start, end in found["offset_mapping"] for at in range(start, end)}
        return any(at not in seen and not char.isspace() for at, char in enumerate(text))

    @cached_property
    def positions(self) -> int | None:
        """How many tokens a text may have, where the architecture bounds it."""
        return positions_of(self._shape, self.hf_config)

    @cached_property
    def num_embeddings(self) -> int:
        """How many tokens the model knows."""
        table: Any = self._shape.get_input_embeddings()  # type: ignore[operator]
        return int(table.weight.shape[0])

    @cached_property
    def num_tokens(self) -> int:
        """How many tokens the tokenizer gives."""
        return max(self.tokenizer.get_vocab().values(), default=-1) + 1

    @cached_property
    def _shape(self) -> nn.Module:
        # A model with code of its own may have but one of these forms.
        forms = (AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification)
        for number, form in enumerate(forms, start=1):
            try:
                with torch.device("meta"):
                    found: nn.Module = form.from_config(
                        self.hf_config,
                        attn_implementation="eager",
                        trust_remote_code=self.runs_code,
                    )
            except ValueError:
                if number == len(forms) or not self.runs_code:
                    raise
            else:
                return found
        raise AssertionError


def positions_of(module: nn.Module, hf_config: Any) -> int | None:
    """Return how many positions a model has for tokens.

    Tables whose positions begin behind that of padding, such as RoBERTa's, have room for fewer than
    they have rows. Where positions mean something else in longer texts (LongRoPE), only those are
    counted with which they do not: else a text would depend on the others in its batch, and on the
    side of a cut.
    """
    text = hf_config.get_text_config()
    try:
        rows = getattr(text, "max_position_embeddings", None)
    except NotImplementedError:  # XLNet's have no bound, and it says so like this
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [kind for kind in (rope, *rope.values()) if isinstance(kind, dict)]
    fixed = [
        k["original_max_position_embeddings"] for k in kinds if k.get("rope_type") == "longrope"
    ]
    if not isinstance(rows, int) or rows <= 0:
        return None
    tables = (
        m for m in module.modules() if isinstance(m, nn.Embedding) and m.num_embeddings == rows
    )
    before = [0 if table.padding_idx is None else table.padding_idx + 1 for table in tables]
    return int(min([rows - max(before, default=0), *fixed]))


def read_inputs(
    config: ModelConfig,
    labels: Sequence[str],
    goes_on_from: str | None = None,
    auto_class: str = "AutoModelForSequenceClassification",
) -> Inputs:
    """Return what a model takes.

    Args:
        labels: names of the classes; none for language modelling.
        goes_on_from: the adapter that training goes on from.
        auto_class: the class of Transformers that is to load the model, where there are labels.

    Raises:
        UserError: there is no such model, or it is none that can be trained on texts.
    """
    location = locate(config.id)
    options = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    with explained(config.id):
        hf_config = AutoConfig.from_pretrained(location, **options)
        tokenizer = read_tokenizer(
            config.id, config.revision, trust_remote_code=config.trust_remote_code
        )
    if hf_config.is_encoder_decoder and not labels:
        raise UserError(
            f"model.id={config.id}",
            f"{hf_config.model_type} is a sequence-to-sequence model: it reads with an encoder and "
            "writes with a decoder, and Trillium writes with models of one stack",
            "Write a decoder such as HuggingFaceTB/SmolLM2-135M-Instruct, or task=classification",
        )
    hf_config = copy.deepcopy(hf_config)
    classes = () if config.random_weights or not labels else classes_of(hf_config, auto_class)
    order, named, onward = order_of(labels, classes), True, None
    if goes_on_from is not None:
        onward = read_onward(
            goes_on_from,
            hf_config,
            auto_class=auto_class if labels else None,
            trust_remote_code=config.trust_remote_code,
        )
    has_head = onward is not None and onward.num_classes > 0
    if onward is not None and has_head:
        classes, named = onward.classes(classes)
        order = order_of(labels, classes)
        if order is None and not named and len(classes) == len(labels):
            order = tuple(range(len(labels)))
    if labels and (order is None or has_head):
        hf_config.id2label = dict(enumerate(labels))
        hf_config.label2id = {label: index for index, label in enumerate(labels)}
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"the tokenizer of model.id={config.id}",
            "it has no token for padding, nor one for the end or for unknown words to stand in for it",
            "Set tokenizer.pad_token, save the tokenizer beside the model, and name that folder",
        )
    for each in (hf_config, hf_config.get_text_config()):  # one and the same but for composites
        each.pad_token_id, each.use_cache = tokenizer.pad_token_id, False
    if config.dropout is not None:
        set_dropout(hf_config, config.dropout, auto_class if labels else "")
    found = Inputs(tokenizer, hf_config, classes, order, onward, named, config.trust_remote_code)
    with explained(config.id):
        _check_vocabulary(config, found)
    return found


def classes_of(hf_config: Any, auto_class: str) -> tuple[str, ...]:
    """Return the classes of a checkpoint in its order, if it was trained to be of such a class."""
    form = auto_class.removeprefix("AutoModelFor")
    if not any(form in name for name in hf_config.architectures or ()):
        return ()
    return tuple(str(hf_config.id2label[index]) for index in sorted(hf_config.id2label))


def order_of(labels: Sequence[str], classes: Sequence[str]) -> tuple[int, ...] | None:
    """Return which class of a checkpoint each label is, if all are there by name.

    Case does not count, and `LABEL_3`, which Transformers writes where nobody has named the classes, is
    the label 3.
    """
    names = [name.casefold().removeprefix("label_") for name in classes]
    wanted = [label.casefold().removeprefix("label_") for label in labels]
    if len({*names}) < len(names) or len({*wanted}) < len(wanted) or not {*wanted} <= {*names}:
        return None
    return tuple(map(names.index, wanted)) if wanted else None


def _check_vocabulary(config: ModelConfig, inputs: Inputs) -> None:
    """Refuse a tokenizer that gives tokens which the model does not know."""
    tokens = inputs.num_tokens
    if tokens > inputs.num_embeddings and not config.resize_embeddings:
        raise UserError(
            f"model.id={config.id}",
            f"its tokenizer has {tokens:,} tokens, and the model embeddings for "
            f"{inputs.num_embeddings:,}",
            "Use the model's own tokenizer, or write model.resize_embeddings=true, and the new rows "
            "are trained and exported",
        )
