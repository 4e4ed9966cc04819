"""Send random entries that both sides know, so that no indices cross.

Random sparsification with memory (Stich et al., 2018, arXiv 1809.07599), with a shared seed as in
Konečný et al. (2016, arXiv 1610.05492).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from trillium.wire.codecs import Codec
from trillium.wire.codecs.parts import (
    expect_parts,
    most_of,
    num_kept,
    read_shape,
    shape_part,
    vector_of_floats,
)
from trillium.wire.codecs.seeded import choose
from trillium.wire.kinds import Nature


class RandomK(Codec, name="random_k"):
    """Keep a random part of the entries; the others are zero on the other side.

    All clients of a round keep the same entries, and other ones in the next round. What is kept is not
    scaled up by the inverse of the fraction: error feedback sends the rest later, and would diverge
    if more were sent than there is.

    Attributes:
        fraction: how many entries are kept, of all; rounded up.
    """

    suits: ClassVar[frozenset[Nature]] = frozenset({"changes", "gradients"})

    fraction: float = Field(0.05, gt=0, le=1)

    def encode(self, tensor: Tensor, key: int) -> dict[str, Tensor]:
        """Return the values `(k,)` float32 and the shape."""
        flat = tensor.detach().float().flatten()
        places = choose(key, len(flat), num_kept(self.fraction, len(flat)))
        return {"": flat[places.to(flat.device)], "shape": shape_part(tensor)}

    def decode(self, parts: Mapping[str, Tensor], key: int) -> Tensor:
        """Return the tensor as float32."""
        expect_parts(parts, {"", "shape"})
        shape = read_shape(parts["shape"], most_of(parts))
        total = math.prod(shape)
        values = vector_of_floats(parts[""], num_kept(self.fraction, total))
        flat = torch.zeros(total)
        flat[choose(key, total, len(values))] = values
        return flat.reshape(shape)
