"""Words and options that several verbs have, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trillium.errors import UserError

if TYPE_CHECKING:
    from trillium.config.experiment import Tree
    from trillium.config.given import Asked
    from trillium.engines.simulation import Simulation

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE] [KEY=VALUE]...",
        help="A recipe, by its file or as `trillium new --list` names it, and settings such as "
        "training.batch_size=8.",
    ),
]
Model = Annotated[
    str | None, typer.Option(help="Hub id or folder of the model; `minilm` is the default.")
]
Data = Annotated[
    str | None, typer.Option(help="A csv, jsonl or parquet file, a hub id, or a dataset folder.")
]
Seeds = Annotated[
    str | None,
    typer.Option(
        help="How many seeds (3 means 0, 1 and 2), or a list of them: 0,5,7. A list of one ends with "
        "a comma."
    ),
]
Out = Annotated[Path, typer.Option(help="Folder in which the run folders are made.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a run.")]
Workers = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="How many runs at a time, each in a process with one thread; with --engine ray, how many "
        "processes the clients of a run are divided among.",
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        help="Where clients work: `local`, in the process of the run, or `ray`, in others; with "
        "options as in '{name: ray, gpus: 0.25}'."
    ),
]
Client = Annotated[
    str | None,
    typer.Option(help="Whose model to take, if each client of the run has its own."),
]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change from those of the run."),
]
Reach = Annotated[
    str | None,
    typer.Option(help="Report the bytes up to these accuracies, in per cent: 80,90."),
]


def ask(
    words: list[str] | None, model: str | None, data: str | None, *, sweeps: bool = False
) -> Asked:
    """Divide the words of a command into a recipe and settings."""
    from trillium.config.given import asked

    recipes = [word for word in words or [] if "=" not in word]
    if len(recipes) > 1:
        raise UserError(
            " ".join(recipes), "at most one recipe can be run", "Write settings as key=value"
        )
    settings = [word for word in words or [] if "=" in word]
    named = {key: value for key, value in (("model", model), ("data", data)) if value is not None}
    return asked(recipes[0] if recipes else None, settings, named, sweeps=sweeps)


def settings_of(words: list[str] | None, data: str | None) -> Tree:
    """Return the settings that a verb which takes no recipe is given.

    Raises:
        UserError: a word is no setting.
    """
    if others := [word for word in words or [] if "=" not in word]:
        raise UserError(
            others[0],
            "this verb takes the folder of a run, and settings beside it",
            "Write settings as key=value; name a file of rows with --data",
        )
    return ask(words, None, data).tree


def engine_of(text: str) -> Simulation:
    """Return the engine that `--engine` names.

    Raises:
        UserError: there is none of that name, or an option cannot be.
    """
    from trillium.config.experiment import parse_overrides
    from trillium.engines.simulation import simulation

    return simulation(parse_overrides([f"engine={text}"])["engine"])


def seeds_of(text: str | None) -> list[int] | None:
    """Return the seeds that `--seeds` names; none where it is not given.

    Raises:
        UserError: it names none.
    """
    if text is None:
        return None
    try:
        numbers = [int(word) for word in text.split(",") if word]
    except ValueError as error:
        raise UserError(
            f"--seeds {text}", "seeds are whole numbers", "Write 3, or 0,5,7"
        ) from error
    seeds = list(range(numbers[0])) if "," not in text else numbers
    if not seeds or min(seeds) < 0:
        raise UserError(f"--seeds {text}", "it names no seed", "Write 1 or more")
    return seeds


def shares(text: str | None) -> list[float]:
    """Return the shares that a list of per cents names.

    Raises:
        UserError: it is not a list of per cents.
    """
    try:
        found = [float(word.strip(" %")) / 100 for word in text.split(",")] if text else []
    except ValueError as error:
        raise UserError(
            f"--reach {text}", "these are per cents of accuracy", "Write 80, or 80,90"
        ) from error
    if not all(0 < share <= 1 for share in found):
        raise UserError(
            f"--reach {text}", "per cents are above 0 and at most 100", "Write 80, or 80,90"
        )
    return found
