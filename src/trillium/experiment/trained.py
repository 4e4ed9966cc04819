"""What a finished run has trained: measure it again, let it predict, or write it elsewhere.

Of the data that the run was made of nothing is read: what is needed of it lies in the run folder.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trillium.config.experiment import ExperimentConfig, Tree, experiment, merge, read_yaml
from trillium.config.texts import usable
from trillium.data.federated import FederatedData
from trillium.data.rows import rows_of
from trillium.errors import UserError
from trillium.experiment.card import write_card
from trillium.experiment.fit import check_answers, check_lengths
from trillium.experiment.held_out import kept_rows
from trillium.experiment.kept import find_model
from trillium.experiment.run import (
    Experiment,
    assemble,
    build_server,
    resident_model,
    tokenize,
)
from trillium.federation.engine import Engine
from trillium.federation.side import Metrics
from trillium.models.load import LanguageModel
from trillium.models.slots import State

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)
MEASURING: Final = ("task", "evaluation.batch_tokens", "training.max_length", "data.source")
"""Settings of a run that may be others when its model is measured; beside those of `MOVED`."""
MOVED: Final = ("model.id", "model.device", "model.dtype", "model.attention")
"""Settings that say where the base model is, and how it computes."""


@dataclass(frozen=True)
class Trained:
    """A model of a finished run, ready for use.

    Attributes:
        client: whose it is; the server's for `None`.
        config: of the run, as that side sees it.
        columns: the columns that the run's rows had.
    """

    folder: Path
    client: str | None
    config: ExperimentConfig
    model: LanguageModel
    state: State
    labels: tuple[str, ...]
    columns: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Where the trained parameters lie."""
        return find_model(self.folder, self.client)


def load_trained(folder: Path, client: str | None = None, changes: Tree | None = None) -> Trained:
    """Return the model of a run, or that of one of its clients.

    Args:
        changes: settings that are to be others than in the run.

    Raises:
        UserError: there is no such model, or its base is not to be had.
    """
    path = find_model(folder, client)
    config = _whole(experiment(merge(run_config(folder).tree(), changes or {})).of(client))
    told = about_data(folder)
    model = resident_model(config, told["labels"])
    state = model.load_state(path)
    columns = tuple(told.get("columns", ()))
    return Trained(folder, client, config, model, state, tuple(told["labels"]), columns)


def evaluate_run(folder: Path, changes: Tree, client: str | None = None) -> Metrics:
    """Return the metrics of a run's model on its held-out rows, or on all rows of another source.

    Args:
        changes: settings that are to be others than in the run; `data.source` is what to measure on.

    Raises:
        UserError: the folder holds no such model, a setting has no effect, or the rows do not fit.
    """
    refuse_others(changes, (*MEASURING, *MOVED), "eval")
    _same_task(folder, changes)
    found = load_trained(folder, client, changes)
    config, form = found.config, found.config.task.data_form
    if "source" in changes.get("data", {}):
        rows = rows_of(config.data.source, form, found.labels)
    else:
        rows = kept_rows(folder, config)
    examples = usable(config, tokenize(config, found.model, rows))
    warn_of_cuts(config, found.model, rows)
    check_lengths(config, found.model, [examples])
    check_answers(config, found.model, examples)
    module = found.model.mount(found.state).eval()
    batch_tokens = config.evaluation.batch_tokens
    return dict(config.task.evaluate(module, examples, found.model.tokenizer, batch_tokens))


def warn_of_cuts(config: ExperimentConfig, model: LanguageModel, rows: Dataset) -> None:
    """Say how many texts are measured, or read, in part only."""
    limit = config.training.limit
    whole = config.task.tokenize(rows, model.tokenizer, None, model.num_classes)
    if cut := sum(example.num_tokens > limit for example in whole):
        log.warning(
            "%d of %d texts were cut to %d tokens; training.max_length says how many are kept.",
            cut,
            len(whole),
            limit,
        )


