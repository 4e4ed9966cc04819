"""What trains, in which precision, and that it trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from checkpoints import checkpoint, fresh, load, logits, moved
from tiny import federation, run_rounds
from trillium.errors import UserError
from trillium.models.adapters.ia3 import IA3
from trillium.models.heads import head_layer
from trillium.models.load import LanguageModel


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("model", ["bert", "gpt2"])
@pytest.mark.parametrize("framework", ["fedllm", "split"])
def test_half_precision_trains_in_float32(
    hub: Path, model: str, dtype: str, framework: str
) -> None:
    fed = federation(hub, f"model.dtype={dtype}", f"framework={framework}", model=model)
    assert {tensor.dtype for tensor in fed.model.initial.values()} == {torch.float32}
    frozen = [p for p in fed.model.module.parameters() if not p.requires_grad]
    assert {p.dtype for p in frozen} == {getattr(torch, dtype)}
    before = {name: tensor.clone() for name, tensor in fed.model.initial.items()}
    run_rounds(fed, 1)
    after = fed.server.state
    moved = [name for name in before if not torch.equal(before[name], after[name].detach())]
    assert any("lora_B" in name for name in moved)
    assert any("lora" not in name for name in moved), "the head must train, too"


def test_layers_limit_where_lora_goes(hub: Path) -> None:
    fed = federation(hub, "adapter.layers=[1]")
    blocks = {name.split(".h.")[1][0] for name in fed.model.initial if "lora" in name}
    assert blocks == {"1"}
    alike = federation(hub, "adapter.layers=null")
    assert {n.split(".h.")[1][0] for n in alike.model.initial if "lora" in n} == {"0", "1", "2"}


@pytest.mark.parametrize("model", ["gpt2", "bert"])
def test_all_linear_layers_of_some_blocks(hub: Path, model: str) -> None:
    def adapted(**options: object) -> set[str]:
        adapter = {"name": "lora", "target_modules": "all-linear", **options}
        names = load(checkpoint(hub, model, "SEQ_CLS"), "SEQ_CLS", adapter).initial
        return {name.partition(".lora_")[0] for name in names if ".lora_" in name}

    every = adapted()
    last = {name for name in every if ".1." in name and "pooler" not in name}
    assert adapted(layers=[1]) == last
    assert 3 < len(last) < len(every)


def trained(model: LanguageModel) -> set[str]:
    """Names of what trains, without what PEFT puts in front and between."""
    return {
        name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
        for name in model.initial
    }


def test_bitfit_trains_biases_and_head(hub: Path) -> None:
    folder = checkpoint(hub, "bert", "SEQ_CLS")
    plain = {name for name, _ in fresh(folder, "SEQ_CLS").named_parameters()}
    head = {"classifier.weight", "classifier.bias"}
    biases = {name for name in plain if name.endswith(".bias") and "pooler" not in name}
    assert trained(load(folder, "SEQ_CLS", "bitfit")) == biases | head
    norms = {name for name in plain if "LayerNorm" in name}
    both = load(folder, "SEQ_CLS", {"name": "bitfit", "layer_norm": True})
    assert trained(both) == biases | norms | head


def test_bitfit_refuses_a_model_without_biases(hub: Path) -> None:
    folder = checkpoint(hub, "llama", "CAUSAL_LM")
    with pytest.raises(UserError, match="no biases") as caught:
        load(folder, "CAUSAL_LM", "bitfit")
    assert "layer_norm=true" in caught.value.instead
    found = load(folder, "CAUSAL_LM", {"name": "bitfit", "layer_norm": True})
    assert all("norm" in name for name in trained(found))


@pytest.mark.parametrize("adapter", ["bottleneck", "ia3", {"name": "bitfit", "layer_norm": True}])
@pytest.mark.parametrize("model", ["bert", "llama"])
def test_half_precision_computes_with_every_adapter(hub: Path, model: str, adapter: object) -> None:
    folder = checkpoint(hub, model, "SEQ_CLS")
    found = load(folder, "SEQ_CLS", adapter, dtype="bfloat16")
    head, _ = head_layer(found.module)
    assert found.initial[f"{head}.weight"].dtype == torch.float32
    state = moved(found)
    wide = load(folder, "SEQ_CLS", adapter)
    same = wide.state({name: tensor.float() for name, tensor in state.items()})
    expected = logits(wide.mount(same))
    torch.testing.assert_close(logits(found.mount(state)).float(), expected, rtol=0.05, atol=0.05)
    assert (logits(wide.mount(wide.state())) - expected).abs().max() > 0.2
    kept = {n for n, t in found.initial.items() if t.dtype != torch.float32}
    assert all(name.endswith("bias") for name in kept), "only BitFit's biases are the base's own"


def test_bottlenecks_stand_where_they_are_asked_for(hub: Path) -> None:
    folder = checkpoint(hub, "bert", "SEQ_CLS")

    def places(**options: object) -> set[str]:
        found = load(folder, "SEQ_CLS", {"name": "bottleneck", **options})
        return {n.split("layer.")[1].split(".bottleneck")[0] for n in found.initial if "neck" in n}

    after = {f"{index}.output.dense" for index in range(3)}
    assert places() == after
    assert places(after="both") == after | {f"{i}.attention.output.dense" for i in range(3)}
    assert places(layers=[1]) == {"1.output.dense"}
    assert places(target_modules=["query"]) == {f"{i}.attention.self.query" for i in range(3)}
    with pytest.raises(UserError, match="no layer there"):
        places(target_modules=["nowhere"])


def test_bottlenecks_are_the_identity_at_the_start(hub: Path) -> None:
    folder = checkpoint(hub, "gpt2", "CAUSAL_LM")
    found = load(folder, "CAUSAL_LM", "bottleneck")
    assert torch.equal(logits(found.module), logits(fresh(folder, "CAUSAL_LM")))
    assert not torch.equal(logits(found.mount(moved(found))), logits(fresh(folder, "CAUSAL_LM")))


def test_inputs_scaled_by_ia3_are_targets() -> None:
    with pytest.raises(ValidationError, match="not all among"):
        IA3(target_modules=("query",), feedforward_modules=("dense",))


def test_virtual_tokens_are_refused_where_padding_would_be_read(hub: Path) -> None:
    with pytest.raises(UserError, match="last token that is not padding") as caught:
        load(checkpoint(hub, "llama", "SEQ_CLS"), "SEQ_CLS", "prompt")
    assert "lora" in caught.value.instead


def test_greedy_answers_follow_the_logits(hub: Path) -> None:
    folder = checkpoint(hub, "gpt2", "CAUSAL_LM")
    found = load(folder, "CAUSAL_LM", {"name": "prompt", "tokens": 4})
    module = found.mount(moved(found)).eval()
    ids = torch.tensor([[5, 6, 7]])
    answer = module.generate(  # type: ignore[operator]
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False
    )
    with torch.no_grad():
        for _ in range(answer.shape[1] - 3):
            best = module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -1]
            ids = torch.cat([ids, best.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(answer, ids)


@pytest.mark.parametrize("adapter", ["bottleneck", "prompt"])
def test_what_is_no_change_of_weights_cannot_be_merged(
    hub: Path, tmp_path: Path, adapter: str
) -> None:
    found = load(checkpoint(hub, "bert", "SEQ_CLS"), "SEQ_CLS", adapter)
    with pytest.raises(UserError, match="Export without --merge"):
        found.save_merged(found.state(), tmp_path / "merged")


@pytest.mark.parametrize("adapter", ["lora", "ia3", {"name": "bitfit", "layer_norm": True}])
def test_what_is_a_change_of_weights_can(hub: Path, tmp_path: Path, adapter: object) -> None:
    found = load(checkpoint(hub, "bert", "SEQ_CLS"), "SEQ_CLS", adapter)
    state = moved(found)
    expected = logits(found.mount(state))
    found.save_merged(state, tmp_path / "merged")
    merged = fresh(tmp_path / "merged", "SEQ_CLS")
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5)
