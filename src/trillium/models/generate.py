"""Write text with a cut model: each side keeps keys and values of its own blocks.

Only the activations of new tokens cross, as in FedSEA-LLaMA (2025, arXiv 2505.15683).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from trillium.models.split import Part, SplitModel


class PartCache(DynamicCache):  # type: ignore[misc]
    """Keys and values of one part's blocks, which count from its first one.

    Args:
        first: index of that block in the whole model.
    """

    def __init__(self, first: int) -> None:
        super().__init__()
        self._first = first

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens, and return those of all."""
        found: tuple[Tensor, Tensor] = super().update(
            key_states, value_states, layer_idx - self._first, *args, **kwargs
        )
        return found


class PartSession:
    """One part while it writes texts: what its owner keeps from token to token.

    Args:
        part: in evaluation mode, with its parameters mounted.
    """

    def __init__(self, part: Part) -> None:
        self._part = part
        self._cache = PartCache(part.blocks.start)

    @torch.no_grad()
    def step(self, given: Tensor, mask: Tensor) -> Tensor:
        """Return what the part makes of new tokens.

        Args:
            given: token ids `(batch, new)` for a head, else hidden states `(batch, new, hidden)`.
            mask: `(batch, seq)`, of all tokens so far; padding, on the left, is 0.
        """
        new = given.shape[1]
        options: dict[str, object] = {}
        if len(self._part.blocks):
            options |= {"past_key_values": self._cache, "use_cache": True}
        else:  # a norm and a head look at the new tokens alone
            mask = mask[:, -new:]
        if self._part.takes(
            "position_ids"
        ):  # made from the mask, as Hugging Face's `generate` does
            positions = (mask.long().cumsum(1) - 1).clamp(min=0)
            options["position_ids"] = positions[:, -new:]
        is_head = self._part.side == "head"
        # Parts behind the head look at the shape of the ids alone, for want of a classifier.
        ids = given if is_head else torch.zeros(given.shape[:2], dtype=torch.long).to(mask)
        found: Tensor = self._part(
            None if is_head else given, input_ids=ids, attention_mask=mask, **options
        )
        return found


def generate(
    split: SplitModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    max_new_tokens: int,
    eos_token_id: int | None = None,
    pad_token_id: int = 0,
    cross: Callable[[Tensor], Tensor] = lambda hidden: hidden,
) -> Tensor:
    """Return the most probable continuation, token by token, of prompts.

    Args:
        split: a causal language model, cut; its parts in evaluation mode.
        input_ids: prompts `(batch, seq)`, padded on the left.
        attention_mask: `(batch, seq)`, 0 where padded.
        max_new_tokens: most tokens that are written.
        eos_token_id: ends a text.
        pad_token_id: stands behind a text that has ended.
        cross: what hidden states pass on their way from part to part.

    Returns:
        Prompts and continuations `(batch, seq + written)`.
    """
    sessions = [PartSession(part) for part in split.parts]
    texts, mask, given = input_ids, attention_mask, input_ids
    ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    for _ in range(max_new_tokens):
        hidden = sessions[0].step(given, mask)
        for session in sessions[1:]:
            hidden = session.step(cross(hidden), mask)
        token = hidden[:, -1].argmax(-1)
        token = torch.where(ended, torch.full_like(token, pad_token_id), token)
        texts = torch.cat([texts, token[:, None]], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        ended |= token == eos_token_id if eos_token_id is not None else False
        given = token[:, None]
        if bool(ended.all()):
            break
    return texts
