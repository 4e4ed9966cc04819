"""The Ray engine equals the local one, bit for bit, and outlives its workers."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is not installed (extra: simulation)")

import ray

from deployed import metrics
from rayed import assert_equal
from resumed import Killed, dying_at
from tiny import experiment_config
from trillium.config.experiment import ExperimentConfig
from trillium.engines.actors.engine import RayEngine
from trillium.engines.simulation import simulation
from trillium.experiment.folder import RunFolder
from trillium.experiment.host import MakeEngine, local_engine
from trillium.experiment.run import Experiment, build
from trillium.federation.parts import Lost
from variants import VARIANTS, Variant, cases

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_workers() -> Iterator[MakeEngine]:
    with simulation("ray").opened(2, []) as (at_a_time, host), host() as engine:
        assert at_a_time == 1
        yield engine


def run_both(config: ExperimentConfig, folder: Path, engine: MakeEngine) -> tuple[Path, Path]:
    build(config, RunFolder(folder / "local", "local")).run()
    build(config, RunFolder(folder / "ray", "local"), engine=engine).run()
    return folder / "ray", folder / "local"


@pytest.mark.parametrize("variant", cases((), lambda variant: variant.repeats, every=9))
def test_ray_equals_the_local_engine(
    hub: Path, tmp_path: Path, two_workers: MakeEngine, variant: Variant
) -> None:
    words = (*variant.words, *variant.dropout)
    config = experiment_config(hub, *words, model=variant.model, task=variant.task)
    assert_equal(*run_both(config, tmp_path, two_workers))


def test_a_run_goes_on_elsewhere(hub: Path, tmp_path: Path, two_workers: MakeEngine) -> None:
    """What one engine has kept, the other goes on from."""
    config = experiment_config(hub, *VARIANTS["fedllm change, cohort"].words, "rounds=4")
    build(config, RunFolder(tmp_path / "local", "local")).run()
    path, folder = tmp_path / "ray", RunFolder(tmp_path / "ray", "local")
    for number, engine in enumerate((two_workers, local_engine, two_workers)):
        with pytest.raises(Killed):
            build(config, folder, engine=engine).run(dying_at(number + 1))
        folder = RunFolder.reopen(path)
    build(config, folder, engine=two_workers).run()
    assert_equal(path, tmp_path / "local")


def kill_in(fed: Experiment, number: int, client: str) -> None:
    """Kill the worker of a client, once, when it is asked in a round, and another has answered."""
    engine, killed = fed.fleet.engine, list[int]()
    assert isinstance(engine, RayEngine)
    post = engine.post

    def killing(requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Lost]]:
        replies = post(requests)
        if fed.server.round == number and client in requests and not killed:
            worker = engine._workers[engine._pinned[client]]
            killed.append(ray.get(worker.__ray_call__.remote(lambda self: os.getpid())))
            first = next(replies)
            os.kill(killed[0], signal.SIGKILL)
            return chain([first], replies)
        return replies

    engine.post = killing  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "name",
    [
        "fedllm change, turns",
        "split kept u",
        *(
            pytest.param(n, marks=pytest.mark.drill)
            for n in ("kd client", "split relay", "kd masked")
        ),
    ],
)
def test_a_killed_worker_costs_a_round_of_its_clients(
    hub: Path, tmp_path: Path, two_workers: MakeEngine, name: str
) -> None:
    """All are needed, so the round is made again, and the run ends as it would have."""
    config = experiment_config(hub, *VARIANTS[name].words, "rounds=3")
    build(config, RunFolder(tmp_path / "local", "local")).run()
    fed = build(config, RunFolder(tmp_path / "ray", "local"), engine=two_workers)
    kill_in(fed, 2, "client-0")
    fed.run()
    status = json.loads((tmp_path / "ray" / "status.json").read_text())
    assert status["failed_rounds"] == {"2": 1}
    lines = zip(metrics(tmp_path / "ray"), metrics(tmp_path / "local"), strict=True)
    for mine, yours in lines:
        spent = {"server_flops"}  # what was done in vain was done
        assert {k: v for k, v in mine.items() if k not in spent} == {
            k: v for k, v in yours.items() if k not in spent
        }
    for path in (tmp_path / "local").rglob("*.safetensors"):
        other = tmp_path / "ray" / path.relative_to(tmp_path / "local")
        assert path.read_bytes() == other.read_bytes()


def test_where_others_suffice_they_go_on(
    hub: Path, tmp_path: Path, two_workers: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    config = experiment_config(hub, "rounds=4", "data.num_clients=4", "fleet.min_replies=1")
    fed = build(config, RunFolder(tmp_path / "ray", "local"), engine=two_workers)
    kill_in(fed, 2, "client-3")
    with caplog.at_level(logging.WARNING):
        history = fed.run()
    assert "another takes its clients back to round 1" in caplog.text
    missing = [set(line["missing"]) for line in history]
    assert "client-3" in missing[2]
    assert 0 < len(missing[2]) < 4
    assert missing[1] == missing[3] == missing[4] == set()
