"""Split model = unsplit Hugging Face model, bit for bit, for every supported architecture."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from trillium.errors import UserError
from trillium.models.blocks import find_blocks
from trillium.models.cut import SplitModel, shared_parameters, split_model
from trillium.models.cut_check import check_split
from variants import slow_but

BLOCKS, VOCABULARY, SEQUENCE = 3, 61, 9
# Key-value heads, head size and MLP width are chosen so that hardly any layer is square.
PLAIN: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    hidden_size=24,
    num_hidden_layers=BLOCKS,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=32,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
GROUPED = PLAIN | dict(num_attention_heads=4, num_key_value_heads=2, head_dim=8)
WINDOWED = GROUPED | dict(sliding_window=4)
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": dict(
        vocab_size=VOCABULARY,
        n_embd=24,
        n_layer=BLOCKS,
        n_head=3,
        n_inner=40,
        n_positions=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "llama": GROUPED,
    "qwen2": WINDOWED | dict(use_sliding_window=True, max_window_layers=1),
    "qwen3": GROUPED,
    "mistral": WINDOWED,
    "gemma": GROUPED,
    "gemma2": WINDOWED | dict(query_pre_attn_scalar=8),
    "gemma3_text": WINDOWED | dict(query_pre_attn_scalar=8, sliding_window_pattern=2),
    "phi": PLAIN | dict(partial_rotary_factor=0.5),
    "opt": PLAIN | dict(ffn_dim=40, word_embed_proj_dim=16),
    "gpt_neox": PLAIN,
    "bert": PLAIN,
    "roberta": PLAIN | dict(pad_token_id=1, bos_token_id=0),
    "electra": PLAIN | dict(embedding_size=16),
    "modernbert": PLAIN | dict(global_attn_every_n_layers=2, local_attention=4),
    "distilbert": dict(
        vocab_size=VOCABULARY,
        dim=24,
        n_layers=BLOCKS,
        n_heads=3,
        hidden_dim=40,
        max_position_embeddings=32,
        pad_token_id=0,
    ),
}
# Not among the cases: what sets them apart has a test of its own.
SPECIAL: dict[str, dict[str, Any]] = {
    "deberta-v2": PLAIN | dict(relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "xlnet": dict(
        vocab_size=VOCABULARY, d_model=24, n_layer=BLOCKS, n_head=3, d_inner=40, pad_token_id=0
    ),
    "gemma4_text": WINDOWED
    | dict(
        global_head_dim=8, vocab_size_per_layer_input=VOCABULARY, hidden_size_per_layer_input=8,
        num_kv_shared_layers=0,
    ),
}  # fmt: skip
TASKS: dict[str, Any] = {
    "causal": AutoModelForCausalLM,
    "classify": AutoModelForSequenceClassification,
}
ENCODERS = {"bert", "roberta", "electra", "modernbert", "distilbert"}
CASES = [("causal", name) for name in CONFIGS if name not in ENCODERS]
CASES += [("classify", name) for name in (*sorted(ENCODERS), "gpt2", "llama")]
CASES += [("causal", "bert"), ("causal", "electra")]  # tied, electra with narrow embeddings
SIDES = ("left", "right")
CUTS = [(1, None), (2, None), (1, 2), (1, 3), (2, 3)]


def build(task: str, name: str, lora: bool = False, **changes: Any) -> nn.Module:
    """A model with random weights everywhere, LoRA's B included, in evaluation mode."""
    torch.manual_seed(7)
    config = AutoConfig.for_model(name, **((CONFIGS | SPECIAL)[name] | changes))
    config.use_cache = False  # a cache copies keys and values, and kernels round by memory layout
    model: nn.Module = TASKS[task].from_config(config)
    if lora:
        kind = "CAUSAL_LM" if task == "causal" else "SEQ_CLS"
        options = LoraConfig(
            r=3,
            lora_alpha=5,
            target_modules="all-linear",
            exclude_modules=["pre_classifier"] if name == "distilbert" else None,
            fan_in_fan_out=name == "gpt2",
            task_type=kind,
        )
        model = get_peft_model(model, options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def make_batch(model: nn.Module, padding: str = "left") -> dict[str, Tensor]:
    config: Any = model.config
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, VOCABULARY, (3, SEQUENCE), generator=generator)
    mask = torch.ones_like(ids)
    for row, num_pads in ((1, 2), (2, 5)):
        mask[row, slice(num_pads) if padding == "left" else slice(-num_pads, None)] = 0
    return {"input_ids": ids.masked_fill(mask == 0, config.pad_token_id), "attention_mask": mask}


