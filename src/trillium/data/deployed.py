"""Data that is already apart: what the server holds in a deployment, and the file of one client."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trillium.data.federated import FederatedData
from trillium.data.sources import Source
from trillium.data.sources.columns import Columns
from trillium.data.sources.files import read_table
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
            write_atomic(folder / f"{name}.jsonl", _json_lines(rows, data.labels))


def read_server_data(folder: Path, task: str) -> FederatedData:
    """Return what `write_server_data` wrote; no client has rows in it."""
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
        rows = read_table(path) if name == "test" or path.is_file() else None
        splits[name] = None if rows is None else Columns().to_rows(rows, name, task, labels)
    test, public = splits["test"], splits["public"]
    assert test is not None
    return FederatedData({}, test, test.select([]) if public is None else public, tuple(labels))


def write_rows(path: Path, rows: Dataset, labels: Sequence[str], source: Source) -> None:
    """Write the rows of one client as JSON lines, in the columns that `source` has."""
    columns = columns_of(source)
    names = {"text": columns.text, "label": columns.label, "messages": columns.messages}
    names |= {"prompt": columns.prompt, "completion": columns.completion, "client": columns.client}
    own = [name for name in rows.column_names if name == "client"]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, _json_lines(rows.remove_columns(own), labels, names))


def read_rows(path: Path, source: Source, task: str, labels: Sequence[str]) -> Dataset:
    """Return the rows of one client in the canonical columns, classes numbered by `labels`.

    The file is csv, jsonl, json or parquet, in the columns that the recipe's source names.
    """
    return columns_of(source).to_rows(read_table(path), path.name, task, labels)


def columns_of(source: Source) -> Columns:
    """Return which columns the rows of a source have; those of the canonical names by default."""
    return source if isinstance(source, Columns) else Columns()


def _json_lines(
    rows: Dataset, labels: Sequence[str], names: dict[str, str | None] | None = None
) -> str:
    names = names or {}
    lines = []
    for row in rows:
        named = {names.get(key) or key: value for key, value in row.items()}
        if "label" in row:
            named[names.get("label") or "label"] = labels[row["label"]]
        lines.append(json.dumps(named, ensure_ascii=False))
    return "\n".join(lines) + "\n"
