"""Which soft labels are still fresh, and who has them.

Soft-label caching of SCARLET (2025, arXiv 2504.19602). There both sides work out what has expired, and
have to agree to the round; here the server alone does, and says what it wants and what to use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trillium.wire.codecs.rows import RowCodec
from trillium.wire.soft_labels import SoftLabels, Teacher


class LabelCache:
    """The teacher's labels by public example; one of round r is fresh until r + duration - 1."""

    def __init__(self, store: dict[str, Any], duration: int) -> None:
        self._made: dict[int, int] = store.setdefault("made", {})
        self._records: dict[int, Tensor] = store.setdefault("records", {})
        self._present: dict[int, Tensor] = store.setdefault("present", {})
        self._held: dict[str, dict[int, int]] = store.setdefault("held", {})
        self._duration = duration

    def is_fresh(self, index: int, number: int) -> bool:
        """Whether the label of an example may be used in a round."""
        return index in self._made and number - self._made[index] < self._duration

    def keep(
        self, number: int, indices: Sequence[int], teacher: Teacher, slices: dict[int, slice]
    ) -> None:
        """Take in labels that were made in a round, and let go of those that have expired."""
        for index in indices:
            found = teacher.of(slices, [index])
            self._made[index], self._records[index] = number, found.labels.records
            self._present[index] = found.present
        for index in [i for i in self._made if not self.is_fresh(i, number)]:
            del self._made[index], self._records[index], self._present[index]

    def teacher(self, indices: Sequence[int], codec: RowCodec, num_classes: int) -> Teacher:
        """Return the labels of some examples, in order."""
        records = torch.cat([self._records[index] for index in indices])
        present = torch.cat([self._present[index] for index in indices])
        return Teacher(SoftLabels(codec, records, num_classes), present)

    def lacking(self, client: str, indices: Sequence[int]) -> list[int]:
        """Return of some examples those whose newest label a client does not hold."""
        held = self._held.get(client, {})
        return [index for index in indices if held.get(index) != self._made[index]]

    def confirm(self, client: str, indices: Sequence[int]) -> None:
        """Note that a client now holds the labels of some examples."""
        held = self._held.get(client, {})
        held = {index: made for index, made in held.items() if self._made.get(index) == made}
        self._held[client] = {**held, **{index: self._made[index] for index in indices}}

    def lose(self, client: str) -> None:
        """Note that nobody knows what a client holds."""
        self._held.pop(client, None)
