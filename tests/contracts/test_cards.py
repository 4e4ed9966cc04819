"""What a model card says of how to load a model loads it, and it answers as the run's own did."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from checkpoints import checkpoint, fresh, load, logits, moved
from tiny import experiment_config
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import build
from trillium.experiment.trained import export_run, load_trained

REAL = ("model.random_weights=false", "model.dtype=float32", "rounds=1", "adapter=lora")
CODE = {
    "conf.py": "from transformers import LlamaConfig\n\n\n"
    "class MineConfig(LlamaConfig):\n    model_type = 'mine'\n",
    "mod.py": "from transformers import LlamaForCausalLM\n\nfrom .conf import MineConfig\n\n\n"
    "class MineForCausalLM(LlamaForCausalLM):\n    config_class = MineConfig\n",
}


def as_the_card_says(folder: Path) -> Any:
    """Return the model that the code of a card loads."""
    text = (folder / "README.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("FOLDER", str(folder)), names)
    return names["model"]


def loads(hub: Path, folder: Path, *words: str, model: str, task: str) -> None:
    """Run, export, and load both forms by their cards."""
    words = (f"model.id={hub}", *REAL, "training.optimizer.lr=0.5", *words)
    config = experiment_config(hub.parent, *words, model=model, task=task)
    build(config, RunFolder(folder / "run", "run")).run()
    found = load_trained(folder / "run")
    expected = logits(found.model.mount(found.state))
    for name in ("adapter", "whole"):
        export_run(folder / "run", folder / name, merge=name == "whole")
        assert torch.allclose(logits(as_the_card_says(folder / name)), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "task"),
    [("gpt2", "causal_lm"), ("llama", "causal_lm"), ("bert", "classification")],
)
def test_a_model_with_new_tokens(hub: Path, tmp_path: Path, model: str, task: str) -> None:
    source = checkpoint(hub, model, "CAUSAL_LM" if task == "causal_lm" else "SEQ_CLS")
    folder = hub / f"wordy-{model}"
    if not folder.exists():
        shutil.copytree(source, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(["w98", "w99"])
        tokenizer.save_pretrained(folder)
    loads(folder, tmp_path, "model.resize_embeddings=true", model=model, task=task)


def test_a_classifier_whose_base_has_more_classes(hub: Path, tmp_path: Path) -> None:
    base = checkpoint(hub, "bert", "SEQ_CLS", with_head=True)
    rows = (hub / "classification.jsonl").read_text().splitlines()
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(row for row in rows if "class 2" not in row))
    loads(base, tmp_path, f"data.source.train={few}", model="bert", task="classification")


@pytest.mark.slow
def test_a_model_with_code_of_its_own(hub: Path, tmp_path: Path) -> None:
    folder = hub / "remote"
    if not folder.exists():
        shutil.copytree(checkpoint(hub, "llama", "CAUSAL_LM"), folder)
        for name, text in CODE.items():
            (folder / name).write_text(text)
        auto = {"AutoConfig": "conf.MineConfig", "AutoModelForCausalLM": "mod.MineForCausalLM"}
        about = json.loads((folder / "config.json").read_text())
        about |= {"model_type": "mine", "auto_map": auto}
        (folder / "config.json").write_text(json.dumps(about))
    words = ("model.trust_remote_code=true", "adapter.target_modules=all-linear")
    loads(folder, tmp_path, *words, model="llama", task="causal_lm")


@pytest.mark.parametrize(
    ("model", "adapter"),
    [
        ("roberta", {"name": "ia3"}),
        ("roberta", {"name": "lora"}),
        (
            "distilbert",
            {"name": "ia3", "target_modules": ["q_lin", "lin2"], "feedforward_modules": ["lin2"]},
        ),
    ],
)
def test_a_head_of_several_layers_is_merged(
    hub: Path, tmp_path: Path, model: str, adapter: dict[str, object]
) -> None:
    found = load(checkpoint(hub, model, "SEQ_CLS"), "SEQ_CLS", adapter, head="own")
    state = moved(found)
    expected = logits(found.mount(state))
    found.save_merged(state, tmp_path / "whole")
    assert torch.allclose(logits(fresh(tmp_path / "whole", "SEQ_CLS")), expected, atol=1e-4)
