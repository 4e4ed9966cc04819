"""Write text: token by token with the parts of a cut model, or with a whole one.

Each part keeps keys and values of its own blocks, so that only the activations of new tokens have to
cross, as in FedSEA-LLaMA (2025, arXiv 2505.15683). `trillium.frameworks.split_generate` carries them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig

from trillium.models.split import Part
from trillium.training.meters import Meter, resident_tensors


@dataclass(frozen=True)
class Writing:
    """How text is written.

    Attributes:
        max_new_tokens: longest text behind a prompt.
        temperature: divides the logits; with 0 the most probable token is taken, and none is drawn.
        top_p: draw from the most probable tokens that have so much probability together (nucleus
            sampling, Holtzman et al., 2020, arXiv 1904.09751).
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0

    def choose(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """Return the next token of each text, int64 `(rows,)` on the CPU.

        Args:
            logits: `(rows, vocabulary)`.
            generator: of the CPU; not used with temperature 0.
        """
        if not self.temperature:
            return logits.argmax(-1).cpu()
        shares, tokens = (logits.cpu().double() / self.temperature).softmax(-1).sort(-1, True)
        before = shares.cumsum(-1) - shares
        kept = shares.masked_fill(before >= self.top_p, 0.0)
        drawn = torch.multinomial(kept, 1, generator=generator)
        return tokens.gather(-1, drawn)[:, 0]


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
        part: of a causal language model.
        mask: `(rows, seq)`, of the prompts; padding, on the left, is 0.
        meter: of its owner.
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


def prompt_mask(lengths: Sequence[int]) -> Tensor:
    """Return the mask `(rows, seq)` int64 of prompts so long, padded on the left."""
    sizes = torch.tensor(lengths)
    longest = int(sizes.max())
    return (torch.arange(longest) >= longest - sizes[:, None]).long()


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return prompts as token ids `(rows, seq)` and their mask, padded on the left."""
    mask = prompt_mask([len(prompt) for prompt in prompts])
    ids = torch.full_like(mask, pad_id)
    ids[mask.bool()] = torch.tensor([token for prompt in prompts for token in prompt])
    return ids, mask


def write_whole(
    module: nn.Module,
    tokenizer: Any,
    device: torch.device,
    prompts: Sequence[Sequence[int]],
    **settings: Any,
) -> list[list[int]]:
    """Return what a whole model writes after each prompt, with the token that ended it.

    Args:
        module: a causal language model, in evaluation mode.
        tokenizer: its tokenizer, with a padding token.
        device: where it is.
        prompts: token ids; none is empty.
        settings: of Hugging Face's `GenerationConfig`, such as `max_new_tokens`.
    """
    ids, mask = pad_left(prompts, tokenizer.pad_token_id)
    # Checkpoints bring settings of their own, such as a penalty: what is left open, they fill in.
    config = GenerationConfig(
        **settings,
        repetition_penalty=1.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        use_cache=True,
    )
    with torch.inference_mode():
        found: Tensor = module.generate(  # type: ignore[operator]
            input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config
        )
    return [_until(row, tokenizer.eos_token_id) for row in found[:, ids.shape[1] :].tolist()]


def _until(tokens: list[int], end: int | None) -> list[int]:
    """Return tokens up to the first one that ends a text."""
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens
