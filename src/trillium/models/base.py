"""The base model: which one, in which form, and its task head before anything is added."""

from __future__ import annotations

import logging
from typing import Any, Literal, Self

import torch
import transformers
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME, cached_file

from trillium.errors import UserError
from trillium.files import PathOrName
from trillium.models.checked import check_read
from trillium.models.draws import draw_missing
from trillium.models.heads import drawn_modules, head_modules
from trillium.models.hub import MISSING, explained, locate
from trillium.models.packaged import MINILM
from trillium.models.quantize import Quantize, check_quantized, quantization

log = logging.getLogger(__name__)


class ModelConfig(BaseModel):
    """Which model, and in which form.

    Attributes:
        id: a hub id, a folder in Hugging Face format, `minilm` for the all-MiniLM-L6-v2 that the extra
            `demo` installs, or `smollm2` for SmolLM2-135M-Instruct (the extra `llm`).
        revision: branch, tag or commit on the hub.
        dtype: data type of weights and computation; `auto` takes that of the checkpoint, as its
            configuration says, or float32.
        attention: PyTorch's fused attention (`sdpa`), or Hugging Face's `eager` one; `auto` takes the
            fused one where Transformers has it for the architecture, and says where it has not.
        dropout: replaces every dropout rate of the model's configuration; kept by default.
        random_weights: build from the configuration alone, without loading weights.
        head: which layers of the task head train beside an adapter, and are exchanged: its last
            `linear` one, or all of the model's `own`. It makes a difference where a model has several
            (RoBERTa, DistilBERT, ELECTRA …). Those that stay frozen keep the weights of the checkpoint,
            or are the identity, if the checkpoint has none and they are square.
        quantize: hold the frozen base in 4-bit normal floats (`nf4`, QLoRA) or in 8-bit integers
            (`int8`), and compute in `dtype`; needs the extra `quantization`.
        resize_embeddings: where the tokenizer has more tokens than the model has embeddings, add rows,
            which are trained, exchanged and exported.
        trust_remote_code: run the code that comes with a model whose architecture Transformers lacks.
        device: `auto` takes a GPU if there is one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: PathOrName = MINILM
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "float32"
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    dropout: float | None = Field(default=None, ge=0.0, lt=1.0)
    random_weights: bool = False
    head: Literal["linear", "own"] = "linear"
    quantize: Quantize = "none"
    resize_embeddings: bool = False
    trust_remote_code: bool = False
    device: str = "auto"

    @model_validator(mode="after")
    def _quantizes(self) -> Self:
        """Refuse to quantise what cannot be."""
        given = f"model.quantize={self.quantize}"
        if self.quantize != "none" and self.random_weights:
            raise UserError(
                f"{given} with model.random_weights=true",
                "weights are quantised as they are read from a checkpoint",
                "Write model.quantize=none, or leave random_weights out",
            )
        if self.quantize != "none" and self.dtype == "float64":
            raise UserError(
                f"{given} with model.dtype=float64",
                "no quantiser computes in float64",
                "Write model.dtype=bfloat16, or float32",
            )
        return self


def load_base(
    config: ModelConfig, auto_class: str, hf_config: Any, device: torch.device, seed: int = 0
) -> tuple[nn.Module, set[str]]:
    """Return the model, and the names of those of its parameters that a frozen base must not trust.

    These are the ones that were drawn at random while others were loaded; without a checkpoint,
    those of the task head.
    """
    model, drawn = _load(config, auto_class, hf_config, device, seed)
    if config.attention == "auto" and device.type != "meta":
        _say_eager(config, model)
    return model, drawn


def _say_eager(config: ModelConfig, model: Any) -> None:
    """Say where Transformers has no fused attention for an architecture."""
    if model.config._attn_implementation == "eager":
        log.warning(
            "model.id=%s: Transformers has eager attention alone for %s, and it is taken",
            config.id,
            model.config.model_type,
        )


def _load(
    config: ModelConfig, auto_class: str, hf_config: Any, device: torch.device, seed: int
) -> tuple[nn.Module, set[str]]:
    auto, classifies = getattr(transformers, auto_class), "Classification" in auto_class
    options = form_of(config, hf_config)
    if config.random_weights:
        with explained(config.id):
            model = auto.from_config(hf_config, **options)
            if device.type != "meta":  # a plan asks no hub for what it does not need
                add_generation(model, config)
        heads = tuple(f"{name}." for name in head_modules(model))
        return model, {n for n, _ in model.named_parameters() if n.startswith(heads)}

    def read(*plain: str) -> tuple[nn.Module, set[str]]:
        with explained(config.id):
            model, found = auto.from_pretrained(
                locate(config.id),
                revision=config.revision,
                config=hf_config,
                ignore_mismatched_sizes=True,  # `check_read` looks at them
                output_loading_info=True,
                **options,
                **quantization(config.quantize, options["dtype"], device, plain),
            )
            check_read(model, found, config.id, classifies=classifies)
        return model, draw_missing(model, found, seed)

    if config.quantize == "none":
        return read()
    with torch.device("meta"):
        heads = head_modules(
            auto.from_config(hf_config, trust_remote_code=config.trust_remote_code)
        )
    model, drawn = read(*heads)
    if drawn_modules(model, drawn):  # quantisers leave what no checkpoint holds in a useless form
        model, drawn = read(*heads, *drawn_modules(model, drawn))
    check_quantized(model, config.quantize)
    return model, drawn


def form_of(config: ModelConfig, hf_config: Any) -> dict[str, Any]:
    """Return what Transformers must be told of the form of a model, loaded or built."""
    return {
        "dtype": dtype_of(config, hf_config),
        "attn_implementation": None if config.attention == "auto" else config.attention,
        "trust_remote_code": config.trust_remote_code,
    }


def dtype_of(config: ModelConfig, hf_config: Any) -> torch.dtype:
    """Return the data type of a model's weights."""
    own = getattr(hf_config.get_text_config(), "dtype", None) or hf_config.dtype or torch.float32
    found: torch.dtype = own if config.dtype == "auto" else getattr(torch, config.dtype)
    return found


def add_generation(model: Any, config: ModelConfig) -> None:
    """Give a model that was not read whole the generation settings beside it, which name its ends."""
    place = (locate(config.id), GENERATION_CONFIG_NAME)
    silent = {f"_raise_exceptions_for_{what}": False for what in MISSING}
    found = cached_file(*place, revision=config.revision, **silent)
    if model.can_generate() and found is not None:
        model.generation_config = GenerationConfig.from_pretrained(
            place[0], revision=config.revision
        )
