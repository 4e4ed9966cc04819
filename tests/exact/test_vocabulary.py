"""Logits of the rows that count, in parts: the same results, and memory that stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from papers import hold
from tiny import distance, federation, perturb, run_rounds
from trillium.experiment.run import Experiment
from trillium.frameworks.kd import distillation
from trillium.plan.moments import Record
from trillium.tasks import IGNORE, Batch, Example, vocabulary
from trillium.tasks.batches import collate
from trillium.tasks.causal_lm import CausalLM
from trillium.training.loop import TaskLoss

SIZES = dict(
    vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, head_dim=8,
    num_key_value_heads=1, intermediate_size=20, max_position_embeddings=32, pad_token_id=0,
    bos_token_id=1, eos_token_id=2, ffn_dim=20, word_embed_proj_dim=16, rotary_pct=0.5,
)  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_head": 2, "n_layer": 2},
    "llama": {},
    "qwen3": {},
    "mistral": {},
    "phi": {"num_key_value_heads": 2},
    "gpt_neox": {},
    "opt": {},
    "bloom": {"n_head": 2, "n_layer": 2},
    "gemma2": {"final_logit_softcapping": 1.5},  # capped
    "cohere": {"logit_scale": 0.25},  # scaled
    "granite": {"logits_scaling": 8.0},
}
LOSS = TaskLoss(CausalLM(), None)


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if some dozens of classes were many: three rows of logits at once."""
    monkeypatch.setattr(vocabulary, "WIDE", 1)
    monkeypatch.setattr(vocabulary, "CHUNK", 50 * 3)


def language_model(kind: str, **options: object) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **KINDS.get(kind, {}), **options})
    return AutoModelForCausalLM.from_config(config).double().eval()


