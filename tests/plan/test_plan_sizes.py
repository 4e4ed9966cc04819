"""Sizes of messages against messages that are made: every codec, every form of header."""

from __future__ import annotations

import random

import pytest
import torch

from trillium.component import known, resolve
from trillium.plan import sizes
from trillium.plan.fakes import Paper
from trillium.plan.sizes import Scales, encoded_length
from trillium.wire.codecs import Codec
from trillium.wire.codecs.rows import RowCodec
from trillium.wire.kinds import DTYPES
from trillium.wire.message import Message, encode
from trillium.wire.soft_labels import SoftLabels
from trillium.wire.wire import Wire

DEPENDS_ON_VALUES = {"zstd", "top_k", "random_k", "adaptive"}
VECTORS = sorted(n for n, c in known(Codec).items() if not issubclass(c, RowCodec))
ROWS = sorted(n for n, c in known(Codec).items() if issubclass(c, RowCodec))


def codec(name: str) -> Codec:
    """A codec with its defaults, where it has any."""
    return resolve(Codec, name)


def test_lengths_are_those_of_encoded_messages() -> None:
    draw = random.Random(3)
    for _ in range(300):
        tensors = {}
        for _ in range(draw.randint(0, 8)):
            kind = draw.choice(["parameters", "control", "logits"])
            name = f"{kind}/n{draw.randint(0, 999)}#{draw.randint(0, 9)}"
            shape = [draw.randint(0, 12) for _ in range(draw.randint(0, 3))]
            tensors[name] = torch.zeros(shape, dtype=draw.choice(list(DTYPES.values())))
        meta = {"round": draw.randint(0, 2000), "sent": "ab" * draw.randint(0, 9)}
        message = Message("train", tensors, meta)
        assert encoded_length(message) == len(encode(message))


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("name", VECTORS)
def test_every_codec_of_tensors(name: str, few: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a tensor is too large to be encoded for its size, which `few` makes it."""
    if few:
        monkeypatch.setattr(sizes, "ENTRIES", 1024)
    paper, wire = Paper(), Wire(up=(codec(name),))
    draw = torch.Generator().manual_seed(4)
    shapes = {"a": (40, 96), "b": (700,), "c": (8, 33)}
    real = {f"parameters/{n}": torch.randn(s, generator=draw) for n, s in shapes.items()}
    fake = {f"parameters/{n}": paper.empty(*s) for n, s in shapes.items()}
    packed = wire.pack(Message("train", real, {"round": 3}), "up")
    found = Scales(paper, 50).weigh(wire, "up", Message("train", fake, {"round": 3}))
    assert found.low <= found.bytes <= found.high
    if name in DEPENDS_ON_VALUES:
        assert abs(found.bytes - len(packed.data)) <= 0.02 * len(packed.data)
    else:
        assert found.bytes == found.low == found.high == len(packed.data)
        assert found.kinds == packed.kinds


@pytest.mark.parametrize("name", ROWS)
def test_every_codec_of_rows(name: str) -> None:
    wire, draw = Wire(up=(codec(name),)), torch.Generator().manual_seed(4)
    rows = torch.randn(300, 77, generator=draw).log_softmax(-1)
    writer = wire.writer("teach", "logits/public", 3, (300, 77), "up")
    writer.add(rows)
    labels: SoftLabels = writer.done()
    message = Message("teach", {}, {"round": 3}, {"logits/public": labels})
    packed = wire.pack(message, "up")
    found = Scales(Paper(), 50).weigh(
        wire, "up", Message("teach", {}, {"round": 3}), {"logits/public": (300, 77)}
    )
    assert found.bytes == len(packed.data)


@pytest.mark.parametrize("num_rows", [0, 1, 5])
@pytest.mark.parametrize("rest", ["int8", "int4", "cast", "zstd", "sign"])
def test_codecs_behind_soft_labels(rest: str, num_rows: int) -> None:
    """Also of no rows at all, as where clients hold every label."""
    wire = Wire(down=(codec(rest),))
    labels = SoftLabels(wire.row_codec("down"), torch.randn(num_rows, 7).log_softmax(-1), 7)
    message = Message("learn", {}, {"round": 2}, encoded={"logits/teacher": labels})
    found = Scales(Paper(), 50).weigh(
        wire, "down", Message("learn", {}, {"round": 2}), {"logits/teacher": (num_rows, 7)}
    )
    assert found.low <= len(wire.pack(message, "down").data) <= found.high


def test_zeros_and_noise_span_the_range_of_compression() -> None:
    wire, paper = Wire(up=(codec("zstd"),)), Paper()
    found = Scales(paper, 50).weigh(wire, "up", Message("a", {"parameters/x": paper.empty(5000)}))
    for values in (torch.zeros(5000), torch.rand(5000)):
        packed = wire.pack(Message("a", {"parameters/x": values}), "up")
        assert found.low <= len(packed.data) <= 1.01 * found.high
