"""What every codec of soft labels promises: distributions, bytes by row, refusal of nonsense."""

from __future__ import annotations

import math
import random
from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from trillium.component import known, resolve
from trillium.wire.codecs import Codec
from trillium.wire.codecs.rows import RowCodec
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message, decode, encode, received
from trillium.wire.soft_labels import SoftLabels, Writer, chunks
from trillium.wire.wire import Wire

ROW_CODECS = sorted(name for name, codec in known(Codec).items() if issubclass(codec, RowCodec))
CASES: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in ROW_CODECS]
CASES += [
    ("top_classes", {"k": 3, "values": "float16"}),
    ("top_classes", {"k": 1000, "values": "float32"}),
    ("top_classes", {"max_bytes": 200}),
    ("log_probabilities", {"values": "float16"}),
]
NAME = "logits/public"
each_case = pytest.mark.parametrize(
    ("name", "options"), CASES, ids=[f"{n} {o}" if o else n for n, o in CASES]
)


def wire(name: str, *more: Any, **options: Any) -> Wire:
    return Wire.model_validate({"up": [{"name": name, **options}, *more]})


def rows(num_rows: int, num_classes: int, scale: float = 3.0) -> Tensor:
    draw = torch.Generator().manual_seed(num_rows + num_classes)
    return (scale * torch.randn(num_rows, num_classes, generator=draw)).log_softmax(-1)


def write(over: Wire, log_probs: Tensor, number: int = 1) -> SoftLabels:
    writer = over.writer("teach", NAME, number, (len(log_probs), log_probs.shape[1]), "up")
    writer.add(log_probs)
    return writer.done()


def message(labels: SoftLabels) -> Message:
    return Message("teach", {}, {"round": 1}, {NAME: labels})


def send(over: Wire, log_probs: Tensor) -> SoftLabels:
    packed = over.pack(message(write(over, log_probs)), "up")
    return received(over.unpack(packed.data, "up").message, NAME, *log_probs.shape)


def everything(labels: SoftLabels) -> Tensor:
    return labels.take(slice(0, len(labels)))


def test_all_shipped_codecs_of_rows_are_registered() -> None:
    assert ROW_CODECS == ["log_probabilities", "sampled_classes", "top_classes", "votes"]


@pytest.mark.parametrize(
    "shape", [(0, 5), (1, 2), (7, 1), (9, 77), (4, 256), (3, 257), (2, 70_000)]
)
@each_case
def test_what_arrives_are_distributions(
    name: str, options: dict[str, Any], shape: tuple[int, int]
) -> None:
    log_probs = rows(*shape)
    before = log_probs.clone()
    found = everything(send(wire(name, **options), log_probs))
    assert torch.equal(log_probs, before)
    assert found.shape == shape
    assert found.dtype == torch.float32
    assert bool(torch.isfinite(found).all())
    assert torch.allclose(found.double().exp().sum(-1), torch.ones(len(found)).double(), atol=1e-4)


@each_case
def test_extreme_rows_arrive(name: str, options: dict[str, Any]) -> None:
    certain = torch.full((2, 9), -torch.inf)
    certain[0, 3], certain[1, 0] = 0.0, 0.0
    found = everything(send(wire(name, **options), certain))
    assert found.argmax(-1).tolist() == [3, 0]
    assert bool((found.exp().amax(-1) > 0.99).all())


@each_case
def test_rows_do_not_depend_on_each_other(name: str, options: dict[str, Any]) -> None:
    """A part of the rows can be decoded, and rows can be written bit by bit."""
    over, log_probs = wire(name, **options), rows(20, 77)
    labels = send(over, log_probs)
    whole = everything(labels)
    some = torch.tensor([3, 3, 19, 0])
    assert torch.equal(labels.take(some), whole[some])
    assert torch.equal(labels.take(slice(5, 9)), whole[5:9])
    if over.row_codec("up").unbiased:
        return  # what is drawn may go by how many rows are written at once
    writer = over.writer("teach", NAME, 1, (20, 77), "up")
    for part in torch.split(log_probs, [1, 7, 12]):
        writer.add(part)
    assert torch.equal(writer.done().records, labels.records)


@each_case
def test_equal_rows_give_equal_bytes(name: str, options: dict[str, Any]) -> None:
    over, log_probs = wire(name, **options), rows(20, 77)
    first, second = (over.pack(message(write(over, log_probs)), "up").data for _ in range(2))
    assert first == second


