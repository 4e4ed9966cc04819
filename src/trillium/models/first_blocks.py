"""The first blocks of a model, where nothing in them trains and nothing in them is random.

What they make of a text is the same in every round. The model stays whole: where a batch brings what is
known of it, the modules that only the first blocks need answer with that in place of computing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from trillium.errors import UserError
from trillium.models.blocks import (
    absent_modules,
    base_model,
    evaluating,
    find_blocks,
    refuse_uncuttable,
    text_config,
    trace,
)
from trillium.models.cut import in_parts, run_until
from trillium.models.parts import draws
from trillium.models.stand_ins import Form, Received, is_whole
from trillium.wire.kinds import has_values
from trillium.wire.records import Records


@dataclass(frozen=True)
class FirstBlocks:
    """Runs the first blocks of a model.

    Attributes:
        number: how many they are.
        width, dtype: of the hidden states behind them.
        records: where what they make of texts is kept, for all who share the model.
    """

    module: nn.Module
    number: int
    width: int
    dtype: torch.dtype
    records: Records = field(default_factory=lambda: Records(_file()))

    def run(self, input_ids: Tensor) -> Tensor:
        """Return the hidden states `(batch, seq, width)` of texts `(batch, seq)`, -1 where padded."""
        return _run(self.module, self.number, input_ids)


def _file() -> BinaryIO:
    return tempfile.TemporaryFile()


@torch.inference_mode(False)
@torch.no_grad()
def _run(module: nn.Module, number: int, input_ids: Tensor) -> Tensor:
    ids = input_ids.to(next(module.parameters()).device)
    block, mask = find_blocks(module)[1][number - 1], (ids >= 0).long()
    ids = ids.masked_fill(ids < 0, text_config(module).pad_token_id or 0)
    return run_until(module, block, input_ids=ids, attention_mask=mask)


class _Skips(nn.Module):
    """Stands in front of the class of a module that only the first blocks need."""

    _received: Received
    _form: Form

    def forward(self, *args: Any, **options: Any) -> Any:
        """Return what the module does, or what is known."""
        if self._received.hidden is None:
            return super().forward(*args, **options)
        return self._form.fill(self._received.hidden)


def first_blocks(module: nn.Module, trained: Collection[str]) -> FirstBlocks:
    """Return the first blocks of a model, which from now on takes an input `known`.

    Args:
        trained: names of its parameters that train.

    Raises:
        UserError: there are none, something in them is random, or the model does without them what it
            does not do with them.
    """
    _, blocks = find_blocks(module)
    own = {id(parameter) for n, parameter in module.named_parameters() if n in {*trained}}
    still = [not any(id(p) in own for p in block.parameters()) for block in blocks]
    number = still.index(False) if False in still else len(still)
    refuse_uncuttable(module)
    given = type(base_model(module)).__name__
    if number == 0 or not is_whole(module):
        raise UserError(given, "its first block trains", "Name later blocks as adapter.layers")
    with torch.inference_mode(False), in_parts(given, number):
        traced = trace(module, [number])
        if traced.needed[0] & own:
            why = "what stands in front of its blocks, such as embeddings, trains"
            raise UserError(given, why, "Train no embeddings")
        received = Received()
        for absent in [*absent_modules(module, traced, 1)]:
            kind = type(absent)
            absent.__class__ = type(kind.__name__, (_Skips, kind), {"__module__": kind.__module__})
            vars(absent).update(_received=received, _form=traced.forms[absent])
        module.register_forward_pre_hook(_taking(received), with_kwargs=True)
        module.register_forward_hook(_leaving(received), always_call=True)
        hidden = _check(module, number)
    return FirstBlocks(module, number, hidden.shape[-1], hidden.dtype)


def _taking(received: Received) -> Any:
    def take(_: nn.Module, args: Any, options: dict[str, Any]) -> Any:
        received.hidden = options.pop("known", None)
        return args, options

    return take


def _leaving(received: Received) -> Any:
    def leave(*_: object) -> None:
        received.hidden = None

    return leave


@torch.no_grad()
def _check(module: nn.Module, number: int) -> Tensor:
    """Hold a model with known states against the same without, for two texts, one with padding.

    Returns:
        Some hidden states behind the first blocks.

    Raises:
        UserError: they differ, or something is random.
    """
    device = next(module.parameters()).device
    size, pad = text_config(module).vocab_size, text_config(module).pad_token_id
    ids = (torch.arange(16, device=device).view(2, 8) * 7 + 3) % size
    ids = ids.masked_fill(ids == pad, 1 if pad == 0 else 0)
    given = type(base_model(module)).__name__
    with evaluating(module):
        hidden = _run(module, number, ids)
        if draws(module, lambda: _run(module, number, ids), hidden):
            why = "something in its first blocks is random, as dropout is"
            raise UserError(given, why, "Write model.dropout=0")
        mask = torch.ones_like(ids)
        mask[1, 5:] = 0
        ids[1, 5:] = 0 if pad is None else pad
        known = hidden.clone()
        known[1, :5] = _run(module, number, ids[1:, :5])[0]
        known[1, 5:] = 0
        expected = module(input_ids=ids, attention_mask=mask).logits
        found = module(input_ids=ids, attention_mask=mask, known=known).logits
    if not has_values(expected):
        return hidden
    if expected.dim() == 3 and expected.shape[:2] == mask.shape:
        expected, found = expected[mask.bool()], found[mask.bool()]
    allowed = min(64 * torch.finfo(expected.dtype).eps, 0.02) * float(expected.abs().max())
    moved = float((found - expected).abs().max())
    if not moved <= allowed:  # so written, NaN is refused
        why = f"it answers otherwise where its first blocks are skipped (logits differ by {moved:.1e})"
        raise UserError(given, why, "Leave it out for this model")
    return hidden
