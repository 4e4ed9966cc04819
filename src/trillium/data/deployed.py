"""Data that is already apart: what the server holds in a deployment, and the file of one client."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trillium.data.federated import FederatedData
from trillium.data.sources import Source
from trillium.data.sources.answers import named
from trillium.data.sources.columns import Columns
from trillium.data.sources.files import Files, read_table
from trillium.data.sources.nodes import Nodes
from trillium.errors import UserError
from trillium.files import write_atomic

if TYPE_CHECKING:
    from datasets import Dataset

LABELS = "labels.json"


def write_server_data(folder: Path, data: FederatedData) -> None:
    """Write test set, public set and class names into a folder, in the canonical columns."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / LABELS, json.dumps(list(data.labels), ensure_ascii=False, indent=1))
    for name, rows in (("test", data.test), ("public", data.public)):
        if len(rows):
            write_atomic(
                folder / f"{name}.jsonl", _json_lines(rows, data.labels, Columns()), private=True
            )


def read_server_data(folder: Path, task: str, *, measures: bool = True) -> FederatedData:
    """Return what `write_server_data` wrote; no client has rows in it.

    Args:
        measures: whether the server needs test rows.
    """
    try:
        labels = json.loads((folder / LABELS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            str(folder / LABELS),
            f"the class names of the federation cannot be read ({error})",
            "Let `trillium deploy` write this folder, and name it in the setting server-data",
        ) from error
    splits = {}
    for name in ("test", "public"):
        path = folder / f"{name}.jsonl"
        rows = read_table(path) if (measures and name == "test") or path.is_file() else None
        splits[name] = None if rows is None else Columns().to_rows(rows, task, labels)
    test, public = splits["test"], splits["public"]
    test = no_rows(task) if test is None else test
    return FederatedData({}, test, test.select([]) if public is None else public, tuple(labels))


def no_rows(task: str) -> Dataset:
    """Return a table without rows, in the columns of a task."""
    from datasets import Dataset

    columns = {
        "causal_lm": ("prompt", "completion"),
        "preference": ("prompt", "chosen", "rejected"),
    }
    return Dataset.from_dict({name: [] for name in columns.get(task, ("text", "label"))})


def read_names(path: Path, source: Source, task: str) -> list[str]:
    """Return the names of the classes that the rows of one client have."""
    return columns_of(source).names(read_table(path, encoding_of(source)), task)


def encoding_of(source: Source) -> str | None:
    """Return the encoding that files of text are in, where a source names one."""
    return source.encoding if isinstance(source, Files | Nodes) else None


def write_rows(path: Path, rows: Dataset, labels: Sequence[str], source: Source) -> None:
    """Write the rows of one client as JSON lines, in the columns that `source` has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoding = encoding_of(source)
    # What other files of the recipe are in, this one must be in, too.
    text = _json_lines(rows, labels, columns_of(source), is_ascii=encoding is not None)
    write_atomic(path, text.encode(encoding or "utf-8"), private=True)


def read_rows(path: Path, source: Source, task: str, labels: Sequence[str]) -> Dataset:
    """Return the rows of one client in the canonical columns, classes numbered by `labels`.

    The file is csv, jsonl, json or parquet, in the columns that the recipe's source names.
    """
    return columns_of(source).to_rows(read_table(path, encoding_of(source)), task, labels)


def columns_of(source: Source) -> Columns:
    """Return which columns the rows of a source have; those of the canonical names by default."""
    return source if isinstance(source, Columns) else Columns()


def _json_lines(
    rows: Dataset, labels: Sequence[str], columns: Columns, *, is_ascii: bool = False
) -> str:
    lines = [
        json.dumps(_named(row, labels, columns), ensure_ascii=is_ascii)
        for row in rows.remove_columns([c for c in ("client", "row") if c in rows.column_names])
    ]
    return "\n".join(lines) + "\n"


def _named(row: Mapping[str, Any], labels: Sequence[str], columns: Columns) -> dict[str, Any]:
    """Return a row in the canonical columns as `columns` reads it."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        name = getattr(columns, key, None) or key
        if key == "label":
            found |= _answer(value, labels, columns)
        elif key == "messages":
            found |= _chat(value, columns)
        elif key == "tools":
            found |= {name: json.loads(value)} if value else {}
        else:
            found[name] = value
    return found


def _answer(value: Any, labels: Sequence[str], columns: Columns) -> dict[str, Any]:
    if not columns.labels:
        return {columns.label: named(value, labels)}
    if any(isinstance(item, float) for item in value):
        return dict(zip(columns.labels, value, strict=True))
    return {name: int(number in value) for number, name in enumerate(labels)}


def _chat(turns: Sequence[Mapping[str, str]], columns: Columns) -> dict[str, Any]:
    whole = [
        {"role": turn["role"], "content": turn["content"], **json.loads(turn.get("more") or "{}")}
        for turn in turns
    ]
    if columns.messages is not None or not columns.names_pairs:
        return {columns.messages or "messages": whole}
    return (
        {columns.prompt: [], columns.completion: whole}
        if columns.prompt
        else {columns.completion: whole}
    )
