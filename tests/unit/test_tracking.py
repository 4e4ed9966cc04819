"""Trackers get what the folder of a run gets: read back with TensorBoard's and MLflow's own readers."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tiny import experiment_config
from trillium.config.experiment import ExperimentConfig, experiment, merge
from trillium.errors import UserError
from trillium.experiment import tracking
from trillium.experiment.arm import run_one
from trillium.experiment.compare import compare, stopped
from trillium.experiment.folder import RunFolder
from trillium.federation.side import Metrics
from trillium.report.read import read_run
from trillium.report.summary import summarise

Points = dict[str, dict[int, list[float]]]


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without a run; to make one takes seconds."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(path.parent)  # beside the store that it is told of, MLflow makes one here
        MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)


def tracked(hub: Path, *words: str) -> ExperimentConfig:
    return experiment_config(
        hub, "data.num_clients=2", "report.track=[tensorboard, mlflow]", *words
    )


def of_tensorboard(folder: Path) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    found: Points = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            found.setdefault(tag, {}).setdefault(event.step, []).append(event.value)
    return found


def of_mlflow() -> tuple[Any, Points]:
    """The only run of the store."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    [project] = client.search_experiments(filter_string="name = 'trillium'")
    [run] = client.search_runs([project.experiment_id])
    found: Points = {}
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            found.setdefault(name, {}).setdefault(metric.step, []).append(metric.value)
    return run, found


def check(folder: Path, config: ExperimentConfig) -> None:
    """Hold what trackers have to the files of the run."""
    run, points = of_mlflow()
    shown = of_tensorboard(folder)
    assert run.info.status == "FINISHED"
    assert run.data.params["training.batch_size"] == str(config.training.batch_size)
    assert run.data.params["framework.name"] == config.framework.name
    lines = read_lines(folder / "metrics.jsonl")
    entries = [e for e in read_lines(folder / "wire.jsonl") if e["purpose"] == "train"]
    for line in lines:
        number = line["round"]
        until = [entry for entry in entries if entry["round"] <= number]
        wanted: dict[str, float] = {"loss": line["loss"], "accuracy": line["accuracy"]}
        for entry in until:
            names = [f"bytes_{entry['direction']}"]
            names.append(f"clients/{entry['client']}/bytes_{entry['direction']}")
            for name in names:
                wanted[name] = wanted.get(name, 0) + entry["bytes"]
            for kind, size in entry["kinds"].items():
                name = f"bytes_{entry['direction']}/{kind}"
                wanted[name] = wanted.get(name, 0) + size
            if entry["flops"] is not None:
                wanted["client_flops"] = wanted.get("client_flops", 0) + entry["flops"]
            peak = max(wanted.get("client_peak_bytes", 0), entry["peak_bytes"] or 0)
            wanted |= {"client_peak_bytes": peak} if peak else {}
        wanted |= {f"leakage/{name}": value for name, value in line.get("leakage", {}).items()}
        for client, own in (line.get("clients") or {}).items():
            wanted |= {f"clients/{client}/{name}": value for name, value in own.items()}
        for name, value in wanted.items():
            assert points[name][number] == [pytest.approx(value)], name
            assert shown[name][number] == [pytest.approx(value, rel=1e-6)], name
    [row] = summarise([read_run(folder)])
    for name, stat in row.values.items():
        assert points[f"table/{name}"] == {lines[-1]["round"]: [pytest.approx(stat.mean)]}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    "framework", ["fedllm", "local_only", "{name: split, cut: 1, leakage: true}"]
)
def test_trackers_have_what_the_files_have(hub: Path, tmp_path: Path, framework: str) -> None:
    config = tracked(hub, f"framework={framework}")
    run_one(config, RunFolder(tmp_path / "run", "arm"))
    check(tmp_path / "run", config)
    last = read_lines(tmp_path / "run" / "metrics.jsonl")[-1]
    assert ("leakage" in last) == ("leakage" in framework)
    assert ("clients" in last) == (framework == "local_only")


def test_a_resumed_run_goes_on_in_the_same_run(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = tracked(hub, "rounds=3"), tmp_path / "run"
    checkpoint = "trillium.experiment.rounds.Experiment._checkpoint"

    def stop(built: Any) -> None:
        if built.server.round == 2:  # evaluated and told, but not kept: the round is made again
            raise KeyboardInterrupt
        original(built)

    from trillium.experiment.rounds import Experiment

    original = Experiment._checkpoint
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, stop)
        with pytest.raises(KeyboardInterrupt):
            run_one(config, RunFolder(folder, "fedllm"))
    [again] = stopped(folder).values()
    run_one(again, RunFolder.reopen(folder))
    assert [line["round"] for line in read_lines(folder / "metrics.jsonl")] == [0, 1, 2, 3]
    check(folder, config)


