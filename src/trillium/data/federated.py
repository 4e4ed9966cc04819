"""The data of one run: rows per client, a public set and a test set that share no text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from trillium.component import Choice
from trillium.data.classes import agreed
from trillium.data.partitions import Partition
from trillium.data.partitions.iid import IID
from trillium.data.publics import Public
from trillium.data.publics.rows import Rows
from trillium.data.sources import FORMS, RawData, Source
from trillium.data.sources.builtin import Builtin
from trillium.errors import UserError, suggest
from trillium.files import CLIENT_NAME, CLIENT_NAME_RULE, SERVER

if TYPE_CHECKING:
    from datasets import Dataset

    from trillium.tasks import Task


class DataConfig(BaseModel):
    """Which rows, and who has them.

    Attributes:
        source: where the rows come from.
        labels: names of the classes, in their order; or how they follow from those that clients have:
            all that any has (`union`), or the same ones of each (`fixed`), which nodes say before a
            run; null takes those of the training rows that are here.
        partition: how the training rows are divided among the clients.
        num_clients: number of clients.
        client_names: what they are called; `client-0`, `client-1`, … by default. Random streams go by
            name, so a simulation with the names of a deployment's nodes draws what these draw.
        public: where the public set comes from.
        public_size: rows that all sides hold, if something needs a public set; 256 by default.
            Where nothing does, no row is taken from the clients.
        set_aside: training rows that nobody has, so that a run without a public set has the same others
            as one with so large a set. Comparisons set it.
        test_size: most test rows to keep, a random sample; null keeps all.
        test_fraction: share of the training rows held back where the source has no test split; 0 where
            the clients measure, and the server has no test rows.
        split_seed: draws the test and validation rows, and rows that are generated, so that runs of
            several seeds are measured on the same ones; null takes the seed of the run, and a deviation
            over seeds is then also one of test rows.
        unusable: what happens to a client if nothing can be learnt from its rows, because all
            answers are empty or cut away: `refuse` the run, or `leave_out` the client.
        validation_fraction: share of the training rows that are measured in place of the test rows,
            to choose settings; no run of this configuration sees the test rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Choice[Source] = Builtin()
    labels: tuple[str, ...] | Literal["union", "fixed"] | None = None
    partition: Choice[Partition] = IID()
    num_clients: int = Field(default=4, ge=1)
    client_names: tuple[str, ...] | None = None
    public: Choice[Public] = Rows()
    public_size: int | None = Field(default=None, ge=0)
    set_aside: int = Field(default=0, ge=0)
    test_size: int | None = Field(default=None, ge=1)
    test_fraction: float = Field(default=0.2, ge=0, lt=1)
    split_seed: int | None = Field(default=0, ge=0)
    unusable: Literal["refuse", "leave_out"] = "refuse"
    validation_fraction: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _counted(cls, values: Any) -> Any:
        """Let names say how many clients there are, where nothing else does."""
        names = values.get("client_names") if isinstance(values, dict) else None
        return {"num_clients": len(names), **values} if isinstance(names, list | tuple) else values

    @model_validator(mode="after")
    def _named(self) -> Self:
        """Refuse names that are not one for each client, or could be no file's."""
        names = self.client_names
        if names is None:
            return self
        given = f"data.client_names=[{', '.join(names)}]"
        if len(names) != self.num_clients:
            raise UserError(
                given,
                f"there are {self.num_clients} clients",
                f"Write {self.num_clients} names, or data.num_clients={len(names)}",
            )
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(given, f"two clients are called {min(twice)}", "Give each its own name")
        for name in names:
            if not CLIENT_NAME.fullmatch(name) or name == SERVER:
                raise UserError(
                    f"data.client_names: {name!r}",
                    "a client's name is a file name and, in a deployment, stands in its certificate; "
                    f"{SERVER!r} is the server's",
                    CLIENT_NAME_RULE,
                )
        return self

    def check(self, task: Task) -> None:
        """Refuse a source without the columns of a task, or a partition by classes that it has not."""
        source = self.source
        if task.data_form not in source.forms:
            raise UserError(
                f"data.source={source.name} with task={task.name}",
                f"its rows are for {', '.join(sorted(source.forms))}",
                "Give rows of your own with --data FILE, or data.source={name: hub, path: …}",
            )
        self.partition.check(task)
        if self.labels is not None and task.peft_task == "CAUSAL_LM":
            raise UserError(
                f"data.labels with task={task.name}",
                "it has no classes",
                "Leave data.labels out",
            )
        if isinstance(self.labels, tuple) and len({*self.labels}) < max(len(self.labels), 1):
            raise UserError(
                f"data.labels=[{', '.join(self.labels)}]",
                "each class has one name, and there must be some",
                "Name each class once, or write data.labels=union",
            )

    def names(self, count: int | None = None) -> list[str]:
        """Return what the clients are called, padded so that names with numbers sort by them."""
        if self.client_names is not None:
            return list(self.client_names)
        count = self.num_clients if count is None else count
        width = len(str(count - 1))
        return [f"client-{index:0{width}d}" for index in range(count)]


