"""`import trillium`: runs, comparisons and plans from Python, and what comes back."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from peft import PeftModel

import trillium as tr
from pages import ROOT
from trillium.experiment.folder import RunFolder
from trillium.federation.side import Metrics
from trillium.report.measures import BY_NAME

SMALL = {
    "data.num_clients": 2,
    "model.random_weights": True,
    "model.device": "cpu",
    "rounds": 2,
    "adapter.target_modules": ["query"],
}


@pytest.fixture(scope="module")
def recipe(hub: Path) -> dict[str, Any]:
    files = {"name": "files", "train": str(hub / "classification.jsonl")}
    return {**SMALL, "model.id": str(hub / "bert"), "data.source": files}


@pytest.fixture(scope="module")
def result(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tr.RunResult:
    return tr.run(recipe, "adapter.r=2", out=tmp_path_factory.mktemp("runs"), progress=False)


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def test_measures_and_table_are_those_of_the_report(result: tr.RunResult) -> None:
    written = pd.read_csv(result.folder / "table.csv").iloc[0]
    table = result.table()
    assert list(table.index) == ["fedllm"]
    assert {"accuracy", "bytes_per_client", "flops_per_client"} <= result.metrics.keys()
    for name, value in result.metrics.items():
        assert name in BY_NAME
        assert written[name] == value == table.loc["fedllm", name]
    assert result.state == "finished"
    assert result.config["adapter"]["r"] == 2


def test_the_ledger_has_every_message(result: tr.RunResult) -> None:
    entries = lines(result.folder, "wire.jsonl")
    ledger = result.ledger
    assert len(ledger) == len(entries)
    assert list(ledger["bytes"]) == [entry["bytes"] for entry in entries]
    parameters = [entry["kinds"].get("parameters", 0) for entry in entries]
    assert list(ledger["bytes_parameters"]) == parameters
    kinds = [name for name in ledger if str(name).startswith("bytes_") and name != "bytes_raw"]
    assert (ledger[kinds].sum(axis=1) == ledger["bytes"]).all()


def test_the_history_has_every_evaluation(result: tr.RunResult) -> None:
    written = lines(result.folder, "metrics.jsonl")
    assert list(result.history["loss"]) == [line["loss"] for line in written]
    assert list(result.history["missing"]) == [{}, {}, {}]


def test_the_model_is_that_which_was_measured(result: tr.RunResult) -> None:
    model, rows = result.model, pd.read_parquet(result.folder / "test.parquet")
    assert isinstance(model, PeftModel)
    assert not model.training
    right = 0
    for text, label in zip(rows["text"], rows["label"], strict=True):
        with torch.no_grad():
            logits = model(**result.tokenizer(text, return_tensors="pt")).logits
        right += int(int(logits.argmax()) == label)
    assert right / len(rows) == pytest.approx(result.metrics["accuracy"])
    assert list(model.config.id2label.values()) == list(result.labels)


def test_a_notebook_shows_tables_and_pictures(result: tr.RunResult, tmp_path: Path) -> None:
    html = result._repr_html_()
    assert "<table" in html
    assert "Total /client" in html
    assert str(result.folder) in repr(result)
    plot = result.plot("bytes")
    assert plot._repr_png_().startswith(b"\x89PNG")
    plot.save(tmp_path / "bytes.png")
    assert (tmp_path / "bytes.png").read_bytes() == plot.png
    assert result.report.is_file()


def test_a_folder_is_loaded_as_it_was_returned(result: tr.RunResult) -> None:
    found = tr.load(str(result.folder))
    assert isinstance(found, tr.RunResult)
    assert found.metrics == result.metrics


@pytest.fixture(scope="module")
def compared(
    recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tr.ComparisonResult:
    arms = {"one": {}, "none": {"framework": "zero_shot"}, "bad": {"fleet": {"min_replies": 2}}}
    return tr.compare(
        {**recipe, "arms": arms},
        "one.adapter.r=2,3",
        only=["one", "none"],
        seeds=[0, 4],
        rounds=1,
        out=tmp_path_factory.mktemp("runs"),
        progress=False,
    )


def test_a_comparison_has_arms_and_seeds(compared: tr.ComparisonResult) -> None:
    assert compared.arms == list(compared) == ["one_r2", "one_r3", "none"]
    table = compared.table()
    assert table.loc["one_r2", "accuracy_sd"] >= 0
    assert compared.metrics["one_r3"]["accuracy"] == table.loc["one_r3", "accuracy"]
    assert set(compared.ledger["seed"]) == {0, 4}
    assert compared["one_r3", 4].config["adapter"]["r"] == 3
    assert compared["one_r3", 4].config["seed"] == 4
    assert isinstance(tr.load(compared.folder), tr.ComparisonResult)
    assert compared.failures == {}


def test_errors_have_three_parts(
    result: tr.RunResult,
    compared: tr.ComparisonResult,
    recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    wrong: list[tuple[Any, str]] = [
        (lambda: tr.load(tmp_path / "nowhere"), "there is no such folder"),
        (lambda: tr.load(tmp_path / "empty"), "neither a run"),
        (lambda: compared.model, "each with a model of its own"),
        (lambda: compared["two"], "no such arm"),
        (lambda: compared["none", 9], "no run of it"),
        (lambda: compared["none"].plot("bytes"), "no values for it"),
        (lambda: result.plot("byte"), "Did you mean 'bytes'"),
        (lambda: result.client_model("client-0"), "none of the clients'"),
        (lambda: tr.resume(result.folder), "has finished"),
        (lambda: tr.run("compare"), "it is a comparison"),
        (lambda: tr.run(rank=3), "adapter.r"),
        (lambda: tr.run(recipe, seeds=0), "no seed at all"),
        (lambda: tr.compare(reach=[80]), "shares"),
        (lambda: tr.run(report__track=["wandb"], out=tmp_path / "out"), "not installed here"),
        (lambda: tr.compare(report__track=["wandb"], out=tmp_path / "out"), "not installed here"),
        (lambda: tr.compare({"rounds": 2}), "nothing to compare"),
        (lambda: tr.run(recipe, model=tmp_path / "empty", out=tmp_path / "out"), "empty"),
        (lambda: tr.plan("gpt2", plan__client__link__upp=1), "Did you mean 'up'"),
        (lambda: tr.plan("gpt2", model="bert-base-uncased"), "one model"),
    ]
    for call, said in wrong:
        with pytest.raises(tr.UserError, match=said) as error:
            call()
        assert error.value.given
        assert error.value.instead
    assert not [*(tmp_path / "out").iterdir()], "a mistake leaves no folder"


def test_what_is_interrupted_says_how_it_goes_on(
    recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write = RunFolder.metrics

    def interrupted(folder: RunFolder, line: Metrics) -> None:
        write(folder, line)
        if line["round"] == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(RunFolder, "metrics", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tr.run(recipe, out=tmp_path, progress=False)
    [folder] = tmp_path.iterdir()
    assert f"trillium.resume({str(folder)!r})" in caplog.text
    stopped = tr.load(folder)
    assert isinstance(stopped, tr.RunResult)
    assert stopped.state == "stopped"
    with pytest.raises(tr.UserError, match="the run has not finished"):
        _ = stopped.model
    assert tr.resume(folder, progress=False).table()["state"].item() == "finished"


def test_several_seeds_of_one_run_are_a_comparison(recipe: dict[str, Any], tmp_path: Path) -> None:
    found = tr.run(recipe, rounds=1, seeds=2, out=tmp_path, progress=False)
    assert len(found.history["seed"].unique()) == 2


def test_a_plan_has_numbers_and_advice(hub: Path, tmp_path: Path) -> None:
    made = tr.plan(
        str(hub / "gpt2"),
        "adapter={name: lora, r: 2, target_modules: [c_attn]}",
        "plan.data.examples=8",
        framework="fedllm",
        data__num_clients=2,
        rounds=1,
        training__max_length=16,
    )
    assert isinstance(made, tr.Plan)
    up = made.table().loc[("fedllm", "all"), "bytes_up_per_run"]
    assert up == made.to_dict()["arms"][0]["tiers"]["all"]["up"]["bytes"] > 0
    assert "<table" in made._repr_html_()
    assert "Peak memory" in repr(made)


def test_importing_is_fast_and_names_what_there_is() -> None:
    code = (
        "import sys, trillium, trillium.cli.app\n"
        "assert set(trillium.__all__) <= set(dir(trillium))\n"
        "large = {'torch', 'transformers', 'pandas', 'matplotlib', 'datasets'} & set(sys.modules)\n"
        "assert not large, large\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert all(getattr(tr, name) is not None for name in tr.__all__)
    with pytest.raises(AttributeError, match="no attribute 'runs'"):
        _ = tr.runs  # type: ignore[attr-defined]


def test_a_room_and_a_function_have_one_name() -> None:
    import trillium.plan.arms as room

    assert room.Arm.__module__ == "trillium.plan.arms"
    assert callable(tr.plan)


def settings(hub: Path) -> dict[str, Any]:
    return {
        **SMALL,
        "model.id": str(hub / "bert"),
        "data.source": {"name": "files", "train": str(hub / "classification.jsonl")},
        "rounds": 1,
    }


def test_the_script(
    hub: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import runpy

    monkeypatch.chdir(tmp_path)
    words = [f"{key}={json.dumps(value)}" for key, value in settings(hub).items()]
    monkeypatch.setattr(sys, "argv", ["python_api.py", *words])
    runpy.run_path(str(ROOT / "examples" / "python_api.py"), run_name="__main__")
    assert "most likely: class " in capsys.readouterr().out


@pytest.mark.slow
def test_the_notebook(hub: Path, tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    text = (ROOT / "examples" / "first_run.ipynb").read_text(encoding="utf-8")
    notebook: Any = nbformat.reads(text, as_version=4)  # type: ignore[no-untyped-call]
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "SETTINGS = {" in cells[0].source
    cells[0].source = f"import trillium as tr\nSETTINGS = {settings(hub)!r}"
    for cell in cells:  # a shape that is public takes a minute to plan
        cell.source = cell.source.replace('"distilgpt2"', repr(str(hub / "gpt2")))
        cell.source = cell.source.replace("public_size=60", "public_size=8")
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    shown = [list(out.get("data", {})) for cell in cells for out in cell.outputs]
    assert ["image/png"] in [[kind for kind in kinds if "image" in kind] for kinds in shown]
