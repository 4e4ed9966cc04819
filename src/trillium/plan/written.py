"""A public set that a language model writes, on paper: what its server computes, token by token."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from trillium.data.publics.sampled import Sampled
from trillium.models.base import load_base
from trillium.plan.federation import Federation
from trillium.plan.models import architecture
from trillium.plan.waves import FREE, Work
from trillium.training.meters import resident_tensors


def writing(federation: Federation) -> Work:
    """Return what it costs to write the public set; nothing where no model writes.

    Every text is taken to be as long as it may be, and none to be left out as blank or twice. Prompts
    are measured in words. Each token is a pass of its own over what is kept of those before, and its
    cost is linear in their number.
    """
    config = federation.config
    public = config.data.public
    if not federation.counts or not isinstance(public, Sampled):
        return FREE
    author = _author(federation, public)
    prompt = max((len(text.split()) for text in public.prompts), default=0) + 1
    rows, steps = public.batch_size, public.max_new_tokens - 1
    key = ("write", public.model, id(federation.model), rows, prompt)
    begin = federation.measure(key, partial(_pass, federation, author, rows, prompt, 0))
    peaks, flops = [begin.peak_bytes], begin.flops
    if steps:
        first, last = (
            federation.measure((key, kept), partial(_pass, federation, author, rows, 1, kept))
            for kept in (prompt, prompt + steps - 1)
        )
        peaks.append(last.peak_bytes)
        flops += steps * (first.flops + last.flops) / 2
    num_batches = -(-config.data.public_size // rows)
    return Work(num_batches * flops, tuple(peaks))


def _author(federation: Federation, public: Sampled) -> nn.Module:
    """Return the model that writes: the server's own, or one without weights that is named."""
    model = federation.model
    if public.model is None:
        return model.mount(model.state()).eval()
    wanted = federation.config.of(None).model.model_copy(
        update={
            "id": public.model,
            "revision": None,
            "random_weights": True,
            "quantize": "none",
        }
    )
    config = federation.config.model_copy(update={"model": wanted})
    with torch.device("meta"):
        module, _ = load_base(
            wanted, "AutoModelForCausalLM", architecture(config, 0), torch.device("meta")
        )
    return federation.paper.fake(module).eval()


@torch.inference_mode()
def _pass(federation: Federation, author: nn.Module, rows: int, new: int, kept: int) -> None:
    """Run the model on new tokens behind others of which it has kept keys and values."""
    past = None
    if kept:
        ids = torch.ones(rows, kept, dtype=torch.int64)
        found = author(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
        past = found.past_key_values
    mask = torch.ones(rows, kept + new, dtype=torch.int64)
    ids = torch.ones(rows, new, dtype=torch.int64)
    key = ("write", rows, new, kept)
    with federation.server.meter.measure(key, lambda: resident_tensors(author)):
        author(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        )
