"""Error feedback: what a codec loses of one message is added to the next.

Seide et al. (2014, 1-bit SGD); Karimireddy et al. (2019, arXiv 1901.09847) show that biased codecs such
as the sign converge with it and may not without. What was sent in all, plus what is still kept, is what
was to be sent in all.
"""

from __future__ import annotations

from dataclasses import dataclass

from trillium.wire.kinds import Tensors


@dataclass(frozen=True)
class Feedback:
    """The losses of one stream of tensors, of which a share is added to the next message."""

    lost: Tensors
    share: float = 1.0

    def add(self, tensors: Tensors) -> Tensors:
        """Return tensors with what was lost of earlier ones of the same names."""
        return {
            name: tensor + self.share * self.lost[name].to(tensor.device)
            if name in self.lost
            else tensor
            for name, tensor in tensors.items()
        }

    def keep(self, wanted: Tensors, seen: Tensors) -> None:
        """Remember what the other side will not read of `wanted`, which `add` returned."""
        for name, tensor in wanted.items():
            self.lost[name] = (tensor - seen[name].to(tensor.device)).cpu()
