"""All settings of a configuration, and other values for each: for walks and for draws."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from typing import Any, cast

from pydantic import BaseModel

from tiny import tensors_digest, without_seconds
from trillium.component import Component, known
from trillium.config.experiment import ExperimentConfig
from trillium.experiment.run import Experiment, build

# Values of fields that are no number, text or choice.
EXAMPLES: dict[str, Any] = {
    "wire.up": ["int8"],
    "wire.down": ["int8"],
    "training.lr_factors": {"head": 0.5},
    "tiers": {"a": {"clients": ["client-0"], "local_steps": 1}},
    "framework.local": ["head"],
    "framework.server_optimizer": {"name": "adam", "lr": 0.1},
    "framework.delta": {"skip": 0.1},
    "server.adapter": {"r": 2},
    "server.model": {"dtype": "float32"},
    "training.optimizer.name": "sgd",
    "training.cache_frozen": True,
    "report.track": ["tensorboard"],
    "data.client_names": ["oslo", "bergen"],
    "data.labels": ["class 2", "class 1", "class 0"],
}
NUMBERS = (2, 3, 1, 0.5, 0.25, 0.05, 1.5, 0, 7, 16, 64, 4)


def leaves(value: BaseModel, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Path, type and value of each field, through models and the components that are chosen."""
    for key, field in type(value).model_fields.items():
        place, found = f"{path}.{key}" if path else key, getattr(value, key)
        if isinstance(found, BaseModel):
            if isinstance(found, Component):
                yield place, field.annotation, found
            yield from leaves(found, place)
        else:
            yield place, field.annotation, found


def others(path: str, annotation: Any, value: Any) -> Iterator[Any]:
    """Other values of a field, the likely ones first."""
    if path in EXAMPLES:
        yield EXAMPLES[path]
        return
    if isinstance(value, Component):
        kind = next(base for base in type(value).__mro__ if base.__dict__.get("kind"))
        yield from (name for name in known(cast(type[Component], kind)) if name != value.name)
        return
    options = [
        option
        for part in (annotation, *typing.get_args(annotation))
        if typing.get_origin(part) is typing.Literal
        for option in typing.get_args(part)
    ]
    yield from (option for option in options if option != value)
    if isinstance(value, bool):
        yield not value
    elif not options:
        yield from (number for number in NUMBERS if number != value)


def tree_of(path: str, value: Any) -> dict[str, Any]:
    """A tree with one value."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return cast(dict[str, Any], value)


def printed(config: ExperimentConfig) -> str:
    """All that a run is known by, but for its seconds."""
    fed = build(config)
    fed.run()
    return print_of(fed)


def print_of(fed: Experiment) -> str:
    """The same of a run that is over."""
    entries = [{**vars(entry), "seconds": 0} for entry in fed.fleet.ledger.entries]
    if fed.folder is not None:
        written = (fed.folder.path / "wire.jsonl").read_text(encoding="utf-8").splitlines()
        entries = [{**json.loads(line), "seconds": 0} for line in written]
    state = tensors_digest(dict(fed.server.state))
    found = [without_seconds(fed.history), entries, state, fed.data.summary()]
    return json.dumps(found, default=str, sort_keys=True)