@dataclass(frozen=True)
class FederatedData:
    """Rows per client, test and public set, in the columns of `trillium.data.sources`.

    Attributes:
        clients: rows by the client's name, see `DataConfig.client_names`.
        test: held-out rows; no client and no public row has a text of theirs.
        held: rows that clients measure on, by name, where they do; none of `clients` has their texts.
        public: rows that all sides hold, without `client`; no client has their texts. Those that the
            server writes come later (`trillium.experiment.written`), and have no `label`.
        labels: names of the outputs, which `label` numbers; `()` for `causal_lm`.
        removed: number of training rows left out, by reason.
        counts: how many texts are cut, and how many left out, by client and for `test`.
        useless: clients that are left out.
        head: what is to be said of the task head, if anything.
        own_head: whether it is not new: the model that is loaded knows the classes.
    """

    clients: dict[str, Dataset]
    test: Dataset
    public: Dataset
    labels: tuple[str, ...]
    removed: dict[str, int] = field(default_factory=dict)
    public_from: str = Rows.name
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    useless: tuple[str, ...] = ()
    head: str = ""
    own_head: bool = False
    held: Mapping[str, Dataset] = field(default_factory=dict)

    def in_order(self, labels: Sequence[str]) -> FederatedData:
        """Return the same with the classes in another order."""
        if tuple(labels) == self.labels:
            return self
        place = [labels.index(label) for label in self.labels]

        def renumbered(rows: Dataset) -> Dataset:
            if "label" not in rows.column_names:
                return rows
            numbers = [_renumbered(label, place) for label in rows["label"][:]]
            return rows.remove_columns("label").add_column("label", numbers)

        return replace(
            self,
            clients={name: renumbered(rows) for name, rows in self.clients.items()},
            test=renumbered(self.test),
            public=renumbered(self.public),
            labels=tuple(labels),
        )

    def classes_of(self, rows: Dataset) -> list[str]:
        """Return the classes that rows have, by name."""
        return [*self._label_counts(rows)]

    def summary(self) -> dict[str, Any]:
        """Return sizes and label histograms in a form that JSON can hold.

        A client's `labels` count the classes it has; where there are none they are empty.
        """
        return {
            "clients": {
                client: {
                    "num_examples": len(rows),
                    **self.counts.get(client, {}),
                    "labels": self._histograms[client],
                }
                for client, rows in self.clients.items()
            },
            "test": {
                "num_examples": len(self.test),
                **self.counts.get("test", {}),
                "unlearnt": self._unlearnt(),
            },
            "public": {"num_examples": len(self.public), "from": self.public_from},
            "labels": list(self.labels),
            "removed": dict(self.removed),
            "useless": list(self.useless),
            "head": self.head,
            "own_head": self.own_head,
        }

    def _unlearnt(self) -> dict[str, int]:
        """Return the classes of test rows that no client has; none are known in a deployment."""
        if not self.clients:
            return {}
        had = {label for counts in self._histograms.values() for label in counts}
        return {k: v for k, v in self._label_counts(self.test).items() if k not in had}

    @cached_property
    def _histograms(self) -> dict[str, dict[str, int]]:
        """How many examples of each class each client has; reading columns takes its time."""
        return {client: self._label_counts(rows) for client, rows in self.clients.items()}

    def _label_counts(self, rows: Dataset) -> dict[str, int]:
        found = rows["label"][:] if self.labels and "label" in rows.column_names else ()
        each = [n for own in found for n in (own if isinstance(own, list) else [own])]
        counts = Counter(n for n in each if isinstance(n, int))  # numbers to predict are no classes
        return {self.labels[label]: counts[label] for label in sorted(counts)}


def _renumbered(label: Any, place: Sequence[int]) -> Any:
    """Return a row's classes, or the numbers that are to be predicted, in another order."""
    if isinstance(label, int):
        return place[label]
    if all(isinstance(item, int) for item in label):
        return [place[item] for item in label]
    return [own for _, own in sorted(zip(place, label, strict=True))]


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
    # Imported here: the config tree imports this module, and must not wait for torch.
    from trillium.rng import derive_seed

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
