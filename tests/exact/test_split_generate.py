"""A cut model writes what the whole one writes, and is saved as what is evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from tiny import experiment_config, federation, perturb, plain_batch, run_rounds
from trillium.experiment import Experiment, build
from trillium.models.generate import PartSession, generate
from trillium.models.split import SplitModel, split_model
from trillium.run_folder import RunFolder

CUTS = [(1, None), (2, None), (1, 2), (1, 3)]
NEW = 8


def model_and_prompts(hub: Path, model: str, side: str) -> tuple[Any, Tensor, Tensor]:
    fed = perturb(federation(hub, model=model, task="causal_lm"))
    module = fed.model.mount(fed.model.state()).eval()
    prompts = [torch.randint(4, 44, (n,), generator=torch.Generator().manual_seed(n))
               for n in (3, 9, 6)]  # fmt: skip
    ids = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_side=side)
    return module, ids, (ids != 0).long()


def unsplit(module: Any, ids: Tensor, mask: Tensor, eos: int | None) -> Tensor:
    found: Tensor = module.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=eos,
        use_cache=True,
    )
    return found


def parts_of(module: Any, cut: int, tail: int | None) -> SplitModel:
    split = split_model(module, cut, tail)
    for part in split.parts:
        part.eval()
    return split


@pytest.mark.parametrize(("cut", "tail"), CUTS)
@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_the_cut_model_writes_what_the_whole_one_writes(
    hub: Path, model: str, cut: int, tail: int | None
) -> None:
    module, ids, mask = model_and_prompts(hub, model, "left")
    split = parts_of(module, cut, tail)
    free = unsplit(module, ids, mask, None)
    assert torch.equal(generate(split, ids, mask, max_new_tokens=NEW), free)
    # A token that is written early in one text ends it there, and the others go on.
    eos = int(free[0, ids.shape[1] + 2])
    ended = unsplit(module, ids, mask, eos)
    assert not torch.equal(ended, free)
    assert torch.equal(generate(split, ids, mask, max_new_tokens=NEW, eos_token_id=eos), ended)


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_positions_that_count_padding_would_be_told_apart(hub: Path, model: str) -> None:
    module, ids, mask = model_and_prompts(hub, model, "left")
    split = parts_of(module, 1, None)
    first, second = PartSession(split.head), PartSession(split.body)
    right = second.step(first.step(ids, mask), mask)[:, -1]
    with torch.no_grad():
        hidden = split.head(None, input_ids=ids, attention_mask=mask)
        wrong = split.body(hidden, attention_mask=mask)[:, -1]
    assert torch.allclose(right[1], wrong[1])  # the longest one has no padding
    if model == "gpt2":  # rotary positions are relative: an offset is no difference
        assert not torch.allclose(right[0], wrong[0])


def test_only_new_tokens_cross(hub: Path) -> None:
    module, ids, mask = model_and_prompts(hub, "gpt2", "left")
    split, crossed = parts_of(module, 1, 2), []

    def cross(hidden: Tensor) -> Tensor:
        crossed.append(tuple(hidden.shape))
        return hidden

    generate(split, ids, mask, max_new_tokens=3, cross=cross)
    assert crossed == [(3, 9, 12)] * 2 + [(3, 1, 12)] * 4


WORDS = {
    "cached": ("framework.train=server", "framework.cut=2"),
    "exchange": ("framework.mode=splitfed_v1",),
    "u": ("framework.shape=u", "framework.tail=2"),
    "local first": ("framework.train=server", "framework.local_rounds=1"),
}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS.keys())
@pytest.mark.parametrize("task", ["classification", "causal_lm"])
def test_it_is_saved_as_one_adapter(
    hub: Path, tmp_path: Path, task: str, words: tuple[str, ...]
) -> None:
    """PEFT alone reads the folder; its logits are those of the parts, one after the other."""
    config = experiment_config(hub, "framework=split", *words, task=task)
    fed = build(config, RunFolder(tmp_path / "run", "run"))
    fed.run()
    auto = AutoModelForCausalLM if task == "causal_lm" else AutoModelForSequenceClassification
    with torch.random.fork_rng():
        hf = AutoConfig.from_pretrained(hub / "gpt2", num_labels=3)
        plain = auto.from_config(hf, dtype=torch.float64)
    plain.load_state_dict(_base(fed), strict=False)
    loaded = PeftModel.from_pretrained(plain, tmp_path / "run" / "adapter").eval()
    inputs, _ = plain_batch(fed.server.test[:6])
    framework: Any = fed.config.framework
    parts = framework.parts(fed.model, fed.server.test)
    for slots in (parts.head, parts.body, parts.tail):
        slots.mount(fed.server.state)
    with torch.no_grad():
        expected = loaded(**inputs).logits
        hidden = None
        for part in parts.split.parts:
            hidden = part.eval()(hidden, **inputs)
        start = fed.model.mount(fed.model.state()).eval()(**inputs).logits
    assert hidden is not None
    kept = ... if task == "classification" else inputs["attention_mask"].bool()
    torch.testing.assert_close(hidden[kept], expected[kept], atol=1e-10, rtol=1e-10)
    assert not torch.allclose(start[kept], expected[kept])


def _base(fed: Experiment) -> dict[str, Tensor]:
    """The frozen weights by the names of the plain model, and the head as it began."""
    module: Any = fed.model.mount(fed.model.state())
    plain = module.get_base_model().state_dict()
    return {
        name.replace(".base_layer", "").replace(".modules_to_save.default", ""): tensor
        for name, tensor in plain.items()
        if "lora_" not in name and ".original_module." not in name
    }


def test_the_file_of_activations_is_gone_when_the_run_has_finished(
    hub: Path, tmp_path: Path
) -> None:
    config = experiment_config(hub, "framework=split", "framework.train=server")
    fed = build(config, RunFolder(tmp_path / "run", "run"))
    found: list[bool] = []
    fed.run(lambda _: found.append((tmp_path / "run/checkpoints/activations.bin").exists()))
    assert found == [False, True, True]
    assert not (tmp_path / "run" / "checkpoints").exists()
    run_rounds(federation(hub, "framework=split", "framework.train=server"), 1)
