"""deploy and up, as an operator types them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

from cli_help import Cli
from tiny import experiment_config
from trillium.experiment.folder import to_yaml

NODES = ("--node", "hospital-a", "--node", "hospital-b")


@pytest.fixture
def recipe(hub: Path, tmp_path: Path) -> Path:
    """A recipe that runs in seconds."""
    config = experiment_config(hub, "data.num_clients=1", "model.dtype=float32", "rounds=1")
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(config.tree()), encoding="utf-8")
    return path


@pytest.fixture
def arms(tmp_path: Path) -> Path:
    path = tmp_path / "compare.yaml"
    path.write_text("arms:\n  a: {framework: fedllm}\n", encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# deploy


def test_deploy_writes_a_folder_once(tmp_path: Path, recipe: Path, cli: Cli) -> None:
    target = tmp_path / "federation"
    words = ("deploy", recipe, target, "rounds=3", "--host", "fl.example.org", *NODES)
    printed = cli.done(*words)
    assert "for hospital-a, hospital-b and 3 classes" in printed
    assert str(target / "README.md") in printed
    readme = (target / "README.md").read_text(encoding="utf-8")
    for name in ("hospital-a", "hospital-b"):
        assert f"--name {name}" in readme
    shipped = (target / "app/trillium_app/recipe.yaml").read_text(encoding="utf-8")
    assert "rounds: 3" in shipped
    settings = (target / "app/pyproject.toml").read_text(encoding="utf-8")
    assert 'session-address = "fl.example.org:9443"' in settings
    held = {path.name for path in (target / "server/data").iterdir()}
    assert held == {"labels.json", "test.jsonl"}, "nothing needs a public set"

    before = contents(target)
    assert "not empty" in cli.refused(*words)
    assert contents(target) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--node", "a b"], "Write 1 to 63 letters"),
        (["--node", "a", "--node", "a"], "Give each node a name of its own"),
        (["--node", "proxy"], "a service has this name"),
        (["--node", "a", "--node", "a-superexec"], "a service has this name"),
        (["--node", "a", "--host", "https://fl.example.org"], "without scheme and port"),
        (["--node", "a", "--session-port", "8443"], "Write another one, such as 9443"),
        (["--node", "a", "--session-port", "9444"], "the server, behind the proxy, listens on it"),
        (["--node", "a", "--session-port", "70000"], "is not host:port"),
        (["--node", "a", "framework=centralised"], "nodes keep theirs"),
        (["--node", "a", "--part"], "its clients run the whole model"),
        (["--node", "a", "fleet.min_replies=2"], "Write at most 1, or name more nodes"),
        (["--node", "a", "data.source.label=lable"], "Did you mean 'label'?"),
        (["--node", "a", "round=3"], "Did you mean 'rounds'?"),
        ([], "--node"),
    ],
)
def test_a_deployment_that_cannot_be(
    tmp_path: Path, recipe: Path, words: list[str], message: str, cli: Cli
) -> None:
    target = tmp_path / "federation"
    assert message in cli.refused("deploy", recipe, target, *words)
    assert not target.exists()


@pytest.mark.parametrize("verb", ["deploy", "up"])
def test_a_comparison_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arms: Path, verb: str, cli: Cli
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [tmp_path / "federation", *NODES] if verb == "deploy" else []
    assert "a deployment is one experiment" in cli.refused(verb, arms, *words)
    assert {path.name for path in tmp_path.iterdir()} == {"compare.yaml"}


@pytest.mark.parametrize("verb", ["deploy", "up"])
def test_without_flower_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recipe: Path, verb: str, cli: Cli
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("trillium.cli.deploy.find_spec", lambda name: None)
    words: dict[str, list[object]] = {
        "deploy": [recipe, tmp_path / "federation", "--node", "a"],
        "up": [recipe],
    }
    assert "[deploy]'" in cli.refused(verb, *words[verb])
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml"}


# up


@pytest.mark.slow
def test_up_runs_to_the_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: Path, recipe: Path, cli: Cli
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(hub)  # the processes run elsewhere
    words = ("model.id=./gpt2", "--out", tmp_path / "runs")
    printed = cli.done("up", recipe, *words)
    assert "round 1/1: 1 of 1 replied" in printed
    assert re.search(r"fedllm │ +\d+\.\d %", printed)
    [target] = (tmp_path / "runs").iterdir()
    [folder] = (target / "server/runs").glob("*/")
    assert f"Report: {folder / 'report.html'}" in printed
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert (target / "work/logs/client-0.log").stat().st_size > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.source.train=nowhere.csv"], "there is no such file"),
        (["data.num_clients=0"], "num_clients"),
        (["framework=centralised"], "nodes keep theirs"),
    ],
)
def test_up_with_what_cannot_run_starts_nothing(
    tmp_path: Path, recipe: Path, words: list[str], message: str, cli: Cli
) -> None:
    assert message in cli.refused("up", recipe, *words, "--out", tmp_path / "runs")
    assert not list(tmp_path.rglob("*.log"))
