"""What every named choice of the config promises, whatever its kind."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from trillium.component import Choice, Component, known, resolve
from trillium.data.partitions import Partition
from trillium.data.publics import Public
from trillium.data.sources import Source
from trillium.engines.simulation import Simulation
from trillium.errors import UserError
from trillium.frameworks import Framework
from trillium.frameworks.fedllm.aggregators import Aggregator
from trillium.frameworks.fedllm.downloads import Download
from trillium.frameworks.fedllm.drifts import Drift
from trillium.frameworks.fedllm.masks import Mask
from trillium.frameworks.heads import Head
from trillium.frameworks.kd.ensembles import Ensemble
from trillium.frameworks.kd.sharpenings import Sharpening
from trillium.frameworks.split.defences import Defence
from trillium.models.adapters import Adapter
from trillium.tasks import Task
from trillium.wire.codecs import Codec

KINDS: list[type[Component]] = [
    Framework,
    Head,
    Aggregator,
    Codec,
    Adapter,
    Task,
    Source,
    Partition,
    Mask,
    Download,
    Drift,
    Ensemble,
    Sharpening,
    Public,
    Defence,
    Simulation,
]
MEMBERS = [(kind, name) for kind in KINDS for name in known(kind)]
IDS = [f"{kind.kind} {name}" for kind, name in MEMBERS]
REQUIRED: dict[str, dict[str, Any]] = {
    "files": {"train": "rows.csv"},
    "file": {"path": "rows.csv"},
    "hub": {"path": "ag_news"},
}
each_member = pytest.mark.parametrize(("kind", "name"), MEMBERS, ids=IDS)


def tree(name: str) -> dict[str, Any]:
    return {"name": name, **REQUIRED.get(name, {})}


def documented(cls: type[BaseModel]) -> set[str]:
    """Names that a class and the classes above it explain under `Attributes:`."""
    found: set[str] = set()
    for base in cls.__mro__:
        if not issubclass(base, BaseModel) or base in (BaseModel, Component):
            continue
        text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        _, _, section = text.partition("Attributes:\n")
        for line in section.splitlines():
            if line and not line.startswith(" "):
                break
            entry = re.match(r" {4}([a-z_][\w, ]*):", line)
            if entry:
                found |= {word.strip() for word in entry[1].split(",")}
    return found


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_every_kind_has_members(kind: type[Component]) -> None:
    assert known(kind)
    assert len({cls.name for cls in known(kind).values()}) == len(known(kind))


@each_member
def test_the_plain_form_reads_back(kind: type[Component], name: str) -> None:
    component = resolve(kind, tree(name))
    plain = component.to_config()
    assert plain["name"] == name
    assert resolve(kind, plain) == component
    assert resolve(kind, component) is component

    class Holder(BaseModel):
        chosen: Choice[kind]  # type: ignore[valid-type]

    assert Holder.model_validate({"chosen": plain}).model_dump(mode="json") == {"chosen": plain}


@each_member
def test_a_slip_in_the_name_gets_a_suggestion(kind: type[Component], name: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(kind, f"{name}x")
    assert f"there is no {kind.kind} of that name" in caught.value.why
    assert repr(name) in caught.value.instead or name in caught.value.instead


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
@pytest.mark.parametrize("value", [3, None, ["mean"], {"nom": "mean"}, {"name": 3}])
def test_another_form_is_refused_with_the_choices(kind: type[Component], value: object) -> None:
    with pytest.raises(UserError) as caught:
        resolve(kind, value)
    assert all(name in caught.value.instead for name in known(kind))


@each_member
def test_an_unknown_option_is_refused(kind: type[Component], name: str) -> None:
    with pytest.raises(ValidationError, match="no_such_option"):
        resolve(kind, {**tree(name), "no_such_option": 1})


@each_member
def test_a_component_is_frozen(kind: type[Component], name: str) -> None:
    component = resolve(kind, tree(name))
    for field in type(component).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(component, field, None)


@each_member
def test_each_option_is_explained(kind: type[Component], name: str) -> None:
    cls = known(kind)[name]
    assert (cls.__dict__.get("__doc__") or "").strip().endswith(".") or "Attributes" in (
        cls.__doc__ or ""
    )
    keys = {field.alias or name for name, field in cls.model_fields.items()}
    assert keys <= documented(cls)
    assert (inspect.getdoc(inspect.getmodule(cls)) or "").strip()


def test_an_option_without_explanation_is_told() -> None:
    class Vague(Aggregator):
        """Take some middle.

        Attributes:
            trim: how much is cut off.
        """

        trim: float = 0.1
        silent: int = 1

    assert documented(Vague) == {"trim"}


def test_other_distributions_add_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "from trillium.wire.codecs import Codec\n\nclass Plugged(Codec, name='plugged'): ...\n"
    (tmp_path / "plugged_codec.py").write_text(source)
    (tmp_path / "plugged-1.0.dist-info").mkdir()
    entry = "[trillium.codec]\nplugged = plugged_codec\n"
    (tmp_path / "plugged-1.0.dist-info" / "entry_points.txt").write_text(entry)
    code = (
        "from trillium.wire.codecs import Codec; from trillium.component import known; "
        "print(known(Codec)['plugged'].__module__)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout == "plugged_codec\n"
