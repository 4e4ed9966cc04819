"""What is exported is what was evaluated, for every aggregator, adapter and head."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from transformers import AutoConfig

from checkpoints import checkpoint, logits, moved
from tiny import experiment_config
from trillium.component import known
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import Experiment, build
from trillium.experiment.trained import evaluate_run, export_run, load_trained
from trillium.frameworks.fedllm.aggregators import Aggregator
from trillium.frameworks.heads import Head
from trillium.models.adapters import Adapter
from trillium.models.load import LanguageModel

pytestmark = pytest.mark.usefixtures("uncounted")

AGGREGATORS = [*known(Aggregator), "{name: svd, fold_rest: true}", "{name: fedex, rank: 1}"]
LORA = "{name: lora, r: 3, target_modules: [query, value]}"
ADAPTERS = [name for name in known(Adapter) if name != "lora"] + [LORA]
HEADS = [*known(Head)]
FAST = (
    "rounds=1",
    "data.num_clients=5",
    "training.local_steps=1",
    "training.batch_size=8",
    "data.public_size=1",
)
TIED = [
    ("gpt2", "[c_attn, lm_head]"),
    ("gpt2", "[wte, c_attn]"),
    ("gpt2", "[wte, lm_head]"),
    ("llama", "[q_proj, embed_tokens]"),
]


def run(hub: Path, folder: Path, task: str, model: str, *words: str) -> Experiment:
    """Run on a checkpoint with weights; a refused setting skips the test."""
    base = checkpoint(hub, model, "SEQ_CLS" if task == "classification" else "CAUSAL_LM")
    fast = () if "framework=zero_shot" in words else FAST
    given = (f"model.id={base}", "model.random_weights=false", "model.dtype=float32", *fast, *words)
    try:
        config = experiment_config(hub, *given, model=model, task=task)
        built = build(config, RunFolder(folder / "run", "run"))
        built.run()
    except UserError as error:
        pytest.skip(f"refused: {error.why}")
    return built


def assert_shipped(built: Experiment, hub: Path, folder: Path, atol: float = 2e-5) -> None:
    """Hold what is evaluated again, exported, and merged to the model that was measured."""
    assert built.folder is not None
    path, server = built.folder.path, built.server
    expected = logits(built.model.mount(server.state, server.base))
    scale = float(expected.abs().max())

    def same(found: torch.Tensor) -> None:
        torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=atol * scale)

    again = evaluate_run(path, {})
    assert again["loss"] == pytest.approx(built.history[-1]["loss"], rel=100 * atol)
    trained = load_trained(path)
    same(logits(trained.model.mount(trained.state)))
    auto = getattr(transformers, built.config.task.auto_class)
    export_run(path, folder / "adapter", merge=False)
    if (folder / "adapter" / "adapter_config.json").is_file():
        config = folder / "adapter" if built.data.labels else built.config.model.id
        dtype = built.config.model.dtype
        base = auto.from_pretrained(
            built.config.model.id, config=AutoConfig.from_pretrained(config), dtype=dtype
        )
        same(logits(PeftModel.from_pretrained(base, folder / "adapter")))
    else:
        same(logits(auto.from_pretrained(folder / "adapter")))
    if built.config.adapter.name in ("bottleneck", "prompt"):
        with pytest.raises(UserError, match="Export without --merge"):
            export_run(path, folder / "merged", merge=True)
        return
    export_run(path, folder / "merged", merge=True)
    same(logits(auto.from_pretrained(folder / "merged")))


def check(hub: Path, folder: Path, aggregator: str, adapter: str, head: str) -> None:
    """Run and export one choice of each."""
    words = (f"framework.aggregator={aggregator}", f"adapter={adapter}", f"head={head}")
    built = run(hub, folder, "classification", "bert", *words)
    assert_shipped(built, hub, folder)


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_every_aggregator_ships_what_it_was_measured_by(
    hub: Path, tmp_path: Path, aggregator: str
) -> None:
    check(hub, tmp_path, aggregator, LORA, "random")


def triples() -> Iterator[Any]:
    """All choices of three; every two meet in a slow case, and the other cases are a drill."""
    usual = {"mean", LORA, "random"}
    for choice in product(AGGREGATORS, ADAPTERS, HEADS):
        mark = pytest.mark.slow if usual.intersection(choice) else pytest.mark.drill
        yield pytest.param(*choice, marks=mark)


@pytest.mark.parametrize(("aggregator", "adapter", "head"), triples())
def test_so_does_every_adapter_and_head_under_it(
    hub: Path, tmp_path: Path, aggregator: str, adapter: str, head: str
) -> None:
    check(hub, tmp_path, aggregator, adapter, head)


@pytest.mark.parametrize("aggregator", ["mean", "stack"])
@pytest.mark.parametrize(("model", "targets"), TIED)
def test_embeddings_that_are_tied_ship_as_they_were_trained(
    hub: Path, tmp_path: Path, model: str, targets: str, aggregator: str
) -> None:
    adapter = f"adapter={{name: lora, r: 3, target_modules: {targets}}}"
    words = (adapter, f"framework.aggregator={aggregator}", "training.optimizer.lr=0.1")
    built = run(hub, tmp_path, "causal_lm", model, *words)
    assert_shipped(built, hub, tmp_path)


@pytest.mark.parametrize("framework", ["kd", "split", "centralised", "fedkseed", "zero_shot"])
def test_every_framework_ships_what_it_was_measured_by(
    hub: Path, tmp_path: Path, framework: str
) -> None:
    words = (f"framework={framework}", f"adapter={LORA}", "data.public_size=6")
    if framework == "zero_shot":
        words = (*words[:2], "head=ridge")
    built = run(hub, tmp_path, "classification", "bert", *words)
    assert_shipped(built, hub, tmp_path)


@pytest.mark.parametrize("adapter", [LORA, "full"])
@pytest.mark.parametrize("aggregator", ["mean", "stack"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_so_does_every_dtype(
    hub: Path, tmp_path: Path, dtype: str, aggregator: str, adapter: str
) -> None:
    """Small steps in half precision: a merge in half would round most of the change away."""
    words = (f"adapter={adapter}", f"framework.aggregator={aggregator}", f"model.dtype={dtype}")
    built = run(hub, tmp_path, "classification", "bert", *words)
    assert_shipped(built, hub, tmp_path, 2e-2 if dtype == "bfloat16" else 2e-5)
    if adapter != "full":
        stored = AutoConfig.from_pretrained(tmp_path / "merged").dtype
        assert stored == (torch.float32 if dtype == "bfloat16" else torch.float64)


def test_a_run_whose_model_reads_back_as_another_has_not_finished(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoints stay, and it can be gone on with."""
    folder = tmp_path / "run"
    base = checkpoint(hub, "bert", "SEQ_CLS")
    words = (f"model.id={base}", "model.random_weights=false", f"adapter={LORA}", *FAST)
    config = experiment_config(hub, *words, model="bert")
    with monkeypatch.context() as patched:
        patched.setattr(
            LanguageModel, "load_state", lambda self, _: moved(self, seed=5), raising=True
        )
        with pytest.raises(UserError, match="does not answer like the trained one"):
            build(config, RunFolder(folder, "run")).run()
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "failed"
    assert not (folder / "adapter").exists()
    assert list((folder / "checkpoints").glob("server@1.pt"))
    again = build(config, RunFolder.reopen(folder))
    again.run()
    assert_shipped(again, hub, tmp_path)


