"""Rows from files on this machine: CSV, JSON lines, JSON or Parquet, told apart by suffix."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from trillium.data.sources import RawData, Source
from trillium.data.sources.columns import Columns
from trillium.errors import UserError, suggest

if TYPE_CHECKING:
    from datasets import Dataset


class Files(Columns, Source, name="files"):
    """Read rows from one file per split.

    Attributes:
        train: path of the training file.
        test: path of the test file; without it, test rows are held back from the training file.
    """

    train: Path
    test: Path | None = None

    def load(self, task: str, seed: int) -> RawData:
        """Return the rows of the files; `seed` changes nothing."""
        test = None if self.test is None else read_table(self.test)
        return self.to_raw(read_table(self.train), test, task)


def read_table(path: Path) -> Dataset:
    """Return the rows of one file with the columns it has; it must have some."""
    if path.suffix.lower() not in _READERS:
        raise UserError(
            f"file {path}",
            f"the suffix {path.suffix!r} names no known format",
            suggest(path.suffix, _READERS),
        )
    if not path.is_file():
        folder = path.parent
        names = [f.name for f in folder.iterdir() if f.is_file()] if folder.is_dir() else []
        raise UserError(f"file {path}", "there is no such file", suggest(path.name, names))
    try:
        rows = _READERS[path.suffix.lower()](path)
    except (ValueError, UnicodeDecodeError, OSError) as error:
        raise UserError(
            f"file {path}", f"it cannot be read: {error}", "Correct the file or its suffix"
        ) from error
    if len(rows) == 0:
        raise UserError(f"file {path}", "it has no rows", "Give a file with at least one row")
    return rows


def _read_csv(path: Path) -> Dataset:
    from datasets import Dataset
    from pyarrow import csv  # type: ignore[import-untyped]

    # pandas would turn the words "None", "NA" and "null" into gaps; they may be labels.
    table = csv.read_csv(
        path,
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(timestamp_parsers=["%Y-%m-%dT%H:%M:%S"]),
    )
    return Dataset(table)


def _read_json_lines(path: Path) -> Dataset:
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise ValueError(f"line {number}: {error.msg}") from error
    return _from_rows(rows)


def _read_json(path: Path) -> Dataset:
    return _from_rows(json.loads(path.read_text(encoding="utf-8")))


def _from_rows(rows: object) -> Dataset:
    from datasets import Dataset

    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected a list of objects, one object per row")
    return Dataset.from_list(rows)


def _read_parquet(path: Path) -> Dataset:
    from datasets import Dataset
    from pyarrow import parquet

    return Dataset(parquet.read_table(path))


_READERS: Mapping[str, Callable[[Path], Dataset]] = MappingProxyType(
    {
        ".csv": _read_csv,
        ".jsonl": _read_json_lines,
        ".json": _read_json,
        ".parquet": _read_parquet,
    }
)
