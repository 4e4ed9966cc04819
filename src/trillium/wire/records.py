"""Bytes of tensors in a file, one after the other: what would be too much for memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from trillium.wire.kinds import has_values


class Records:
    """A file that grows, of which parts are read; the system keeps in memory what fits there.

    Attributes:
        end: how many bytes there are.

    Args:
        file: open for reading and writing.
    """

    def __init__(self, file: BinaryIO, end: int = 0) -> None:
        self.end = end
        self._file, self._map = file, torch.zeros(0, dtype=torch.uint8)
        self._formal: dict[int, Tensor] = {}  # what has no values, by its place

    def append(self, content: Sequence[Tensor]) -> None:
        """Write tensors behind what is there."""
        starts = list(accumulate((part.nbytes for part in content), initial=self.end))
        if all(map(has_values, content)):
            self._file.seek(self.end)
            self._file.write(b"".join(part.numpy().tobytes() for part in content))
            self._file.flush()
        else:
            self._formal.update(zip(starts, content, strict=False))
        self.end = starts[-1]

    def read(self, start: int, length: int) -> Tensor:
        """Return some bytes, which nobody may write to; of what has no values, all of a tensor."""
        if start in self._formal:
            return self._formal[start].contiguous().view(-1).view(torch.uint8)
        if start + length > len(self._map):  # read only, but torch knows no such tensors
            self._map = torch.from_numpy(np.memmap(self._file, np.uint8, "c"))
        return self._map[start : start + length]

    def close(self) -> None:
        """Let go of the file."""
        self._map = self._map[:0]
        self._file.close()
