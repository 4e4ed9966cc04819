"""`trillium eval`, `predict` and `export`: what to do with the model of a run."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trillium.cli.verbs import working
from trillium.cli.words import AsJson, Client, Folder, Settings, settings_of
from trillium.errors import UserError
from trillium.files import check_writable

if TYPE_CHECKING:
    from typing import TextIO

    from trillium.experiment.prediction import Predicted

ALL_ROWS = "All rows of a csv, json, jsonl or parquet file, or the test split of a dataset"


def evaluate(
    folder: Folder,
    words: Settings = None,
    data: Annotated[
        str | None, typer.Option(help=f"{ALL_ROWS}, instead of those that the run held out.")
    ] = None,
    client: Client = None,
    harness: Annotated[
        str | None,
        typer.Option(
            "--lm-eval",
            metavar="TASK,...",
            help="Measure a language model by tasks of EleutherAI's harness instead: their names, or "
            "YAML files.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the model of a run on its held-out rows, on a file, or by EleutherAI's harness."""
    if harness is not None:
        _by_harness(folder, harness, words, data, client, as_json)
        return
    with working("Measuring"):
        tree = settings_of(words, data)
        from trillium.experiment.trained import evaluate_run
        from trillium.quiet import quiet

        quiet()
        metrics = evaluate_run(folder, tree, client)
    if as_json:
        print(json.dumps(metrics, indent=1))
    else:
        for key, value in metrics.items():
            print(f"{key:16} {value:.4f}" if isinstance(value, float) else f"{key:16} {value}")


def _by_harness(
    folder: Path,
    tasks: str,
    words: list[str] | None,
    data: str | None,
    client: str | None,
    as_json: bool,
) -> None:
    with working("Measuring"):
        tree = settings_of(words, data)
        from trillium.experiment.harness import harness_run
        from trillium.quiet import quiet

        quiet()
        found = harness_run(folder, tasks.split(","), tree, client)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for task, metrics in found.items():
        for key, value in metrics.items():
            print(f"{task:24} {key:24} {value:.4f}")


def predict(
    folder: Folder,
    data: Annotated[str, typer.Argument(metavar="FILE", help=f"{ALL_ROWS}; labels are not read.")],
    words: Settings = None,
    to: Annotated[
        Path | None,
        typer.Option(help="File to write, .jsonl or .csv; by default JSON lines are printed."),
    ] = None,
    client: Client = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most tokens of a response.")
    ] = 64,
) -> None:
    """Predict classes, with probabilities, numbers, entities or responses for rows without a label."""
    tree = settings_of(words, data)
    if to is not None and to.suffix.lower() not in (".jsonl", ".csv"):
        raise UserError(f"--to {to}", "it is written as .jsonl or .csv", f"Write {to.stem}.jsonl")
    if to is not None and to.exists():
        raise UserError(f"--to {to}", "it exists already", "Choose a file that does not exist")
    if to is not None and not to.parent.is_dir():
        raise UserError(f"--to {to}", f"there is no folder {to.parent}", "Make it first")
    if to is not None:
        check_writable(to.parent, f"--to {to}")
    with working("Predicting"):
        from trillium.experiment.prediction import predict_run
        from trillium.quiet import quiet
        from trillium.tasks.writing import Writing

        quiet()
        found = predict_run(folder, tree, Writing(max_new_tokens), client)
    if to is None:
        _write_lines(found, sys.stdout)
        return
    with to.open("w", encoding="utf-8", newline="") as file:
        (_write_table if to.suffix.lower() == ".csv" else _write_lines)(found, file)
    print(f"{to} written: {len(found)} rows.")


def _write_lines(found: Sequence[Predicted], file: TextIO) -> None:
    for one in found:
        file.write(json.dumps(one.line(), ensure_ascii=False) + "\n")


def _write_table(found: Sequence[Predicted], file: TextIO) -> None:
    rows = [one.cells() for one in found]
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _cell(value) for key, value in row.items()})


def _cell(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def export(
    folder: Folder,
    to: Annotated[Path, typer.Option(help="Folder to write; it must not exist.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge the adapter into the model's weights.")
    ] = False,
    client: Client = None,
) -> None:
    """Write the model of a run as a PEFT adapter or, with --merge, as a whole model.

    It comes with its tokenizer and a model card, README.md, that says how to load it.
    """
    if to.parent.is_dir():
        check_writable(to.parent, f"--to {to}")
    with working("Exporting"):
        from trillium.experiment.trained import export_run
        from trillium.quiet import quiet

        quiet()
        export_run(folder, to, merge=merge, client=client)
    print(f"{to} written; {to / 'README.md'} says how to load it.")


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command(name="eval")(evaluate)
    app.command()(predict)
    app.command()(export)
