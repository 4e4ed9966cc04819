"""One plain model of a base and its adapter, which answers as the two of them do."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from trillium.errors import UserError
from trillium.models.blocks import base_model, evaluating, text_config

# PEFT's names of the methods whose result is a change of weights.
_MERGEABLE = ("lora", "ia3")
_HALF = (torch.bfloat16, torch.float16)
_PROBE_TOKENS = 8


def merged(module: nn.Module, *, is_quantized: bool) -> nn.Module:
    """Return the whole model with the adapter in its weights; the module given is spent.

    A model in half precision becomes one in float32: of a small change most is rounded away in half.
    Embeddings that input and output share, and of which one was adapted, become two.

    Raises:
        UserError: the adapter is no change of full-precision weights, or the result answers otherwise.
    """
    if not isinstance(module, PeftModel):
        return module
    kind = str(module.active_peft_config.peft_type).rpartition(".")[-1].lower()
    if is_quantized or kind not in _MERGEABLE:
        why = "the base is quantised" if is_quantized else f"{kind} is not one"
        raise UserError(
            "a merged model",
            f"an adapter is merged as a change of full-precision weights, and {why}",
            "Export without --merge",
        )
    before, half = probe(module), is_half(module)
    if half:
        module.float()
    _untie(module)
    _unwrap(module)
    with warnings.catch_warnings(action="ignore"):  # PEFT's are about what was untied
        whole: nn.Module = module.merge_and_unload()
    if difference := differs(probe(whole), before, half=half):
        raise UserError(
            "a merged model",
            f"its logits would differ from those of the trained one by {difference:.1e}",
            "Export without --merge",
        )
    return whole


def _untie(module: PeftModel) -> None:
    """Make two of weights that input and output embeddings share, if an adapter changes one of them."""
    model: Any = base_model(module)
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    if None in layers or not any(isinstance(layer, BaseTunerLayer) for layer in layers):
        return
    first, last = (getattr(layer, "base_layer", layer) for layer in layers)
    if first.weight is last.weight:
        last.weight = nn.Parameter(last.weight.detach().clone(), requires_grad=False)
        for config in (model.config, text_config(module)):
            config.tie_word_embeddings = False


def _unwrap(module: PeftModel) -> None:
    """Put what was trained in copies in its place; PEFT's IA³ cannot where that is several layers."""
    model = base_model(module)
    for name, wrapper in [*model.named_modules()]:
        if isinstance(wrapper, ModulesToSaveWrapper):
            owner, _, attribute = name.rpartition(".")
            copied = wrapper.modules_to_save[wrapper.active_adapters[0]]
            setattr(model.get_submodule(owner), attribute, copied)


@torch.no_grad()
def probe(module: nn.Module) -> Tensor:
    """Return logits of a short text of arbitrary tokens, to compare a model by."""
    config = text_config(module)
    device = next(module.parameters()).device
    ids = torch.arange(1, _PROBE_TOKENS + 1, device=device)[None] * 7 % int(config.vocab_size)
    ids[ids == config.pad_token_id] += 1
    whole: Any = base_model(module)
    if whole.config.is_encoder_decoder:  # which classifies by the token at the end
        ids[:, -1] = config.eos_token_id
    with evaluating(module):
        logits: Tensor = module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits.detach()


def is_half(module: nn.Module) -> bool:
    """Whether a model computes in half precision, its head aside."""
    return any(parameter.dtype in _HALF for parameter in module.parameters())


def differs(found: Tensor, expected: Tensor, *, half: bool) -> float:
    """Return by how much logits differ, as a share of their size; 0 for no more than rounding."""
    left, right = found.double().cpu(), expected.double().cpu()
    size = right.abs().max()
    if torch.allclose(left, right, 0, float(size) * (0.1 if half else 1e-3), equal_nan=True):
        return 0.0
    return float((left - right).abs().max() / size.clamp_min(1e-30))


@torch.inference_mode()
def check_causal(model: nn.Module, name: str) -> None:
    """Refuse a language model in which a later token changes what is predicted before it.

    Such a model sees in training what it is to predict.
    """
    size = int(text_config(model).vocab_size)
    one = (torch.arange(6, device=next(model.parameters()).device) % size)[None]
    other = one.clone()
    other[0, -1] = (other[0, -1] + 1) % size
    was, _ = model.training, model.eval()
    first, second = (model(input_ids=tokens).logits[0, :-1].float() for tokens in (one, other))
    model.train(was)
    # Exactly alike but for rounding, where batches of other shapes are made of other tokens; an encoder
    # that is small, or whose weights are drawn, looks ahead by very little.
    rounding = 1e-2 if is_half(model) else 1e-5
    if (first - second).abs().max() > rounding * first.abs().max():
        raise UserError(
            f"model.id={name} with task=causal_lm",
            "it is an encoder that sees the tokens which it would have to predict",
            "Write a decoder such as HuggingFaceTB/SmolLM2-135M-Instruct, or task=classification",
        )
