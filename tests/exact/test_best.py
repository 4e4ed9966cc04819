"""The best round is what is shipped, and rounds without a gain end a run; resumed, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from resumed import assert_resumes, killed_in, same, trained
from tiny import experiment_config, without_seconds
from trillium.config.experiment import ExperimentConfig, experiment
from trillium.errors import UserError
from trillium.experiment.best import check_measured
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import build
from trillium.experiment.trained import evaluate_run
from trillium.frameworks import Framework
from trillium.frameworks.baselines import LocalOnly
from trillium.frameworks.fedllm.protocol import FedLLM
from trillium.frameworks.kd.protocol import KD
from trillium.report.read import read_run
from trillium.report.summary import summarise
from trillium.report.table import terminal_table

pytestmark = pytest.mark.usefixtures("uncounted")

FAST = ("training.local_steps=1", "data.test_fraction=0.2", "training.batch_size=8")
CASES: dict[str, tuple[type[Framework], tuple[str, ...]]] = {
    "fedllm": (FedLLM, ()),
    "fedllm, folds": (FedLLM, ("framework.aggregator=stack",)),
    "fedllm, local head": (FedLLM, ("framework.local=[head]",)),
    "kd, clients": (KD, ("framework={name: kd, direction: client}",)),
    "kd, both": (KD, ("framework=kd",)),
    "local_only": (LocalOnly, ("framework=local_only", "fleet.clients_per_round=2")),
}


def config_of(hub: Path, *words: str, rounds: int = 4) -> ExperimentConfig:
    given = (*FAST, f"rounds={rounds}", "model.dtype=float32", *words)
    return experiment_config(hub, *given, model="bert")


def scripted(
    monkeypatch: pytest.MonkeyPatch, kind: type[Framework], accuracies: list[float]
) -> None:
    """Let the rounds, from 0 on, have these accuracies; all else is measured."""
    measure = kind.evaluate

    def evaluate(self: Any, server: Any, fleet: Any, size: Any, last: bool) -> dict[str, Any]:
        found = measure(self, server, fleet, size, last)
        return {**found, "accuracy": accuracies[server.round]}

    monkeypatch.setattr(kind, "evaluate", evaluate)


@pytest.mark.parametrize("case", CASES)
def test_the_best_round_is_shipped_and_told_of(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Round 0 is nobody's result, and of two that are equal the first one counts."""
    kind, words = CASES[case]
    scripted(monkeypatch, kind, [0.9, 0.3, 0.6, 0.6, 0.5])
    fed = build(config_of(hub, "evaluation.keep=best", *words), RunFolder(tmp_path / "run", "run"))
    history = fed.run()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["kept_round"] == 2
    clients = history[2].get("clients") or {}
    if fed.config.framework.ships != "server model":
        for name, metrics in clients.items():
            again = evaluate_run(tmp_path / "run", {}, name)
            assert again["loss"] == pytest.approx(metrics["loss"], rel=1e-5), name
            assert metrics["loss"] != pytest.approx(history[4]["clients"][name]["loss"], rel=1e-5)
    else:
        again = evaluate_run(tmp_path / "run", {})
        assert again["loss"] == pytest.approx(history[2]["loss"], rel=1e-5)
        assert history[2]["loss"] != pytest.approx(history[4]["loss"], rel=1e-5)
    run = read_run(tmp_path / "run")
    assert run.kept_round == 2
    [row] = summarise([run])
    assert row.values["accuracy"].mean == 0.6
    assert row.values["wall_seconds"].mean == history[4]["seconds"]
    assert "best round" in str(terminal_table([row]).caption)


@pytest.mark.parametrize("case", ["fedllm", "fedllm, folds", "fedllm, local head", "kd, clients"])
def test_it_is_the_same_after_stops(hub: Path, tmp_path: Path, case: str) -> None:
    words = ("evaluation.keep=best", "evaluation.patience=9", *CASES[case][1])
    assert_resumes(config_of(hub, *words, rounds=3), tmp_path)


def test_rounds_without_a_gain_end_the_run(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed in the middle, and behind its last round, it ends there too."""
    scripted(monkeypatch, FedLLM, [0.9, 0.3, 0.6, 0.6, 0.5, 0.8, 0.8])
    config = config_of(hub, "evaluation={keep: best, patience: 2}", rounds=6)
    whole = build(config, RunFolder(tmp_path / "whole", "run"))
    history = whole.run()
    assert [line["round"] for line in history] == [0, 1, 2, 3, 4]
    cut = build(config, RunFolder(tmp_path / "cut", "run"))
    killed_in(cut, 3)
    cut = build(config, RunFolder.reopen(tmp_path / "cut"))
    with monkeypatch.context() as patched:  # the last round is complete, the model not yet written
        patched.setattr(type(cut.model), "save", _no_disk)
        with pytest.raises(OSError, match="no disk"):
            cut.run()
    cut = build(config, RunFolder.reopen(tmp_path / "cut"))
    assert without_seconds(cut.run()) == without_seconds(history)
    assert all(torch.equal(tensor, trained(cut)[n]) for n, tensor in trained(whole).items())
    assert same(whole.server.store, cut.server.store)
    [row] = summarise([read_run(tmp_path / "cut")])
    told = str(terminal_table([row]).caption)
    assert "ended at round 4 of 6, as 2 rounds had brought no gain" in told


def test_what_was_not_measured_is_no_round_without_a_gain(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, FedLLM, [0.9, 0.3, 0.6, 0.6, 0.5, 0.4, 0.4, 0.4, 0.4])
    config = config_of(hub, "evaluation={every: 3, patience: 1}", rounds=8)
    assert [line["round"] for line in build(config).run()] == [0, 3, 6]


def test_a_run_that_diverges_has_no_best_round(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan = float("nan")
    scripted(monkeypatch, FedLLM, [0.9, nan, nan, nan])
    config = config_of(hub, "evaluation={keep: best, patience: 2}", rounds=3)
    assert len(build(config, RunFolder(tmp_path / "run", "run")).run()) == 3
    assert read_run(tmp_path / "run").kept_round == 2


def test_language_models_go_by_their_loss(hub: Path, tmp_path: Path) -> None:
    words = (*FAST, "rounds=3", "evaluation.keep=best", "training.optimizer.lr=0.3")
    config = experiment_config(hub, *words, model="gpt2", task="causal_lm")
    history = build(config, RunFolder(tmp_path / "run", "run")).run()
    best = min(history[1:], key=lambda line: line["loss"])
    assert read_run(tmp_path / "run").kept_round == best["round"]
    assert evaluate_run(tmp_path / "run", {})["loss"] == pytest.approx(best["loss"], rel=1e-6)


@pytest.mark.parametrize("word", ["evaluation.keep=best", "evaluation.patience=2"])
def test_models_that_nobody_here_can_measure_are_refused(word: str) -> None:
    key, value = word.removeprefix("evaluation.").split("=")
    config = experiment({"framework": "local_only", "evaluation": {key: value}})
    with pytest.raises(UserError, match=word):
        check_measured(config, [])


def _no_disk(*_: object, **__: object) -> None:
    raise OSError("no disk")
