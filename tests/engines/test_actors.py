"""The Ray engine and its workers, which are in this process here; `test_ray.py` has real ones."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed (extra: simulation)")

from ray.exceptions import RayError

from rayed import assert_equal
from tiny import experiment_config, federation
from trillium.config.experiment import ExperimentConfig, experiment
from trillium.engines.actors import engine as engines
from trillium.engines.actors.engine import RayEngine, pinned
from trillium.engines.actors.worker import Setup, Worker, here
from trillium.engines.simulation.ray import divided
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import Experiment, build
from trillium.federation.failed import RoundFailed
from variants import VARIANTS

SIZE = 2


class Pool:
    """Takes the place of Ray's workers: what goes to one, and comes from it, is pickled.

    Attributes:
        made: how many there have been.
        doomed: by verb of a worker, how many more calls each one that is made survives.
    """

    size = SIZE

    def __init__(self) -> None:
        self._here: dict[int, _Actor] = {}
        self.made = 0
        self.doomed: dict[str, int] = {}

    def __getitem__(self, number: int) -> _Actor:
        if number not in self._here:
            self._here[number] = _Actor(dict(self.doomed))
            self.made += 1
        return self._here[number]

    def let_go(self, number: int) -> None:
        del self._here[number]


class _Actor:
    def __init__(self, doomed: dict[str, int]) -> None:
        self._worker, self._dead, self._doomed = Worker(), False, doomed

    def die(self) -> None:
        self._dead = True

    def __getattr__(self, verb: str) -> SimpleNamespace:
        def remote(*given: Any) -> Callable[[], Any]:
            self._doomed[verb] = left = self._doomed.get(verb, 10**9) - 1
            self._dead = self._dead or left < 0
            if self._dead:
                return _died
            found = getattr(self._worker, verb)(*pickle.loads(pickle.dumps(given)))
            # What is logged is logged in this process already.
            sent = pickle.dumps((found[0], []) if verb == "handle" else found)
            return lambda: pickle.loads(sent)

        return SimpleNamespace(remote=remote)


def _died() -> Any:
    raise RayError("it is dead")


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Pool:
    monkeypatch.setattr(engines, "got", lambda coming: coming())
    ray = SimpleNamespace(put=lambda data: data, wait=lambda some, timeout: (some, []))
    monkeypatch.setattr(engines, "ray", ray)
    return Pool()


def built(config: ExperimentConfig, folder: RunFolder | None, pool: Any) -> Experiment:
    def make(config: Any, labels: Any, clients: Any, checkpoints: Any) -> RayEngine:
        return RayEngine(pool, Setup(config, labels, None, 1, 30), clients, checkpoints)

    return build(config, folder, engine=make)


def kill_in(fed: Experiment, pool: Pool, number: int, verb: str) -> None:
    """Let the first worker die in a round, before it is told to do something of the engine's."""
    engine = fed.fleet.engine
    done = getattr(engine, verb)

    def dying(given: Any, *more: Any) -> Any:
        if fed.server.round == number and pool.made == SIZE:
            pool[0].die()
        return done(given, *more)

    setattr(engine, verb, dying)


@pytest.mark.parametrize("name", ["kd other models", "split kept u, cuts"])
def test_workers_change_nothing(
    hub: Path, tmp_path: Path, uncounted: None, pool: Pool, name: str
) -> None:
    config = experiment_config(hub, *VARIANTS[name].words)
    build(config, RunFolder(tmp_path / "local", "local")).run()
    built(config, RunFolder(tmp_path / "ray", "local"), pool).run()
    assert pool.made == SIZE
    assert_equal(tmp_path / "ray", tmp_path / "local")


@pytest.mark.parametrize("verb", ["post", "save", "gather"])
def test_a_worker_that_dies_costs_the_round_of_its_clients(
    hub: Path, tmp_path: Path, uncounted: None, pool: Pool, verb: str
) -> None:
    """Between rounds it costs nothing; else the round is made again, as all clients are needed."""
    config = experiment_config(hub, *VARIANTS["fedllm change, turns"].words, "evaluation.keep=best")
    build(config, RunFolder(tmp_path / "local", "local")).run()
    fed = built(config, RunFolder(tmp_path / "ray", "local"), pool)
    kill_in(fed, pool, 2, verb)
    fed.run()
    assert pool.made == SIZE + 1
    status = json.loads((tmp_path / "ray" / "status.json").read_text())
    assert status.get("failed_rounds", {}) == ({} if verb == "gather" else {"2": 1})
    for name in ("adapter/adapter_model.safetensors", "answers.json"):
        mine, yours = (tmp_path / which / name for which in ("ray", "local"))
        assert mine.exists() == yours.exists()
        assert not mine.exists() or mine.read_bytes() == yours.read_bytes()


