"""Labels that have hardly changed since a client last sent them are not sent again.

After the differences that CFD sends (Sattler et al., 2020, arXiv 2012.00632): both sides hold what
crossed before, and only what is new crosses. What a client has sent counts once the server says that
it has arrived; so a reply that is lost on the way is not missed later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trillium.federation.client import Client
from trillium.frameworks.kd.public import row_slices
from trillium.tasks import Example
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message
from trillium.wire.soft_labels import SoftLabels, chunks

Slices = Mapping[int, slice]


class Sent:
    """What a client has sent of public examples, as the server has it.

    Args:
        store: what is kept between rounds; written to.
        heard: round of the client's last reply that has reached the server, 0 if none has.
    """

    def __init__(self, store: dict[str, Any], heard: int) -> None:
        self._records: dict[int, Tensor] = store.setdefault("records", {})
        self._store = store
        if heard == 0:
            self._records.clear()
        elif heard == store.get("number"):
            self._records.update(store["latest"])
        store["number"], store["latest"] = 0, {}

    def changed(self, labels: SoftLabels, slices: Slices, least: float) -> list[int]:
        """Return the examples to send, sorted: those the server has not, or not like this.

        Args:
            labels: what the client now says.
            slices: the rows of each example.
            least: total variation distance, as a mean over the rows of an example, from which on it is
                sent again.
        """
        known = sorted(slices.keys() & self._records.keys())
        if not known:
            return sorted(slices)
        now = labels.of(slices, known)
        before = labels.joined([self._records[index] for index in known])
        distance = torch.cat([torch.zeros(0), *_distances(now, before)])
        sizes = [slices[index].stop - slices[index].start for index in known]
        moved = [
            index
            for index, part in zip(known, torch.split(distance, sizes), strict=True)
            if len(part) and float(part.mean()) >= least
        ]
        return sorted({*slices.keys() - self._records.keys(), *moved})

    def note(self, number: int, labels: SoftLabels, slices: Slices, indices: Sequence[int]) -> None:
        """Note what is on its way in the reply of a round."""
        latest = {index: labels.records[slices[index]].clone() for index in indices}
        self._store["number"], self._store["latest"] = number, latest


def _distances(now: SoftLabels, before: SoftLabels) -> list[Tensor]:
    """Return total variation distances by row, some rows at a time."""
    return [
        (now.take(rows).exp() - before.take(rows).exp()).abs().sum(-1) / 2
        for rows in chunks(len(now), now.num_classes, 2)
    ]


def only_changed(
    client: Client, message: Message, examples: Sequence[Example], labels: SoftLabels, least: float
) -> tuple[SoftLabels, list[int]]:
    """Return those labels that a client has to send, and which of the examples they are of.

    Args:
        client: who keeps what it sends.
        message: from the server; says what has reached it.
        examples: public examples.
        labels: what the client says of them.
        least: see `Sent.changed`.
    """
    heard = message.meta.get("heard")
    sent = Sent(client.store.setdefault("sent", {}), heard if type(heard) is int else 0)
    slices = row_slices(client.task, examples)
    changed = sent.changed(labels, slices, least)
    sent.note(client.round, labels, slices, changed)
    places = [place for place, example in enumerate(examples) if example.index in set(changed)]
    return labels.of(slices, changed), places


class Heard:
    """What the server has heard of each client.

    Args:
        store: what is kept between rounds; written to.
    """

    def __init__(self, store: dict[str, Any]) -> None:
        self._store = store

    def number(self, client: str) -> int:
        """Return the round of a client's last reply, 0 if there is none."""
        return int(self._store[client]["number"]) if client in self._store else 0

    def whole(
        self, client: str, indices: Sequence[int], slices: Slices, new: SoftLabels
    ) -> SoftLabels:
        """Return a client's labels of examples, of which it has sent some.

        Args:
            client: who.
            indices: the examples.
            slices: the rows in `new` of those that were sent.
            new: what was sent.

        Raises:
            MessageError: it has never spoken of one of the others.
        """
        held: dict[int, Tensor] = self._store.get(client, {}).get("records", {})
        if not set(indices) <= held.keys() | slices.keys():
            raise MessageError("this client leaves out examples of which it has never spoken")
        return new.joined([new.records[slices[i]] if i in slices else held[i] for i in indices])

    def keep(self, client: str, number: int, slices: Slices, labels: SoftLabels) -> None:
        """Keep a client's labels, whose rows of examples are those slices."""
        held = self._store.setdefault(client, {"records": {}})
        held["number"] = number
        held["records"] |= {index: labels.records[rows].clone() for index, rows in slices.items()}

    def lose(self, client: str) -> None:
        """Forget a client, who has forgotten what it sent."""
        self._store.pop(client, None)
