"""`trillium node` and `trillium keys recipe`, as owners and signers type them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="the extra deploy is not installed")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from cli_help import Cli
from tiny import experiment_config
from trillium.config.experiment import experiment, read_yaml
from trillium.deploy.folder import write_app
from trillium.engines.journal import LOG, Journal
from trillium.engines.policy import Policy
from trillium.experiment.folder import to_yaml


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    journal = Journal(folder)
    journal.add({"run": "one", "verb": "opening", "asked": "framework=kd", "refused": None})
    kinds = {"logits": 3, "control": 1}
    journal.add(
        {"run": "one", "verb": "teach", "round": 2, "kinds": kinds, "refused": None}, b"1234"
    )
    journal.add({"run": "one", "verb": "teach", "round": 3, "kinds": kinds, "refused": "too much"})
    journal.sync()
    return folder


def test_the_log_is_shown_and_checked(
    state: Path, capsys: pytest.CaptureFixture[str], cli: Cli
) -> None:
    first, second, third = cli.done("node", "log", state).splitlines()
    assert first.endswith("one: framework=kd: nothing left")
    assert second.endswith("one: round 2: teach: 4 bytes left (control 1, logits 3)")
    assert third.endswith("one: round 3: teach: nothing left, refused: too much")
    lines = [json.loads(line) for line in cli.done("node", "log", state, "--json").splitlines()]
    assert cli("node", "log", state, "--verify") == 0
    assert (
        capsys.readouterr().out == f"3 lines, whole. The last one has the hash {lines[2]['hash']}\n"
    )
    path = state / LOG
    path.write_text(path.read_text().replace("1234", "").replace('"bytes_up": 4', '"bytes_up": 5'))
    assert "line 2 was changed" in cli.refused("node", "log", state, "--verify")


def test_old_runs_and_lines_are_cleared(state: Path, cli: Cli) -> None:
    old, new = state / "runs" / "old", state / "runs" / "new"
    for run in (old, new):
        run.mkdir(parents=True)
        (run / "a@1.pt").touch()
    for path in (old / "a@1.pt", old):
        os.utime(path, (time.time() - 10 * 86400,) * 2)
    assert "1 runs and 0 lines of the log removed" in cli.done(
        "node", "clean", state, "--days", "9"
    )
    assert (new / "a@1.pt").exists()
    assert not old.exists()
    assert "1 runs and 2 lines of the log removed" in cli.done(
        "node", "clean", state, "--days", "0"
    )
    assert cli("node", "log", state, "--verify") == 0


def test_what_is_not_there_is_said(tmp_path: Path, cli: Cli) -> None:
    for verb in ("log", "clean"):
        assert "node.toml calls `state`" in cli.refused("node", verb, tmp_path / "nowhere")


def test_a_recipe_is_signed_as_the_server_will_read_it(
    hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], cli: Cli
) -> None:
    target, key = tmp_path / "federation", Ed25519PrivateKey.generate()
    recipe = to_yaml(experiment_config(hub).tree())
    write_app(target, recipe_text=recipe, settings={}, names=["a"])
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    (tmp_path / "key").write_bytes(secret)
    assert cli("keys", "recipe", target, "--key", tmp_path / "key") == 0
    written = target / "app" / "trillium_app" / "recipe.signature.json"
    assert str(written) in capsys.readouterr().out
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    config = experiment(read_yaml(written.with_name("recipe.yaml")))
    Policy(signers=(line,)).check(config, json.loads(written.read_text()))
    assert "it is no deployment" in cli.refused(
        "keys", "recipe", tmp_path, "--key", tmp_path / "key"
    )
