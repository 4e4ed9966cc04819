"""Draw classes of each row by their probability.

Sparse Logit Sampling (Anshumann et al., 2025, arXiv 2503.16870), called random-sampling distillation.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from trillium.wire.codecs import rows, seeded
from trillium.wire.codecs.rows import LEAST, RowCodec


class SampledClasses(RowCodec, name="sampled_classes"):
    """A number of draws from each row; the other side takes the share of each class among them.

    The shares, and so the gradient of distillation, are right on average, whereas the largest
    probabilities alone are biased. That holds at the temperature that is sent: upwards it is 1, so
    `framework.temperature` must be 1.

    Attributes:
        draws: draws from each row, with replacement; each takes one byte up to 256 classes, else
            two or
            three.
    """

    unbiased: ClassVar[bool] = True

    draws: int = Field(16, ge=1)

    def encode_rows(self, log_probs: Tensor, key: int) -> Tensor:
        """Return the classes that were drawn, sorted, repeated as often as drawn."""
        bounds = log_probs.double().exp().cumsum(-1).cpu()
        uniform = seeded.draws(key, log_probs, (len(log_probs), self.draws)).double()
        # What rounding leaves of the last bound must not be drawn beyond.
        found = torch.searchsorted(bounds, uniform * bounds[:, -1:], right=True)
        found = found.clamp(max=log_probs.shape[1] - 1).sort(dim=-1).values
        return rows.write_indices(found, log_probs.shape[1])

    def check(self, records: Tensor, num_classes: int) -> None:
        """Refuse what is not as many classes."""
        rows.expect_records(records, self.draws * rows.index_width(num_classes))
        rows.read_indices(records, num_classes)

    def decode_rows(self, records: Tensor, num_classes: int) -> Tensor:
        """Return the logarithm of the shares."""
        drawn = rows.read_indices(records, num_classes)
        shares = torch.zeros(len(drawn), num_classes)
        shares.scatter_add_(1, drawn, torch.full(drawn.shape, 1 / self.draws))
        return shares.log().clamp(min=LEAST)