@pytest.mark.parametrize("verb", ["post", "save"])
def test_without_its_clients_others_go_on(
    hub: Path, tmp_path: Path, uncounted: None, pool: Pool, verb: str
) -> None:
    """Where few suffice; who has lost what counts begins anew with the next round."""
    words = ("framework.download=change", "fleet.min_replies=1", "data.num_clients=4", "rounds=3")
    config = experiment_config(hub, *words)
    fed = built(config, RunFolder(tmp_path / "ray", "local"), pool)
    kill_in(fed, pool, 2, verb)
    begun: list[set[str]] = []
    begin = fed.fleet.begin_round

    def beginning(number: int) -> list[str]:
        asked = begin(number)
        begun.append({*fed.fleet.newcomers})
        return asked

    fed.fleet.begin_round = beginning  # type: ignore[method-assign]
    history = fed.run()
    engine = fed.fleet.engine
    assert isinstance(engine, RayEngine)
    theirs = {name for name, number in engine._pinned.items() if number == 0}
    assert 0 < len(theirs) < 4
    assert [set(line["missing"]) for line in history] == [set(), set(), theirs, set()]
    # What was asked and not answered counts for nobody; what was answered counts, and is lost.
    assert begun == [set(), set(), theirs if verb == "save" else set()]


def test_a_worker_that_dies_of_its_clients_is_not_tried_for_ever(
    hub: Path, tmp_path: Path, uncounted: None, pool: Pool
) -> None:
    pool.doomed = {"begin": 0}
    fed = built(experiment_config(hub), None, pool)
    with pytest.raises(UserError, match="dies when it sets up its clients"):
        fed.run()
    assert pool.made == SIZE + 1
    pool = type(pool)()
    pool.doomed = {"handle": 1}  # in every round, whatever is done
    fed = built(experiment_config(hub), RunFolder(tmp_path / "ray", "local"), pool)
    with pytest.raises(RoundFailed, match="its worker has died"):
        fed.run()
    assert fed.folder is not None
    assert fed.folder.failed_rounds[1] == engines.REPEATS + 1


def test_clients_that_fail_are_not_asked_again_in_vain(
    hub: Path, tmp_path: Path, uncounted: None, pool: Pool
) -> None:
    """It is the engine's part to repeat what a worker has cost, and nothing else."""
    words = ("fleet={failure_rate: 0.5, min_replies: 3}", "rounds=4")
    results: list[Mapping[int, int]] = []
    for name in ("local", "ray"):
        folder = RunFolder(tmp_path / name, "local")
        config = experiment_config(hub, *words)
        fed = build(config, folder) if name == "local" else built(config, folder, pool)
        with pytest.raises(RoundFailed, match="failure_rate"):
            fed.run()
        results.append(folder.failed_rounds)
    assert results[0] == results[1] != {}


def test_workers_have_about_as_much_to_do(hub: Path) -> None:
    fed = federation(hub, "data.num_clients=5", "data.partition={name: dirichlet, alpha: 0.5}")
    found = pinned(fed.clients, 2)
    assert found == pinned(fed.clients[::-1], 2)
    steps = {c.name: c.training.num_steps(len(c.examples)) for c in fed.clients}
    loads = [sum(steps[name] for name, at in found.items() if at == number) for number in (0, 1)]
    assert abs(loads[0] - loads[1]) <= max(steps.values())
    assert set(pinned(fed.clients, 9).values()) == set(range(5))


@pytest.mark.parametrize(
    ("workers", "cohorts", "wanted"),
    [
        (8, [4, 4, 4], (2, 4)),  # a third one would leave some with fewer workers than clients
        (8, [2, 2, 2], (3, 2)),
        (8, [2], (1, 8)),
        (8, [2, 20], (1, 8)),
        (1, [2, 2], (1, 1)),
        (2, [], (1, 2)),
    ],
)
def test_workers_that_one_run_leaves_idle_are_another_ones(
    workers: int, cohorts: list[int], wanted: tuple[int, int]
) -> None:
    runs = [
        experiment({"data": {"num_clients": 20}, "fleet": {"clients_per_round": cohort}})
        for cohort in cohorts
    ]
    assert divided(workers, runs) == wanted


def test_models_are_where_a_machine_has_them(hub: Path) -> None:
    words = (
        "framework=kd",
        f"tiers={{a: {{clients: [client-0], model: {{id: {hub / 'bert'}, device: 'cuda:1'}}}}}}",
    )
    config = experiment_config(hub, *words)
    there = here(config, Path("/models"))
    assert there.model.id == "/models/gpt2"
    assert there.tiers["a"].model is not None
    assert there.tiers["a"].model.id == "/models/bert"
    assert there.tiers["a"].model.device == "cuda"
    assert there.model.device == "cpu"
    packaged = config.model_copy(update={"model": config.model.model_copy(update={"id": "minilm"})})
    assert here(packaged, Path("/models")).model.id == "minilm"
    assert here(config, None).model == config.model
