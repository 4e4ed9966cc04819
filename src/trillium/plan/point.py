"""Where a run stands among all that could be run: what its result depends on, and what is near."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any, Final

from trillium.config.defaults import value_at
from trillium.config.experiment import experiment
from trillium.errors import UserError
from trillium.plan.predict import Prediction
from trillium.report.read import Run, number

Value = bool | int | float | str | None

FACTOR: Final = 2.0
"""Up to so many times a number, the result of a run is taken to speak for another one."""

FACTS: Final = {
    "data": "data",
    "model": "model",
    "num_parameters": "parameters of the model",
    "num_classes": "classes",
    "num_clients": "clients",
    "rows": "rows of a client",
    "skew": "Dirichlet α of the labels (100: even)",
    "public_rows": "public rows",
    "tokens": "tokens of a text at most",
}
"""What is no setting, or stands in several of them, and its words."""

_NAMES: Final = (
    "data",
    "model",
)  # said where they differ; what is like them follows from the others
_EVEN: Final = 100.0  # from this α on, a Dirichlet draw is as good as an even division
# Settings that change no result, or of which `FACTS` tells; all others count, those to come among them.
_APART: Final = (
    *("seed", "plan", "report", "finetune"),
    *(f"evaluation.{key}" for key in ("every", "where", "held_back", "batch_tokens")),
    *(f"model.{key}" for key in ("id", "revision", "device", "attention", "trust_remote_code")),
    *("task.generate", "task.max_new_tokens"),
    *(f"data.{key}" for key in ("source", "partition", "num_clients", "client_names", "labels")),
    *(f"data.{key}" for key in ("public_size", "set_aside", "test_size", "test_fraction")),
    *(f"data.{key}" for key in ("split_seed", "validation_fraction", "unusable")),
    *(f"training.{key}" for key in ("micro_batch_size", "gradient_checkpointing")),
    *("training.cache_frozen", "training.max_length"),
    *("framework.leakage", "framework.cache_bytes"),
)


@dataclass(frozen=True)
class Point:
    """What the result of a run depends on.

    Attributes:
        facts: by the keys of `FACTS`; what is not known is `None`, or missing.
        settings: by path.
        defaults: the same where nothing is written, for runs from before a setting was there.
    """

    facts: Mapping[str, Value]
    settings: Mapping[str, Value]
    defaults: Mapping[str, Value] = field(default_factory=dict)

    @property
    def kind(self) -> tuple[Value, Value]:
        """Framework and task: no run speaks for one of another kind."""
        return self.settings.get("framework.name"), self.settings.get("task.name")


@dataclass(frozen=True)
class Difference:
    """An axis on which two points differ.

    Attributes:
        axis: in words, or the path of a setting.
        given: the value that is asked about.
        measured: the value of the run.
        near: whether the run still speaks for it.
    """

    axis: str
    given: Value
    measured: Value
    near: bool

    def __str__(self) -> str:
        return f"{self.axis} {_shown(self.given)} → {_shown(self.measured)}"

    @property
    def distance(self) -> float:
        """How far apart the values are, in doublings."""
        if not (_is_number(self.given) and _is_number(self.measured)):
            return 1.0
        low, high = sorted((abs(float(self.given or 0)), abs(float(self.measured or 0))))
        return math.log2(high / low) if low else 10.0


def point_of_run(run: Run) -> Point:
    """Return the point of a measured run."""
    clients = [
        number(own.get("texts", own.get("num_examples"))) or 0.0 for own in clients_of(run).values()
    ]
    labels = run.data.get("labels")
    return _point(
        run.config,
        num_parameters=number(run.plan.get("num_parameters")),
        num_classes=len(labels) if isinstance(labels, list) else None,
        num_clients=len(clients) or None,
        rows=sum(clients) / len(clients) if clients else None,
        public_rows=number(value_at(run.data, "public.num_examples")),
        tokens=value_at(run.config, "training.max_length"),
    )


def clients_of(run: Run) -> dict[str, Mapping[str, Any]]:
    """Return what `data.json` says of each client."""
    found = run.data.get("clients")
    own = found if isinstance(found, Mapping) else {}
    return {name: told for name, told in own.items() if isinstance(told, Mapping)}


def point_of_plan(found: Prediction) -> Point:
    """Return the point of a planned run."""
    texts, config = found.texts, found.config
    own = {id(examples): examples for examples in texts.clients.values()}.values()
    longest = max((example.num_tokens for examples in own for example in examples), default=0)
    point = _point(
        config.tree(),
        num_parameters=found.num_parameters,
        num_classes=texts.num_classes,
        num_clients=len(texts.clients),
        rows=sum(map(len, texts.clients.values())) / len(texts.clients),
        public_rows=config.public_size,
        tokens=config.training.max_length or longest,
    )
    named = {"data": "assumed"} if texts.assumed else {}
    plain = {"framework": {"name": config.framework.name}, "task": {"name": config.task.name}}
    with suppress(UserError):  # some task may need more than its name
        point = replace(point, defaults=dict(_flat(experiment(plain).tree())))
    return replace(point, facts={**point.facts, **named})


def differences(given: Point, measured: Point) -> list[Difference]:
    """Return the axes on which a measured point differs from a given one.

    Of another component its name alone is told, not its options.
    """
    found, other = [], ""
    same_model = given.facts.get("model") == measured.facts.get("model")
    for key, words in FACTS.items():
        mine, theirs = given.facts.get(key), measured.facts.get(key)
        if mine == theirs or (key == "num_parameters" and same_model):
            continue
        found.append(Difference(words, mine, theirs, key in _NAMES or is_near(mine, theirs)))
    paths = {*given.settings, *measured.settings}
    for path in sorted(paths, key=lambda path: (path.removesuffix("name"), path)):
        default = given.defaults.get(path)
        mine, theirs = given.settings.get(path), measured.settings.get(path, default)
        if other and path.startswith(other):
            continue
        if mine != theirs or path not in given.settings:
            other = path.removesuffix("name") if path.endswith(".name") else other
            near = path in given.settings and is_near(mine, theirs)
            found.append(Difference(path, mine, theirs, near))
    return found


def is_near(given: Value, measured: Value) -> bool:
    """Whether a number is within `FACTOR` of another; all else must be equal."""
    if not (_is_number(given) and _is_number(measured)):
        return given == measured
    low, high = sorted((float(given or 0), float(measured or 0)))
    return low == high or (low > 0 and high <= FACTOR * low)


def _point(config: Mapping[str, Any], **facts: Any) -> Point:
    model = str(value_at(config, "model.id") or "")
    named = {
        "data": _data(value_at(config, "data.source")),
        "model": PurePath(model).name.lower(),
        "skew": _skew(value_at(config, "data.partition")),
    }
    return Point({**named, **facts}, dict(_flat(config)))


def _data(source: Any) -> str:
    """Return the name of a source: of files without their folders, which are of one machine."""
    found = source if isinstance(source, Mapping) else {"name": source}
    if "train" in found:
        return PurePath(str(found["train"])).stem
    return str(found.get("path") or found.get("name"))


def _skew(partition: Any) -> Value:
    """Return how skewed labels are: α of a Dirichlet draw, or which other way divides the rows."""
    found = partition if isinstance(partition, Mapping) else {"name": partition}
    name = str(found.get("name"))
    if name == "iid":
        return _EVEN
    alpha = number(found.get("alpha"))
    return name if alpha is None else min(alpha, _EVEN)


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Value]]:
    """Yield settings by path: of the blocks with an adapter their number, of other lists each."""
    for key, value in tree.items():
        path = f"{above}{key}"
        if path in _APART:
            continue
        if path.endswith("adapter.layers") and isinstance(value, list | tuple):
            yield path, len(value)
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{path}.")
        elif isinstance(value, list | tuple) and any(isinstance(one, Mapping) for one in value):
            yield from _flat({str(place): one for place, one in enumerate(value)}, f"{path}.")
        elif isinstance(value, list | tuple):
            yield path, ", ".join(map(str, value))
        elif value != {}:
            yield path, value


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Value) -> str:
    if value is None:
        return "null"
    if not _is_number(value):
        return str(value) or "[]"
    known = float(value)
    return f"{known:,.0f}" if known.is_integer() else f"{known:,.4g}"