OWN = {
    "kd": ("framework={name: kd, direction: client}", "data.public_size=6"),
    "local head": ("framework={name: fedllm, local: [head]}",),
    "local head, folds": ("framework={name: fedllm, local: [head], aggregator: stack}",),
    "local_only": ("framework=local_only",),
}


@pytest.mark.parametrize("case", OWN)
def test_clients_own_models_are_kept(hub: Path, tmp_path: Path, case: str) -> None:
    """Each one answers as it was measured; who never trained has none."""
    words = (f"adapter={LORA}", "data.num_clients=3", "rounds=2", *OWN[case])
    words += ("fleet.clients_per_round=2", "seed=1")
    built = run(hub, tmp_path, "classification", "bert", *words)
    assert built.folder is not None
    path, measured = built.folder.path, built.history[-1]["clients"]
    assert {found.parent.name for found in path.glob("clients/*/adapter")} == set(measured)
    for name, metrics in measured.items():
        found = evaluate_run(path, {}, name)
        assert found["loss"] == pytest.approx(metrics["loss"], rel=1e-4)
    assert len({metrics["loss"] for metrics in measured.values()}) > 1
    own = min(measured)
    trained = load_trained(path, own)
    expected = logits(trained.model.mount(trained.state))
    export_run(path, tmp_path / "adapter", merge=False, client=own)
    assert (tmp_path / "adapter" / "tokenizer.json").is_file()
    config = AutoConfig.from_pretrained(tmp_path / "adapter")
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        built.config.model.id, config=config
    )
    plain = logits(PeftModel.from_pretrained(base, tmp_path / "adapter"))
    torch.testing.assert_close(plain, expected, rtol=0, atol=1e-4)
    export_run(path, tmp_path / "merged", merge=True, client=own)
    merged = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-4)
    with pytest.raises(UserError, match="each client has its own model") as caught:
        evaluate_run(path, {})
    assert own in caught.value.instead
    with pytest.raises(UserError, match="no model of such a client"):
        evaluate_run(path, {}, "client-9")
