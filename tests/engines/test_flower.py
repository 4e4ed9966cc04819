"""A deployment on loopback, with TLS and node authentication, equals the local engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

from flower_help import LIMIT

from checkpoints import checkpoint
from deployed import assert_equal
from tiny import experiment_config
from trillium.config.experiment import ExperimentConfig
from trillium.deploy.flower import Value
from trillium.deploy.launch import Federation
from trillium.deploy.prepare import RUNS, federation, prepare_here
from trillium.experiment.folder import RunFolder, to_yaml
from trillium.experiment.run import build

pytestmark = pytest.mark.slow  # processes of Flower's, which take seconds to start

COMMON = ("data.num_clients=2", "model.dropout=0.1", "model.dtype=float32", "rounds=2")
REAL = "model.random_weights=false"
SESSION = {
    "fedllm": ("framework=fedllm", "wire.up=[int8]", "framework.aggregator=fedex"),
    # Everything that both sides must keep in step, at once.
    "fedllm_coded": ("framework=fedllm", "framework.download=change", "framework.aggregator=svd",
                     "head=class_means", "wire.up=[hadamard, sign]", "wire.down=[int4, zstd]",
                     "tiers={small: {clients: ['*-1'], rank: 2, local_steps: 1}}"),
    "kd": ("framework=kd", "framework.direction=both",
           "wire.up=[{name: top_classes, k: 2}]",
           "tiers={small: {clients: ['*-1'], adapter: {r: 1}}}"),
    "split": ("framework=split", "framework.mode=coalesced"),
    "split_ahead": ("framework=split", "framework.staleness=1"),
    # Of whose checkpoint each node reads its own part.
    "split_u": ("framework=split", "framework.shape=u", "framework.mode=splitfed_v2", REAL),
}  # fmt: skip
# Each ask costs a process start here, and each round of this one has two.
MESSAGES = {"kd_messages": (*SESSION["kd"], "rounds=1")}


def config_of(hub: Path, words: tuple[str, ...]) -> ExperimentConfig:
    real = (f"model.id={checkpoint(hub, 'gpt2', 'SEQ_CLS')}",) if REAL in words else ()
    return experiment_config(hub, *COMMON, *words, *real)


@pytest.fixture(scope="module")
def deployed(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    target = tmp_path_factory.mktemp("deployed") / "federation"
    nodes = prepare_here(config_of(hub, SESSION["kd"]), target)  # which needs most data
    for name, words in {**SESSION, **MESSAGES}.items():
        recipe = target / "app" / "trillium_app" / f"{name}.yaml"
        recipe.write_text(to_yaml(config_of(hub, words).tree()))
    with federation(target, nodes) as running:
        yield running


def run(deployed: Federation, **settings: Value) -> tuple[Path, list[str]]:
    """Run the app and return the run folder and the server's log."""
    lines: list[str] = []
    before = {*(deployed.app.parent / RUNS).glob("*/")}
    number = deployed.submit({name.replace("_", "-"): value for name, value in settings.items()})
    status = deployed.wait(number, LIMIT, lines.append)
    assert status.completed, "\n".join([status.state, status.details, *lines])
    [folder] = {*(deployed.app.parent / RUNS).glob("*/")} - before
    return folder, lines


# Half a minute each: those that others contain are tried by hand.
CONTAINED = ("fedllm", "split", "split_ahead")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.drill if n in CONTAINED else ()) for n in SESSION],
)
def test_a_deployment_equals_the_local_engine(
    deployed: Federation, hub: Path, tmp_path: Path, name: str
) -> None:
    build(config_of(hub, SESSION[name]), RunFolder(tmp_path / "local", name)).run()
    folder, lines = run(deployed, recipe=f"{name}.yaml")
    assert_equal(folder, tmp_path / "local")
    assert any("round 2/2: 2 of 2 replied" in line for line in lines)
    told, here = (json.loads((f / "data.json").read_text()) for f in (folder, tmp_path / "local"))
    counts = ("num_examples", "texts", "truncated", "left_out")
    assert told["clients"] == {
        name: {count: client[count] for count in counts} for name, client in here["clients"].items()
    }
    assert (folder / "report.html").is_file()
    # Flower hands the ServerApp a token on its command line.
    assert "--token" not in (folder / "env.json").read_text()
    assert "--token" not in (folder / "report.html").read_text()


@pytest.mark.drill
@pytest.mark.parametrize("name", MESSAGES)
def test_messages_without_a_session_equal_it_too(
    deployed: Federation, hub: Path, tmp_path: Path, name: str
) -> None:
    build(config_of(hub, MESSAGES[name]), RunFolder(tmp_path / "local", name)).run()
    folder, _ = run(deployed, recipe=f"{name}.yaml", transport="messages")
    assert_equal(folder, tmp_path / "local")


def test_a_split_by_messages_is_refused(deployed: Federation) -> None:
    number = deployed.submit({"recipe": "split.yaml", "transport": "messages"})
    status = deployed.wait(number, LIMIT)
    assert status.state == "finished:failed"
    assert "each Flower message takes seconds" in status.details
