"""Distillation of language models with logits in parts: the same results, and memory that stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tiny import distance, federation, perturb, run_rounds
from trillium.experiment.run import Experiment
from trillium.frameworks.kd import distillation
from trillium.frameworks.kd.last_layer import before_vocabulary, ends_in_vocabulary
from trillium.wire import soft_labels

SIZES = dict(
    vocab_size=50, hidden_size=12, num_hidden_layers=2, num_attention_heads=2, head_dim=4,
    num_key_value_heads=1, intermediate_size=20, max_position_embeddings=32, pad_token_id=0,
)  # fmt: skip


def after_a_round(hub: Path, model: str, *words: str) -> Experiment:
    settings = ("framework=kd", "data.num_clients=2", "rounds=1", *words)
    fed = perturb(federation(hub, *settings, model=model, task="causal_lm"))
    run_rounds(fed, 1)
    return fed


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_logits_in_parts_give_the_same_models(
    hub: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("framework.public_labels=true", "wire.down=[{name: top_classes, k: 5}]")
    whole = after_a_round(hub, model, *words)
    monkeypatch.setattr(distillation, "WIDE", 1)
    monkeypatch.setattr(soft_labels, "CHUNK", 44 * 3)  # three rows at once
    rows: list[int] = []

    def counted(*given: object) -> object:
        rows.append(len(given[0]))  # type: ignore[arg-type]
        return plain(*given)  # type: ignore[arg-type]

    plain = distillation.distillation_loss
    monkeypatch.setattr(distillation, "distillation_loss", counted)
    parts = after_a_round(hub, model, *words)
    assert rows
    assert max(rows) == 3
    # Soft labels cross as float32; Llama computes in it in places.
    assert distance(whole.server.state, parts.server.state) < 1e-5
    assert distance(whole.server.state, whole.model.initial) > 1e-3
    own = [fed.clients[0].store["tensors"] for fed in (whole, parts)]
    assert distance(*own) < 1e-5


def language_model(kind: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **options})
    model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model


def test_models_that_cap_their_logits_are_told_apart() -> None:
    assert ends_in_vocabulary(language_model("llama"))
    assert not ends_in_vocabulary(language_model("gemma2", final_logit_softcapping=1e-3))
    uncapped = language_model("gemma2", final_logit_softcapping=None)
    assert ends_in_vocabulary(uncapped)
    ids = torch.tensor([[4, 5, 6]])
    wanted = uncapped(input_ids=ids).logits
    with before_vocabulary(uncapped) as layer:
        hidden = uncapped(input_ids=ids).logits
        assert hidden.shape == (1, 3, 12)
        assert torch.equal(layer(hidden), wanted)
    assert torch.equal(uncapped(input_ids=ids).logits, wanted)


def test_memory_does_not_grow_with_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """What autograd keeps for the backward pass: parts of the hidden states, and no logits."""
    from trillium.tasks import Example
    from trillium.tasks.batches import collate
    from trillium.tasks.causal_lm import CausalLM
    from trillium.wire.codecs.top_classes import TopClasses
    from trillium.wire.soft_labels import Teacher, Writer

    monkeypatch.setattr(soft_labels, "CHUNK", 2**12)
    examples = [Example(i, torch.arange(4, 28), torch.arange(4, 28)) for i in range(8)]
    batch = collate(examples, 0, torch.device("cpu"))
    kept: dict[tuple[int, bool], int] = {}
    for size in (1_000, 4_000):
        model = language_model("llama", vocab_size=size)
        writer = Writer(TopClasses(k=4), 8 * 23, size, 0)
        writer.add(torch.randn(8 * 23, size).log_softmax(-1))
        for apart in (False, True):
            objective = distillation.distillation_objective(
                CausalLM(),
                examples,
                Teacher(writer.done(), torch.ones(8 * 23, dtype=torch.bool)),
                distillation.Loss(2.0),
                apart=apart,
            )
            saved: dict[int, int] = {}

            def note(tensor: torch.Tensor, saved: dict[int, int] = saved) -> torch.Tensor:
                if not isinstance(tensor, nn.Parameter) and tensor.shape[-1:] != (12,):
                    saved[tensor.untyped_storage().data_ptr()] = tensor.nbytes
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                objective(model, batch)
            kept[size, apart] = sum(saved.values())
    assert kept[4_000, True] - kept[1_000, True] < 8 * 23 * 4 * 100
    assert kept[4_000, False] - kept[1_000, False] > 8 * 23 * 4 * 2_000
