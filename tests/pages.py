"""What the tests of the documentation share: the code and the commands that stand in a page."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import torch

from trillium.federation.means import Contribution
from trillium.frameworks.fedllm.aggregators import Aggregator
from trillium.wire.kinds import Tensors

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def load(path: Path) -> ModuleType:
    """Import a file that is in no package."""
    spec = importlib.util.spec_from_file_location(f"of_docs_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # pydantic looks annotations up there
    spec.loader.exec_module(module)
    return module


def blocks(page: str, heading: str, language: str) -> list[str]:
    """Return the fenced blocks of a page in `docs/` under a heading."""
    text = (DOCS / page).read_text(encoding="utf-8")
    [section] = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return [body for found, body in FENCED.findall(section) if found == language]


def component(heading: str, tmp_path: Path, page: str = "extending.md") -> ModuleType:
    """Import the component that a section of a page defines, as the file it says it is."""
    [source] = blocks(page, heading, "python")
    name = re.match(r"# src/trillium/\S+/(\w+)\.py\n", source)
    assert name is not None
    path = tmp_path / f"{name[1]}.py"
    path.write_text(source, encoding="utf-8")
    return load(path)


def settings(heading: str) -> list[str]:
    """Return the `key=value` words of the command in a section of extending.md."""
    [command] = blocks("extending.md", heading, "sh")
    words = shlex.split(command)
    assert words[:2] == ["trillium", "run"]
    return words[2:]


def aggregated(aggregator: Aggregator, sent: list[Contribution]) -> Tensors:
    """Return what an aggregator makes of contributions, by the path that FedLLM takes."""
    like = {name: torch.zeros_like(tensor) for name, tensor in sent[0].tensors.items()}
    reduction = aggregator.begin(like, [])
    for contribution in sent:
        reduction.add(contribution)
    found = reduction.result()
    assert not found.folds
    return found.tensors
