"""What a plan does not compute is what it would have computed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from trillium.config.experiment import experiment, parse_overrides
from trillium.models.cut import split_model
from trillium.models.parts import Parts
from trillium.plan.cut import cut_model
from trillium.plan.data import Assumptions, assumed_texts
from trillium.plan.depth import is_deep, on_few
from trillium.plan.federation import Federation
from trillium.plan.known import Known
from trillium.plan.models import Models
from trillium.plan.predict import bytes_of_a_round, predict


def _federation(*words: str) -> Federation:
    config = experiment(parse_overrides(["data.num_clients=1", "data.public_size=8", *words]))
    return Federation(config, assumed_texts(config, Assumptions(examples=8, tokens=16)))


@pytest.mark.parametrize("model", ["gpt2", "qwen3-0.6b", "bert-base-uncased"])
@pytest.mark.parametrize(("cut", "tail"), [(1, None), (3, None), (3, 9), (2, 12)])
def test_a_deep_cut_is_that_of_the_traced_model(model: str, cut: int, tail: int | None) -> None:
    federation = _federation(f"model.id={model}")
    with federation.paper.running():
        found = cut_model(federation, cut, tail)
        whole = federation.model
        split = split_model(whole.mount(federation.models.state(whole)), cut, tail)
        ids = torch.ones(2, 8, dtype=torch.int64)
        expected = Parts(split, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert (found.width, found.num_classes) == (expected.width, expected.num_classes)
    assert found.head.names == expected.head.names
    assert found.body.names == expected.body.names
    assert found.tail.names == expected.tail.names
    for mine, theirs in zip(found.split.parts, split.parts, strict=True):
        assert mine.blocks == theirs.blocks
        held = {name: id(p) for name, p in mine.named_parameters()}
        assert held == {name: id(p) for name, p in theirs.named_parameters()}
        assert [n for n, _ in mine.named_modules()] == [n for n, _ in theirs.named_modules()]


@pytest.mark.parametrize("rank", [4, 264])
def test_a_few_blocks_tell_the_bytes_of_another_rank(rank: int) -> None:
    federation = _federation("model.id=gpt2", f"adapter.r={rank}")
    weigh = partial(bytes_of_a_round, federation.config, federation.texts, federation.models)
    assert is_deep(federation)
    assert on_few(federation, weigh) == pytest.approx(weigh(), rel=1e-4)  # indices grow longer


def test_another_cut_has_other_parameters() -> None:
    federation = _federation("model.id=gpt2")
    with federation.paper.running():
        one, two = cut_model(federation, 3, None), cut_model(federation, 4, None)
    assert set(one.head.names) < set(two.head.names)


OPERATIONS: list[Callable[[Tensor, Tensor], object]] = [
    lambda a, b: a @ b,
    lambda a, b: a.t() @ b.t(),
    lambda a, b: (a.t() + b).to(torch.bfloat16),
    lambda a, b: torch.cat([a, b.t()]),
    lambda a, b: a[:, 1:].softmax(-1).sum(0),
    lambda a, b: a.reshape(2, 2, 6).permute(2, 0, 1).contiguous().view(-1),
    lambda a, b: torch.std_mean(a.unsqueeze(0).expand(3, 4, 6).mul(2.0), -1),
    lambda a, b: a[torch.tensor([0, 0, 2])].mean(-1),
    lambda a, b: a.clone().mul_(3.0).add_(b.t()),
    lambda a, b: torch.nn.functional.layer_norm(a, (6,)),
    lambda a, b: torch.chunk(a, 2)[1].topk(2),
    lambda a, b: torch.nn.functional.embedding(torch.tensor([[0, 1]]), a),
    lambda a, b: a.ne(0).logical_not(),
    lambda a, b: [a.t().to(torch.float64), a[:, ::2].clone(), a[:1].expand(3, 6).clone()],
    lambda a, b: [torch.zeros_like(b.t()), torch.ones_like(a, dtype=torch.int64)],
    lambda a, b: torch.empty_like(a.t()).contiguous(memory_format=torch.contiguous_format),
    lambda a, b: [a * torch.arange(6), torch.ones(4, 1, dtype=torch.float64) + a, b.t() - 1],
    lambda a, b: torch.where(torch.ones(4, 6, dtype=torch.bool), a, b.t()),
    lambda a, b: torch.nn.functional.cross_entropy(a, torch.tensor([0, 1, 2, 3])),
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_forms_are_those_of_real_tensors(operation: Callable[[Tensor, Tensor], object]) -> None:
    paper = Models().paper
    fakes = paper.empty(4, 6), paper.empty(6, 4)
    real = operation(torch.rand(4, 6), torch.rand(6, 4))
    for _ in range(2):  # seen for the first time, then remembered
        with paper.running():
            found = operation(*fakes)
        for mine, theirs in zip(_tensors(found), _tensors(real), strict=True):
            assert isinstance(mine, FakeTensor)
            assert (mine.shape, mine.stride(), mine.dtype) == (
                theirs.shape,
                theirs.stride(),
                theirs.dtype,
            )
            assert mine.device == theirs.device
            assert mine.storage_offset() == theirs.storage_offset()
            assert mine.untyped_storage().nbytes() == theirs.untyped_storage().nbytes()


def test_a_view_shares_its_storage() -> None:
    paper = Models().paper
    base = paper.empty(4, 6)
    with paper.running():
        view, copy = base[1:].view(-1), base[1:].clone()
    assert view.untyped_storage() is base.untyped_storage()
    assert copy.untyped_storage() is not base.untyped_storage()


def test_what_is_written_to_stays_what_it_is() -> None:
    paper = Models().paper
    fake, real, other = paper.empty(4, 6), torch.zeros(4, 6), paper.empty(4, 6)
    with paper.running():
        for target in (fake, fake, real):
            assert target.add_(other) is target


def test_a_fake_tensor_has_the_attributes_of_any_other() -> None:
    mode = FakeTensorMode()
    meta = torch.empty(2, 3, device="meta")
    expected = FakeTensor(mode, meta, torch.device("cpu"))
    found = Known(mode).fake(meta)
    assert vars(found) == vars(expected)
    assert type(found) is type(expected)
    assert found.device == expected.device


def test_fewer_rows_of_a_cut_cost_their_share() -> None:
    words = ["model.id=gpt2", "framework={name: split, cut: 2}", "data.num_clients=1", "rounds=1"]
    sizes, flops = (8, 10, 16), []
    for size in sizes:
        config = experiment(parse_overrides([*words, "training.batch_size=8"]))
        texts = assumed_texts(config, Assumptions(examples=size, tokens=16))
        found = predict(config, texts, Models())
        flops.append((found.total.flops, found.server_flops))
    # The last two of ten are counted by themselves where they come alone.
    config = experiment(parse_overrides([*words, "training.batch_size=2"]))
    two = predict(config, assumed_texts(config, Assumptions(examples=2, tokens=16)), Models())
    assert flops[1] == (flops[0][0] + two.total.flops, flops[0][1] + two.server_flops)
    assert flops[2] == (2 * flops[0][0], 2 * flops[0][1])


def test_a_plan_imports_nothing_that_reads_or_draws() -> None:
    code = (
        "import sys\nfrom trillium.cli.app import app\n"
        "app(['plan', 'gpt2', 'framework=fedllm', 'plan.data.examples=4'], standalone_mode=False)\n"
        "print(sorted(sys.modules.keys() & {'datasets', 'pandas', 'matplotlib', 'flwr', 'torch'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['torch']"


def _tensors(found: object) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)  # type: ignore[call-overload]
