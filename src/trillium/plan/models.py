"""A model that exists on paper: the architecture, adapter and head of a run, without weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from trillium.config.experiment import ExperimentConfig
from trillium.models.base import dtype_of, load_base
from trillium.models.blocks import are_equal, find_blocks, freeze_other_towers
from trillium.models.checkpointing import checkpoint_blocks
from trillium.models.first_blocks import FirstBlocks
from trillium.models.heads import straighten, train_last_only
from trillium.models.hub import explained, locate, set_dropout
from trillium.models.load import LanguageModel
from trillium.models.packaged import HUB_IDS
from trillium.plan.fakes import Paper
from trillium.plan.phases import Known
from trillium.plan.shapes import shapes
from trillium.tasks.vocabulary import differs_in_depth


@dataclass(frozen=True)
class Vocabulary:
    """Stands in for a tokenizer.

    Attributes:
        pad_token_id: of padding.
        size: how many tokens there are.
    """

    pad_token_id: int
    size: int

    def __len__(self) -> int:
        return self.size


def architecture(config: ExperimentConfig, num_labels: int) -> Any:
    """Return the Hugging Face configuration of a model: a known shape, a folder, or from the hub.

    Args:
        num_labels: classes; 0 for language modelling.

    Raises:
        UserError: there is no such model, or the hub cannot be reached.
    """
    name, known = config.model.id, shapes()
    shape = known.get(HUB_IDS.get(name, name).rpartition("/")[-1].lower())
    if shape is not None and not Path(name).is_dir():
        found = shape.config()
    else:
        with explained(name):
            found = AutoConfig.from_pretrained(
                locate(name),
                revision=config.model.revision,
                trust_remote_code=config.model.trust_remote_code,
            )
    found = copy.deepcopy(found)
    if num_labels:
        found.num_labels = num_labels
    text = found.get_text_config()
    if getattr(text, "pad_token_id", None) is None:
        text.pad_token_id = found.pad_token_id = 0
    text.use_cache = found.use_cache = False
    if config.model.dropout is not None:
        set_dropout(found, config.model.dropout, config.task.auto_class)
    return found


def with_blocks(hf_config: Any, num_blocks: int) -> Any:
    """Return the configuration of an architecture with another number of blocks."""
    found = copy.deepcopy(hf_config)
    text = found.get_text_config()
    before = text.num_hidden_layers
    text.num_hidden_layers = num_blocks
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == before:  # what each block is, such as its type
            setattr(text, name, value[:num_blocks])
    return found


def paper_model(config: ExperimentConfig, hf_config: Any, paper: Paper) -> LanguageModel:
    """Return the resident model of a run, without weights.

    Raises:
        UserError: the adapter does not fit the model or the task.
    """
    task = config.task
    wanted = config.model.model_copy(update={"random_weights": True, "quantize": "none"})
    classifies = task.peft_task != "CAUSAL_LM"
    with explained(config.model.id), torch.device("meta"):
        model, drawn = load_base(wanted, task.auto_class, hf_config, torch.device("meta"))
        narrow = classifies and config.adapter.freezes and config.model.head == "linear"
        if narrow:
            straighten(model, drawn)
        with _default_dtype(dtype_of(config.model, hf_config)):
            module = config.adapter.apply(model, task.peft_task)
        freeze_other_towers(module)
        if narrow:
            train_last_only(module)
    text = hf_config.get_text_config()
    words = Vocabulary(int(text.pad_token_id), int(text.vocab_size))
    if config.training.gradient_checkpointing:
        checkpoint_blocks(module)
    module = paper.fake(module).eval()
    with paper.running():
        config.adapter.probe(module)
        return LanguageModel(module, words, torch.device("cpu"), task.peft_task)


@dataclass(frozen=True)
class Depth:
    """What is to be known of a model in full depth.

    Attributes:
        num_blocks: how many it has, if it is asked.
        has_equal_blocks: whether a few of them tell all.
        first: what its first blocks are that do the same in all rounds, if there are any.
        num_parameters, num_trained: entries of all that it has, and of what trains.
    """

    num_blocks: int
    has_equal_blocks: bool
    first: FirstBlocks | None
    num_classes: int
    num_parameters: int
    num_trained: int

    @classmethod
    def of(cls, model: LanguageModel, *, is_even: bool = False) -> Depth:
        """Return what a model says of itself; of its blocks only if these are to be looked at."""
        return cls(
            model.num_blocks if is_even else 0,
            is_even and model.has_equal_blocks,
            model.first,
            model.num_classes,
            sum(parameter.numel() for parameter in model.module.parameters()),
            sum(tensor.numel() for tensor in model.initial.values()),
        )


@dataclass
class Models:
    """Makes models on paper, each once; plans of several settings share them.

    Attributes:
        paper: makes their tensors.
        plain: what work costs that is alike in every framework, by model and training.
    """

    paper: Paper = field(default_factory=Paper)
    plain: dict[tuple[object, ...], Known] = field(default_factory=dict)
    _made: dict[str, LanguageModel] = field(default_factory=dict)
    _first: dict[str, LanguageModel] = field(default_factory=dict)  # of several depths
    _equal: dict[str, int] = field(default_factory=dict)  # blocks, 0 where they are not equal

    def depth(self, config: ExperimentConfig, num_labels: int, few: int, *, is_even: bool) -> Depth:
        """Return what is to be known of a model in full depth.

        Adapters of a deep one take long to make, even on paper. Where its blocks are equal, and so are
        their adapters, models with a few blocks and with one more tell it.

        Args:
            is_even: whether nothing tells blocks apart but the architecture.
        """
        count = self._equal_blocks(config, num_labels) if is_even else 0
        if count <= 2 * few + 1:
            return Depth.of(self.get(config, num_labels, None), is_even=is_even)
        one, more = (Depth.of(self.get(config, num_labels, few + own)) for own in (0, 1))
        left = count - few
        return replace(
            more,
            num_blocks=count,
            has_equal_blocks=True,
            num_parameters=one.num_parameters + left * (more.num_parameters - one.num_parameters),
            num_trained=one.num_trained + left * (more.num_trained - one.num_trained),
        )

    def _equal_blocks(self, config: ExperimentConfig, num_labels: int) -> int:
        """Return how many blocks an architecture has, if they are equal; else 0."""
        key = repr((config.model, config.task, num_labels))
        if key not in self._equal:
            wanted = config.model.model_copy(update={"random_weights": True, "quantize": "none"})
            meta, found = torch.device("meta"), architecture(config, num_labels)
            with explained(config.model.id), meta:
                base, _ = load_base(wanted, config.task.auto_class, found, meta)
            blocks = find_blocks(base)[1]
            self._equal[key] = len(blocks) if are_equal(blocks) else 0
        return self._equal[key]

    def get(
        self, config: ExperimentConfig, num_labels: int, num_blocks: int | None
    ) -> LanguageModel:
        """Return the resident model of a run.

        Args:
            num_labels: classes; 0 for language modelling.
            num_blocks: how many blocks it is to have; its own number by default.
        """
        again = config.training.gradient_checkpointing
        key = repr((config.model, config.adapter, config.task, num_labels, num_blocks, again))
        if key not in self._made:
            found = architecture(config, num_labels)
            if num_blocks is not None:
                found = with_blocks(found, num_blocks)
            made = self._made[key] = paper_model(config, found, self.paper)
            any_depth = repr((config.model, config.adapter, config.task, num_labels))
            differs_in_depth(made.module, self._first.setdefault(any_depth, made).module)
        if config.framework.trains:
            with self.paper.running():
                config.training.prepare(self._made[key])
        return self._made[key]


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Let new layers have a dtype: PEFT gives an adapter that of its layer, but not on meta."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
