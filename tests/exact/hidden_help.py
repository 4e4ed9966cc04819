"""What the tests of hidden states share: federations that send them, and the same rows by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from kd_help import T
from torch import Tensor, nn

from tiny import federation, plain_batch
from trillium.experiment.run import Experiment
from trillium.federation.side import Side
from trillium.frameworks.kd.distillation import predict
from trillium.frameworks.kd.hiddens.probe import Probe
from trillium.frameworks.kd.protocol import KD
from trillium.tasks import IGNORE, Example
from trillium.wire.soft_labels import SoftLabels

SIZE, WEIGHT = 5, 0.7
PROJECTED = f"framework.hidden={{name: projected, size: {SIZE}, weight: {WEIGHT}}}"
# Adapted layers in the middle, whose input Hugging Face tells without a hook.
LAYERS = {
    "gpt2": "h.1.attn.c_attn",
    "bert": "layer.1.attention.self.query",
    "llama": "layers.1.self_attn.q_proj",
}


def setting(kind: str, model: str, weight: float = WEIGHT) -> str:
    own = f"size: {SIZE}" if kind == "projected" else f"layer: {LAYERS[model]}"
    return f"framework.hidden={{name: {kind}, {own}, weight: {weight}}}"


def kd(hub: Path, *words: str, **options: Any) -> Experiment:
    return federation(hub, "framework=kd", f"framework.temperature={T}", *words, **options)


def framework_of(fed: Experiment) -> KD:
    assert isinstance(fed.config.framework, KD)
    return fed.config.framework


def probe_of(side: Side, fed: Experiment) -> Probe:
    found = framework_of(fed).hidden.probe(side)
    assert found is not None
    return found


def input_by_hand(module: Any, example: Example, kind: str) -> Tensor:
    """Hidden states `(rows, width)` of one example, without padding, from Hugging Face's outputs."""
    inputs, labels = plain_batch([example])
    backbone = module.get_base_model().base_model
    out = backbone(**inputs, output_hidden_states=True)
    if kind == "lora":
        states: Tensor = out.hidden_states[1]
        if hasattr(backbone, "h"):
            states = backbone.h[1].ln_1(states)
        elif hasattr(backbone, "layers"):
            states = backbone.layers[1].input_layernorm(states)
        if labels.dim() == 1:
            return states.mean(1)
    elif hasattr(out, "pooler_output") and out.pooler_output is not None:
        return out.pooler_output  # type: ignore[no-any-return]
    else:
        states = out.last_hidden_state
        if labels.dim() == 1:
            return states[:, -1]
    return states[0, :-1][labels[0, 1:] != IGNORE]


def rows_by_hand(
    module: nn.Module, examples: Sequence[Example], kind: str, matrix: Tensor
) -> Tensor:
    found = torch.cat([input_by_hand(module, example, kind) for example in examples])
    return found @ matrix.double()


def noise(rows: int, columns: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def labels_of(log_probs: Tensor, fed: Experiment) -> SoftLabels:
    shape = log_probs.shape
    writer = fed.config.wire.writer("learn", "logits/teacher", 1, (shape[0], shape[1]), "down")
    writer.add(log_probs)
    return writer.done()


def states(fed: Experiment, public: list[Example], probe: Probe) -> Tensor:
    side = fed.server
    shape = sum(map(side.task.num_targets, public)), side.model.num_classes
    writer = fed.config.wire.writer("teach", "logits/public", 1, shape, "up")
    _, found = predict(side.loop("predict", side.state), side.task, public, writer, probe)
    assert found is not None
    return found
