"""From the user's columns to the canonical ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from string import Formatter
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, Field

from trillium.data.sources import FORMS, RawData
from trillium.data.sources.answers import classes, label_sets, numbered, numbers
from trillium.data.sources.chats import (
    ChatError,
    System,
    Turn,
    even,
    read_chat,
    read_pair,
    read_tools,
)
from trillium.data.sources.labels import check_known, names_of
from trillium.data.sources.preferences import read_preferences
from trillium.data.sources.table import Table
from trillium.data.sources.tagged import Tagged
from trillium.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset


class Columns(BaseModel):
    """Says which of the user's columns hold what; part of every source that reads tables.

    `text`, `prompt` and `completion` are a column name, or a template over columns such as
    `"{premise} {hypothesis}"`; an empty `prompt` means that the rows have none. Prompt and completion
    may hold lists of turns, and are a chat then. Rows without these columns may have `messages`,
    `conversations`, or `instruction`, `input` and `output` instead. Of a preference, `chosen` and
    `rejected` are answers to `prompt`, texts or turns; where there is no prompt, or they are whole
    chats, it is what both begin with.

    Attributes:
        text: what is classified.
        tokens: the words of a text in a list, where words have tags, which `label` lists.
        spans: in place of both, what is marked in `text`: a list of `{start, end, label}`.
        label: the class: texts, whole numbers, true and false, or a `ClassLabel`; of several labels a
            list of these, as JSON where it is text; in regression a number, or a list of numbers.
        labels: in place of `label`, one column for each of several labels (0 or 1, true or false), or
            for each of several numbers.
        separator: what stands between several labels in a text that is no JSON list.
        prompt: what the model is given.
        completion: what the model must write.
        chosen, rejected: of two answers the better and the worse one.
        messages: chat turns, `list[{role, content}]`; where given, replaces prompt and completion.
        tools: column with the tools that the assistant of a chat may call; read if there is one.
        system: whether the system's turns of a chat are kept, or folded into the user's (`fold`),
            for templates that refuse them.
        client: the natural owner of a row, for the partition `natural`.
    """

    forms: ClassVar[frozenset[str]] = FORMS

    text: str = "text"
    tokens: str = "tokens"
    spans: str = "spans"
    label: str = "label"
    labels: tuple[str, ...] = ()
    separator: str = Field(default=",", min_length=1)
    prompt: str = "prompt"
    completion: str = "completion"
    chosen: str = "chosen"
    rejected: str = "rejected"
    messages: str | None = None
    tools: str | None = "tools"
    system: System = "keep"
    client: str | None = None

    def to_raw(self, train: Table, test: Table | None, task: str) -> RawData:
        """Return both splits in the canonical columns of `task`.

        Refused are an empty split, a column that is not there, has gaps or other values than it must
        have, a label of the test split that the training split does not have.
        """
        splits = {"train": train} if test is None else {"train": train, "test": test}
        for split, rows in splits.items():
            if len(rows) == 0:
                raise UserError(
                    f"{split} split", "it has no rows", "Give a split with at least one row"
                )
        columns = {split: self._columns(rows, task, split) for split, rows in splits.items()}
        if test is not None and columns["test"].keys() - {*_BESIDE} != (
            columns["train"].keys() - {*_BESIDE}
        ):
            raise UserError(
                "train and test split",
                "one holds chats, the other prompts and completions",
                "Write both in the same form",
            )
        labels: tuple[str, ...] = ()
        if task not in _WRITTEN:
            answers, labels = self._answers(train, task)
            columns["train"]["label"] = self._numbered(train, task, answers, labels, "itself")
        if task not in _WRITTEN and test is not None:
            answers, _ = self._answers(test, task)
            columns["test"]["label"] = self._numbered(
                test, task, answers, labels, "the training split"
            )
        return RawData(
            train=_dataset(columns["train"]),
            test=_dataset(columns["test"]) if "test" in columns else None,
            labels=labels,
        )

    def to_rows(self, rows: Table, task: str, labels: Sequence[str]) -> Dataset:
        """Return the rows of one owner in the canonical columns, classes numbered by `labels`."""
        columns = self._columns(rows, task, "own")
        if task not in _WRITTEN:
            answers, _ = self._answers(rows, task)
            columns["label"] = self._numbered(rows, task, answers, labels, "the federation")
        return _dataset(columns)

    def names(self, rows: Table, task: str) -> list[str]:
        """Return the names of all that is to be said of rows: classes, labels, tags, numbers."""
        return [] if task in _WRITTEN else list(self._answers(rows, task)[1])

    def _answers(self, rows: Table, task: str) -> tuple[list[Any], tuple[str, ...]]:
        """Return what is to be said of each row, in names, and all names that there are."""
        if task == "classification":
            return classes(rows, self.label)
        if task == "token_classification":
            return self._tagged(rows).tags()
        if task == "regression":
            return numbers(rows, self.label, self.labels)
        return label_sets(rows, self.label, self.labels, self.separator)

    def _tagged(self, rows: Table) -> Tagged:
        text = partial(self._texts, rows, "text", blank=False)
        return Tagged(rows, text, self.tokens, self.label, self.spans)

    def _numbered(
        self, rows: Table, task: str, answers: list[Any], labels: Sequence[str], who: str
    ) -> list[Any]:
        """Return the same in numbers; names, or several numbers, that others lack are refused."""
        if task != "regression":
            check_known(rows, self.label, answers, labels, who)
        elif wrong := [place for place, own in enumerate(answers) if len(own) != len(labels)]:
            why = f"{len(answers[wrong[0]])} numbers, where {who} has {len(labels)}"
            raise rows.wrong("label", self.label, wrong[0], answers[wrong[0]], why)
        ids = {name: index for index, name in enumerate(labels)}
        return [numbered(answer, ids) for answer in answers]

    def inputs(self, rows: Table, task: str) -> Dataset:
        """Return what a model is asked about in rows that need have no answer."""
        if task == "token_classification":
            return _dataset(self._tagged(rows).words())
        if task not in _WRITTEN:
            return _dataset({"text": self._texts(rows, "text", blank=False)})
        has, chats = {*rows.names}, self.messages
        if chats is None and not self.names_pairs and "prompt" not in has:
            _check_whole(rows)
            chats = next((name for name in ("messages", "conversations") if name in has), None)
            if chats is None and "instruction" in has:
                return _dataset({"prompt": self._instructed(rows)})
        if chats is None and not any(isinstance(value, list) for value in self._prompts(rows)):
            return _dataset({"prompt": self._texts(rows, "prompt")})
        what, name = ("prompt", self.prompt) if chats is None else ("messages", chats)
        values = rows.full_column(what, name)
        found = self._chats(rows, what, name, values, lambda value: read_chat(value, self.system))
        origins = [f"row {n + 1} of {rows.origin}" for n in range(len(rows))]
        return _dataset({"messages": even(found), "row": origins, **self._tools(rows)})

    def _prompts(self, rows: Table) -> Sequence[Any]:
        return rows.column("prompt", self.prompt) if self.prompt in rows.names else ()

    @property
    def names_pairs(self) -> bool:
        """Whether other columns than those of the default are named for prompt and completion."""
        return (self.prompt, self.completion) != ("prompt", "completion")

    def _columns(self, rows: Table, task: str, split: str) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]]
        if task == "token_classification":
            columns = self._tagged(rows).words()
        elif task not in _WRITTEN:
            columns = {"text": self._texts(rows, "text", blank=False)}
        elif task == "preference":
            names = {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected}
            found = read_preferences(
                *(rows, names, self.system),
                lambda what: self._texts(rows, what, blank=what == "prompt"),
            )
            columns = found if "prompt" in found else {**found, **self._tools(rows)}
        else:
            columns = self._language(rows)
        if "messages" in columns or ("chosen" in columns and "prompt" not in columns):
            columns["row"] = [f"row {n + 1} of {rows.origin}" for n in range(len(rows))]
        # Test rows are nobody's, and often come without an owner.
        if self.client is not None and split == "train":
            owners = rows.full_column("client", self.client)
            columns["client"] = names_of(rows, "client", self.client, owners)
        return columns

    def _language(self, rows: Table) -> dict[str, list[Any]]:
        """Return chats, or prompts and completions, whichever the rows have."""
        has = {*rows.names}
        chats = self.messages
        fallback = not self.names_pairs and not {"prompt", "completion"} <= has
        if chats is None and fallback:
            _check_whole(rows)
            chats = next((name for name in ("messages", "conversations") if name in has), None)
            if chats is None and {"instruction", "output"} <= has:
                return self._instructions(rows)
        if chats is not None:
            values = rows.full_column("messages", chats)
            found = self._chats(
                rows, "messages", chats, values, lambda value: read_chat(value, self.system)
            )
            return {"messages": even(found), **self._tools(rows)}
        return self._pairs(rows)

    def _instructions(self, rows: Table) -> dict[str, list[Any]]:
        """Read instructions with or without an input, as Alpaca has them."""
        answers = self._texts(rows, "completion", blank=False, name="output")
        return {"prompt": self._instructed(rows), "completion": answers}

    def _instructed(self, rows: Table) -> list[str]:
        tasks = rows.texts("prompt", "instruction", rows.full_column("prompt", "instruction"))
        given = rows.column("prompt", "input") if "input" in rows.names else [None] * len(rows)
        given = rows.texts("prompt", "input", given)
        return ["\n\n".join(filter(None, pair)) for pair in zip(tasks, given, strict=True)]

    def _pairs(self, rows: Table) -> dict[str, list[Any]]:
        names = [name for name in (self.prompt, self.completion) if name in rows.names]
        values = {name: rows.column("prompt", name) for name in names}
        if not any(isinstance(value, list) for column in values.values() for value in column):
            return {
                "prompt": self._texts(rows, "prompt"),
                "completion": self._texts(rows, "completion", blank=False),
            }
        before: Sequence[Any] = values.get(self.prompt) or self._texts(rows, "prompt")
        after = rows.full_column("completion", self.completion)
        pairs = list(zip(before, after, strict=True))
        found = self._chats(
            rows,
            "completion",
            self.completion,
            pairs,
            lambda pair: read_pair(pair[0], pair[1], self.system),
        )
        return {"messages": even(found), **self._tools(rows)}

    def _chats(
        self,
        rows: Table,
        what: str,
        name: str,
        values: Sequence[Any],
        read: Callable[[Any], list[Turn]],
    ) -> list[list[Turn]]:
        found = []
        for place, value in enumerate(values):
            try:
                found.append(read(value))
            except ChatError as error:
                wrong = value if error.value is None else error.value
                raise rows.wrong(what, name, place, wrong, str(error)) from None
        return found

    def _tools(self, rows: Table) -> dict[str, list[str]]:
        if self.tools is None or self.tools not in rows.names:
            return {}
        values, found = rows.column("tools", self.tools), []
        for place, value in enumerate(values):
            try:
                found.append(read_tools(value))
            except ChatError as error:
                raise rows.wrong("tools", self.tools, place, value, str(error)) from None
        return {"tools": found} if any(found) else {}

    def _texts(
        self, rows: Table, field: str, *, blank: bool = True, name: str | None = None
    ) -> list[str]:
        """Return the texts of a column or template; `blank` ones are allowed of templates alone."""
        pattern: str = name or getattr(self, field)
        if pattern and (pattern in rows.names or not {*"{}"} & {*pattern}):
            # A column that is called like a template holds what the template gave, or nothing.
            read = rows.column if {*"{}"} & {*pattern} else rows.full_column
            texts = [text or "" for text in rows.texts(field, pattern, read(field, pattern))]
        else:
            texts = _filled(rows, field, pattern)
        if not blank:
            empty = [place for place, text in enumerate(texts) if not text.strip()]
            rows.check_gaps(field, pattern, empty)
        return texts


def _check_whole(rows: Table) -> None:
    """Refuse rows that keep some of their turns in columns that nobody has named."""
    for name in ("system", "history"):
        if name in rows.names and any(value is not None for value in rows.column(name, name)):
            raise UserError(
                f"column {name} in {rows.origin}",
                "it is part of the chats, and would be left out",
                "Write it as turns of messages; or name the columns to be read, with "
                "data.source.messages, or data.source.prompt and completion",
            )


_WRITTEN = ("causal_lm", "preference")  # tasks of which models write the answers
_BESIDE = ("tools", "client", "label")  # columns that one split may have and the other not


def _filled(rows: Table, field: str, pattern: str) -> list[str]:
    """Fill a template with the texts of each row; a column without a value gives none."""
    try:
        parts = list(Formatter().parse(pattern))
    except ValueError as error:
        raise UserError(
            f"{field}: {pattern}", f"it is not a template, {error}", 'Write "{column} {column}"'
        ) from error
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise UserError(
            f"{field}: {pattern}",
            "a template names columns, without formats",
            'Write "{column} {column}", and double braces that are text',
        )
    values: dict[str, list[str]] = {}
    for _, name, _, _ in parts:
        if name is not None and name not in values:
            found = rows.texts(field, name, rows.column(field, name))
            values[name] = [text or "" for text in found]
    return [
        "".join(text + ("" if name is None else values[name][place]) for text, name, _, _ in parts)
        for place in range(len(rows))
    ]


def _dataset(columns: dict[str, list[Any]]) -> Dataset:
    from datasets import Dataset

    return Dataset.from_dict(columns)
