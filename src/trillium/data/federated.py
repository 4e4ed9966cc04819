"""The data of one run: rows per client, a public set and a test set that share no text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from trillium.data.publics.rows import Rows

if TYPE_CHECKING:
    from datasets import Dataset


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
