"""The tensors of a message that came: each is decoded when it is read, into what is expected at most.

What a peer sends may stand for far more than it weighs. Who reads a tensor says how large it can be,
and what nobody reads is never decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from trillium.wire.codecs.rows import RowCodec
from trillium.wire.kinds import MessageError

Decode = Callable[[str, int], Tensor]


@dataclass
class Arrived(Mapping[str, Tensor]):
    """Tensors by name, still as codecs have written them.

    Attributes:
        raw: what came of each.
        decode: returns one, of at most so many entries; `MessageError` if it stands for more.
        rows: what wrote the records of those that are read some rows at a time.
        room: how many bytes all that is read may take together.
        found: what has been read.
    """

    raw: Mapping[str, Mapping[str, Tensor]]
    decode: Decode
    rows: Mapping[str, RowCodec]
    room: int
    found: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor of which nobody has said how large it is."""
        return self.read(name, self.room)

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    def __contains__(self, name: object) -> bool:
        return name in self.raw

    def read(self, name: str, most: int) -> Tensor:
        """Return a tensor of at most so many entries; `MessageError` if it is none."""
        if name not in self.found:
            if name not in self.raw:
                raise KeyError(name)
            tensor = self.decode(name, min(most, self.room))
            self.room -= tensor.nbytes
            if self.room < 0:
                raise MessageError("the tensors hold more bytes than are accepted")
            self.found[name] = tensor
        return self.found[name]

    @property
    def nbytes(self) -> int:
        """What came of all of them, in bytes."""
        return sum(part.nbytes for parts in self.raw.values() for part in parts.values())
