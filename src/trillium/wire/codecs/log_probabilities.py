"""Send every probability of each row, with fewer bits.

Quantised soft labels as in CFD (Sattler et al., 2020, arXiv 2012.00632), here on a logarithmic scale.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from trillium.wire.codecs import rows
from trillium.wire.codecs.rows import RowCodec


class LogProbabilities(RowCodec, name="log_probabilities"):
    """The logarithms of all probabilities of a row.

    Attributes:
        values: `uint8` covers probabilities down to 2e-9, most finely the large ones; `float16` rounds
            the logarithm to 11 bits.
    """

    values: Literal["uint8", "float16"] = "uint8"

    def encode_rows(self, log_probs: Tensor, key: int) -> Tensor:
        """Return the logarithms."""
        return rows.write_logs(log_probs, self.values)

    def check(self, records: Tensor, num_classes: int) -> None:
        """Refuse what is not as many logarithms."""
        rows.expect_records(records, num_classes * rows.log_width(self.values))
        rows.read_logs(records, self.values)

    def decode_rows(self, records: Tensor, num_classes: int) -> Tensor:
        """Return the logarithms, normalised again."""
        return rows.read_logs(records, self.values).log_softmax(-1)
