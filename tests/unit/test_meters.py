"""Meters against counts by hand, PyTorch's profiler and the allocator's own log."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from trillium.training.meters import Cost, CostCache, Meter, resident_tensors

BATCH, SEQ = 3, 10
# No two sizes alike, so that a transposed or swapped formula shows.
VOCAB, HIDDEN, INNER, LAYERS, HEADS, KV_HEADS = 48, 24, 40, 2, 6, 2
HEAD = HIDDEN // HEADS
TOKENS = BATCH * SEQ


def llama(attention: str, dropout: float = 0.0) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=32,
        attention_dropout=dropout,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation=attention)
    assert model.config._attn_implementation == attention
    return model.train()


def token_ids() -> Tensor:
    return torch.randint(0, VOCAB, (BATCH, SEQ), generator=torch.Generator().manual_seed(1))


def step(model: nn.Module) -> Tensor:
    ids = token_ids()
    loss: Tensor = model(input_ids=ids, labels=ids).loss
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def nothing() -> Iterable[Tensor]:
    return ()


def cost_of(work: Callable[[], object], resident: Callable[[], Iterable[Tensor]] = nothing) -> Cost:
    meter = Meter({})
    with meter.measure("work", resident):
        work()
    return meter.read()


def matmul(rows: int, inner: int, columns: int) -> int:
    return 2 * rows * inner * columns


# --- FLOPs -------------------------------------------------------------------------------------

KV = KV_HEADS * HEAD
Q_PROJ = O_PROJ = matmul(TOKENS, HIDDEN, HIDDEN)
K_PROJ = V_PROJ = matmul(TOKENS, HIDDEN, KV)
MLP = 3 * matmul(TOKENS, HIDDEN, INNER)
LM_HEAD = matmul(TOKENS, HIDDEN, VOCAB)
SCORES = BATCH * HEADS * matmul(SEQ, HEAD, SEQ)  # as much as scores times values
LINEARS = LAYERS * (Q_PROJ + K_PROJ + V_PROJ + O_PROJ + MLP) + LM_HEAD
FORWARD = LINEARS + LAYERS * 2 * SCORES
# Matrix products in the backward pass of attention: fused attention forms the scores again.
BACKWARD_PRODUCTS = {"eager": 4, "sdpa": 5}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_flops_of_a_transformer_equal_the_count_by_hand(attention: str) -> None:
    model = llama(attention)
    with torch.no_grad():
        forward = cost_of(lambda: model(input_ids=token_ids()))
    assert forward.flops == pytest.approx(FORWARD, rel=1e-9)
    backward = 2 * LINEARS + LAYERS * BACKWARD_PRODUCTS[attention] * SCORES
    assert cost_of(lambda: step(model)).flops == pytest.approx(FORWARD + backward, rel=1e-9)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gradients_of_frozen_weights_are_not_counted(attention: str) -> None:
    rank = 5
    model = get_peft_model(
        llama(attention), LoraConfig(r=rank, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    lora_a, lora_b = matmul(TOKENS, HIDDEN, rank), matmul(TOKENS, rank, HIDDEN)
    forward = FORWARD + LAYERS * (lora_a + lora_b)
    # Backward: only the gradient of the input for what is frozen, both gradients for A and B. What
    # enters the first layer needs no gradient, so its q, k and v have nothing to do, nor has A for
    # its input.
    backward = LINEARS - (Q_PROJ + K_PROJ + V_PROJ) + LAYERS * 2 * (lora_a + lora_b) - lora_a
    # Its keys and values need none either: eager attention saves two products, the kernel none.
    products = {"eager": 4 + 2, "sdpa": 5 + 5}[attention]
    assert cost_of(lambda: step(model)).flops == pytest.approx(
        forward + backward + products * SCORES, rel=1e-9
    )


def test_flops_of_a_mixture_of_experts_count_the_experts_asked() -> None:
    torch.manual_seed(0)
    experts, asked = 4, 2
    config = MixtralConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=32,
        num_local_experts=experts,
        num_experts_per_tok=asked,
    )
    model = MixtralForCausalLM._from_config(config, attn_implementation="sdpa")
    more = LAYERS * ((asked - 1) * MLP + matmul(TOKENS, HIDDEN, experts))
    with torch.no_grad():
        forward = cost_of(lambda: model(input_ids=token_ids()))
    assert forward.flops == pytest.approx(FORWARD + more, rel=1e-9)
    backward = 2 * (LINEARS + more) + LAYERS * 5 * SCORES
    assert cost_of(lambda: step(model)).flops == pytest.approx(FORWARD + more + backward, rel=1e-9)


def test_flops_agree_with_the_profiler() -> None:
    model = llama("eager")
    with profile(activities=[ProfilerActivity.CPU], with_flops=True, acc_events=True) as log:
        step(model)
    products = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}
    profiled = sum(event.flops for event in log.key_averages() if event.key in products)
    assert cost_of(lambda: step(model)).flops == pytest.approx(profiled, rel=0.05)


# --- peak memory -------------------------------------------------------------------------------


def test_peak_is_what_is_alive_at_once() -> None:
    def one_after_the_other() -> None:
        first = torch.empty(1000)
        del first
        torch.empty(600)

    def together() -> None:
        first, second = torch.empty(1000), torch.empty(600)
        del first, second

    assert cost_of(one_after_the_other).peak_bytes == 4000
    assert cost_of(together).peak_bytes == 6400


def test_views_and_results_in_place_take_no_memory() -> None:
    def work() -> None:
        whole = torch.zeros(100, 10, dtype=torch.float64)
        whole.add_(1).T[2:].mul_(3)
        torch.mul(whole, 2, out=whole)
        whole.view(-1).detach()[500:].copy_(whole.flatten()[:500])

    assert cost_of(work).peak_bytes == 8000


def test_memory_grown_in_place_counts() -> None:
    assert cost_of(lambda: torch.empty(10).resize_(300)).peak_bytes == 1200


def test_a_leak_shows() -> None:
    def loop(kept: list[Tensor] | None) -> None:
        for _ in range(5):
            made = torch.empty(1000)
            if kept is not None:
                kept.append(made)

    # The next tensor is made before the name lets go of the last one: two at once.
    assert cost_of(lambda: loop(None)).peak_bytes == 2 * 4000
    assert cost_of(lambda: loop([])).peak_bytes == 5 * 4000


def test_resident_tensors_count_once_touched_or_not() -> None:
    weight, untouched, given = torch.empty(100), torch.empty(50), torch.empty(7)

    def resident() -> list[Tensor]:
        return [weight, weight.view(10, 10), untouched, nn.Parameter(weight)]

    def work() -> None:
        weight.add_(given.sum())

    # 4 more bytes: the sum.
    assert cost_of(work, resident).peak_bytes == 400 + 200 + 28 + 4


def test_backward_keeps_the_activations() -> None:
    depth, batch, width = 6, 50, 8
    model = nn.Sequential()
    for _ in range(depth):
        model.extend([nn.Linear(width, width), nn.Tanh()])
    inputs = torch.ones(batch, width)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    activation = inputs.nbytes

    def forward() -> None:
        model(inputs)

    def both() -> None:
        model(inputs).sum().backward()

    # Tanh saves its result; without gradients, only the model's input and two more live at once.
    assert cost_of(both).peak_bytes >= weights + activation * (1 + depth)
    with torch.no_grad():
        assert cost_of(forward).peak_bytes == weights + activation * (1 + 2)


def test_what_was_there_before_counts_from_the_start() -> None:
    given = torch.empty(50)

    def work() -> None:
        torch.empty(1000)  # at the peak, the given tensor has not been touched yet
        given.add_(1)

    assert cost_of(work).peak_bytes == 4000 + 200


def test_resident_tensors_are_parameters_buffers_and_optimizer_state() -> None:
    model = nn.BatchNorm1d(7)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 7)).sum().backward()
    optimizer.step()
    state = [value for values in optimizer.state.values() for value in values.values()]
    held = [*model.parameters(), *model.buffers(), *state]
    assert (len(held), len(state)) == (2 + 3 + 6, 6)
    assert {id(tensor) for tensor in resident_tensors(model, optimizer)} == set(map(id, held))


def test_the_peak_is_that_of_every_step_not_of_the_first() -> None:
    model = nn.Linear(40, 30)
    weights = sum(parameter.nbytes for parameter in model.parameters())

    def two_steps(*, listed: bool) -> list[int]:
        optimizer = torch.optim.AdamW(model.parameters())

        def work() -> None:
            loss: Tensor = model(torch.ones(2, 40)).sum() + torch.empty(8 * weights).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()

        lasting = (optimizer,) if listed else ()
        return [cost_of(work, lambda: resident_tensors(model, *lasting)).peak_bytes for _ in "ab"]

    first, second = two_steps(listed=True)
    assert first == second
    # The peak is in the forward pass. Unlisted, the new optimiser's two moments are not there yet.
    unaware, second_unaware = two_steps(listed=False)
    assert second_unaware == second
    assert second - unaware == pytest.approx(2 * weights, rel=0.01)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_peak_agrees_with_the_allocator(attention: str) -> None:
    model = llama(attention)
    optimizer = torch.optim.AdamW(model.parameters())

    def work() -> None:
        step(model)
        optimizer.step()
        optimizer.zero_grad()

    work()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as log:
        work()
    assert log.profiler is not None
    events = [event for event in log.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    rise = max(accumulate(event.nbytes() for event in events))

    held = sum(tensor.nbytes for tensor in resident_tensors(model, optimizer))
    measured = cost_of(work, lambda: resident_tensors(model, optimizer)).peak_bytes
    assert measured == pytest.approx(held + rise, rel=0.01)


# --- counting changes nothing ------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_counted_work_is_bit_for_bit_the_plain_work(attention: str) -> None:
    def run(measure: Callable[[str], AbstractContextManager[None]]) -> list[Tensor]:
        model = llama(attention, dropout=0.3)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        for name in ("first", "second"):
            with measure(name):
                loss = step(model)
                optimizer.step()
        with torch.inference_mode(), measure("predict"):
            logits = model(input_ids=token_ids()).logits
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        return [loss, logits, torch.get_rng_state(), *gradients, *model.state_dict().values()]

    def different(left: list[Tensor], right: list[Tensor]) -> int:
        return sum(not torch.equal(a, b) for a, b in zip(left, right, strict=True))

    plain = run(lambda name: nullcontext())
    assert different(plain, run(Meter({}).measure)) == 0
    # The check can fail: PyTorch's own counter takes `silu_backward` apart and so changes the bits.
    assert different(plain, run(lambda name: FlopCounterMode(display=False))) > 0


def test_work_in_inference_mode_is_counted_as_any_other() -> None:
    model = llama("sdpa")
    with torch.inference_mode():
        assert cost_of(lambda: model(input_ids=token_ids())).flops == FORWARD


# --- totals and the cache ----------------------------------------------------------------------


def test_costs_add_up_to_sums_and_the_larger_peak() -> None:
    assert Cost(1, 2, 30) + Cost(10, 20, 3) == Cost(11, 22, 30)
    assert Cost() + Cost(1, 2, 3) == Cost(1, 2, 3)


def test_clients_share_what_is_counted_but_not_the_totals() -> None:
    cache: CostCache = {}
    alice, bob = Meter(cache), Meter(cache)
    looked: list[str] = []

    def resident() -> list[Tensor]:
        looked.append("resident")
        return []

    left, right = torch.ones(2, 3), torch.ones(3, 5)
    for meter in (alice, bob, bob):
        with meter.measure("product", resident):
            left @ right
    with bob.measure("other product", resident):
        torch.ones(7, 2) @ left

    assert looked == ["resident"] * 4  # before and after each of the two kinds of work
    assert alice.read().flops == 60
    assert bob.read().flops == 2 * 60 + 84
    assert alice.read().peak_bytes == 4 * (6 + 15 + 10)
    assert bob.read().seconds > 0
    assert all(cost.seconds == 0 for cost in cache.values())
    bob.reset()
    assert bob.read() == Cost()
    assert alice.read().flops == 60
    assert set(cache) == {"product", "other product"}


def test_failed_work_is_neither_added_nor_remembered() -> None:
    cache: CostCache = {}
    meter = Meter(cache)

    def fail() -> None:
        torch.ones(2, 2) @ torch.ones(2, 2)
        raise RuntimeError("out of battery")

    with pytest.raises(RuntimeError, match="battery"), meter.measure("work"):
        fail()
    assert meter.read() == Cost()
    assert not cache
    with meter.measure("work"):
        torch.ones(2, 2) @ torch.ones(2, 2)
    assert meter.read().flops == 16


def test_a_measurement_inside_another_is_refused() -> None:
    meter = Meter({})
    with pytest.raises(AssertionError, match="twice"), meter.measure("outer"):
        meter.measure("inner").__enter__()
