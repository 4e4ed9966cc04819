"""Rows from a dataset on the Hugging Face Hub, or from a folder in the hub's format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trillium.data.sources import RawData, Source
from trillium.data.sources.columns import Columns
from trillium.errors import UserError
from trillium.files import PathOrName

if TYPE_CHECKING:
    from datasets import Dataset


class Hub(Columns, Source, name="hub"):
    """Read a dataset with `datasets.load_dataset`.

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

    def held_out(self) -> tuple[Dataset, str]:
        """Return the rows of the test split, or of the training split if there is none, and which."""
        if self.test_split is None:
            return self._read("train_split", self.train_split), self.train_split
        return self._read("test_split", self.test_split), self.test_split

    def _read(self, field: str, split: str) -> Dataset:
        from datasets import Dataset, load_dataset

        try:
            rows = load_dataset(self.path, self.subset, split=split, revision=self.revision)
        except (ValueError, OSError) as error:
            given, instead = f"path: {self.path}", "Check path, subset and revision"
            if "split" in str(error).lower():
                given = f"{field}: {split}"
                instead = "Write one of the dataset's splits"
                if field == "test_split":
                    instead += ", or test_split: null to hold test rows back from train"
            raise UserError(given, str(error).rstrip("."), instead) from error
        assert isinstance(rows, Dataset)
        return rows
