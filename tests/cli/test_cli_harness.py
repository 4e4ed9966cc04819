"""`trillium eval --lm-eval`: EleutherAI's harness on the model of a run, with a task of local files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from checkpoints import checkpoint
from cli_help import Cli
from trillium.extras import install

WORDS = [f"w{number}" for number in range(1, 6)]


@pytest.fixture
def run(hub: Path, tmp_path: Path, cli: Cli) -> Path:
    settings = [
        f"--model={checkpoint(hub, 'gpt2', 'CAUSAL_LM')}", f"--data={hub / 'causal_lm.jsonl'}",
        f"--out={tmp_path / 'runs'}", "task=causal_lm", "rounds=1", "data.num_clients=2",
        "training.optimizer.lr=0.05",
    ]  # fmt: skip
    assert cli("run", *settings) == 0
    [folder] = (tmp_path / "runs").iterdir()
    return folder


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Which of five words follows: the texts and the answers are made up."""
    rows = [{"text": f"w{n} w{2 * n} w7", "answer": n % 5} for n in range(1, 13)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    told = {
        "task": "next_word",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": WORDS,
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }
    path = tmp_path / "next_word.yaml"
    path.write_text(yaml.safe_dump(told))
    return path


def test_the_harness_measures_what_is_exported(
    run: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: lm-eval)")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    assert cli("export", str(run), "--merge", "--to", str(tmp_path / "whole")) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "whole")
    choices = tokenizer(" ".join(WORDS), add_special_tokens=False)["input_ids"]
    hits = []
    for line in (tmp_path / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        tokens = tokenizer(row["text"], return_tensors="pt", add_special_tokens=False)["input_ids"]
        logits = model(tokens).logits[0, -1, choices]
        hits.append(int(logits.argmax()) == row["answer"])
    found = json.loads(cli.done("eval", str(run), "--lm-eval", str(task), "--json"))
    assert found["next_word"]["acc"] == pytest.approx(sum(hits) / len(hits))
    assert 0 < sum(hits) < len(hits)
    assert torch.isfinite(torch.tensor(found["next_word"]["acc_stderr"]))
    cells = cli.done("eval", str(run), "--lm-eval", str(task)).splitlines()[0].split()
    assert cells == ["next_word", "acc", f"{sum(hits) / len(hits):.4f}"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere.yaml"], "cannot be read"),
        (["next_word.yaml", "--data", "rows.jsonl"], "data.source"),
        pytest.param(
            ["no_such_task_anywhere"], "the harness has no such task", marks=pytest.mark.slow
        ),
    ],
)
def test_what_the_harness_cannot_do_is_said(
    run: Path, task: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str, cli: Cli
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: lm-eval)")
    monkeypatch.chdir(task.parent)
    assert told in " ".join(cli.refused("eval", str(run), "--lm-eval", *words).split())


def test_without_the_harness_it_is_said_how_to_install_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    assert install("lm-eval") in " ".join(
        cli.refused("eval", str(run), "--lm-eval", "hellaswag").split()
    )