def test_arms_of_a_comparison_are_runs_of_their_own(hub: Path, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    config = tracked(hub, "rounds=1")
    other = experiment(merge(config.tree(), {"seed": 1}))
    assert not compare({("a", 0): config, ("a", 1): other}, tmp_path / "arms")
    client = MlflowClient()
    [project] = client.search_experiments(filter_string="name = 'trillium'")
    names = {run.info.run_name for run in client.search_runs([project.experiment_id])}
    assert names == {"arms/a_s0", "arms/a_s1"}


def test_without_a_tracker_nothing_is_imported(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mlflow", "tensorboard", "torch.utils.tensorboard", "accelerate.tracking"):
        monkeypatch.setitem(sys.modules, name, None)  # its import fails
    config, folder = experiment_config(hub, "data.num_clients=2", "rounds=1"), tmp_path / "run"
    run_one(config, RunFolder(folder, "fedllm"))
    assert not (folder / tracking.STATE).exists()
    assert not (folder / "tensorboard").exists()
    with pytest.raises(ImportError):
        run_one(tracked(hub, "rounds=1"), RunFolder(tmp_path / "other", "fedllm"))


def test_a_tracker_that_is_not_installed_is_refused(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.tracking._available_trackers", ["mlflow"])
    with pytest.raises(UserError) as error:
        run_one(tracked(hub), RunFolder(tmp_path / "run", "fedllm"))
    assert error.value.given == "report.track=tensorboard"
    assert "pip install tensorboard" in error.value.instead
    with pytest.raises(UserError, match="Did you mean 'wandb'"):
        experiment({"report": {"track": ["wandbe"]}})


def test_a_tracker_that_cannot_begin_ends_the_run_before_its_first_round(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "no-such-scheme://here")
    with pytest.raises(UserError, match=r"report.track=mlflow: it cannot be begun"):
        run_one(tracked(hub), RunFolder(tmp_path / "run", "fedllm"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_tracker_that_fails_later_ends_no_run(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from accelerate.tracking import MLflowTracker

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("the service is gone")

    monkeypatch.setattr(MLflowTracker, "log", fail)
    run_one(tracked(hub), RunFolder(tmp_path / "run", "fedllm"))
    assert caplog.text.count("mlflow has failed") == 1
    assert sys.modules["mlflow"].active_run() is None
    assert set(of_tensorboard(tmp_path / "run")["loss"]) == {0, 1, 2}


class _Service:
    """Stands for the packages of Weights & Biases and of Trackio, which need an account or a server."""

    def __init__(self) -> None:
        self.inits: list[dict[str, Any]] = []
        self.lines: list[tuple[int, dict[str, Any]]] = []
        self.settings: dict[str, Any] = {}
        self.config = SimpleNamespace(update=self._update)

    def _update(self, values: dict[str, Any], allow_val_change: bool) -> None:
        self.settings = values

    def init(self, **options: Any) -> _Service:
        self.inits.append(options)
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        self.lines.append((step, values))

    def finish(self) -> None:
        pass


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_services_are_told_which_run_it_is(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    service = _Service()
    module = ModuleType(name)
    vars(module).update(init=service.init, config=service.config)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [name])
    config = experiment_config(hub, "data.num_clients=2", f"report.track=[{name}]")
    write, folder = RunFolder.metrics, tmp_path / "run"

    def stop(self: RunFolder, line: Metrics) -> None:
        if line["round"] == 2:
            raise KeyboardInterrupt
        write(self, line)

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "metrics", stop)
        with pytest.raises(KeyboardInterrupt):
            run_one(config, RunFolder(folder, "fedllm"))
    run_one(config, RunFolder.reopen(folder))
    first, second = service.inits
    assert first == second
    assert (first["project"], first["resume"]) == ("trillium", "allow")
    assert [step for step, values in service.lines if "loss" in values] == [0, 1, 2]
    assert "table/accuracy" in service.lines[-1][1]
    assert service.settings["data.num_clients"] == 2


def test_many_values_go_in_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = tracking.Tracking(["mlflow"], tmp_path)
    sent: list[dict[str, float]] = []

    class Tracker:
        def log(self, values: dict[str, float], step: int) -> None:
            sent.append(values)

    made._trackers["mlflow"] = Tracker()
    clients = {f"client:{i}": {"accuracy": 0.5} for i in range(1200)}
    made.observe({"round": 0, "clients": clients, "missing": {}, "loss": float("nan")})
    assert max(map(len, sent)) <= 500
    keys = [key for values in sent for key in values]
    assert len(keys) == len(set(keys)) == 1203
    assert "clients/client_7/accuracy" in keys
