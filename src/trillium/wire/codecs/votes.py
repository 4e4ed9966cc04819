"""Send only the most probable class of each row.

One-bit soft labels of CFD (Sattler et al., 2020, arXiv 2012.00632); the votes of PATE (Papernot et
al., 2017, arXiv 1610.05755).
"""

from __future__ import annotations

import torch
from torch import Tensor

from trillium.wire.codecs import rows
from trillium.wire.codecs.rows import LEAST, RowCodec


class Votes(RowCodec, name="votes"):
    """The most probable class of each row; the other side takes it as certain.

    One byte for a row of up to 256 classes, else two or three.
    """

    def encode_rows(self, log_probs: Tensor, key: int) -> Tensor:
        """Return the class; of equal ones, the first."""
        return rows.write_indices(log_probs.argmax(-1, keepdim=True), log_probs.shape[1])

    def check(self, records: Tensor, num_classes: int) -> None:
        """Refuse what is not one class."""
        rows.expect_records(records, rows.index_width(num_classes))
        rows.read_indices(records, num_classes)

    def decode_rows(self, records: Tensor, num_classes: int) -> Tensor:
        """Return zero for the class and the least logarithm for the others."""
        blank = torch.full((len(records), num_classes), LEAST)
        return blank.scatter(1, rows.read_indices(records, num_classes), 0.0)
