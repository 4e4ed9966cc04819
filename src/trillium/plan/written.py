"""A public set that a language model writes, on paper: what its server computes, token by token."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import nn

from trillium.config.experiment import ExperimentConfig
from trillium.data.publics.sampled import Sampled
from trillium.models.base import load_base
from trillium.models.load import LanguageModel
from trillium.plan.fakes import Paper
from trillium.plan.models import architecture
from trillium.plan.moments import Phases
from trillium.plan.phases import PhaseMeter
from trillium.training.meters import resident_tensors


def writing(
    config: ExperimentConfig, model: LanguageModel, paper: Paper, meter: PhaseMeter
) -> tuple[float, Mapping[str, Phases]]:
    """Return the FLOPs of writing the public set, and the most memory; nothing where no model writes.

    Every text is taken to be as long as it may be, and none to be left out as blank or twice. Prompts
    are measured in words. Each token is a pass of its own over what is kept of those before, and its
    cost is linear in their number.
    """
    public = config.data.public
    if not isinstance(public, Sampled):
        return 0.0, {}
    prompt = max((len(text.split()) for text in public.prompts), default=0) + 1
    rows, steps = public.batch_size, public.max_new_tokens - 1
    with paper.running():
        author = _author(config, model, public, paper)
        spent = partial(_spent, meter, author, rows)
        flops = spent(prompt, 0)
        if steps:
            flops += steps * (spent(1, prompt) + spent(1, prompt + steps - 1)) / 2
    return -(-config.public_size // rows) * flops, meter.most


def _author(
    config: ExperimentConfig, model: LanguageModel, public: Sampled, paper: Paper
) -> nn.Module:
    """Return the model that writes: the server's own, or one without weights that is named."""
    if public.model is None:
        return model.mount(model.state()).eval()
    changes = {"id": public.model, "revision": None, "random_weights": True, "quantize": "none"}
    wanted = config.of(None).model.model_copy(update=changes)
    named = architecture(config.model_copy(update={"model": wanted}), 0)
    with torch.device("meta"):
        module, _ = load_base(wanted, "AutoModelForCausalLM", named, torch.device("meta"))
    return paper.fake(module).eval()


@torch.inference_mode()
def _spent(meter: PhaseMeter, author: nn.Module, rows: int, new: int, kept: int) -> float:
    """Return the FLOPs of new tokens behind others of which the model has kept keys and values."""
    past = None
    if kept:
        ids = torch.ones(rows, kept, dtype=torch.int64)
        found = author(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
        past = found.past_key_values
    mask = torch.ones(rows, kept + new, dtype=torch.int64)
    ids = torch.ones(rows, new, dtype=torch.int64)
    before = meter.read().flops
    with meter.measure(("write", rows, new, kept), lambda: resident_tensors(author)):
        author(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        )
    return meter.read().flops - before
