"""Rows from files on this machine, told apart by suffix; values are as the file has them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final

from pydantic import AfterValidator

from trillium.data.sources import RawData, Source
from trillium.data.sources.columns import Columns
from trillium.data.sources.decoding import check_encoding, read_bytes, read_text
from trillium.data.sources.table import Doubled, Table, of_dataset, of_rows, readable
from trillium.errors import UserError, suggest

SEPARATORS: Final = (",", ";", "\t", "|")
_TEXTS: Final = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")


class Files(Columns, Source, name="files"):
    """Read rows from one file per split.

    Attributes:
        train: path of the training file.
        test: path of the test file; without it, test rows are held back from the training file.
        encoding: encoding of csv and JSON files, such as `latin-1`; UTF-8 by default.
    """

    train: Path
    test: Path | None = None
    encoding: Annotated[str, AfterValidator(check_encoding)] | None = None

    def load(self, task: str, seed: int) -> RawData:
        """Return the rows of the files; `seed` changes nothing."""
        paths = [path for path in (self.train, self.test) if path is not None]
        if self.encoding is not None and not any(_suffix(path) in _TEXTS for path in paths):
            raise UserError(
                f"encoding: {self.encoding}",
                "no csv or JSON file is read, and other formats name their encoding themselves",
                "Leave it out",
            )
        test = None if self.test is None else read_table(self.test, self.encoding)
        return self.to_raw(read_table(self.train, self.encoding), test, task)


def read_table(path: Path, encoding: str | None = None) -> Table:
    """Return the rows of one file with the columns it has; it must have some.

    Read are also files that gzip has packed, and a folder that `Dataset.save_to_disk` wrote.
    """
    table = _read_saved(path) if path.is_dir() else _reader_of(path)(path, encoding)
    if len(table) == 0:
        raise UserError(
            f"file {path}", "it has no rows", "Give a file with at least one row", code="no_rows"
        )
    return table


def is_table(path: Path) -> bool:
    """Whether `read_table` takes a path of this name."""
    return _suffix(path) in _READERS or is_saved(path)


def is_saved(path: Path) -> bool:
    """Whether `Dataset.save_to_disk` wrote this folder."""
    return (path / "state.json").is_file()


def _suffix(path: Path) -> str:
    return Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()


def _reader_of(path: Path) -> Callable[[Path, str | None], Table]:
    suffix = _suffix(path)
    if suffix not in _READERS:
        raise UserError(
            f"file {path}",
            f"the suffix {suffix!r} names no known format",
            suggest(suffix, _READERS),
        )
    if not path.is_file():
        folder = path.parent
        names = [f.name for f in folder.iterdir() if f.is_file()] if folder.is_dir() else []
        raise UserError(
            f"file {path}", "there is no such file", suggest(path.name, names), code="no_file"
        )

    def read(path: Path, encoding: str | None) -> Table:
        try:
            return _READERS[suffix](path, encoding)
        except UserError:
            raise
        except (ValueError, OSError, RuntimeError, LookupError, TypeError) as error:
            raise UserError(
                f"file {path}", f"it cannot be read: {error}", "Correct the file or its suffix"
            ) from error

    return read


def _read_csv(path: Path, encoding: str | None) -> Table:
    """Read every value as the text that stands there: what it is, the task decides."""
    text = read_text(path, encoding)
    limit = csv.field_size_limit(len(text) + 1)
    try:
        names, rows = _records(path, text, _separator(text))
    finally:
        csv.field_size_limit(limit)
    columns = dict(zip(names, zip(*rows, strict=True), strict=False)) if rows else {}
    return Table(path.name, names, len(rows), lambda name: list(columns[name]))


def _records(path: Path, text: str, separator: str) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows, all as long as it."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[list[str]] = []
    names: list[str] | None = None
    try:
        for row in reader:
            if not row:
                continue
            if names is None:
                names = row
            elif len(row) != len(names):
                raise UserError(
                    f"file {path}, line {reader.line_num}",
                    f"it cannot be read: row {len(rows) + 1} has {len(row)} values, and the header "
                    f"has {len(names)}",
                    "Put values in quotes that hold a separator, a quote or a line break",
                )
            else:
                rows.append(row)
    except csv.Error as error:
        raise UserError(
            f"file {path}, line {reader.line_num}",
            f"it cannot be read: {error}",
            "Put values in quotes that hold a separator, a quote or a line break, and write a quote "
            "in a value twice",
        ) from error
    return names or [], rows


def _separator(text: str) -> str:
    """Return what divides the header: a comma, or else a semicolon, a tab or a bar."""

    def width(separator: str) -> int:
        try:
            return len(next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), []))
        except csv.Error:
            return 0

    return next((separator for separator in SEPARATORS if width(separator) > 1), SEPARATORS[0])


def _read_json_lines(path: Path, encoding: str | None) -> Table:
    text = read_text(path, encoding)
    if text.lstrip().startswith("["):
        with suppress(json.JSONDecodeError):
            return _of_list(path, _parse(text))
    return _of_lines(path, text)


def _read_json(path: Path, encoding: str | None) -> Table:
    text = read_text(path, encoding)
    try:
        rows = _parse(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return _of_lines(path, text)
        raise
    if isinstance(rows, dict) and len(text.strip().splitlines()) == 1 and not _nests(rows):
        rows = [rows]  # one line of JSON lines
    return _of_list(path, rows)


def _nests(row: Mapping[str, Any]) -> bool:
    return any(isinstance(value, dict | list) for value in row.values())


def _of_lines(path: Path, text: str) -> Table:
    rows: list[Mapping[str, Any]] = []
    # Other characters that Python takes for line ends may stand in a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = _parse(line)
        except (ValueError, RecursionError) as error:
            why = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
            raise ValueError(f"line {number}: {why}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number}: expected an object, one per line")
        rows.append(row)
    return of_rows(rows, path.name)


def _of_list(path: Path, rows: object) -> Table:
    if not isinstance(rows, list):
        raise ValueError("expected a list of objects, one object per row")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number}: expected a list of objects, one object per row")
    return of_rows(rows, path.name)


def _parse(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    doubled = Doubled(found)
    keys = [key for key, _ in pairs]
    doubled.doubled = tuple(key for key in found if keys.count(key) > 1)
    return doubled


def _read_parquet(path: Path, encoding: str | None) -> Table:
    from datasets import ClassLabel, Features
    from pyarrow import BufferReader  # type: ignore[import-untyped]
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

    file = ParquetFile(BufferReader(read_bytes(path)))
    schema = file.schema_arrow
    classes = {}
    if b"huggingface" in (schema.metadata or {}):
        features = Features.from_arrow_schema(schema)
        classes = {n: f.names for n, f in features.items() if isinstance(f, ClassLabel)}

    def read(name: str) -> list[Any]:
        found: list[Any] = file.read(columns=[name]).column(name).to_pylist()
        return found

    return Table(
        path.name, schema.names, file.metadata.num_rows, readable(read, path.name), classes
    )


def _read_saved(path: Path) -> Table:
    from datasets import load_from_disk

    if not is_saved(path):
        below = sorted(found.parent.name for found in path.glob("*/state.json"))
        raise UserError(
            f"folder {path}",
            "it is neither a file nor a single split that Dataset.save_to_disk wrote",
            f"Name one of its splits: {', '.join(str(path / name) for name in below)}"
            if below
            else "Name a file, or give a folder in the hub's format with data.source=hub",
        )
    try:
        return of_dataset(load_from_disk(str(path)), path.name)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise UserError(
            f"folder {path}", f"it cannot be read: {error}", "Save the data set again"
        ) from error


_READERS: Mapping[str, Callable[[Path, str | None], Table]] = MappingProxyType(
    {
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".jsonl": _read_json_lines,
        ".ndjson": _read_json_lines,
        ".json": _read_json,
        ".parquet": _read_parquet,
    }
)
