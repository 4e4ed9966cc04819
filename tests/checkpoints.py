"""Tiny checkpoints on disk, so that adapters can be tried as their users load them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig

from tiny import _COMMON, CONFIGS
from trillium.component import resolve
from trillium.models.adapters import Adapter
from trillium.models.base import ModelConfig
from trillium.models.load import LanguageModel, load_model
from trillium.models.slots import State

AUTO = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
}
LABELS = ("a", "b", "c")
MORE: dict[str, dict[str, Any]] = {
    "roberta": CONFIGS["bert"],
    "electra": {**CONFIGS["bert"], "embedding_size": 12},
    "distilbert": dict(
        dim=12,
        n_layers=3,
        n_heads=3,
        hidden_dim=20,
        max_position_embeddings=64,
        initializer_range=0.3,
    ),
}
IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 0, 0]])
INPUTS = {"input_ids": IDS, "attention_mask": (IDS != 0).long()}


def checkpoint(hub: Path, model: str, task: str, *, with_head: bool = False) -> Path:
    """Return the folder of a model with weights; a classifier comes without head or pooler."""
    folder = hub / f"{model}-{task}-{with_head}"
    if not folder.exists():
        options = CONFIGS.get(model) or MORE[model]
        config = AutoConfig.for_model(model, **_COMMON, **options, num_labels=len(LABELS))
        with torch.random.fork_rng():
            torch.manual_seed(1)
            built = getattr(transformers, AUTO[task]).from_config(config)
        if task == "SEQ_CLS" and not with_head:
            built = built.base_model
            if hasattr(built, "pooler"):
                built.pooler = None
        built.save_pretrained(folder)
        for file in (hub / "bert").glob("token*"):
            shutil.copy(file, folder)
    return folder


def load(
    folder: Path, task: str, adapter: object, *, seed: int = 0, **options: Any
) -> LanguageModel:
    """Return the model in a folder with an adapter."""
    return load_model(
        ModelConfig(id=str(folder), device="cpu", **options),
        resolve(Adapter, adapter),
        auto_class=AUTO[task],
        peft_task=task,
        labels=LABELS if task == "SEQ_CLS" else (),
        seed=seed,
    )


def fresh(folder: Path, task: str) -> Any:
    """Return the plain model in a folder, what it lacks drawn anew, as its users load it."""
    with torch.random.fork_rng():
        torch.manual_seed(77)
        config = AutoConfig.from_pretrained(folder, num_labels=len(LABELS))
        return getattr(transformers, AUTO[task]).from_pretrained(folder, config=config).eval()


def moved(model: LanguageModel, seed: int = 0) -> State:
    """Return a state away from the start, where LoRA's B is zero."""
    state, draw = model.state(), torch.Generator().manual_seed(seed)
    for parameter in state.values():
        noise = torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)
        parameter.data += 0.1 * noise
    return state


@torch.no_grad()
def logits(module: Any) -> torch.Tensor:
    """Return the logits of two texts, the second one padded, for the tokens that were given."""
    found: torch.Tensor = module.eval()(**INPUTS).logits
    return found if found.dim() == 2 else found[:, -IDS.shape[1] :]
