"""Public shapes: the architectures of well-known models, so that a plan needs no download."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from trillium.config.experiment import Tree


@dataclass(frozen=True)
class Shape:
    """The architecture of a public model.

    Attributes:
        name: what a plan calls it, in lower case.
        model_type: Hugging Face's name of the architecture.
        options: of its configuration, where they differ from that architecture's defaults.
        source: its id on the hub, where the numbers stand.
    """

    name: str
    model_type: str
    options: dict[str, Any]
    source: str

    def config(self) -> Any:
        """Return the Hugging Face configuration."""
        from transformers import AutoConfig

        return AutoConfig.for_model(self.model_type, **self.options)


@cache
def shapes() -> dict[str, Shape]:
    """Return all known shapes by name."""
    text = (Path(__file__).parent / "shapes.yaml").read_text(encoding="utf-8")
    found = {}
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, and ten times as fast
    for name, entry in yaml.load(text, loader).items():
        options = dict(entry)
        model_type, source = options.pop("type"), options.pop("source")
        found[name] = Shape(name, model_type, options, source)
    return found


def with_sources(tree: Tree) -> Tree:
    """Return settings for a run, where models go by their ids on the hub, not by names of shapes."""
    found: Tree = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            value = with_sources(dict(value))
            if key == "model" and value.get("id") in shapes() and not Path(value["id"]).is_dir():
                value = {**value, "id": shapes()[value["id"]].source}
        found[key] = value
    return found
