"""What stands beside the code says what the package says."""

from __future__ import annotations

import json
import re
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import yaml

from pages import DOCS, ROOT
from trillium import extras
from trillium.cli import doctor

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_every_extra_is_explained() -> None:
    text = (DOCS / "installing.md").read_text(encoding="utf-8")
    table = text.partition("| extra |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE) == list(
        PROJECT["optional-dependencies"]
    )


def test_the_version_is_cited_and_has_its_changes() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_doctor_names_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_ray(name: str) -> str:
        if name in ("ray", "grpcio"):
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(doctor, "version", without_ray)
    doctor.doctor(as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["missing"]["deploy"] == ["grpcio"]
    assert found["missing"]["simulation"] == ["ray"]
    assert found["missing"]["demo"] == []
    assert found["devices"][0] == "cpu"
    assert set(found["missing"]) == set(PROJECT["optional-dependencies"]) - {"dev", "docs"}
    doctor.doctor(as_json=False)
    assert capsys.readouterr().out.endswith(f"{extras.install('deploy,simulation')}\n")


@pytest.mark.parametrize(
    ("name", "info", "option"),
    [
        ("checkout", {"dir_info": {"editable": True}}, "-e "),
        ("checkout", {"dir_info": {}}, ""),
        ("trillium.whl", {"archive_info": {}}, ""),
    ],
)
def test_extras_come_from_where_trillium_came_from(
    name: str,
    info: dict[str, object],
    option: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Installed:
        def read_text(self, _: str) -> str | None:
            return record

    monkeypatch.setattr(extras, "distribution", lambda _: Installed())
    place = tmp_path / name
    place.mkdir()
    record: str | None = json.dumps({"url": place.as_uri(), **info})
    assert extras.install("deploy") == f"Write: pip install {option}'{place}[deploy]'"
    place.rmdir()
    unknown = extras.install("deploy")
    assert "PATH[deploy]" in unknown
    record = None
    assert extras.install("deploy") == unknown
