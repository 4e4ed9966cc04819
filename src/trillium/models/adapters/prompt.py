"""Prompt tuning: The Power of Scale for Parameter-Efficient Prompt Tuning.

Lester et al. (2021, arXiv 2104.08691). Trained embeddings of virtual tokens stand in front of those of
the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from peft import PromptTuningConfig
from pydantic import Field
from torch import Tensor, nn

from trillium.errors import UserError
from trillium.models.adapters import Adapter
from trillium.models.adapters.attach import HALF, attach
from trillium.models.blocks import evaluating, placeholder_ids, text_config
from trillium.models.draws import Draws
from trillium.models.heads import head_layer


class Prompt(Adapter, name="prompt"):
    """Prompt tuning through `peft`, with the task head trained beside it.

    Attributes:
        tokens: how many virtual tokens are put in front of the text; they count towards the longest
            input that the model takes.
        init: draw embeddings at `random`, or those of random words of the `vocabulary`.
    """

    tokens: int = Field(default=20, ge=1)
    init: Literal["random", "vocabulary"] = "random"

    @property
    def virtual_tokens(self) -> int:
        """The trained embeddings."""
        return self.tokens

    def apply(self, model: nn.Module, peft_task: str, keep: Sequence[str] = ()) -> nn.Module:
        """Return the model wrapped by PEFT; its base is frozen, embeddings and head train."""
        config = PromptTuningConfig(
            task_type=peft_task,
            num_virtual_tokens=self.tokens,
            prompt_tuning_init="RANDOM" if self.init == "random" else "SAMPLE_VOCAB",
        )
        return _wrapped(model, config, keep)

    def probe(self, module: nn.Module) -> None:
        """Refuse a model that takes no virtual tokens, ignores them, or would be misled by them.

        Raises:
            UserError: it is one.
        """
        _probe(module)

    def draws(self, module: nn.Module) -> Draws:
        """Return the embeddings, unless they are those of words."""
        names = [name for name, _ in module.named_parameters() if ".prompt_encoder." in f".{name}"]
        return dict.fromkeys(names, nn.init.normal_) if self.init == "random" else {}


def _wrapped(model: nn.Module, config: PromptTuningConfig, keep: Sequence[str]) -> nn.Module:
    """Return the model wrapped by PEFT.

    Language models answer with logits `(batch, seq, vocabulary)` for the tokens that were given: those
    of the virtual tokens in front are cut off.
    """
    sizes = text_config(model)
    config.num_layers, config.num_attention_heads = (
        sizes.num_hidden_layers,
        sizes.num_attention_heads,
    )
    embeddings = model.get_input_embeddings()  # type: ignore[operator]
    config.token_dim = embeddings.weight.shape[1]
    wrapped = attach(model, config, keep)
    _settle(wrapped, embeddings.weight.dtype)
    if config.task_type == "CAUSAL_LM":
        wrapped.register_forward_hook(_drop_virtual, with_kwargs=True)
    return wrapped


def _settle(wrapped: Any, dtype: torch.dtype) -> None:
    """Let embeddings train as all adapters do, and what is no buffer have values in a plan, too."""
    wrapped.prompt_encoder.to(torch.float32 if dtype in HALF else dtype)
    for name, places in wrapped.prompt_tokens.items():
        wrapped.prompt_tokens[name] = torch.arange(len(places), device="cpu")


def _drop_virtual(
    module: nn.Module, inputs: tuple[Any, ...], options: Mapping[str, Any], output: Any
) -> Any:
    ids = options["input_ids"] if "input_ids" in options else inputs[0]
    output.logits = output.logits[:, -ids.shape[1] :]
    return output


def _probe(wrapped: Any) -> None:
    config = wrapped.active_peft_config
    given = f"adapter prompt on {type(wrapped.get_base_model()).__name__}"
    dims: list[int] = []

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        dims.append(inputs[0].dim())

    mask = torch.ones(1, 4, dtype=torch.long, device=wrapped.device)
    ids = placeholder_ids(wrapped, mask)
    handles = []
    if config.task_type == "SEQ_CLS":
        handles.append(head_layer(wrapped)[1].register_forward_pre_hook(look))
    try:
        with evaluating(wrapped), torch.enable_grad():
            logits = wrapped(input_ids=ids, attention_mask=mask).logits
    except (ValueError, TypeError, AttributeError, RuntimeError, NotImplementedError) as error:
        raise UserError(
            given,
            f"PEFT cannot pass virtual tokens to this model ({error})",
            "Write adapter=lora, ia3 or bottleneck",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    # Per-token logits of which the model picks the last one: it looks for that in the token ids,
    # and these are not what it is given.
    if 3 in dims:
        raise UserError(
            given,
            "the model classifies by the last token that is not padding, and does not find it behind "
            "virtual tokens",
            "Write adapter=lora, ia3 or bottleneck",
        )
    prompts = [p for p in wrapped.prompt_encoder.parameters() if p.requires_grad]
    grads = torch.autograd.grad(logits.sum(), prompts, allow_unused=True)
    if not any(grad is not None and bool(grad.any()) for grad in grads):
        raise UserError(
            given,
            "the model ignores the virtual tokens",
            "Write adapter=lora, ia3 or bottleneck",
        )
