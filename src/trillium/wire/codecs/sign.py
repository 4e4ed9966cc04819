"""Send one bit per entry and one magnitude per block.

Error Feedback Fixes SignSGD (Karimireddy et al., 2019, arXiv 1901.09847), with the blocks of Zheng et
al. (2019, arXiv 1905.10936).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from trillium.wire.codecs import Codec, blocks
from trillium.wire.kinds import Nature


class Sign(Codec, name="sign"):
    """The sign times the mean magnitude of the block: 1.06 bits per entry.

    On a Gaussian 36 % of the squared norm is left over; error feedback sends it later. Eight entries
    share a byte; a zero counts as positive, but a block of zeros stays zero.

    Attributes:
        block: entries that share a magnitude.
    """

    row_wise: ClassVar[bool] = True
    suits: ClassVar[frozenset[Nature]] = frozenset({"changes", "gradients", "activations"})

    block: int = Field(256, ge=1)

    def encode(self, tensor: Tensor, key: int) -> dict[str, Tensor]:
        """Return bits `(…, ceil(n / 8))` uint8 and bfloat16 magnitudes `(…, blocks)`."""
        values = blocks.to_blocks(tensor, self.block)
        largest = blocks.largest(values)
        # In units of the largest, a sum over the block cannot overflow.
        shares = blocks.divide(values.abs(), largest).sum(-1, keepdim=True)
        scale = shares / blocks.block_lengths(tensor, self.block)[:, None] * largest
        return blocks.write(tensor, values >= 0, blocks.round_scale(scale), bits=1)

    def decode(self, parts: Mapping[str, Tensor], key: int) -> Tensor:
        """Return the tensor as float32."""
        codes, scale = blocks.read(parts, 1, self.block)
        return blocks.multiply(2 * codes.float() - 1, scale)
