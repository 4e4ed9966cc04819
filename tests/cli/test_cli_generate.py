"""`trillium generate`, as a user types it, on tiny runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from cli_help import Cli, trillium
from tiny import TARGETS

PROMPTS = ["w1 w2 w3", "w7", "w30 w12 w9 w9 w2"]


@pytest.fixture(scope="module")
def model(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub folder with weights, to which an exported adapter belongs."""
    folder = tmp_path_factory.mktemp("model") / "gpt2"
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(hub / "gpt2")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(hub / "gpt2").save_pretrained(folder)
    return folder


def run(monkeypatch: pytest.MonkeyPatch, hub: Path, model: Path, out: Path, *words: str) -> Path:
    settings = [
        f"--model={model}", f"--data={hub / 'causal_lm.jsonl'}", f"--out={out}", "task=causal_lm",
        "data.public_size=12", "rounds=1", "model.dropout=0.0", "data.num_clients=2",
        f"adapter.target_modules={TARGETS['gpt2']}", "adapter.dropout=0.0",
        "training.optimizer.lr=0.05",
    ]  # fmt: skip
    assert trillium(monkeypatch, "run", *settings, *words) == 0
    [folder] = out.iterdir()
    return folder


@pytest.mark.parametrize(
    "words",
    [("framework=split",), ("framework=split", "framework.shape=u"), ("framework=fedllm",)],
    ids=["two parts", "u", "fedllm"],
)
def test_what_is_written_is_what_the_exported_model_writes(
    hub: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    cli: Cli,
) -> None:
    folder = run(monkeypatch, hub, model, tmp_path / "runs", *words)
    (tmp_path / "more.txt").write_text("\n".join([*PROMPTS[1:], ""]))
    given = [str(folder), PROMPTS[0], "--prompts", str(tmp_path / "more.txt")]
    wire = (folder / "wire.jsonl").read_bytes()
    found: dict[str, Any] = json.loads(
        cli.done("generate", *given, "--max-new-tokens", "6", "--json")
    )
    assert (folder / "wire.jsonl").read_bytes() == wire  # the run's own ledger stays as it is
    assert [line["prompt"] for line in found["texts"]] == PROMPTS
    merged = tmp_path / "merged"
    assert cli("export", str(folder), "--merge", "--to", str(merged)) == 0
    whole = AutoModelForCausalLM.from_pretrained(merged).eval()
    tokenizer = AutoTokenizer.from_pretrained(merged)
    for line in found["texts"]:
        ids = torch.tensor([[2, *tokenizer(line["prompt"])["input_ids"]]])
        answer = whole.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=6,
            pad_token_id=0,
            eos_token_id=3,
        )[0, ids.shape[1] :]
        assert line["text"] == tokenizer.decode(answer, skip_special_tokens=True)
        assert line["num_tokens"] == len(answer)
    if "framework=fedllm" in words:
        assert found["crossed"] is None
        return
    crossed, written = found["crossed"], sum(line["num_tokens"] for line in found["texts"])
    assert crossed["client"] == "client-0"
    assert crossed["bytes_up_per_token"] == crossed["bytes_up"] / written
    # The last token of a text is not sent through the blocks; headers come on top.
    assert crossed["bytes_up"] > 4 * 12 * (written - len(PROMPTS))
    drawn = ["--temperature", "1", "--max-new-tokens", "8"]
    shown = cli.done("generate", str(folder), "w1", *drawn)
    assert shown.startswith("> w1\n")
    assert "Bytes between client-0 and the server: " in shown


def test_what_cannot_be_written_on_is_refused(
    hub: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    folder = run(monkeypatch, hub, model, tmp_path / "runs", "framework=split")
    for words, why in (
        ((), "there is no text to continue"),
        ((" ",), "there is no text to continue"),
        (("w1", "--max-new-tokens", "63"), "the model has 64 positions"),
    ):
        assert why in cli.refused("generate", str(folder), *words)
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**status, "state": "failed"}))
    (folder / "adapter").rename(folder / "elsewhere")
    assert "the run has not finished" in cli.refused("generate", str(folder), "w1")


def test_a_classifier_cannot_write(hub: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("task: classification\n")
    assert "a classifier cannot write" in cli.refused("generate", str(tmp_path / "run"), "a text")