def a_batch() -> Batch:
    """Texts of three lengths, of which the second halves count."""
    examples = []
    for index, length in enumerate((7, 12, 16)):
        ids = torch.arange(4, 4 + length) + index
        labels = torch.where(torch.arange(length) < length // 2, IGNORE, ids)
        examples.append(Example(index, ids, labels))
    return collate(examples, 0, torch.device("cpu"))


def with_gradients(model: nn.Module) -> tuple[Tensor, int, list[Tensor]]:
    loss, count = LOSS(model, a_batch())
    (3 * loss).backward()  # type: ignore[no-untyped-call]
    found = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return loss.detach(), count, found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trained", ["all", "body"])
def test_loss_and_gradients_are_those_of_the_whole_logits(
    kind: str, trained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = language_model(kind)
    if trained == "body":
        model.get_output_embeddings().requires_grad_(False)
    assert not vocabulary.is_wide(model)
    loss, count, gradients = with_gradients(model)
    monkeypatch.setattr(vocabulary, "WIDE", 1)
    monkeypatch.setattr(vocabulary, "CHUNK", 50 * 3)
    assert vocabulary.is_wide(model)
    found, counted, theirs = with_gradients(model)
    assert count == counted == 18
    assert len(theirs) == len(gradients)
    torch.testing.assert_close(found, loss, rtol=1e-9, atol=0)
    for own, other in zip(theirs, gradients, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-7, atol=1e-10)


def test_sums_of_few_bits_are_taken_in_more(in_parts: None) -> None:
    """A head that trains in bfloat16 has the gradient of all rows at once, to one rounding."""
    model = language_model("llama").to(torch.bfloat16)
    head = model.get_output_embeddings().weight
    rows, targets = torch.randn(600, 16).to(torch.bfloat16), torch.arange(600) % 50
    loss = vocabulary.summed(
        model,
        rows,
        lambda some, at: nn.functional.cross_entropy(some, targets[at], reduction="sum"),
    )
    [found] = torch.autograd.grad(loss, [head], retain_graph=True)
    assert torch.equal(torch.autograd.grad(loss, [head])[0], found)
    exact = head.detach().double().requires_grad_()
    whole = nn.functional.cross_entropy(rows.double() @ exact.T, targets, reduction="sum")
    [wanted] = torch.autograd.grad(whole, [exact])
    error = (found.double() - wanted).norm() / wanted.norm()
    assert error < 0.01


def test_a_model_is_as_it_was(in_parts: None) -> None:
    model = language_model("gemma2").eval()
    before = [name for name, _ in model.named_modules()]
    wanted = model(input_ids=torch.arange(5)[None]).logits
    LOSS(model, a_batch())
    assert [name for name, _ in model.named_modules()] == before
    assert torch.equal(model(input_ids=torch.arange(5)[None]).logits, wanted)


def test_a_model_is_whole_between_rows(in_parts: None) -> None:
    model = language_model("llama")
    ids = torch.arange(5)[None]
    wanted = model(input_ids=ids).logits
    for _ in vocabulary.logits_of(model, torch.randn(7, 16).double()):
        assert torch.equal(model(input_ids=ids).logits, wanted)


def test_what_does_not_come_apart_is_left_whole(in_parts: None) -> None:
    model = language_model("llama")
    forward = model.forward

    def shifted(*words: Any, **options: Any) -> Any:
        found = forward(*words, **options)
        if options.get("input_ids") is not None:
            found.logits = found.logits + 1.0
        return found

    model.forward = shifted
    assert not vocabulary.is_wide(model)


def after_a_round(hub: Path, model: str, *words: str) -> Experiment:
    # Adam would make steps of rounding errors, where a gradient is next to nothing.
    plain = ("model.dtype=float32", "training.optimizer={name: sgd, lr: 0.1}")
    settings = ("data.num_clients=2", "rounds=1", *plain, *words)
    fed = perturb(federation(hub, *settings, model=model, task="causal_lm"))
    run_rounds(fed, 1)
    return fed


@pytest.mark.parametrize(
    "words",
    [
        ("framework=fedllm",),
        ("framework=fedllm", "adapter=full"),
        ("framework=fedllm", "adapter={name: prompt, tokens: 3}"),
        ("framework=fedllm", "adapter={name: lora, target_modules: all-linear}"),
        ("framework=split",),
        ("framework=split", "framework.shape=u"),
        ("framework=split", "framework.cache=true", "framework.train=server", "model.dropout=0.0"),
        (
            "framework=kd",
            "framework.public_labels=true",
            "wire.down=[{name: top_classes, k: 5}]",
        ),
    ],
    ids=["lora", "full", "prompt", "all linear", "split", "u", "cached", "kd"],
)
@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_a_round_in_parts_gives_the_same_models_and_measures(
    hub: Path, model: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = after_a_round(hub, model, *words)
    monkeypatch.setattr(vocabulary, "WIDE", 1)
    monkeypatch.setattr(vocabulary, "CHUNK", 44 * 3)  # three rows at once
    parts = after_a_round(hub, model, *words)
    assert distance(whole.server.state, parts.server.state) < 1e-5
    assert distance(whole.server.state, whole.model.initial) > 1e-3
    found, wanted = (fed.server.evaluate(fed.server.state, 64) for fed in (parts, whole))
    assert found == pytest.approx(wanted, rel=1e-5)
    if words[0] == "framework=kd":
        own = [fed.clients[0].store["tensors"] for fed in (whole, parts)]
        assert distance(*own) < 1e-5


class _Widest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the most rows of any tensor that has a value for each of so many classes."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_classes, self.rows = num_classes, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.shape[-1:] == (self.num_classes,):
            self.rows = max(self.rows, found.numel() // self.num_classes)
        return found


@pytest.mark.parametrize("what", ["training", "evaluation", "distillation"])
def test_no_tensor_has_all_tokens_times_all_classes(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trillium.wire.codecs.top_classes import TopClasses
    from trillium.wire.soft_labels import Teacher, Writer

    size, num_rows = 9_000, 8 * 23
    monkeypatch.setattr(vocabulary, "CHUNK", size * 20)
    model = language_model("llama", vocab_size=size)
    examples = [Example(i, torch.arange(4, 28), torch.arange(4, 28)) for i in range(8)]
    batch = collate(examples, 0, torch.device("cpu"))
    writer = Writer(TopClasses(k=4), num_rows, size, 0)
    writer.add(torch.randn(num_rows, size).log_softmax(-1))
    known = torch.ones(num_rows, dtype=torch.bool)
    teacher, terms = Teacher(writer.done(), known), distillation.Loss(2.0)
    taught = distillation.distillation_objective(CausalLM(), examples, teacher, terms)
    assert vocabulary.is_wide(model)
    model.get_output_embeddings().requires_grad_(False)
    with _Widest(size) as seen:
        if what == "training":
            LOSS(model, batch)[0].backward()  # type: ignore[no-untyped-call]
        elif what == "distillation":
            taught(model, batch)[0].backward()  # type: ignore[no-untyped-call]
        else:
            tokenizer: Any = type("T", (), {"pad_token_id": 0})
            CausalLM().evaluate(model, examples, tokenizer, 8)
    assert seen.rows == 20


@pytest.mark.parametrize(
    "words",
    [
        ("framework=fedllm",),
        ("adapter=full",),
        ("framework=kd",),
        ("framework=split",),
        ("framework=split", "framework.shape=u"),
    ],
)
@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_what_it_costs_is_planned(
    hub: Path, model: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "WIDE", 1)
    monkeypatch.setattr(vocabulary, "CHUNK", 44 * 3)
    settings = ("data.num_clients=2", "rounds=2", "model.dtype=float32", *words)
    hold(federation(hub, *settings, model=model, task="causal_lm"))


@pytest.mark.parametrize("words", [("framework=fedllm",), ("framework=kd",)], ids=["fedllm", "kd"])
def test_batches_that_differ_in_rows_alone_are_told_from_two(
    hub: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the ledger is still that of the run, where each is counted."""
    monkeypatch.setattr(vocabulary, "WIDE", 1)
    monkeypatch.setattr(vocabulary, "CHUNK", 44 * 20)
    told, towards = [], Record.towards

    def noted(self: Record, other: Record, steps: int, of: int) -> Record | None:
        told.append(towards(self, other, steps, of))
        return told[-1]

    monkeypatch.setattr(Record, "towards", noted)
    settings = ("data.num_clients=2", "rounds=4", "training.batch_size=3", "model.dtype=float32")
    hold(federation(hub, *settings, *words, model="llama", task="causal_lm"))
    assert len([found for found in told if found is not None]) > 5


def test_rows_that_do_not_count_cost_nothing(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer FLOPs and less memory than with the logits of all tokens, or the head did too much."""

    def cost() -> tuple[float, int]:
        fed = federation(hub, "data.num_clients=1", "rounds=1", model="llama", task="causal_lm")
        client = fed.clients[0]
        loop = client.loop("train", client.model.state())
        loop.fit([client.examples[:4]], LOSS, client.training, client.progress, 1)
        found = client.meter.read()
        return found.flops, found.peak_bytes

    flops, peak = cost()
    monkeypatch.setattr(vocabulary, "WIDE", 1)
    monkeypatch.setattr(vocabulary, "CHUNK", 44 * 3)
    in_parts = cost()
    assert in_parts[0] < flops
    assert in_parts[1] <= peak
