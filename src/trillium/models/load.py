"""Load any Hugging Face model with a task head and an adapter, from the hub or a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_model as load_model_file
from torch import Tensor, nn

from trillium.errors import UserError
from trillium.models.adapters import Adapter
from trillium.models.adapters.lora import Lora
from trillium.models.base import ModelConfig, load_base
from trillium.models.blocks import (
    are_equal,
    base_model,
    find_blocks,
    freeze_other_towers,
    text_config,
)
from trillium.models.cut import split_model
from trillium.models.cut_check import check_split
from trillium.models.draws import draw
from trillium.models.factors import Factors, lora_factors
from trillium.models.first_blocks import FirstBlocks, first_blocks
from trillium.models.folds import BaseWeights, Fold, room_for_wide, wide_adapter
from trillium.models.heads import (
    draw_head,
    drawn_modules,
    head_modules,
    keep_classes,
    name_classes,
    straighten,
    train_last_only,
)
from trillium.models.hub import explained, find_device
from trillium.models.inputs import positions_of, read_inputs
from trillium.models.known import Known
from trillium.models.merge import check_causal, differs, is_half, merged, probe
from trillium.models.own import Ends, load_part
from trillium.models.part_folder import check_part
from trillium.models.parts import Parts
from trillium.models.shipped import replacing, write
from trillium.models.slots import Slots, State
from trillium.models.stand_ins import is_whole
from trillium.rng import scoped_rng
from trillium.tasks import Example
from trillium.tasks.batches import collate
from trillium.wire.kinds import Tensors


def _made_up(vocabulary: int) -> list[Example]:
    """Return two texts of tokens, of different lengths."""
    texts = [torch.arange(length) * 7 % vocabulary for length in (8, 5)]
    return [Example(index, ids, ids) for index, ids in enumerate(texts)]


@dataclass
class LanguageModel:
    """One resident model, shared by everyone who is simulated in this process.

    Its frozen parameters are never written; its trainable ones are slots that `mount` fills.

    Attributes:
        module: the Hugging Face model, wrapped by PEFT where the adapter does so.
        initial: values of the trainable parameters at the start, on the CPU.
        first: its first blocks, where these do the same in all rounds and somebody looked for them.
        tests: what they make of held-out texts.
    """

    module: nn.Module
    tokenizer: Any
    device: torch.device
    peft_task: str
    initial: Tensors = field(init=False)
    first: FirstBlocks | None = field(init=False, default=None)
    tests: Known | None = field(init=False, default=None)
    _refused: UserError | None = field(init=False, default=None)
    _slots: Slots = field(init=False)
    _base: BaseWeights = field(init=False)
    _parts: dict[tuple[int, int | None], Parts] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._slots = Slots(self.module)
        self._base = BaseWeights(self.module, self.factors)
        self.initial = {
            name: parameter.detach().to("cpu", copy=True)
            for name, parameter in self.module.named_parameters()
            if parameter.requires_grad
        }

    def mount(self, state: State, base: Mapping[str, Tensor] = MappingProxyType({})) -> nn.Module:
        """Return the module with the parameters of `state` in place.

        `base` has the changed weights of adapted layers; the others are as they were loaded.
        """
        self._slots.mount(state)
        self._base.mount(base)
        return self.module

    @cached_property
    def factors(self) -> tuple[Factors, ...]:
        """The layers with LoRA."""
        return lora_factors(self.module)

    @property
    def base(self) -> Tensors:
        """The weights of adapted layers as they were loaded, by name."""
        return self._base.original

    def state(self, tensors: Tensors | None = None) -> State:
        """Return fresh trainable parameters on the device, from `tensors` or the initial values."""
        source = self.initial if tensors is None else tensors
        with torch.no_grad():
            return {
                name: nn.Parameter(tensor.to(self.device, copy=True))
                for name, tensor in source.items()
            }

    @property
    def dtype(self) -> torch.dtype:
        """Of the hidden states."""
        return next(p.dtype for p in self.module.parameters() if p.is_floating_point())

    @property
    def is_quantized(self) -> bool:
        """Whether the base holds quantised weights, into which nothing can be merged."""
        return bool(getattr(base_model(self.module), "is_quantized", False))

    @property
    def num_classes(self) -> int:
        """Size of the last dimension of the logits: classes, or the vocabulary."""
        if self.peft_task != "CAUSAL_LM":
            return int(base_model(self.module).config.num_labels)  # type: ignore[union-attr, arg-type]
        return int(text_config(self.module).vocab_size)

    @property
    def names(self) -> Mapping[int, str]:
        """The classes by their numbers."""
        found: Mapping[int, str] = base_model(self.module).config.id2label  # type: ignore[union-attr, assignment]
        return found

    @cached_property
    def num_positions(self) -> int | None:
        """How many tokens a text may have, where the model says so."""
        return positions_of(self.module, base_model(self.module).config)

    @cached_property
    def num_blocks(self) -> int:
        """How many transformer blocks the model has."""
        return len(find_blocks(self.module)[1])

    @cached_property
    def has_equal_blocks(self) -> bool:
        """Whether all blocks have parameters of the same names and shapes."""
        return are_equal(find_blocks(self.module)[1])

    def find_first(self) -> None:
        """Find the first blocks that do the same in all rounds.

        Raises:
            UserError: there are none.
        """
        if self._refused is None and self.first is None:
            try:
                self.first = first_blocks(self.module, self._slots.names)
            except UserError as error:
                self._refused = error
        if self._refused is not None:
            raise self._refused

    def parts(self, cut: int, tail: int | None, probe: Sequence[Example]) -> Parts:
        """Return the model cut before blocks `cut` and `tail`, checked once against the whole.

        Args:
            probe: examples to check it with; without any, some tokens are made up.
        """
        if (cut, tail) not in self._parts:
            self.mount(self.state())
            split = split_model(self.module, cut, tail)
            probe = probe or _made_up(text_config(self.module).vocab_size)
            inputs = collate(probe, self.tokenizer.pad_token_id, self.device).inputs
            if is_whole(self.module):
                check_split(self.module, split, inputs)
            self._parts[cut, tail] = Parts(split, inputs, self.num_classes)
        return self._parts[cut, tail]

    def save(
        self,
        state: State,
        folder: Path,
        folds: Sequence[Fold] = (),
        *,
        with_tokenizer: bool = True,
    ) -> None:
        """Write the adapter (PEFT format) or the whole model, and all that goes with it, into `folder`.

        Changes of base weights become part of the adapter, whose rank grows by theirs. A crash leaves
        no half of it: everything is written beside and then moved into place.
        """
        with (
            replacing(folder) as staging,
            wide_adapter(self.module, state, self.factors, folds) as wide,
        ):
            write(self.mount(wide), self.tokenizer, self.peft_task, staging)
            if with_tokenizer:
                self.tokenizer.save_pretrained(staging)

    def save_merged(self, state: State, folder: Path) -> None:
        """Write the whole model with the adapter folded into its weights; this object is spent.

        Raises:
            UserError: the adapter cannot be folded, or not so that the model answers as before.
        """
        module = merged(self.mount(state), is_quantized=self.is_quantized)
        with replacing(folder) as staging:
            write(module, self.tokenizer, self.peft_task, staging)
            self.tokenizer.save_pretrained(staging)

    def check_saved(self, folder: Path, state: State, base: Mapping[str, Tensor]) -> None:
        """Read back what `save` has written.

        Raises:
            UserError: it cannot be read, or answers otherwise than the model that it was written of.
        """
        expected = probe(self.mount(state, base))
        found = probe(self.mount(self.load_state(folder)))
        if difference := differs(found, expected, half=is_half(self.module)):
            raise UserError(
                str(folder),
                f"the saved model does not answer like the trained one: its logits differ "
                f"by {difference:.1e} of their size",
                "Please report it",
            )

    def load_state(self, folder: Path) -> State:
        """Return the trained parameters that `save` wrote, if they are of this model."""
        try:
            state = {**self.state(), **room_for_wide(folder, self.factors, self.device)}
            module = self.mount(state)
            if isinstance(module, PeftModel):
                weights = load_peft_weights(str(folder), device="cpu")
                set_peft_model_state_dict(module, weights)
            else:
                load_model_file(module, folder / "model.safetensors")
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise UserError(
                str(folder),
                f"the trained parameters there do not fit this model ({error})",
                "Give the folder of a finished run",
            ) from error
        return state


def load_model(
    config: ModelConfig,
    adapter: Adapter,
    *,
    auto_class: str,
    peft_task: str,
    labels: Sequence[str],
    seed: int,
    ends: Ends | None = None,
    problem_type: str | None = None,
) -> LanguageModel:
    """Load a model with its task head and adapter; new weights are drawn from `seed`.

    Args:
        labels: names of the classes; there are none for language modelling.
        ends: what of the model is wanted, where not the whole.
        problem_type: what Transformers is told of the head.
    """
    with explained(config.id), scoped_rng(seed, "model"):
        inputs = read_inputs(config, labels, adapter.goes_on_from, auto_class)
        classifies = peft_task != "CAUSAL_LM"
        if classifies:
            inputs.hf_config.problem_type = problem_type
        device = find_device(config.device)
        check_part(config, ends)
        part = None if ends is None else load_part(config, auto_class, inputs, ends, seed)
        if part is None and not config.random_weights:
            check_part(config, None)
        model, drawn = part or load_base(config, auto_class, inputs.hf_config, device, seed)
        has_head = part is None or not classifies or bool(head_modules(model))
        if not has_head:
            name_classes(model, labels)
        elif inputs.onward is not None and inputs.onward.key is not None:
            drawn |= draw_head(model, seed)  # that of the adapter takes its place, where it serves
        elif inputs.order is not None:
            keep_classes(model, inputs.order, labels)
        elif len(inputs.classes) == len(labels) and classifies:
            drawn |= draw_head(model, seed)  # its rows are other classes
        new_tokens = range(0)
        if config.resize_embeddings and inputs.num_tokens > inputs.num_embeddings:
            new_tokens = range(inputs.num_embeddings, inputs.num_tokens)
            model.resize_token_embeddings(inputs.num_tokens)  # type: ignore[operator]
        if not classifies and part is None:
            check_causal(model, config.id)
        narrow = classifies and has_head and adapter.freezes and config.head == "linear"
        if narrow:
            straighten(model, drawn)
        # Without a checkpoint the whole base is drawn, and cannot be told from the seed's next draw.
        keep = () if config.random_weights else drawn_modules(model, drawn)
        if new_tokens and isinstance(adapter, Lora):
            module = adapter.apply(model, peft_task, keep, new_tokens)
        elif new_tokens and adapter.freezes:
            raise UserError(
                f"model.resize_embeddings=true with adapter={adapter.name}",
                "it has no way to train the embeddings of new tokens",
                "Write adapter=lora or adapter=full",
            )
        else:
            module = adapter.apply(model, peft_task, keep)
        adapter.probe(module)
        freeze_other_towers(module)
        draw(module, adapter.draws(module), seed)
        if inputs.onward is not None:
            inputs.onward.apply(module, inputs.order)
        if narrow:
            train_last_only(module)
    return LanguageModel(module.to(device).eval(), inputs.tokenizer, device, peft_task)
