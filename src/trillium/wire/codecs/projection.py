"""Send random linear combinations of the entries, which both sides can draw.

Subsampled randomised Hadamard transform (Ailon and Chazelle, 2006; Tropp, 2011, arXiv 1011.1595), as a
sketch of updates in Konečný et al. (2016, arXiv 1610.05492).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Final, Literal

import torch
from pydantic import Field
from torch import Tensor

from trillium.wire.codecs import Codec
from trillium.wire.codecs.blocks import LARGEST
from trillium.wire.codecs.parts import (
    expect_parts,
    num_kept,
    read_shape,
    shape_part,
    vector_of_floats,
)
from trillium.wire.codecs.rotation import rotate, rotate_back
from trillium.wire.codecs.seeded import choose

CHUNK: Final = 4096  # rotated together: O(n log n), and each number sent mixes so many entries


class Projection(Codec, name="projection"):
    """Rotate the flattened tensor at random and keep a random part of it: `P` with `k` of `n` rows.

    All clients of a round draw the same `P`, so that projections can be summed.

    Attributes:
        fraction: how many numbers are sent for each entry; rounded up.
        reconstruction: `unbiased` returns `n/k · Pᵀ P x`, whose expectation is `x`, with an error of
            `(n/k - 1) · |x|²`: for one-shot means, where errors of clients or rounds average out.
            `least_squares` returns `Pᵀ P x`, the nearest to `x` that the numbers allow, with an error
            of `(1 - k/n) · |x|²`: for error feedback, which needs an error below `|x|²` and would
            diverge with the other at fractions up to one half.
    """

    for_changes: ClassVar[bool] = True

    fraction: float = Field(0.1, gt=0, le=1)
    reconstruction: Literal["unbiased", "least_squares"] = "unbiased"

    @property
    def expands(self) -> bool:
        """Whether the error exceeds the tensor: unbiased and from at most half of the numbers."""
        return self.reconstruction == "unbiased" and self.fraction <= 0.5

    def encode(self, tensor: Tensor, key: int) -> dict[str, Tensor]:
        """Return the numbers `(k,)` float32 and the shape."""
        rotated = rotate(tensor.detach().float().flatten(), CHUNK, key)
        places = choose(key, len(rotated), num_kept(self.fraction, len(rotated)))
        return {"": rotated[places.to(rotated.device)], "shape": shape_part(tensor)}

    def decode(self, parts: Mapping[str, Tensor], key: int) -> Tensor:
        """Return the tensor as float32."""
        expect_parts(parts, {"", "shape"})
        shape = read_shape(parts["shape"])
        total = math.prod(shape)
        values = vector_of_floats(parts[""], num_kept(self.fraction, total))
        rotated = torch.zeros(total)
        if self.reconstruction == "unbiased" and total:
            values = (values * (total / len(values))).clamp(-LARGEST, LARGEST)
        rotated[choose(key, total, len(values))] = values
        return rotate_back(rotated, CHUNK, key).reshape(shape)
