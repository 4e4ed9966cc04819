"""From the user's columns to the canonical ones."""

from __future__ import annotations

from collections.abc import Sequence
from string import Formatter
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from trillium.data.sources import RawData
from trillium.errors import UserError, suggest

if TYPE_CHECKING:
    from datasets import Dataset


class Columns(BaseModel):
    """Says which of the user's columns hold what; part of every source that reads tables.

    `text`, `prompt` and `completion` are a column name, or a template over columns such as
    `"{premise} {hypothesis}"`; an empty `prompt` means that the rows have none.

    Attributes:
        text: what is classified.
        label: the class: strings, integers or a `ClassLabel`.
        prompt: what the model is given.
        completion: what the model must write.
        messages: chat turns, `list[{role, content}]`; where given, replaces prompt and completion.
        client: the natural owner of a row, for the partition `natural`.
    """

    text: str = "text"
    label: str = "label"
    prompt: str = "prompt"
    completion: str = "completion"
    messages: str | None = None
    client: str | None = None

    def to_raw(self, train: Dataset, test: Dataset | None, task: str) -> RawData:
        """Return both splits in the canonical columns of `task`.

        Refused are an empty split, a column that is not there or has gaps, a label of the test
        split that the training split does not have.
        """
        splits = {"train": train} if test is None else {"train": train, "test": test}
        for split, rows in splits.items():
            if len(rows) == 0:
                raise UserError(
                    f"{split} split", "it has no rows", "Give a split with at least one row"
                )
        columns = {split: self._columns(rows, split, task) for split, rows in splits.items()}
        labels: tuple[str, ...] = ()
        if task == "classification":
            names = {split: _class_names(rows, self.label, split) for split, rows in splits.items()}
            space = _label_space(train, self.label, names["train"])
            for split in splits:
                columns[split]["label"] = _to_ids(names[split], space, split, self.label)
            labels = tuple(str(name) for name in space)
        return RawData(
            train=_dataset(columns["train"]),
            test=_dataset(columns["test"]) if "test" in columns else None,
            labels=labels,
        )

    def to_rows(self, rows: Dataset, split: str, task: str, labels: Sequence[str]) -> Dataset:
        """Return the rows of one owner in the canonical columns, classes numbered by `labels`."""
        columns = self._columns(rows, split, task)
        if task == "classification":
            names = [str(name) for name in _class_names(rows, self.label, split)]
            unknown = sorted({*names} - {*labels})
            if unknown:
                raise UserError(
                    f"label: {self.label} in the {split} rows",
                    f"the federation has no class {', '.join(unknown[:5])}",
                    f"Its {len(labels)} classes are {', '.join(labels[:5])}, …: correct the spelling, "
                    "leave these rows out, or have the class added by the server",
                )
            columns["label"] = [labels.index(name) for name in names]
        columns.pop("client", None)
        return _dataset(columns)

    def inputs(self, rows: Dataset, split: str, task: str) -> Dataset:
        """Return what a model is asked about in rows that need have no answer."""
        if task == "classification":
            return _dataset({"text": self._texts(rows, "text", split)})
        if self.messages is not None:
            return _dataset({"messages": self._chats(rows, self.messages, split)})
        return _dataset({"prompt": self._texts(rows, "prompt", split)})

    def _columns(self, rows: Dataset, split: str, task: str) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]]
        if task == "classification":
            _require(rows, self.label, "label", split)
            columns = {"text": self._texts(rows, "text", split)}
        elif self.messages is not None:
            columns = {"messages": self._chats(rows, self.messages, split)}
        else:
            columns = {
                "prompt": self._texts(rows, "prompt", split),
                "completion": self._texts(rows, "completion", split),
            }
        # Test rows are nobody's, and often come without an owner.
        if self.client is not None and split == "train":
            _require(rows, self.client, "client", split)
            columns["client"] = [str(owner) for owner in _full(rows, self.client, "client", split)]
        return columns

    def _texts(self, rows: Dataset, field: str, split: str) -> list[str]:
        pattern: str = getattr(self, field)
        if pattern in rows.column_names:
            return [str(value) for value in _full(rows, pattern, field, split)]
        try:
            used = [name for _, name, _, _ in Formatter().parse(pattern) if name is not None]
        except ValueError as error:
            raise UserError(
                f"{field}: {pattern}", f"it is no template, {error}", 'Write "{column} {column}"'
            ) from error
        if not used and pattern:
            used = [pattern]
        for name in used:
            _require(rows, name, field, split)
        values = {name: ["" if v is None else v for v in rows[name]] for name in used}
        return [
            pattern.format(**{name: values[name][i] for name in used}) for i in range(len(rows))
        ]

    def _chats(self, rows: Dataset, name: str, split: str) -> list[Any]:
        _require(rows, name, "messages", split)
        chats = _full(rows, name, "messages", split)
        for chat in chats:
            turns = chat if isinstance(chat, list) and chat else [None]
            if not all(isinstance(turn, dict) and set(_TURN) <= set(turn) for turn in turns):
                raise UserError(
                    f"messages: {name} in the {split} split",
                    f"a row holds {str(chat)[:60]!r}",
                    "Each row must be a list of turns {role: …, content: …}",
                )
        return [[{key: str(turn[key]) for key in _TURN} for turn in chat] for chat in chats]


