"""What a model's folder holds beside weights, so that Transformers and PEFT need nothing else."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import GenerationConfig

from trillium.models.blocks import base_model
from trillium.tasks.ends import end_ids


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield a folder to write into, and put it in place of another when the block has ended well."""
    staging = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    yield staging
    # A run that was killed at its very end finds what it wrote before.
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)


def write(module: nn.Module, tokenizer: Any, peft_task: str, folder: Path) -> None:
    """Write a model, or its adapter, with how it is to be used.

    Beside the adapter of a classifier lies the configuration of its base, which names the classes and
    the token for padding; a language model comes with the tokens that end a text.
    """
    model: Any = base_model(module)
    with (
        _as_used(model, tokenizer, writes=peft_task == "CAUSAL_LM"),
        warnings.catch_warnings(action="ignore"),  # PEFT says that it saves adapted embeddings, too
    ):
        module.save_pretrained(folder)  # type: ignore[operator]
        if isinstance(module, PeftModel):
            if peft_task == "CAUSAL_LM":
                model.generation_config.save_pretrained(folder)
            else:
                model.config.save_pretrained(folder)


@contextmanager
def _as_used(model: Any, tokenizer: Any, *, writes: bool) -> Iterator[None]:
    """Set a model to what its users want, which training did not."""
    use_cache, own = model.config.use_cache, getattr(model, "generation_config", None)
    model.config.use_cache = True
    if writes:
        model.generation_config = _generation(own, tokenizer, end_ids(tokenizer, model))
    try:
        yield
    finally:
        model.config.use_cache = use_cache
        if writes:
            model.generation_config = own


def _generation(
    own: GenerationConfig | None, tokenizer: Any, ends: Sequence[int]
) -> GenerationConfig:
    """Return how a model writes: as its checkpoint says, up to what ends a response."""
    known = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": list(ends) or None,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = copy.deepcopy(own) or GenerationConfig()
    try:
        config.update(**known, use_cache=True)
        config.validate(strict=True)
    except (ValueError, TypeError):  # of a checkpoint that contradicts itself: it cannot be written
        return GenerationConfig(**known)
    return config