def export_run(folder: Path, to: Path, *, merge: bool, client: str | None = None) -> None:
    """Write a run's model, or that of a client, into a new folder.

    Args:
        to: must not exist.

    Raises:
        UserError: the folder holds no such model, the target exists, or it cannot be merged.
    """
    if to.exists():
        raise UserError(f"--to {to}", "it exists already", "Choose a folder that does not exist")
    path, config = find_model(folder, client), run_config(folder).of(client)
    if not to.parent.is_dir():
        raise UserError(f"--to {to}", f"there is no folder {to.parent}", "Make it first")
    if merge:
        found = load_trained(folder, client)
        found.model.save_merged(found.state, to)
    elif config.model.random_weights and config.adapter.freezes:
        raise UserError(
            f"{folder} with model.random_weights=true",
            "an adapter needs its base model, and no checkpoint holds the weights of this one",
            "Export with --merge",
        )
    else:
        shutil.copytree(path, to)
        if client is not None:
            load_trained(folder, client).model.tokenizer.save_pretrained(to)
    write_card(folder, run_config(folder), to, client)


def refuse_others(changes: Tree, known: tuple[str, ...], verb: str) -> None:
    """Refuse settings that a verb does not look at.

    Raises:
        UserError: one is none of those known, nor below one of them.
    """
    for path in _paths(changes):
        if not any(path == key or path.startswith(f"{key}.") for key in known):
            raise UserError(
                f"{path} with trillium {verb}",
                "the run has its own settings, and this one has no effect on it any more",
                f"Leave it out; these may be given: {', '.join(known)}",
            )


def _paths(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _paths(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _same_task(folder: Path, changes: Tree) -> None:
    given = changes.get("task")
    name = given.get("name") if isinstance(given, Mapping) else given
    own = run_config(folder).task.name
    if name not in (None, own):
        raise UserError(
            f"task={name}", f"the model of {folder} was trained for task={own}", "Leave it out"
        )


def run_config(folder: Path) -> ExperimentConfig:
    """Return the configuration of a finished run.

    Raises:
        UserError: the folder is none of a run that has left a model.
    """
    if not (folder / "config.yaml").is_file():
        find_model(folder, None)  # which says what the folder is instead
    return experiment(read_yaml(folder / "config.yaml"))


def _whole(config: ExperimentConfig) -> ExperimentConfig:
    """Return a configuration without the adapter that training went on from.

    What it has become lies in the run folder, and it may be gone.
    """
    if config.adapter.goes_on_from is None:
        return config
    adapter = config.adapter.model_copy(update={"from_": None})
    return config.model_copy(update={"adapter": adapter})


def about_data(folder: Path) -> dict[str, Any]:
    """Return what a run folder says of the data: sizes, classes, columns."""
    try:
        found: dict[str, Any] = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            str(folder / "data.json"),
            f"the class names of the run cannot be read ({error})",
            "Put the file back; `trillium run` has written it",
        ) from error
    return found


def rebuild(folder: Path) -> Experiment:
    """Return the federation of a finished run with its trained model, and clients without rows.

    Raises:
        UserError: the folder holds no trained model of all.
    """
    config, told = _whole(run_config(folder)), about_data(folder)
    # The data of a deployed run were with its nodes, and nobody here knows their names.
    names = list(told["clients"]) or config.data.names()
    return _with_state(folder, assemble(config, _held_out(folder, config, names)))


def rebuild_server(folder: Path, engine: Engine) -> Experiment:
    """Return the server of a finished run with its trained model, over an engine.

    Raises:
        UserError: the folder holds no trained model of all.
    """
    config = _whole(run_config(folder))
    data = _held_out(folder, config)
    model = resident_model(config.of(None), data.labels)
    return _with_state(folder, build_server(config, model, data, engine))


def _held_out(folder: Path, config: ExperimentConfig, names: Sequence[str] = ()) -> FederatedData:
    """Return the held-out rows of a run, and clients without rows."""
    rows = kept_rows(folder, config)
    none = rows.select([])
    return FederatedData(
        dict.fromkeys(names, none), rows, none, tuple(about_data(folder)["labels"])
    )


def _with_state(folder: Path, built: Experiment) -> Experiment:
    built.server.state = built.model.load_state(find_model(folder, None))
    return built
