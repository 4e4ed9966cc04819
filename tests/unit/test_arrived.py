"""What a peer sends takes no more memory than what is expected of it, whatever it stands for."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
import torch
import zstandard
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trillium.wire.codecs import rice
from trillium.wire.kinds import Limits, MessageError
from trillium.wire.message import Message, encode, received
from trillium.wire.wire import Wire

WIDTH = 1000  # entries that are expected
HUGE = 2**28  # entries that the parts stand for: 1 GiB as float32
NAME = "parameters/w"


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the largest tensor that anything makes."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor):
            self.nbytes = max(self.nbytes, found.nbytes)
        return found


def zstd(entries: int, code: int = 1) -> dict[str, Tensor]:
    size = entries * (4 if code == 1 else 1)
    frame = zstandard.ZstdCompressor(level=3).compress(bytes(size))
    return {
        "": torch.frombuffer(bytearray(frame), dtype=torch.uint8),
        "form": torch.tensor([code, entries]),
    }


def kept(fraction: float) -> Tensor:
    return torch.ones(max(1, round(fraction * HUGE)))


def top_k(fraction: float) -> dict[str, Tensor]:
    values = kept(fraction)
    return {
        "": values,
        "places": rice.pack_indices(torch.arange(len(values))),
        "shape": torch.tensor([HUGE]),
    }


BOMBS: dict[str, tuple[list[Any], dict[str, Tensor]]] = {
    "zstd": (["zstd"], zstd(HUGE)),
    "zstd of bytes": (["int8", "zstd"], {**zstd(HUGE, 8), "scale": torch.ones(1).bfloat16()}),
    "top_k": ([{"name": "top_k", "fraction": 1e-4}], top_k(1e-4)),
    "random_k": (
        [{"name": "random_k", "fraction": 1e-4}],
        {"": kept(1e-4), "shape": torch.tensor([HUGE])},
    ),
    "a step": (
        [{"name": "adaptive", "steps": ["cast", "zstd"]}],
        {"step": torch.tensor(1, dtype=torch.uint8), **zstd(HUGE)},
    ),
    "top_k, zstd": (
        [{"name": "top_k", "fraction": 1e-4}, "zstd"],
        {"": kept(1e-4), "0.places": top_k(1e-4)["places"], "0.shape": torch.tensor([HUGE])},
    ),
}


def data_of(stack: list[Any], parts: dict[str, Tensor], name: str = NAME) -> tuple[Wire, bytes]:
    """Return what crosses: parts of the last codec of a stack have its number."""
    last = len(stack) - 1
    named = {
        (f"{part if part[:1].isdigit() else f'{last}.{part}'}" if part else ""): tensor
        for part, tensor in parts.items()
    }
    tensors = {f"{name}#{part}" if part else name: tensor for part, tensor in named.items()}
    return Wire.model_validate({"up": stack}), encode(Message("train", tensors))


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("flat", [False, True])
def test_no_more_is_allocated_than_is_expected(bomb: str, flat: bool) -> None:
    over, data = data_of(*BOMBS[bomb], "parameters/flat" if flat else NAME)
    assert len(data) < 1_000_000
    like = {"w": torch.zeros(WIDTH - 1), "v": torch.zeros(1)} if flat else {"w": torch.zeros(WIDTH)}
    noting = Largest()  # type: ignore[no-untyped-call]
    tracemalloc.start()
    try:
        with noting as largest, pytest.raises(MessageError, match="does not fit"):
            over.unpack(data, "up").message.expect("parameters", like)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # What came, once more in each form that it is looked at in; nothing of the size that it claims.
    assert max(largest.nbytes, peak) < 4 * len(data) + 100_000


def test_what_nobody_reads_is_not_decoded() -> None:
    over, data = data_of(*BOMBS["zstd"], "gradients/more")
    packed = over.unpack(data, "up")
    assert packed.bytes_raw < len(data)
    assert packed.largest_bytes == len(data)
    with pytest.raises(MessageError, match="does not fit"):
        packed.message.floats("gradients/more", (WIDTH,))
    limited = over.unpack(data, "up", Limits(max_bytes=len(data))).message
    with pytest.raises(MessageError, match="does not fit"):  # of any size: what is accepted at all
        limited.floats("gradients/more", (None,))


def test_soft_labels_are_no_longer_than_their_rows() -> None:
    stack = [{"name": "top_classes", "k": 2}, "zstd"]
    over, data = data_of(stack, zstd(HUGE, 8), "logits/public")
    with pytest.raises(MessageError, match="does not fit"):
        received(over.unpack(data, "up").message, "logits/public", 4, 5)
    over, data = data_of(["zstd"], zstd(HUGE), "logits/public")
    with pytest.raises(MessageError, match="does not fit"):
        received(over.unpack(data, "up").message, "logits/public", 4, 5)