@each_case
def test_bytes_are_counted_as_they_are(name: str, options: dict[str, Any]) -> None:
    over, log_probs = wire(name, **options), rows(20, 77)
    labels = write(over, log_probs)
    packed = over.pack(message(labels), "up")
    assert packed.kinds["logits"] == labels.records.nbytes
    assert sum(packed.kinds.values()) == len(packed.data)
    assert packed.bytes_raw == 4 * 20 * 77
    if "max_bytes" in options:
        assert labels.records.nbytes <= options["max_bytes"]


@each_case
def test_a_lossless_codec_may_follow(name: str, options: dict[str, Any]) -> None:
    plain, log_probs = wire(name, **options), rows(300, 77).repeat(3, 1)
    packed = wire(name, "zstd", **options).pack(message(write(plain, log_probs)), "up")
    over = wire(name, "zstd", **options)
    found = received(over.unpack(packed.data, "up").message, NAME, *log_probs.shape)
    assert torch.equal(everything(found), everything(send(plain, log_probs)))
    if not plain.row_codec("up").unbiased:
        assert len(packed.data) < 0.7 * len(plain.pack(message(write(plain, log_probs)), "up").data)


@each_case
def test_labels_of_another_codec_are_written_anew(name: str, options: dict[str, Any]) -> None:
    log_probs = rows(20, 77)
    full = write(Wire(), log_probs)
    assert torch.equal(full.records, log_probs)
    over = wire(name, **options)
    found = over.unpack(over.pack(message(full), "up").data, "up").message
    assert received(found, NAME, 20, 77).codec == over.row_codec("up")


@each_case
def test_nonsense_is_refused_or_decoded_never_a_crash(name: str, options: dict[str, Any]) -> None:
    over, draw = wire(name, **options), random.Random(0)
    tensors = decode(over.pack(message(write(over, rows(6, 77))), "up").data).tensors
    records = tensors[NAME]
    wrong = [
        records[:-1], records[:, :-1], records[0], records[None], records.float(),
        records.long(), torch.zeros(6, 0, dtype=torch.uint8), torch.zeros(6, 5000).byte(),
    ]  # fmt: skip
    for tensor in wrong:
        data = encode(Message("teach", {NAME: tensor}))
        with pytest.raises(MessageError):
            received(over.unpack(data, "up").message, NAME, 6, 77)
    for _ in range(100):
        changed = records.clone()
        changed.view(-1)[draw.randrange(records.numel())] = draw.randrange(256)
        data = encode(Message("teach", {NAME: changed}))
        try:
            found = everything(received(over.unpack(data, "up").message, NAME, 6, 77))
        except MessageError:
            continue
        assert bool(torch.isfinite(found).all())
    with pytest.raises(MessageError, match="missing"):
        received(Message("teach"), NAME, 6, 77)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, -161.0])
def test_full_rows_are_log_probabilities(value: float) -> None:
    with pytest.raises(MessageError, match="unreadable"):
        received(Message("teach", {NAME: torch.tensor([[0.0, value]])}), NAME, 1, 2)


def test_full_rows_are_normalised() -> None:
    labels = received(Message("teach", {NAME: torch.tensor([[0.0, 0.0]])}), NAME, 1, 2)
    assert everything(labels).tolist() == [[pytest.approx(-math.log(2))] * 2]


@pytest.mark.parametrize("stack", [["cast", "votes"], ["votes", "top_classes"], ["zstd", "votes"]])
def test_a_codec_of_rows_comes_first_and_alone(stack: list[str]) -> None:
    with pytest.raises(ValidationError, match=r"Write \w+ first"):
        Wire.model_validate({"up": stack})
    adapters = [{"name": "cast", "kinds": ["parameters"]}, "votes"]
    assert Wire.model_validate({"up": adapters}).row_codec("up") == resolve(Codec, "votes")


def test_a_codec_of_rows_is_no_step_of_adaptive() -> None:
    with pytest.raises(ValidationError, match="top_classes in a step of adaptive"):
        resolve(Codec, {"name": "adaptive", "steps": ["top_classes"]})


def test_chunks_cover_all_rows_once() -> None:
    for num_rows, num_classes, copies in [(0, 5, 1), (10, 3, 1), (100, 2**20, 1), (7, 2**30, 9)]:
        found = list(chunks(num_rows, num_classes, copies))
        assert [i for part in found for i in range(num_rows)[part]] == list(range(num_rows))
    assert len(list(chunks(100, 2**20))) == 25


def test_a_writer_without_rows_gives_none() -> None:
    for name in ROW_CODECS:
        labels = Writer(cast(RowCodec, resolve(Codec, name)), 0, 9, 0).done()
        labels.check()
        assert everything(labels).shape == (0, 9)
