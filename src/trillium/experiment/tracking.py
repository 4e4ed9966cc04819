"""Trackers: the measures of a run as it goes on, in TensorBoard, MLflow, Weights & Biases or Trackio.

Accelerate's trackers are written to; nothing is imported where none is named. They get what
`metrics.jsonl` and the ledger get, whatever the framework. A run that is resumed goes on in the same
one: what it is known by there stands in its folder.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trillium.errors import UserError
from trillium.files import write_atomic
from trillium.report.read import COMPARE_FILE, read_run
from trillium.report.summary import summarise

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

    from trillium.federation.side import Metrics
    from trillium.wire.ledger import Entry

log = logging.getLogger(__name__)
PROJECT: Final = "trillium"
STATE: Final = "tracking.json"  # in a run folder: what the run is called there, and how far it is
AT_ONCE: Final = 500  # values in one call; MLflow takes a thousand


def check_trackers(names: Collection[str]) -> None:
    """Refuse trackers that are not installed here.

    Raises:
        UserError: one is not.
    """
    if not names:
        return
    from accelerate.tracking import get_available_trackers

    installed = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in installed:
            raise UserError(
                f"report.track={name}",
                f"the package {name} is not installed here",
                f"Write: pip install {name}, or leave it out",
            )


class Tracking:
    """Writes one run to its trackers.

    Args:
        names: of the trackers.
    """

    def __init__(self, names: Collection[str], folder: Path) -> None:
        self._names, self._folder = names, folder
        self._trackers: dict[str, GeneralTracker] = {}
        self._sums = _Sums()
        path = folder / STATE
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self._id: str = known.get("id", uuid.uuid4().hex)
        self._runs: dict[str, str] = known.get("runs", {})
        self._round: int = known.get("round", -1)

    def begin(self, tree: Mapping[str, Any]) -> None:
        """Open the trackers; a run that is new there is told its settings.

        Raises:
            UserError: one cannot be opened.
        """
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # without it, Accelerate's own log raises an error
        settings = dict(_values(tree, "."))
        for name in self._names:
            try:
                tracker = LOGGER_TYPE_TO_CLASS[name](**self._arguments(name))
                tracker.start()
                if name not in self._runs:
                    tracker.store_init_configuration(settings)
            except Exception as error:  # whatever a service or a library of others may say
                self.end()
                raise UserError(
                    f"report.track={name}",
                    f"it cannot be begun ({type(error).__name__}: {error})",
                    "Log in to it, or leave it out",
                ) from error
            self._trackers[name] = tracker
            info = getattr(tracker.tracker, "info", None)  # MLflow's own name of a run
            self._runs[name] = str(getattr(info, "run_id", self._id))
        self._keep()

    def _arguments(self, name: str) -> Mapping[str, Any]:
        """Return what Accelerate hands on to a tracker, for it to find the run of this folder again."""
        inside = (self._folder.parent / COMPARE_FILE).is_file()
        label = "/".join(self._folder.resolve().parts[-2 if inside else -1 :])
        arguments: dict[str, dict[str, Any]] = {
            "tensorboard": {"run_name": "tensorboard", "logging_dir": self._folder},
            "mlflow": {
                "experiment_name": PROJECT,
                "run_name": label,
                "run_id": self._runs.get("mlflow"),
                "nested_run": True,  # where the caller has a run of its own
            },
            "wandb": {
                "run_name": PROJECT,
                "name": label,
                "id": self._id,
                "resume": "allow",
                "dir": str(self._folder),
            },
            "trackio": {"run_name": PROJECT, "name": f"{label} {self._id[:6]}", "resume": "allow"},
        }
        return arguments[name]

    def watch(self, entry: Entry) -> None:
        """Count a message."""
        self._sums.add(entry)

    def observe(self, line: Metrics) -> None:
        """Write an evaluation, and what had crossed until then; once, should it be made again."""
        number = int(line["round"])
        if number <= self._round:
            return
        measured = {**line, "missing": len(line.get("missing", ()))}
        found = {**dict(_values(measured, "/")), **self._sums.values()}
        self._log({key: value for key, value in found.items() if _is_number(value)}, number)
        self._round = number
        self._keep()

    def finish(self) -> None:
        """Write the table of the report: every measure of the run that has finished."""
        [row] = summarise([read_run(self._folder)])
        table = {f"table/{name}": stat.mean for name, stat in row.values.items()}
        self._log(table, max(self._round, 0))

    def end(self) -> None:
        """Close the trackers."""
        for name in [*self._trackers]:
            self._try(name, methodcaller("finish"))
        self._trackers.clear()

    def _log(self, values: Mapping[str, Any], number: int) -> None:
        items = [(re.sub(r"[^\w\-./ ]", "_", key), value) for key, value in values.items()]
        for start in range(0, len(items), AT_ONCE):
            part = dict(items[start : start + AT_ONCE])
            for name in [*self._trackers]:
                self._try(name, methodcaller("log", part, step=number))

    def _try(self, name: str, act: Callable[[GeneralTracker], None]) -> None:
        """Do something with a tracker; one that fails is left alone: no run ends for it."""
        try:
            act(self._trackers[name])
        except Exception as error:  # whatever a service or a library of others may say
            log.warning("%s has failed, and gets nothing more of this run: %s", name, error)
            with suppress(Exception):
                self._trackers.pop(name).finish()

    def _keep(self) -> None:
        content = {"id": self._id, "runs": self._runs, "round": self._round}
        write_atomic(self._folder / STATE, json.dumps(content, indent=1))


class _Sums:
    """What has crossed so far, and what it took, over all clients and for each.

    As in the report, training counts; what is sent once stands apart, and evaluations count nowhere.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._peaks: dict[str, float] = defaultdict(float)

    def add(self, entry: Entry) -> None:
        """Count a message."""
        if entry.purpose == "once":
            self._sums[f"bytes_once_{entry.direction}"] += entry.bytes
        if entry.purpose != "train":
            return
        own = f"clients/{entry.client}"
        for name in (f"bytes_{entry.direction}", f"{own}/bytes_{entry.direction}"):
            self._sums[name] += entry.bytes
        for kind, number in entry.kinds.items():
            self._sums[f"bytes_{entry.direction}/{kind}"] += number
        for name in ("client_flops", f"{own}/flops") if entry.flops is not None else ():
            self._sums[name] += entry.flops or 0.0
        for name in ("client_peak_bytes", f"{own}/peak_bytes"):
            if entry.peak_bytes is not None:
                self._peaks[name] = max(self._peaks[name], entry.peak_bytes)

    def values(self) -> dict[str, float]:
        """Return all of it by name."""
        return {**self._sums, **self._peaks}


def _values(tree: Mapping[str, Any], dot: str, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what stands in a tree by its path; lists as text."""
    for key, value in tree.items():
        path = re.sub(r"[^\w\-./ ]", "_", f"{place}{key}")
        if isinstance(value, Mapping):
            yield from _values(value, dot, f"{path}{dot}")
        else:
            yield path, json.dumps(value) if isinstance(value, list | tuple) else value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
