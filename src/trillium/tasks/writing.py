"""Write text: token by token with the parts of a cut model, or with a whole one.

Each part keeps keys and values of its own blocks, so that only the activations of new tokens have to
cross, as in FedSEA-LLaMA (2025, arXiv 2505.15683). `trillium.frameworks.split.generate` carries them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import GenerationConfig

from trillium.errors import UserError
from trillium.tasks.ends import end_ids

Decoding = Literal["greedy", "checkpoint"]


@dataclass(frozen=True)
class Writing:
    """How text is written: the most probable tokens if the temperature, which divides logits, is 0.

    `top_p` draws from the most probable tokens that have so much probability together (nucleus
    sampling, Holtzman et al., 2020, arXiv 1904.09751).
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0

    def choose(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """Return the next tokens, int64 `(rows,)` on the CPU, by logits `(rows, vocabulary)`.

        The generator is the CPU's, and not used with temperature 0.
        """
        if not self.temperature:
            return logits.argmax(-1).cpu()
        shares, tokens = (logits.cpu().double() / self.temperature).softmax(-1).sort(-1, True)
        before = shares.cumsum(-1) - shares
        kept = shares.masked_fill(before >= self.top_p, 0.0)
        drawn = torch.multinomial(kept, 1, generator=generator)
        return tokens.gather(-1, drawn)[:, 0]


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
    decoding: Decoding = "greedy",
    **settings: Any,
) -> list[list[int]]:
    """Return what a whole model writes after each prompt, up to the token that ended it.

    The settings are those of Hugging Face's `GenerationConfig`. Checkpoints bring some of their own,
    such as beams or a penalty: what is left open they fill in with `decoding=checkpoint` alone.
    """
    ids, mask = pad_left(prompts, tokenizer.pad_token_id)
    ends = end_ids(tokenizer, module)
    config = GenerationConfig(
        **settings,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=ends or None,
        use_cache=True,
    )
    owner: Any = module.get_base_model() if isinstance(module, PeftModel) else module
    own = owner.generation_config
    if decoding == "greedy":
        owner.generation_config = GenerationConfig()
    try:
        with torch.inference_mode():
            found: Tensor = module.generate(  # type: ignore[operator]
                input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config
            )
    except (ValueError, TypeError) as error:  # of settings that contradict each other
        if decoding == "greedy":
            raise
        raise UserError(
            "task.decoding=checkpoint",
            f"Transformers cannot write as its generation_config says ({error})",
            "Write task.decoding=greedy, or mend that file",
        ) from error
    finally:
        owner.generation_config = own
    return [until_end(row, ends) for row in found[:, ids.shape[1] :].tolist()]


def until_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """Return the tokens up to the first that ends a text, with it."""
    last = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: last + 1]
