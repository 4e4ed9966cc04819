"""One part of a cut model while it writes texts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

from trillium.errors import UserError
from trillium.models.cut import Part
from trillium.training.meters import Meter, resident_tensors


class PartCache(DynamicCache):  # type: ignore[misc]
    """What one part's blocks keep of tokens: keys and values, or the state of a recurrence.

    It has a place for every block of the model, of which the part fills its own. The model's code asks
    the others how many tokens they have seen, and they answer as if they were here.

    Args:
        hf_config: of the model; it says of what kind each block is.
        blocks: those of the part.
    """

    def __init__(self, hf_config: Any, blocks: range) -> None:
        super().__init__(config=hf_config)
        self._blocks, self._num_seen = blocks, 0

    @property
    def own(self) -> list[Any]:
        """The places of the part's own blocks."""
        return [self.layers[index] for index in self._blocks]

    def see(self, num_new: int) -> None:
        """Let the other blocks count tokens that have passed."""
        self._num_seen += num_new
        for index, layer in enumerate(self.layers):
            if index in self._blocks:
                continue
            if isinstance(layer, LinearAttentionCacheLayerMixin):
                layer.has_previous_state = dict.fromkeys(layer.has_previous_state, True)
            if isinstance(layer, CacheLayerMixin):
                layer.cumulative_length = self._num_seen
                layer.get_seq_length = partial(int, self._num_seen)

    def keep(self, rows: Tensor) -> None:
        """Forget all texts but some."""
        for layer in self.own:
            layer.reorder_cache(rows)

    def tensors(self) -> Iterator[Tensor]:
        """Yield what is kept."""
        for layer in self.own:
            states = (*vars(layer).values(),)
            for value in states:
                inner = value.values() if isinstance(value, dict) else (value,)
                yield from (tensor for tensor in inner if isinstance(tensor, Tensor))


def part_cache_name(part: Part) -> str:
    """Return what a model calls what it keeps of the tokens before.

    Raises:
        UserError: it takes no cache of Transformers' common kind.
    """
    for name in ("past_key_values", "cache_params"):
        if part.has_common_cache and part.takes(name):
            return name
    raise UserError(
        "writing with a split model",
        f"{part.text_config.model_type} keeps what it has read in a form of its own, which parts "
        "cannot keep each for itself",
        "Use the framework fedllm or kd to write, or choose another model",
    )


class PartSession:
    """One part while it writes texts: what its owner keeps from token to token.

    The part is set to evaluation; its parameters must be mounted before each step.

    Args:
        mask: `(rows, seq)`, of the prompts; padding, on the left, is 0.
    """

    def __init__(self, part: Part, mask: Tensor, meter: Meter) -> None:
        self._part, self._mask, self._meter = part.eval(), mask, meter
        self._cache = PartCache(part.text_config, part.blocks)
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
            options |= {part_cache_name(self._part): self._cache, "use_cache": True}
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
        self._cache.see(new)
        return found

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the texts, and forget the others.

        Args:
            rows: which, int64 `(kept,)`.
        """
        rows = rows.to(self._mask.device)
        self._mask = self._mask[rows]
        self._cache.keep(rows)

    def _resident(self) -> Iterator[Tensor]:
        yield from resident_tensors(self._part)
        yield from self._cache.tensors()
