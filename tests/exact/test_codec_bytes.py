"""What codecs send: the accounted bytes, the same bits everywhere; rotations are orthonormal."""

from __future__ import annotations

import hashlib
import itertools
import math
from functools import reduce

import pytest
import torch
from codec_help import bytes_of, normal, relative, send, wire
from torch import Tensor

from trillium.wire.codecs import rice, seeded
from trillium.wire.codecs.rotation import rotate, rotate_back

# What crosses is what is accounted (§7, 16)


@pytest.mark.parametrize("size", [1, 7, 64, 1000, 4097])
def test_the_length_is_the_accounted_one(size: int) -> None:
    tensor = normal(size)
    scales, shape = 2 * math.ceil(size / 64), 8
    kept = math.ceil(0.05 * size)
    assert bytes_of("cast", tensor) == 2 * size
    assert bytes_of("int8", tensor) == size + scales
    assert bytes_of("int4", tensor) == math.ceil(size / 2) + scales + (size % 2 > 0)
    assert bytes_of("int2", tensor) == math.ceil(size / 4) + scales + (size % 4 > 0)
    signs = math.ceil(size / 8) + 2 * math.ceil(size / 256) + (size % 8 > 0)
    assert bytes_of("sign", tensor) == signs
    assert bytes_of("random_k", tensor) == 4 * kept + shape
    assert bytes_of("hadamard", tensor) == 4 * size
    assert bytes_of("adaptive", tensor) == 2 * size + 1


@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.05, 0.2, 0.5])
def test_indices_cost_little_more_than_their_entropy(fraction: float) -> None:
    size = 200_000
    kept = math.ceil(fraction * size)
    entropy = -fraction * math.log2(fraction) - (1 - fraction) * math.log2(1 - fraction)
    places = bytes_of({"name": "top_k", "fraction": fraction}, normal(size)) - 4 * kept - 8
    assert entropy * size / 8 * 0.98 < places < entropy * size / 8 * 1.05 + 4
    assert places < min(4 * kept, size / 8 + 4)  # 32 bits for each; a bitmap


@pytest.mark.parametrize(
    "indices",
    [[], [0], [99], [0, 1, 2, 3], [0, 99], [3, 50, 51, 98], list(range(100)), [1, 2, 4, 8, 16, 32, 64]],
)  # fmt: skip
def test_indices_come_back(indices: list[int]) -> None:
    packed = rice.pack_indices(torch.tensor(indices, dtype=torch.int64))
    assert rice.unpack_indices(packed, len(indices), 100).tolist() == indices
    for count, total in ((len(indices) + 1, 100), (len(indices), max(indices, default=0))):
        if (count, total) != (0, 0):
            with pytest.raises(ValueError, match="ind"):
                rice.unpack_indices(packed, count, total)


def test_everything_kept_is_the_identity() -> None:
    tensor = normal(30, 41)
    for name in ("top_k", "random_k"):
        assert torch.equal(send(tensor, wire({"name": name, "fraction": 1.0})), tensor)


def test_top_k_keeps_the_largest_and_of_equal_ones_the_first() -> None:
    tensor = torch.tensor([1.0, -5.0, 2.0, 0.0, 2.0, -2.0, 3.0, 0.5])
    found = send(tensor, wire({"name": "top_k", "fraction": 0.5}))
    assert found.tolist() == [0, -5, 2, 0, 2, 0, 3, 0]
    assert relative(send(normal(2000), wire("top_k")), normal(2000)) < relative(
        send(normal(2000), wire("random_k")), normal(2000)
    )


def test_an_entry_is_off_by_half_a_step() -> None:
    tensor = normal(20, 100) * torch.logspace(-20, 20, 20)[:, None]
    for name, levels in (("int8", 127), ("int4", 7)):
        blocks = [tensor[:, :64], tensor[:, 64:]]
        found = send(tensor, wire(name))
        for wanted, have in zip(blocks, [found[:, :64], found[:, 64:]], strict=True):
            step = wanted.abs().amax(1, keepdim=True) / levels * (1 + 2**-7)
            assert bool(((have - wanted).abs() <= step / 2 * (1 + 1e-5)).all())


def test_the_shares_of_a_gaussian_that_are_left_over() -> None:
    tensor = normal(400, 256)
    left = {
        name: relative(send(tensor, wire(name)), tensor) ** 2 for name in ("sign", "int2", "int4")
    }
    assert left["sign"] == pytest.approx(1 - 2 / math.pi, abs=0.005)
    assert left["int2"] == pytest.approx(0.1188, abs=0.005)  # Max (1960), fitted per block
    assert left["int4"] < 0.012


GRID = (torch.arange(1200) * 37 % 101 - 50).reshape(8, 150) / 7
DIGESTS = {
    "cast": "3df4e374963d",
    "int8": "435b5032dbef",
    "int4": "d2f323d8b562",
    "int2": "14d963af1292",
    "sign": "028ae3f626f3",
    "top_k": "ed0832dbc890",
    "random_k": "de65a13387bc",
    "hadamard": "80723eaa9d72",
    "zstd": "c8f611552dbd",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_the_same_bits_on_every_machine(name: str) -> None:
    # The key and all that is drawn from it are part of the format: a change here breaks the wire.
    found = send(GRID, wire(name), number=5)
    digest = hashlib.blake2b(found.numpy().tobytes(), digest_size=6).hexdigest()
    assert digest == DIGESTS[name]


# Rotations (§7, 19)


def hadamard_matrix(size: int) -> Tensor:
    step = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    empty = torch.ones(1, 1, dtype=torch.float64)
    return reduce(torch.kron, [step] * int(math.log2(size)), empty) / math.sqrt(size)


@pytest.mark.parametrize(("size", "block"), [(16, 16), (48, 16), (23, 16), (1, 16), (7, 8)])
def test_a_rotation_is_orthonormal(size: int, block: int) -> None:
    matrix = rotate(torch.eye(size), block, key=3).T.double()
    assert torch.allclose(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-6)
    sizes = [block] * (size // block) + [b for b in (8, 4, 2, 1) if size % block & b]
    wanted = torch.zeros(size, size, dtype=torch.float64)
    for start, length in zip(itertools.accumulate([0, *sizes]), sizes, strict=False):
        place = slice(start, start + length)
        wanted[place, place] = hadamard_matrix(length)
    wanted = wanted * seeded.signs(3, size).double()
    assert torch.allclose(matrix, wanted, atol=1e-6)


def test_a_rotation_comes_back() -> None:
    tensor = normal(11, 777)
    assert relative(rotate_back(rotate(tensor, 256, 1), 256, 1), tensor) < 1e-6
    assert relative(rotate(tensor, 256, 1), tensor) > 0.5
    assert relative(rotate_back(rotate(tensor, 256, 1), 256, 2), tensor) > 0.5
    assert float(seeded.signs(0, 10_000).mean().abs()) < 0.05


def test_choices_are_uniform() -> None:
    counts = torch.zeros(50)
    for key in range(2000):
        chosen = seeded.choose(key, 50, 10)
        assert len(set(chosen.tolist())) == 10
        counts[chosen] += 1
    assert float((counts / 2000 - 0.2).abs().max()) < 5 * math.sqrt(0.2 * 0.8 / 2000)
