"""What `write_app` writes: it parses, Flower builds it, and nothing secret goes into the app."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from trillium.deploy.flower import Value
from trillium.deploy.folder import SETTINGS, write_app
from trillium.errors import UserError

RECIPE = "framework: fedllm\n"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "federation"
    settings: dict[str, Value] = {"session-address": "fl.example.org:9443", "deadline-seconds": 30}
    write_app(folder, recipe_text=RECIPE, settings=settings, names=["alpha", "beta"])
    return folder


def test_pyproject_holds_every_setting_with_a_comment(target: Path) -> None:
    text = (target / "app/pyproject.toml").read_text()
    config = tomllib.loads(text)["tool"]["flwr"]["app"]["config"]
    assert list(config) == list(SETTINGS)
    assert config["session-address"] == "fl.example.org:9443"
    assert config["deadline-seconds"] == 30.0
    assert config["min-nodes"] == 2
    lines = text.splitlines()
    for name in SETTINGS:
        place = next(number for number, line in enumerate(lines) if line.startswith(f"{name} ="))
        assert lines[place - 1].startswith("# ")


def test_compose_parses_and_exposes_the_proxy_and_the_sessions_only(target: Path) -> None:
    services = yaml.safe_load((target / "compose.yaml").read_text())["services"]
    assert list(services) == ["superlink", "proxy", "alpha", "beta"]
    assert services["superlink"]["ports"] == ["8443:8443", "9443:9443"]
    assert "--host=127.0.0.1" in services["superlink"]["command"]
    assert services["proxy"]["network_mode"] == "service:superlink"
    assert not any("ports" in services[name] for name in ("proxy", "alpha", "beta"))


def test_node_example_parses(target: Path) -> None:
    node = tomllib.loads((target / "node.example.toml").read_text())
    assert set(node) == {"name", "data", "certificate", "key", "authority", "state"}


def test_readme_and_proxy_name_the_host_and_the_nodes(target: Path) -> None:
    readme = (target / "README.md").read_text()
    assert "fl.example.org:8443" in readme
    assert "--name alpha" in readme
    assert "--name beta" in readme
    assert "{{" not in readme + (target / "proxy/nginx.conf").read_text()


def test_flower_builds_an_app_with_the_recipe_and_without_secrets(target: Path) -> None:
    pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")
    for secret in ("keys/ca.json", "server/state.json", "nodes/alpha/node.toml"):
        (target / secret).parent.mkdir(parents=True)
        (target / secret).write_text("{}")
    flwr = Path(sys.executable).parent / "flwr"
    variables = {**os.environ, "FLWR_HOME": str(target / "home"), "FLWR_TELEMETRY_ENABLED": "0"}
    variables["FLWR_DISABLE_UPDATE_CHECK"] = "1"
    line = [str(flwr), "build", "--app", str(target / "app")]
    subprocess.run(line, cwd=target, env=variables, check=True, capture_output=True)
    (built,) = target.rglob("*.fab")
    with zipfile.ZipFile(built) as archive:
        names = set(archive.namelist())
        assert archive.read("trillium_app/recipe.yaml").decode() == RECIPE
    modules = {"__init__.py", "client_app.py", "recipe.yaml", "server_app.py"}
    assert names == {"pyproject.toml", ".info/CONTENT"} | {f"trillium_app/{m}" for m in modules}


def test_an_existing_folder_is_not_written_over(target: Path) -> None:
    with pytest.raises(UserError, match="not empty"):
        write_app(target, recipe_text=RECIPE, settings={}, names=["alpha"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min-node": 2}, "Did you mean 'min-nodes'"),
        ({"min-nodes": "two"}, "is a int"),
        ({"resume": 1}, "is a bool"),
        ({"session-address": "fl.example.org"}, "not host:port"),
    ],
)
def test_wrong_settings_are_refused(
    tmp_path: Path, settings: dict[str, str | int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        write_app(tmp_path / "new", recipe_text=RECIPE, settings=settings, names=["alpha"])
    assert not (tmp_path / "new").exists()
