"""What trains, in which precision, and that it trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tiny import federation, run_rounds


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
