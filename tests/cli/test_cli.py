"""Every verb and every shipped recipe, as a user types them, on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from cli_help import Cli
from trillium.config.comparison import comparison
from trillium.config.experiment import experiment, read_yaml, recipe_path

RECIPES = sorted(recipe_path("compare").parent.glob("*.yaml"))


@pytest.fixture(scope="module")
def model(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub folder with weights, because what is exported needs a base to load into."""
    folder = tmp_path_factory.mktemp("model") / "bert"
    torch.manual_seed(0)
    from transformers import AutoConfig, AutoTokenizer

    AutoModelForSequenceClassification.from_config(
        AutoConfig.from_pretrained(hub / "bert", num_labels=3)
    ).save_pretrained(folder)
    AutoTokenizer.from_pretrained(hub / "bert").save_pretrained(folder)
    return folder


@pytest.fixture
def small(model: Path, hub: Path) -> list[str]:
    """Settings that make a run take a second."""
    return [
        f"--model={model}",
        f"--data={hub / 'classification.jsonl'}",
        "data.public_size=12",
        "rounds=2",
        "adapter.target_modules=[query,value]",
    ]


@pytest.fixture
def finished(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    small: list[str],
    capsys: pytest.CaptureFixture[str],
    cli: Cli,
) -> Path:
    """The folder of a finished FedLLM run."""
    monkeypatch.chdir(tmp_path)
    assert cli("run", "framework=fedllm", *small) == 0
    capsys.readouterr()
    [folder] = (tmp_path / "runs").iterdir()
    return folder


def test_help_loads_no_torch() -> None:
    program = (
        "import sys\nfrom trillium.cli.app import program\nsys.argv = ['trillium', '--help']\n"
        "try:\n    program()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pydantic'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for verb in ("compare", "run", "report", "ls", "new", "eval", "export", "generate"):
        assert f"\n  {verb} " in done.stdout


def test_run_leaves_a_complete_folder(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "config.yaml", "env.json", "status.json", "data.json", "once.json", "plan.json",
        "metrics.jsonl", "wire.jsonl", "adapter", "report.html", "plots", "table.csv", "table.md",
        "test.parquet", "answers.json",
    }  # fmt: skip
    assert json.loads((finished / "status.json").read_text())["state"] == "finished"
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").open()]
    assert [line["round"] for line in lines] == [0, 1, 2]
    wire = [json.loads(line) for line in (finished / "wire.jsonl").open()]
    assert all(sum(line["kinds"].values()) == line["bytes"] for line in wire)


def test_config_runs_again_to_the_same_result(finished: Path, tmp_path: Path, cli: Cli) -> None:
    assert cli("run", str(finished / "config.yaml"), "--out", "again") == 0
    [again] = (tmp_path / "again").iterdir()
    name = "adapter/adapter_model.safetensors"
    first, second = load_file(finished / name), load_file(again / name)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = cli("run", str(finished / "config.yaml"), "seed=1", "--out", "other")
    assert other == 0
    [moved] = (tmp_path / "other").iterdir()
    third = load_file(moved / name)
    assert any(not torch.equal(first[key], third[key]) for key in first)


def test_adapter_loads_with_peft_and_predicts_what_was_measured(
    finished: Path, model: Path, cli: Cli
) -> None:
    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=3)
    wrapped = PeftModel.from_pretrained(base, str(finished / "adapter")).eval()
    config = experiment(read_yaml(finished / "config.yaml"))
    from trillium.experiment.run import build

    built = build(config)
    hits = 0
    for example in built.server.test:
        logits = wrapped(input_ids=example.input_ids[None]).logits
        hits += int(logits.argmax()) == int(example.labels)
    measured = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
    assert measured["accuracy"] == pytest.approx(hits / len(built.server.test))
    said = json.loads((finished / "answers.json").read_text())["confusion"]
    assert sum(times for label, taken_for, times in said if label == taken_for) == hits
    again = json.loads(cli.done("eval", str(finished), "--json"))
    assert again["loss"] == pytest.approx(measured["loss"], abs=1e-5)
    assert again["accuracy"] == measured["accuracy"]


@pytest.mark.parametrize("merge", [False, True])
def test_export(finished: Path, merge: bool, cli: Cli) -> None:
    target = finished / "exported"
    words = ["export", str(finished), "--to", str(target), *(["--merge"] if merge else [])]
    assert cli(*words) == 0
    expected = "model.safetensors" if merge else "adapter_config.json"
    assert (target / expected).exists()
    assert "exists already" in cli.refused(*words)


