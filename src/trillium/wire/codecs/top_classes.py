"""Name the most probable classes of each row, and the mass of all others.

FedMKT (Fan et al., 2024, arXiv 2406.02224) sends the largest logits of each token; the number that
goes by the link is that of arXiv 2509.01750. Neither sends the mass of the tail, without which the
student is told that the other classes are impossible.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from trillium.wire.codecs import rows
from trillium.wire.codecs.rows import LEAST, Precision, RowCodec


class TopClasses(RowCodec, name="top_classes"):
    """The `k` largest probabilities of each row with their classes, and the sum of all others.

    With one byte for a probability a row of at most 256 classes weighs `2 k + 1` bytes. The other side
    spreads the mass of the tail evenly; in distillation only its sum counts.

    Attributes:
        k: how many classes are named, at most; all classes leave no tail.
        values: how a probability is written.
        max_bytes: budget of a message: `k` is the largest number that fits it, at least 1.
        seconds: how long a message may take over the client's link; a further budget where the
            speed of the link is known.
    """

    k: int = Field(8, ge=1)
    values: Precision = "uint8"
    max_bytes: int | None = Field(None, ge=1)
    seconds: float | None = Field(None, gt=0)

    def fit(self, bits_per_second: float | None) -> TopClasses:
        """Return the codec with the budget of this link."""
        if bits_per_second is None or self.seconds is None:
            return self
        budget = max(1, int(self.seconds * bits_per_second / 8))
        return self.model_copy(update={"max_bytes": min(budget, self.max_bytes or budget)})

    def sized(self, num_rows: int, num_classes: int) -> TopClasses:
        """Return the codec with as many classes as the budget has room for."""
        if self.max_bytes is None:
            return self
        width = rows.log_width(self.values)
        room = self.max_bytes // max(num_rows, 1) - width
        k = room // (rows.index_width(num_classes) + width)
        return self.model_copy(update={"k": min(self.k, max(k, 1))})

    def encode_rows(self, log_probs: Tensor, key: int) -> Tensor:
        """Return for each row: classes, their probabilities, the mass of the others."""
        num_classes = log_probs.shape[1]
        k = min(self.k, num_classes)
        top = log_probs.double().topk(k, dim=-1)
        parts = [
            rows.write_indices(top.indices, num_classes),
            rows.write_logs(top.values, self.values),
        ]
        if k < num_classes:
            rest = log_probs.double().scatter(1, top.indices, -torch.inf)
            parts.append(rows.write_logs(rest.logsumexp(-1, keepdim=True), self.values))
        return torch.cat(parts, dim=1)

    def check(self, records: Tensor, num_classes: int) -> None:
        """Refuse what does not name different classes."""
        rows.expect_records(records)
        indices, _, _ = self._read(records, num_classes)
        ordered = indices.sort(dim=-1).values
        if not bool((ordered[:, 1:] != ordered[:, :-1]).all()):
            raise ValueError("a class is named twice")

    def decode_rows(self, records: Tensor, num_classes: int) -> Tensor:
        """Return the rows, the mass of the tail spread evenly."""
        indices, values, tail = self._read(records, num_classes)
        each = tail - torch.tensor(max(num_classes - indices.shape[1], 1)).log()
        dense = each.clamp(min=LEAST).expand(-1, num_classes).scatter(1, indices, values)
        return dense.log_softmax(-1)

    def named(self, records: Tensor, num_classes: int) -> Tensor | None:
        """Return the classes that are named."""
        indices, _, _ = self._read(records, num_classes)
        if indices.shape[1] == num_classes:
            return None
        return torch.zeros(len(records), num_classes, dtype=torch.bool).scatter(1, indices, True)

    def _read(self, records: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return classes `(rows, k)`, their log-probabilities, and that of the tail `(rows, 1)`."""
        places, width = rows.index_width(num_classes), rows.log_width(self.values)
        length = records.shape[1]
        is_full = length == num_classes * (places + width)
        k, left = divmod(length if is_full else length - width, places + width)
        if left or not 1 <= k <= num_classes or (k == num_classes) != is_full:
            raise ValueError(f"records of {length} bytes for {num_classes} classes")
        indices = rows.read_indices(records[:, : k * places], num_classes)
        values = rows.read_logs(records[:, k * places :], self.values)
        tail = values[:, k:] if not is_full else torch.full((len(records), 1), LEAST)
        return indices, values[:, :k], tail
