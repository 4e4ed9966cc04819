"""What `write_app` writes: it parses, Flower builds it, and nothing secret goes into the app."""

from __future__ import annotations

import configparser
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from trillium.deploy.flower import Value
from trillium.deploy.folder import SETTINGS, write_app
from trillium.deploy.wheels import write_requirements
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
    server = ["superlink", "superexec", "proxy"]
    nodes = ["alpha", "alpha-superexec", "beta", "beta-superexec"]
    assert list(services) == [*server, *nodes]
    for (
        name,
        service,
    ) in services.items():  # each is watched over, and shares the network of its own
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"]
        if name not in ("superlink", "alpha", "beta"):
            owner = "superlink" if name in server else name.removesuffix("-superexec")
            assert service["network_mode"] == f"service:{owner}"
            assert "|| kill" in service["healthcheck"]["test"]
    assert services["superlink"]["ports"] == ["8443:8443", "9443:9443"]
    assert "--host=127.0.0.1" in services["superlink"]["command"]
    assert not any("ports" in services[name] for name in services.keys() - {"superlink"})
    for name in ("superlink", "alpha", "beta"):
        assert "--isolation=process" in services[name]["command"]


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


UNITS = ("superlink", "superexec", "proxy", "node", "node-superexec")
MONITORS = ("monitor", "node-monitor")  # which write nothing


def test_units_run_as_an_account_of_their_own_and_may_write_in_one_place(target: Path) -> None:
    for name in (*UNITS, *MONITORS):
        text = (target / "systemd" / f"trillium-{name}.service").read_text()
        unit = configparser.RawConfigParser(strict=False, interpolation=None)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read_string(text)
        service = unit["Service"]
        node = name.startswith("node")
        assert service["User"] == ("trillium-node" if node else "trillium")
        place = "/srv/trillium-node/state" if node else "/srv/trillium/server"
        assert service.get("ReadWritePaths", "").startswith("" if name in MONITORS else place)
        assert ("ReadWritePaths" in service) == (name in UNITS)
        wanted = {
            "ProtectSystem": "strict",
            "PrivateTmp": "yes",
            "UMask": "0077",
            "LimitNOFILE": "65536",
        }
        assert wanted.items() <= dict(service).items()
        assert service["Restart"] == "always"
    assert "--isolation process" in (target / "systemd/trillium-superlink.service").read_text()
    assert "--isolation process" in (target / "systemd/trillium-node.service").read_text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_accepts_the_units(target: Path, tmp_path: Path) -> None:
    """The programs are these of this machine; an unknown word in a unit is an error."""
    here = {"/opt/trillium/bin/": f"{Path(sys.executable).parent}/", "/usr/sbin/nginx": "/bin/true"}
    paths = []
    for name in (*UNITS, *MONITORS):
        path = tmp_path / f"trillium-{name}.service"
        text = (target / "systemd" / path.name).read_text()
        for given, found in here.items():
            text = text.replace(given, found)
        path.write_text(text)
        paths.append(path)

    def said(*checked: Path) -> str:
        command = ["systemd-analyze", "verify", "--man=no", *map(str, checked)]
        done = subprocess.run(command, capture_output=True, text=True)
        return "\n".join(line for line in done.stderr.splitlines() if "trillium-" in line)

    assert said(*paths) == ""
    paths[0].write_text(paths[0].read_text().replace("ProtectSystem=", "ProtectSistem="))
    assert "ProtectSistem" in said(*paths)


def test_wheels_are_held_to_their_hashes(tmp_path: Path) -> None:
    for name in ("trillium-0.1.0-py3-none-any.whl", "Other_Name-2.0-py3-none-any.whl"):
        (tmp_path / name).write_bytes(name.encode())
    lines = write_requirements(tmp_path).read_text().splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["other-name==2.0", "trillium==0.1.0"]
    digest = hashlib.sha256(b"trillium-0.1.0-py3-none-any.whl").hexdigest()
    assert lines[1].endswith(f"--hash=sha256:{digest}")
    (tmp_path / "trillium-0.2.0-py3-none-any.whl").touch()
    with pytest.raises(UserError, match="two wheels of trillium"):
        write_requirements(tmp_path)
    with pytest.raises(UserError, match="no wheel of Trillium"):
        write_requirements(tmp_path / "none")