def loss_of(logits: Tensor) -> Tensor:
    return (logits.float() ** 2).mean() + logits.float().flatten()[::3].sum()


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def take_grads(module: nn.Module) -> dict[str, Tensor]:
    grads = {name: p.grad for name, p in trainable(module).items() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    return grads


def run_forward(split: SplitModel, batch: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """What each part received and sent; between parts the graph is cut, as by a network."""
    received: list[Tensor] = []
    sent: list[Tensor] = []
    for part in split.parts:
        mask = batch["attention_mask"]
        if not sent:
            sent.append(part(None, input_ids=batch["input_ids"], attention_mask=mask))
        else:
            received.append(sent[-1].detach().requires_grad_())
            sent.append(part(received[-1], attention_mask=mask))
    return received, sent


def run_backward(received: list[Tensor], sent: list[Tensor]) -> None:
    torch.autograd.backward(loss_of(sent[-1]))
    for hidden, leaf in zip(sent[-2::-1], received[::-1], strict=True):
        if hidden.requires_grad:
            torch.autograd.backward(hidden, leaf.grad)


@pytest.mark.parametrize(
    ("task", "name", "padding"),
    slow_but(
        [(*case, SIDES[index % 2]) for index, case in enumerate(CASES)],
        [(*case, side) for case in CASES for side in SIDES],
    ),
)
def test_logits_and_lora_gradients_are_those_of_the_unsplit_model(
    task: str, name: str, padding: str
) -> None:
    model = build(task, name, lora=True)
    batch = make_batch(model, padding)
    logits = model(**batch).logits
    torch.autograd.backward(loss_of(logits))
    grads = take_grads(model)
    assert len(grads) > 2 * BLOCKS
    for cut, tail in CUTS:
        split = split_model(model, cut, tail)
        received, sent = run_forward(split, batch)
        assert torch.equal(sent[-1], logits), (cut, tail)
        run_backward(received, sent)
        found: dict[str, Tensor] = {}
        for part in split.parts:
            found |= take_grads(part)
        assert found.keys() == grads.keys()
        for key, grad in grads.items():
            assert torch.equal(found[key], grad), (cut, tail, key)


@pytest.mark.parametrize(("task", "name"), slow_but(CASES[::3], CASES))
def test_forward_is_exact_in_bfloat16_and_under_dropout(task: str, name: str) -> None:
    # One process and one generator: equal only if no part draws for another's dropout.
    model = build(task, name).to(torch.bfloat16).train()
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    for dropout in dropouts:
        dropout.p = 0.3
    batch = make_batch(model)
    with torch.no_grad():
        for cut, tail in [(1, None), (2, 3)]:
            split = split_model(model, cut, tail)
            torch.manual_seed(11)
            logits = model(**batch).logits
            torch.manual_seed(11)
            assert torch.equal(run_forward(split, batch)[1][-1], logits)
            assert model.training
            for part in split.parts:
                part.eval()
                assert not part._root.training
                assert not any(module.training for module in part.modules())


@pytest.mark.parametrize(("task", "name"), CASES)
def test_every_parameter_is_held_by_the_party_whose_piece_needs_it(task: str, name: str) -> None:
    model = build(task, name, lora=task == "classify")  # PEFT keeps the old classifier, unused
    place, _ = find_blocks(model)
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    whole = dict(model.named_parameters())
    tied = bool(getattr(model.config, "tie_word_embeddings", False)) and task == "causal"
    for cut, tail in CUTS:
        split = split_model(model, cut, tail)
        held = [dict(part.named_parameters()) for part in split.parts]
        assert set().union(*held) == whole.keys()
        assert all(part[key] is whole[key] for part in held for key in part)
        assert [part.blocks for part in split.parts] == [
            range(*ends)
            for ends in zip([0, cut, tail or 0], [cut, tail or BLOCKS, BLOCKS], strict=True)
        ][: len(held)]
        for part, names in zip(split.parts, held, strict=True):
            indices = {int(key[len(place) + 1 :].split(".")[0]) for key in names if place in key}
            assert indices == set(part.blocks)
        embedding = next(key for key, p in whole.items() if p is embeddings.weight)
        assert shared_parameters(split) == ({embedding} if tied else set())
        assert [embedding in part for part in held] == [True, *[False] * (len(held) - 2), tied]


@pytest.mark.parametrize("tail", [None, 3])
@pytest.mark.parametrize(
    ("task", "name"), [("causal", "gpt2"), ("causal", "llama"), ("classify", "bert")]
)
def test_ten_steps_of_adamw_end_in_the_same_weights(task: str, name: str, tail: int | None) -> None:
    model = build(task, name, tie_word_embeddings=False).double().train()
    batch, twin = make_batch(model), copy.deepcopy(model)
    split = split_model(twin, 2, tail)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    theirs = [torch.optim.AdamW(part.parameters(), lr=1e-2) for part in split.parts]
    for step in range(10):
        torch.manual_seed(step)
        optimizer.zero_grad()
        torch.autograd.backward(loss_of(model(**batch).logits))
        optimizer.step()
        torch.manual_seed(step)
        for party in theirs:
            party.zero_grad()
        run_backward(*run_forward(split, batch))
        for party in theirs:
            party.step()
    start = dict(build(task, name, tie_word_embeddings=False).double().named_parameters())
    for (key, ours), parameter in zip(twin.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, parameter), key
        assert not torch.equal(ours, start[key]), key


def test_parameters_can_be_swapped_while_another_graph_is_pending() -> None:
    model = build("causal", "llama", lora=True)
    batch = make_batch(model)
    split = split_model(model, 1)
    first, second = (
        {k: nn.Parameter(p + n) for k, p in trainable(model).items()} for n in (0, 0.2)
    )
    expected = []
    for state in (first, second):
        loss = loss_of(torch.func.functional_call(model, dict(state), (), batch).logits)
        expected.append(torch.autograd.grad(loss, list(state.values())))
    pending = []
    for state in (first, second):
        for part in split.parts:
            for owner in part.modules():
                for attribute, old in list(owner.named_parameters(recurse=False)):
                    key = next((k for k, p in trainable(part).items() if p is old), None)
                    if key is not None:
                        owner._parameters[attribute] = state[key]
        pending.append(run_forward(split, batch))
    for graph in pending:
        run_backward(*graph)
    for state, grads in zip((first, second), expected, strict=True):
        for parameter, grad in zip(state.values(), grads, strict=True):
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, grad)


@pytest.fixture
def model() -> Iterator[nn.Module]:
    model = build("causal", "gpt2", lora=True)
    yield model
    assert all(p.grad is None for p in model.parameters())


def test_the_check_passes_and_leaves_no_trace(model: nn.Module) -> None:
    frozen = [p.requires_grad for p in model.parameters()]
    model.train()
    split = split_model(model, 1, 2)
    split.body.eval()
    assert check_split(model, split, make_batch(model)) == 0.0
    assert [p.requires_grad for p in model.parameters()] == frozen
    assert [module.training for module in (model, split.head, split.body)] == [True, True, False]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert check_split(model, split, make_batch(model)) == 0.0


def test_the_check_refuses_a_wrong_mask(model: nn.Module) -> None:
    split = split_model(model, 1)
    split.body.register_forward_pre_hook(
        lambda _, args, kwargs: (
            args,
            {"attention_mask": torch.ones_like(kwargs["attention_mask"])},
        ),
        with_kwargs=True,
    )
    with pytest.raises(UserError, match="logits differs"):
        check_split(model, split, make_batch(model))


def test_the_check_refuses_a_cut_that_is_off_by_one(model: nn.Module) -> None:
    one, two = split_model(model, 1), split_model(model, 2)
    for head, body in ((one.head, two.body), (two.head, one.body)):
        with pytest.raises(UserError, match=r"do not (compute|hold)"):
            check_split(model, SplitModel(head, body, None, 1, BLOCKS), make_batch(model))


def test_the_check_refuses_a_lost_gradient(model: nn.Module) -> None:
    split = split_model(model, 1)
    split.body.register_forward_pre_hook(lambda _, args: tuple(arg.detach() for arg in args))
    with pytest.raises(UserError, match=r"differs by 1\.0e"):
        check_split(model, split, make_batch(model))


@pytest.mark.parametrize("cut", [1, 2])
def test_the_check_refuses_a_model_whose_later_blocks_read_the_text(cut: int) -> None:
    # Gemma 4 adds an embedding of the token to every block; only the head has the tokens.
    model = build("causal", "gemma4_text")
    with pytest.raises(UserError, match="logits differs"):
        check_split(model, split_model(model, cut), make_batch(model))


def test_a_dropout_that_runs_in_front_of_the_blocks_and_behind_them_stays() -> None:
    model = build("causal", "xlnet")
    assert check_split(model, split_model(model, 1), make_batch(model)) == 0.0


def test_a_table_that_all_blocks_read_is_held_by_all_parts() -> None:
    model = build("classify", "deberta-v2")
    split = split_model(model, 1, 2)
    assert check_split(model, split, make_batch(model)) < 1e-6
    shared = {key.removeprefix("deberta.encoder.") for key in shared_parameters(split)}
    assert shared == {"rel_embeddings.weight"}


@pytest.mark.parametrize(
    ("cut", "tail", "instead"),
    [
        (0, None, "a cut from 1 to 2"),
        (3, None, "a cut from 1 to 2"),
        (2, 2, "a tail from 3 to 3"),
        (1, 4, "a tail from 2 to 3"),
    ],
)
def test_cuts_out_of_range_are_refused(
    model: nn.Module, cut: int, tail: int | None, instead: str
) -> None:
    with pytest.raises(UserError, match=instead):
        split_model(model, cut, tail)


@pytest.mark.parametrize("setting", ["checkpointing", "layerdrop", "prompt"])
def test_settings_that_would_break_a_part_are_refused(setting: str) -> None:
    model = build("causal", "opt", layerdrop=0.1 if setting == "layerdrop" else 0.0)
    if setting == "checkpointing":
        model.gradient_checkpointing_enable()  # type: ignore[operator]
    if setting == "prompt":
        model = get_peft_model(
            model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
        )
    with pytest.raises(UserError, match="on a split model"):
        split_model(model, 1)


def test_blocks_are_the_longest_outermost_list() -> None:
    def layer() -> nn.Module:
        block = nn.Module()
        block.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(8))
        return block

    model = nn.Module()
    model.layers = nn.ModuleList(layer() for _ in range(4))
    model.norms = nn.ModuleList(nn.LayerNorm(2) for _ in range(2))
    model.dropouts = nn.ModuleList(nn.Dropout() for _ in range(9))
    assert find_blocks(model) == ("layers", model.layers)
    model.twins = nn.ModuleList(layer() for _ in range(4))
    with pytest.raises(UserError, match=r"2 lists of 4 blocks \(layers, twins\)"):
        find_blocks(model)
    with pytest.raises(UserError, match="no list of two or more blocks"):
        find_blocks(nn.Linear(2, 2))