def test_compare_arms_seeds_and_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: list[str], cli: Cli
) -> None:
    monkeypatch.chdir(tmp_path)
    arms = ["split.framework.cut=1", "fedllm.adapter.r=2"]
    words = [*small, "rounds=1", "data.num_clients=2", *arms]
    result = json.loads(cli.done("compare", *words, "--seeds", "2", "--json"))
    folder = Path(result["folder"])
    names = {"zero_shot", "local_only", "centralised"}
    for name in ("fedllm", "kd", "split"):
        names |= {name, f"{name}_frugal"}
    assert {path.name for path in folder.glob("*_s*")} == {
        f"{a}_s{s}" for a in names for s in (0, 1)
    }
    config = yaml.safe_load((folder / "fedllm_s1" / "config.yaml").read_text())
    assert (config["adapter"]["r"], config["seed"]) == (2, 1)
    assert yaml.safe_load((folder / "kd_s0" / "config.yaml").read_text())["adapter"]["r"] == 8
    assert (folder / "report.html").stat().st_size > 10_000
    table = cli.done("report", str(folder))
    assert all(name in table for name in names)
    assert len(json.loads(cli.done("ls", "--json"))) == 2 * len(names)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_and_can_be_written(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cli: Cli
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("new", recipe.stem) == 0
    written = tmp_path / f"{recipe.stem}.yaml"
    tree = read_yaml(written)
    if "arms" in tree:
        assert len(comparison(tree, {}).experiments()) == len(tree["arms"])
    else:
        experiment(tree)
    assert "exists already" in cli.refused("new", recipe.stem)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "framework=fedlm"], "Did you mean 'fedllm'?"),
        (["run", "trainin.batch_size=8"], "Did you mean 'training'?"),
        (["run", "training.batchsize=8"], "Did you mean 'batch_size'?"),
        (["run", "rounds=none"], "rounds='none'"),
        (["run", "lr=3e-4"], "Did you mean training.optimizer.lr?"),
        (["run", "learning_rate=3e-4"], "Did you mean training.optimizer.lr?"),
        (["run", "evaluation.batch_size=8"], "Did you mean 'batch_tokens'?"),
        (["run", "batch_size=8"], "training.batch_size"),
        (["run", "cut=3"], "framework.cut with framework=split"),
        (["run", "data.partition.alpha=1"], "data.partition.alpha with data.partition=dirichlet?"),
        (["run", "model=roberta-base"], "Write model.id=roberta-base"),
        (["run", "tiers.a.model=gpt2"], "Write tiers.a.model.id=gpt2"),
        (["run", "data=rows.csv"], "Write --data rows.csv"),
        (["run", "fleet=3"], "Write fleet.KEY=VALUE"),
        (["run", "framework=FedLLM"], "Did you mean 'fedllm'?"),
        (["run", "adapter.target_modules=3"], "it is not a list"),
        (["run", "wire.up=3"], "it is not a list"),
        (["run", "training.batch_size=-1"], "it must be at least 1"),
        (["run", "framework.upload=Update"], "Did you mean 'update'?"),
        (["run", "tiny-memry"], "Did you mean 'tiny-memory'?"),
        (["run", "tiny-memory", "rounds=x"], "rounds='x'"),
        (["compare", "compare", "rounds=x"], "rounds='x'"),
        (["plan", "tiny-memory", "rounds=x"], "rounds='x'"),
        (["run", "--data", "missing.ndjson"], "there is no such file"),
        (["run", "--data", "missing.txt"], "names no known format"),
        (["run", "rounds"], "rounds: it cannot be read"),
        (["run", "missing.yaml"], "Run `trillium new`"),
        (["run", "--model", "no/such/folder"], "it cannot be loaded"),
        (["run", "--data", "missing.csv"], "there is no such file"),
        (["run", "fleet.clients_per_round=9"], "there are only 4 clients"),
        (["run", "fleet.take=2"], "plan.client.device.flops=200e9"),
        (["run", "framework.asynchronous.buffer=5"], "no more can answer than are at work"),
        (["run", "plan.client.link.up=fast"], "it is not a quantity"),
        (["run", "framework=kd", "data.public_size=0"], "Write data.public_size=200 or more"),
        (["run", "training.optimizer.momentun=0.9"], "adamw has no such option"),
        (["compare", "--only", "fedlm"], "Did you mean 'fedllm'?"),
        (["compare", "--seeds", "x"], "seeds are whole numbers"),
        (["report", "nowhere"], "nowhere"),
        (["ls", "nowhere"], "there are no runs below it"),
        (["new", "comparison"], "Did you mean 'compare'?"),
        (["eval", "nowhere"], "it holds no trained model, for it is no folder of a run"),
        (["generate", "nowhere", "a text"], "it is no folder of a run"),
        (["generate", "nowhere", "--prompts", "missing.txt"], "it cannot be read"),
        (["generate", "nowhere", "a text", "--top-p", "1.5"], "it is a probability"),
    ],
)
def test_errors_have_three_parts(
    words: list[str], expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cli: Cli
) -> None:
    monkeypatch.chdir(tmp_path)
    error = cli.refused(*words)
    assert [line.split(":")[0] for line in error.splitlines()[:3]] == [
        "Given",
        "Problem",
        "Instead",
    ]
    text = " ".join(line.split(":", 1)[1].strip() for line in error.splitlines())
    assert expected in text.replace("  ", " ") or expected in error.replace("\nProblem: ", ": "), (
        error
    )
    assert "Traceback" not in error


def test_failed_round_is_written_and_reported(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    small: list[str],
    capsys: pytest.CaptureFixture[str],
    cli: Cli,
) -> None:
    monkeypatch.chdir(tmp_path)
    failing = ["fleet.failure_rate=0.9", "fleet.min_replies=4"]
    assert cli("run", *small, *failing) == 1
    assert "min_replies is 4" in capsys.readouterr().err
    [folder] = (tmp_path / "runs").iterdir()
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "failed"
    assert "RoundFailed" in status["error"]
