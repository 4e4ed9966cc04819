"""What every adapter promises, on encoders and decoders, whatever it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from torch import nn

from checkpoints import AUTO, IDS, INPUTS, checkpoint, fresh, load, logits, moved
from trillium.component import known
from trillium.errors import UserError
from trillium.models.adapters import Adapter
from trillium.models.heads import head_layer
from trillium.models.load import LanguageModel

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "lora": [{}, {"rslora": True, "dora": True, "init": "orthonormal"}],
    "bitfit": [{"layer_norm": True}],
    "bottleneck": [{}, {"after": "both", "activation": "gelu", "layers": [1]}],
}
ADAPTERS = [
    {"name": name, **options} for name in known(Adapter) for options in OPTIONS.get(name, [{}])
]
CASES = [
    ("SEQ_CLS", "bert"),
    ("SEQ_CLS", "gpt2"),
    ("CAUSAL_LM", "gpt2"),
    ("CAUSAL_LM", "llama"),
]
each_adapter = pytest.mark.parametrize(
    "adapter", ADAPTERS, ids=lambda a: "-".join(map(str, [a["name"], *list(a.values())[1:]]))
)
each_case = pytest.mark.parametrize(("task", "model"), CASES)


def built(
    hub: Path, task: str, model: str, adapter: dict[str, Any], **options: Any
) -> LanguageModel:
    """Return the model; an adapter that does not fit must name one that does."""
    folder = checkpoint(hub, model, task)
    try:
        return load(folder, task, adapter, **options)
    except UserError as error:
        if "Write adapter=" not in error.instead:
            raise
        pytest.skip(f"refused: {error.why}")


@each_adapter
@pytest.mark.parametrize("task", AUTO)
def test_some_model_takes_it(hub: Path, task: str, adapter: dict[str, Any]) -> None:
    taken = 0
    for case, model in CASES:
        try:
            taken += case == task and bool(
                load(checkpoint(hub, model, task), task, adapter).initial
            )
        except UserError:
            continue
    assert taken


@each_adapter
@each_case
def test_one_step_moves_what_trains_and_nothing_else(
    hub: Path, task: str, model: str, adapter: dict[str, Any]
) -> None:
    language_model = built(hub, task, model, adapter, dtype="float64")
    state = moved(language_model)
    module = language_model.mount(state)
    named = dict(module.named_parameters())
    trainable = {name for name, p in named.items() if p.requires_grad}
    assert trainable == set(state) == set(language_model.initial)
    assert all(named[name] is state[name] for name in state)
    if task == "SEQ_CLS":
        head = head_layer(module)[0]
        assert {name for name in named if name.startswith(f"{head}.")} <= trainable
    before = {n: t.detach().clone() for n, t in module.state_dict().items()}
    found = module(**INPUTS).logits
    assert found.shape[:-1] == (IDS.shape if task == "CAUSAL_LM" else IDS.shape[:1])
    weights = torch.arange(found.numel(), dtype=found.dtype).cos().view_as(found)
    (found * weights).sum().backward()
    torch.optim.Adam(state.values(), lr=0.01).step()
    after = module.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    tied = {n for n, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
    assert changed == tied


@each_adapter
@each_case
def test_the_saved_folder_is_all_that_its_users_need(
    hub: Path, tmp_path: Path, task: str, model: str, adapter: dict[str, Any]
) -> None:
    language_model = built(hub, task, model, adapter)
    state = moved(language_model)
    expected = logits(language_model.mount(state))
    language_model.save(state, tmp_path / "saved")
    if isinstance(language_model.module, PeftModel):
        base = fresh(checkpoint(hub, model, task), task)
        assert not torch.equal(logits(base), expected)
        loaded = PeftModel.from_pretrained(base, tmp_path / "saved")
    else:
        loaded = getattr(transformers, AUTO[task]).from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-5)


@each_adapter
@each_case
def test_what_was_saved_can_be_loaded_again(
    hub: Path, tmp_path: Path, task: str, model: str, adapter: dict[str, Any]
) -> None:
    first = built(hub, task, model, adapter, seed=1)
    state = moved(first)
    expected = logits(first.mount(state))
    first.save(state, tmp_path / "saved")
    # Another seed: nothing that was drawn at the start may be left out of the folder.
    second = built(hub, task, model, adapter, seed=2)
    same = built(hub, task, model, adapter, seed=1).initial
    assert all(torch.equal(first.initial[name], same[name]) for name in same)
    again = second.load_state(tmp_path / "saved")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    torch.testing.assert_close(logits(second.mount(again)), expected, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="do not fit"):
        second.load_state(tmp_path)


@each_adapter
@each_case
def test_padding_changes_nothing(hub: Path, task: str, model: str, adapter: dict[str, Any]) -> None:
    language_model = built(hub, task, model, adapter, dtype="float64")
    module: nn.Module = language_model.mount(moved(language_model)).eval()
    alone = module(**{name: tensor[1:, :3] for name, tensor in INPUTS.items()}).logits
    together = module(**INPUTS).logits[1:]
    together = together[:, :3] if task == "CAUSAL_LM" else together
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)
