"""What a plan does not compute is what it would have computed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from trillium.config.experiment import experiment, parse_overrides
from trillium.plan import fakes, grow
from trillium.plan.data import Assumptions, assumed_texts
from trillium.plan.fakes import is_fake
from trillium.plan.known import Known
from trillium.plan.models import Models
from trillium.plan.predict import predict
from trillium.plan.result import to_dict

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
    lambda a, b: torch.chunk(a, 2)[1].topk(2).values,
    lambda a, b: torch.nn.functional.embedding(torch.tensor([[0, 1]]), a),
    lambda a, b: a.ne(0).logical_not(),
    lambda a, b: [a.t().to(torch.float64), a[:, ::2].clone(), a[:1].expand(3, 6).clone()],
    lambda a, b: [torch.zeros_like(b.t()), torch.ones_like(a, dtype=torch.int64)],
    lambda a, b: torch.empty_like(a.t()).contiguous(memory_format=torch.contiguous_format),
    lambda a, b: [a * torch.arange(6), torch.ones(4, 1, dtype=torch.float64) + a, b.t() - 1],
    lambda a, b: torch.where(torch.ones(4, 6, dtype=torch.bool), a, b.t()),
    lambda a, b: torch.nn.functional.cross_entropy(a, torch.tensor([0, 1, 2, 3])),
    lambda a, b: [a[torch.tensor([True, False, True, True])], a[:, ::2][torch.ones(4, 3) > 0]],
    lambda a, b: a.view(2, 2, 6).transpose(1, 2)[torch.tensor([True, False])],
    lambda a, b: [a.new_full((3, 2), 1.0), a.new_zeros(0, 5), b.new_empty(4, dtype=torch.int64)],
    lambda a, b: [a + b.t(), a.t() * a.t(), a / 2, torch.neg(b), a[:1] - a, torch.tanh(a) ** 2],
    lambda a, b: [torch.nn.functional.gelu(a).to(torch.bfloat16) * a, a * torch.ones(6)],
    lambda a, b: torch.nn.functional.layer_norm(a.to(torch.bfloat16), (6,)),
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


def test_a_wide_identity_has_no_values() -> None:
    """DoRA makes one as wide as a layer in every step; real ones of a 14B model take 20 GB."""
    with Models().paper.running():
        assert is_fake(torch.eye(10**6, dtype=torch.bfloat16))


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
        for _ in range(2):
            assert fake.add_(other) is fake
        with pytest.raises(TypeError, match="a tensor with values"):
            real.add_(other)


def test_what_is_made_in_the_same_way_is_equal() -> None:
    paper = Models().paper
    one, other = paper.empty(4, 6), paper.empty(4, 6)
    with paper.running():
        assert torch.equal(one, one.clone())
        assert torch.equal(one[1:] * 2.0, one.to(one.dtype, copy=True)[1:] * 2.0)
        assert not torch.equal(one, other)
        assert not torch.equal(one * 2.0, one * 3.0)
        assert not torch.equal(torch.rand_like(one), torch.rand_like(one))
        before = one.clone()
        one.add_(1.0)
        assert not torch.equal(one, before)


def test_choices_by_value_are_told() -> None:
    paper = Models().paper
    one = paper.empty(4, 6)
    with paper.running():
        assert (one > 0).nonzero().shape == (24, 2)
        assert one[one > 0].shape == (24,)
        assert {int(one.argmax()) for _ in range(24)} == {*range(24)}
        assert one.argmax(-1, keepdim=True).shape == (4, 1)
        assert torch.equal(one.sort(dim=-1).indices[0], torch.arange(6))
        assert float(one.sum()) == 1.0


def test_a_fake_tensor_has_the_attributes_of_any_other() -> None:
    mode = FakeTensorMode()
    meta = torch.empty(2, 3, device="meta")
    expected = FakeTensor(mode, meta, torch.device("cpu"))
    found = Known(mode).fake(meta)
    assert vars(found) == vars(expected)
    assert type(found) is type(expected)
    assert found.device == expected.device


RANKS = "tiers={small: {clients: ['client-0'], rank: 2, local_steps: 5}}"


KEPT = ("model.dropout=0", "adapter.layers=[4, 5]", "training.cache_frozen=true")


def test_few_batches_and_clients_tell_the_cost_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every framework: a run in full against the weighted sum of small ones."""
    for words in (
        ("framework=fedllm", "framework.aggregator=hetlora", RANKS),
        ("framework={name: fedllm, aggregator: stack}",),
        ("framework=kd", "data.public_size=160"),
        ("framework=split",),
        ("framework={name: split, shape: u, mode: splitfed_v2}",),
        ("framework={name: split, train: server}", "model.dropout=0"),
        ("framework=centralised",),
        # What the first blocks make of a text, in the first round alone.
        ("framework=fedllm", *KEPT),
        ("framework=kd", "data.public_size=160", *KEPT),
        ("framework=fedllm", *KEPT, "training.local_steps=7"),
        ("framework=fedllm", *KEPT, "fleet.clients_per_round=2"),
    ):
        common = ("model.id=distilgpt2", "data.num_clients=5", "rounds=3", "training.batch_size=4")
        config = experiment(parse_overrides([*common, "data.public_size=8", *words]))
        texts = assumed_texts(config, Assumptions(examples=24, tokens=16))
        few = predict(config, texts)
        with monkeypatch.context() as patch:
            patch.setattr(grow, "_data", lambda *_: ())
            patch.setattr(grow, "_clients", lambda *_: ())
            whole = predict(config, texts)
        assert few.total.up.bytes == pytest.approx(whole.total.up.bytes, rel=1e-3), words
        assert few.total.down.bytes == pytest.approx(whole.total.down.bytes, rel=1e-2), words
        assert few.total.flops == pytest.approx(whole.total.flops, rel=1e-6), words
        assert few.server_flops == pytest.approx(whole.server_flops, rel=1e-6), words
        assert few.total.peak_bytes == pytest.approx(whole.total.peak_bytes, rel=0.001), words
        assert few.server_peak_bytes == pytest.approx(whole.server_peak_bytes, rel=0.01), words


@pytest.mark.parametrize("framework", ["fedllm", "kd", "split"])
def test_a_few_chunks_of_logits_tell_what_all_take(
    framework: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("model.id=distilgpt2", "task=causal_lm", "data.num_clients=2", "data.public_size=8")
    config = experiment(parse_overrides([*words, f"framework={framework}", "rounds=2"]))
    texts = assumed_texts(config, Assumptions(examples=17, tokens=100))
    few, told = to_dict(predict(config, texts)), list[int]()

    def all_of_them(self: object, spans: Sequence[slice]) -> Sequence[slice]:
        told.append(len(spans))
        return spans

    monkeypatch.setattr(fakes._Answers, "telling", all_of_them)
    assert few == to_dict(predict(config, texts))
    assert max(told) > 4, "else nothing is left out"


def test_a_plan_and_the_start_of_a_run_import_nothing_that_reads_or_draws() -> None:
    code = (
        "import sys\nfrom trillium.cli.app import app\n"
        "app(['plan', 'gpt2', 'framework=fedllm', 'plan.data.examples=4'], standalone_mode=False)\n"
        "import trillium.api.start\n"
        "print(sorted(sys.modules.keys() & {'datasets', 'pandas', 'matplotlib', 'flwr', 'torch'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['torch']"


def _tensors(found: object) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)  # type: ignore[call-overload]
