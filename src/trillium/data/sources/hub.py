"""Rows from the Hugging Face hub, or from a folder in its format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trillium.data.sources import RawData, Source
from trillium.data.sources.columns import Columns
from trillium.data.sources.files import is_table, read_table
from trillium.data.sources.table import Table, joined, of_dataset, part
from trillium.errors import UserError
from trillium.files import PathOrName


class Hub(Columns, Source, name="hub"):
    """Read a dataset with `datasets.load_dataset`, or a folder of splits that `save_to_disk` wrote.

    Attributes:
        path: `org/name` on the hub, or a local folder.
        subset: the dataset's configuration, where it has several.
        train_split: a split, or a slice of one such as `train[:10%]`.
        test_split: likewise; null where there is none, then test rows are held back from train.
        revision: a branch, tag or commit of the dataset.
    """

    path: PathOrName
    subset: str | None = None
    train_split: str = "train"
    test_split: str | None = "test"
    revision: str | None = None

    def load(self, task: str, seed: int) -> RawData:
        """Return the rows of the splits; `seed` changes nothing."""
        test = None if self.test_split is None else self._read("test_split", self.test_split)
        return self.to_raw(self._read("train_split", self.train_split), test, task)

    def held_out(self) -> Table:
        """Return the rows of the test split, or of the training split if there is none."""
        if self.test_split is None:
            return self._read("train_split", self.train_split)
        return self._read("test_split", self.test_split)

    def _read(self, field: str, split: str) -> Table:
        from datasets.exceptions import DatasetsError

        try:
            if (Path(self.path) / "dataset_dict.json").is_file():
                return self._read_saved(split)
            return self._read_loaded(split)
        except UserError:
            raise
        except (DatasetsError, ValueError, OSError, RuntimeError, KeyError, TypeError) as error:
            given, instead = f"path: {self.path}", "Check path, subset and revision"
            if "split" in str(error).lower():
                given = f"{field}: {split}"
                instead = "Write one of the dataset's splits"
                if field == "test_split":
                    instead += ", or test_split: null to hold test rows back from train"
            raise UserError(given, str(error).rstrip("."), instead) from error

    def _read_saved(self, split: str) -> Table:
        from datasets import load_from_disk

        found = load_from_disk(self.path)
        tables = {name: of_dataset(rows, f"the {name} split") for name, rows in found.items()}
        return _sliced(tables, split)

    def _read_loaded(self, split: str) -> Table:
        """Read a split with the library, but text tables as they are: it would guess their types."""
        from datasets import Dataset, Features, Value, load_dataset, load_dataset_builder

        options: dict[str, Any] = {"revision": self.revision}
        # The library names a dataset after its folder, and `.` has no name.
        path = str(Path(self.path).resolve()) if Path(self.path).is_dir() else self.path
        builder = load_dataset_builder(path, self.subset, **options)
        is_declared, files = builder.info.features is not None, builder.config.data_files or {}
        paths = {name: [Path(path) for path in found] for name, found in files.items()}
        is_text = type(builder).__module__.endswith((".csv.csv", ".json.json"))
        here = all(path.is_file() and is_table(path) for found in paths.values() for path in found)
        if is_text and not is_declared and here:
            tables = {
                str(name): joined([read_table(path) for path in found], f"the {name} split")
                for name, found in paths.items()
            }
            return _sliced(tables, split)
        rows = load_dataset(path, self.subset, split=split, **options)
        if type(builder).__module__.endswith(".csv.csv") and not is_declared:
            texts = Features(dict.fromkeys(rows.column_names, Value("string")))
            options |= {"features": texts, "keep_default_na": False, "na_filter": False}
            rows = load_dataset(path, self.subset, split=split, **options)
        assert isinstance(rows, Dataset)
        return of_dataset(rows, f"the {split} split")


def _sliced(tables: Mapping[str, Table], split: str) -> Table:
    """Return a split, a slice of one, or several, as `load_dataset` names them."""
    from datasets import ReadInstruction

    wanted = ReadInstruction.from_spec(split)
    found = wanted.to_absolute({name: len(table) for name, table in tables.items()})
    parts = [
        part(
            tables[one.splitname],
            one.from_ or 0,
            len(tables[one.splitname]) if one.to is None else one.to,
        )
        for one in found
    ]
    return joined(parts, f"the {split} split")
