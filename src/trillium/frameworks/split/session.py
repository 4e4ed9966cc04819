"""One part of a cut model while it writes texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from trillium.models.cut import Part
from trillium.training.meters import Meter, resident_tensors


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

    The part is set to evaluation; its parameters must be mounted before each step.

    Args:
        mask: `(rows, seq)`, of the prompts; padding, on the left, is 0.
    """

    def __init__(self, part: Part, mask: Tensor, meter: Meter) -> None:
        self._part, self._mask, self._meter = part.eval(), mask, meter
        self._cache = PartCache(part.blocks.start)
        self._begun = False

    @torch.no_grad()
    def step(self, given: Tensor) -> Tensor:
        """Return what the part makes of the prompts, and from then on of one more token of each.

        Of logits only the last may be there.

        Args:
            given: token ids `(rows, new)` for a head, else hidden states `(rows, new, hidden)`. A part
                without blocks looks at each token alone, and can be given the last ones of the prompts.
        """
        if self._begun:
            self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        self._begun, mask, new = True, self._mask, given.shape[1]
        options: dict[str, object] = {}
        if len(self._part.blocks):
            options |= {"past_key_values": self._cache, "use_cache": True}
        else:
            mask = mask[:, -new:]
        if self._part.takes(
            "position_ids"
        ):  # from the mask, as Hugging Face's `generate` makes them
            positions = (mask.long().cumsum(1) - 1).clamp(min=0)
            options["position_ids"] = positions[:, -new:]
        if self._part.is_last and self._part.takes("logits_to_keep"):
            options["logits_to_keep"] = 1  # those of a long prompt's other tokens nobody needs
        is_head = self._part.side == "head"
        # Parts behind the head look at the shape of the ids alone, for want of a classifier.
        ids = given if is_head else torch.zeros(given.shape[:2], dtype=torch.long).to(mask)
        blocks = (self._part.blocks.start, self._part.blocks.stop)
        key = ("texts", self._part.side, blocks, new, tuple(mask.shape), bool(mask.all()))
        with self._meter.measure(key, self._resident):
            found: Tensor = self._part(
                None if is_head else given, input_ids=ids, attention_mask=mask, **options
            )
        return found

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the texts, and forget the others.

        Args:
            rows: which, int64 `(kept,)`.
        """
        rows = rows.to(self._mask.device)
        self._mask = self._mask[rows]
        self._cache.batch_select_indices(rows)

    def _resident(self) -> Iterator[Tensor]:
        yield from resident_tensors(self._part)
        for layer in self._cache.layers:
            if layer.is_initialized:
                yield from (layer.keys, layer.values)
