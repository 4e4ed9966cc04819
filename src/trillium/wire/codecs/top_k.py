"""Send only the entries of largest magnitude.

Sparsified SGD with memory (Stich et al., 2018, arXiv 1809.07599).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from trillium.wire.codecs import Codec, rice
from trillium.wire.codecs.parts import (
    expect_parts,
    most_of,
    num_kept,
    read_shape,
    shape_part,
    vector_of_floats,
)
from trillium.wire.kinds import Nature


class TopK(Codec, name="top_k"):
    """Keep the largest magnitudes of the whole tensor; the others are zero on the other side.

    The values are the main part, so that a later codec compresses them too; their places are sent
    as Golomb-Rice codes of the gaps: about 8 bits for each at 1 %, 6 at 5 %, 5 at 10 %.

    Attributes:
        fraction: how many entries are kept, of all; rounded up.
    """

    suits: ClassVar[frozenset[Nature]] = frozenset({"changes", "gradients", "activations"})

    fraction: float = Field(0.05, gt=0, le=1)

    def encode(self, tensor: Tensor, key: int) -> dict[str, Tensor]:
        """Return the values `(k,)` float32 by place, the places in bytes, and the shape."""
        flat = tensor.detach().float().flatten()
        places = _largest(flat.abs(), num_kept(self.fraction, len(flat)))
        return {"": flat[places], "places": rice.pack_indices(places), "shape": shape_part(tensor)}

    def decode(self, parts: Mapping[str, Tensor], key: int) -> Tensor:
        """Return the tensor as float32."""
        expect_parts(parts, {"", "places", "shape"})
        shape = read_shape(parts["shape"], most_of(parts))
        total = math.prod(shape)
        count = num_kept(self.fraction, total)
        values = vector_of_floats(parts[""], count)
        places = rice.unpack_indices(parts["places"], count, total)
        flat = torch.zeros(total)
        flat[places] = values
        return flat.reshape(shape)


def _largest(sizes: Tensor, count: int) -> Tensor:
    """Return the places of the `count` largest, sorted; of equal ones, the first."""
    if not count:
        return torch.zeros(0, dtype=torch.int64, device=sizes.device)
    least = sizes.topk(count, sorted=False).values.min()
    above = (sizes > least).nonzero()[:, 0]
    equal = (sizes == least).nonzero()[: count - len(above), 0]
    return torch.cat([above, equal]).sort().values
