"""The rows of a run, read and divided: test and public set are held back, the rest is the clients'."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trillium.data.classes import agreed
from trillium.data.federated import FederatedData
from trillium.data.settings import DataConfig
from trillium.data.sources import FORMS, RawData
from trillium.errors import UserError, suggest
from trillium.rng import derive_seed

if TYPE_CHECKING:
    from datasets import Dataset


def load_data(
    config: DataConfig,
    task: str,
    seed: int,
    public_size: int | None = None,
    *,
    clients: bool = True,
) -> FederatedData:
    """Load the rows, hold back test and public set, and divide the rest among the clients.

    Every random choice follows from `seed`, that of the test rows from `data.split_seed`; partition,
    public set and test sample have streams of their own, so that another partition leaves public set
    and test as they are.

    Args:
        task: the form of its data, as in `trillium.data.sources`.
        public_size: how many rows all sides are to hold; as `config` says by default.
        clients: whether there are clients here; else the rest is nobody's, and may be nothing.

    Raises:
        UserError: the task is unknown, or the rows cannot be found, read or divided as asked.
    """
    if task not in FORMS:
        raise UserError(f"task {task!r}", "there is no such task", suggest(task, FORMS))
    split_seed = seed if config.split_seed is None else config.split_seed
    raw = config.source.load(task, split_seed)
    if task == "classification" and len(raw.labels) < 2:
        raise UserError(
            f"rows of one class ({', '.join(raw.labels)})",
            "there is nothing to tell apart",
            "Name the column that holds the class with data.source.label, or add rows of another class",
        )
    if task == "multi_label" and 2 < len(raw.train) <= len(raw.labels):
        raise UserError(
            f"{len(raw.train)} training rows of {len(raw.labels)} labels",
            "most labels have no second row, and nothing that is learnt from one helps with another",
            "Name the column that lists the labels with data.source.label, and what stands between "
            "them with data.source.separator",
        )
    if task == "classification" and 2 < len(raw.train) == len(set(raw.train["label"][:])):
        raise UserError(
            f"{len(raw.train)} training rows, each of a class of its own",
            "nothing that is learnt from one row helps with another",
            "Name the column that holds the class with data.source.label; numbers to predict are no "
            "classes",
        )
    raw, num_leaks = _with_test(raw, config, derive_seed(split_seed, "test"))
    pool = raw.train
    wanted = config.public_size if public_size is None else public_size
    public_size = 0 if config.public.is_written else wanted or 0
    held = max(public_size, config.set_aside)
    name = "public_size" if held == public_size else "set_aside"
    if clients and config.public_size is None and 2 * held > len(pool):  # as there ought to be
        held = max(len(pool) // 4, 1)
        public_size = min(public_size, held)
    if held >= len(pool) + (not clients):
        raise UserError(
            f"data.{name}={held}",
            f"{len(pool)} training rows would leave nothing for the clients",
            f"Write a smaller data.{name}, or use more data",
        )
    draw = derive_seed(seed, "public")
    public, rest, num_duplicates = _draw_public(pool, held, name, draw, all_of_it=not clients)
    public = public.select(range(public_size))
    parts: Sequence[Any] = ()
    if clients:
        parts = config.partition.assign(rest, config.num_clients, derive_seed(seed, "partition"))
    assert raw.test is not None
    names = config.names(len(parts)) if parts else []
    found = FederatedData(
        clients={name: rest.select(part) for name, part in zip(names, parts, strict=True)},
        test=raw.test,
        public=public.remove_columns([c for c in ("client",) if c in public.column_names]),
        labels=raw.labels,
        removed={"same_text_as_test": num_leaks, "same_text_as_public": num_duplicates},
    )
    return found if config.labels is None else found.in_order(_classes(config, found))


def _classes(config: DataConfig, data: FederatedData) -> tuple[str, ...]:
    """Return the classes of a federation, as its settings name them or its clients have them.

    Raises:
        UserError: rows have one that is not named, or clients have not the same.
    """
    if isinstance(config.labels, tuple):
        if unnamed := sorted({*data.labels} - {*config.labels}):
            raise UserError(
                f"data.labels=[{', '.join(config.labels[:5])}{', …' * (len(config.labels) > 5)}]",
                f"there are rows of {', '.join(unnamed[:5])}",
                "Name all classes there, correct the spelling, or leave data.labels out",
            )
        return config.labels
    sets = {name: data.classes_of(rows) for name, rows in data.clients.items()}
    if config.labels == "union":
        sets["the server"] = list(data.labels)
    return agreed(sets, str(config.labels)) if sets else data.labels


def row_keys(rows: Dataset) -> list[str]:
    """Return what makes two rows the same text: all their words, without case and outer blanks."""
    if "text" in rows.column_names:
        return [text.strip().casefold() for text in rows["text"][:]]
    wanted = ("prompt", "completion", "messages", "chosen", "rejected")
    columns = [rows[name][:] for name in wanted if name in rows.column_names]
    chats = [
        [part for value in row for part in _parts(value)] for row in zip(*columns, strict=True)
    ]
    return [json.dumps([text.strip().casefold() for text in chat]) for chat in chats]


def _parts(value: str | list[dict[str, str]]) -> list[str]:
    """Return what a text or the turns of a chat say."""
    if isinstance(value, str):
        return [value]
    said = (part for turn in value for part in (turn["content"], turn.get("more")))
    return [part for part in said if part is not None]


def _with_test(raw: RawData, config: DataConfig, seed: int) -> tuple[RawData, int]:
    """Return train and test without a common text, and how many training rows that cost."""
    order = np.random.default_rng(seed)
    train, test = raw.train, raw.test
    if test is None and not config.test_fraction:
        test = train.select([])
    if test is None:
        train, test = _held_back(train, config.test_fraction, order)
    train, num_leaks = _without(train, test)
    if config.validation_fraction:
        train, test = _held_back(train, config.validation_fraction, order)
        train, num_more = _without(train, test)
        num_leaks += num_more
    if config.test_size is not None and config.test_size < len(test):
        sample = order.permutation(len(test))[: config.test_size]
        test = test.select(np.sort(sample))
    return RawData(train, test, raw.labels), num_leaks


def _held_back(
    rows: Dataset, fraction: float, order: np.random.Generator
) -> tuple[Dataset, Dataset]:
    """Divide rows at random: most of them, and a share that is held back."""
    if len(rows) < 2:
        raise UserError("source", "one row cannot be divided into train and test", "Use more data")
    permutation = order.permutation(len(rows))
    num_held = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
    held, kept = permutation[:num_held], permutation[num_held:]
    return rows.select(np.sort(kept)), rows.select(np.sort(held))


def _without(rows: Dataset, held: Dataset) -> tuple[Dataset, int]:
    """Return the rows that have no text of those held back, and how many that cost.

    All that is held back counts: rows left out of a sample of it are test data none the less.
    """
    taken = set(row_keys(held))
    kept = [i for i, key in enumerate(row_keys(rows)) if key not in taken]
    if not kept:
        raise UserError(
            "source", "every training row is a test row, too", "Give a test split of other rows"
        )
    return rows.select(kept), len(rows) - len(kept)


def _draw_public(
    rows: Dataset, size: int, name: str, seed: int, *, all_of_it: bool = False
) -> tuple[Dataset, Dataset, int]:
    """Return a public set of distinct texts, the rows without these, and how many more that cost.

    Args:
        all_of_it: whether nothing need be left.
    """
    keys = row_keys(rows)
    chosen: dict[str, int] = {}
    for index in np.random.default_rng(seed).permutation(len(rows)):
        if len(chosen) == size:
            break
        chosen.setdefault(keys[index], int(index))
    rest = [i for i, key in enumerate(keys) if key not in chosen]
    if len(chosen) < size or not (rest or all_of_it):
        raise UserError(
            f"data.{name}={size}",
            f"the training rows have {len(set(keys))} different texts, and clients need some, too",
            f"Write data.{name}={max(len(set(keys)) // 2, 0)} or less",
        )
    public = rows.select(list(chosen.values()))
    return public, rows.select(rest), len(rows) - len(rest) - len(chosen)
