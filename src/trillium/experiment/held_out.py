"""The held-out rows of a run, kept in its folder: what was measured can be measured again."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trillium.data.federated import FederatedData
from trillium.data.load import load_data
from trillium.errors import UserError
from trillium.files import write_atomic

if TYPE_CHECKING:
    from datasets import Dataset

    from trillium.config.experiment import ExperimentConfig

ROWS: Final = "test.parquet"


def digest_of(rows: Dataset) -> str:
    """Return what rows are known by, in their order."""
    found = hashlib.blake2b(digest_size=16)
    for row in rows:
        row.pop("row", None)  # the place that it comes from, in words
        found.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode())
    return found.hexdigest()


def about(data: FederatedData) -> dict[str, Any]:
    """Return sizes, classes and columns of the data, and what the held-out rows are known by."""
    found = data.summary()
    found["test"]["digest"] = digest_of(data.test)
    return {**found, "columns": list(data.test.column_names)}


def keep_rows(folder: Path, data: FederatedData) -> None:
    """Write the held-out rows of a run into its folder."""
    from pyarrow import parquet  # type: ignore[import-untyped]

    buffer = io.BytesIO()
    parquet.write_table(data.test.with_format("arrow")[:], buffer, compression="zstd")
    write_atomic(folder / ROWS, buffer.getvalue(), private=True)


def kept_rows(folder: Path, config: ExperimentConfig) -> Dataset:
    """Return the held-out rows of a run: those in its folder, or, without these, of its source.

    Raises:
        UserError: they are not to be had, or not those that were measured.
    """
    from datasets import Dataset
    from pyarrow import ArrowException, parquet

    path = folder / ROWS
    if path.is_file():
        try:
            rows = Dataset(parquet.read_table(path))
        except (OSError, ArrowException) as error:
            raise UserError(
                str(path), f"it cannot be read ({error})", "Remove it; the source is read then"
            ) from error
    else:
        form, size = config.task.data_form, config.public_size
        rows = load_data(config.data, form, config.seed, size).test
    told = json.loads((folder / "data.json").read_text(encoding="utf-8"))["test"]
    if told.get("digest") not in (None, digest_of(rows)):
        raise UserError(
            str(path) if path.is_file() else f"the source of {folder}",
            "its held-out rows are not those that the run was measured on",
            "Give the rows to measure with --data FILE",
        )
    return rows