_TURN = ("role", "content")


def _dataset(columns: dict[str, list[Any]]) -> Dataset:
    from datasets import Dataset

    return Dataset.from_dict(columns)


def _require(rows: Dataset, name: str, field: str, split: str) -> None:
    if name not in rows.column_names:
        raise UserError(
            f"{field}: {name}",
            f"the {split} split has no such column, it has: {', '.join(rows.column_names)}",
            suggest(name, rows.column_names),
        )


def _full(rows: Dataset, name: str, field: str, split: str) -> list[Any]:
    values = list(rows[name])
    gaps = [i for i, value in enumerate(values) if value is None or value == ""]
    if gaps:
        raise UserError(
            f"{field}: {name} in the {split} split",
            f"{len(gaps)} of {len(values)} rows have no value, the first is row {gaps[0] + 1}",
            "Fill in these rows or leave them out",
        )
    return values


def _class_names(rows: Dataset, name: str, split: str) -> list[str | int]:
    """Return each row's class by name, or by number where the classes have no names."""
    from datasets import ClassLabel

    feature, values = rows.features[name], _full(rows, name, "label", split)
    if isinstance(feature, ClassLabel):
        if min(values) < 0:
            raise UserError(
                f"label: {name} in the {split} split",
                "some rows are marked -1, that is, unlabelled",
                "Choose a split with labels, or none, and test rows are held back from train",
            )
        return [feature.names[value] for value in values]
    if all(isinstance(value, float) and value.is_integer() for value in values):
        return [int(value) for value in values]
    if not all(isinstance(value, str | int) for value in values):
        raise UserError(
            f"label: {name}",
            f"{values[0]!r} is not a class",
            "Name a column of strings or whole numbers",
        )
    return values


def _label_space(train: Dataset, name: str, names: Sequence[str | int]) -> list[str | int]:
    """The classes in the order of their ids: the schema's order, or sorted."""
    from datasets import ClassLabel

    feature = train.features[name]
    return list(feature.names) if isinstance(feature, ClassLabel) else sorted(set(names))


def _to_ids(
    names: Sequence[str | int], space: Sequence[str | int], split: str, column: str
) -> list[int]:
    ids = {name: index for index, name in enumerate(space)}
    unseen = sorted({str(name) for name in names if name not in ids})
    if unseen:
        raise UserError(
            f"label: {column} in the {split} split",
            f"the training split has no row of class {', '.join(unseen[:5])}",
            "Correct the spelling, leave out these rows, or add training rows of that class",
        )
    return [ids[name] for name in names]
