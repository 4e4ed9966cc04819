"""Tasks: which tokens are supervised, what is truncated, and metrics against scikit-learn's."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from torch import Tensor, nn
from transformers import AutoTokenizer

from trillium.errors import UserError
from trillium.tasks import IGNORE, Example
from trillium.tasks.batches import by_length, by_tokens, collate, epoch, in_order, padded
from trillium.tasks.causal_lm import CausalLM
from trillium.tasks.classification import Classification, macro_f1
from trillium.tasks.scores import TEXT_SCORES, text_scores

BOS, EOS = 2, 3
TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] | upper }} {{ m['content'] }} [EOS] {% endfor %}"
    "{% if add_generation_prompt %}A {% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(hub: Path) -> Any:
    return AutoTokenizer.from_pretrained(hub / "gpt2")


def ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def tokenize(tokenizer: Any, row: dict[str, Any], max_length: int | None = 64) -> Example:
    (example,) = CausalLM().tokenize(Dataset.from_list([row]), tokenizer, max_length)
    return example


def test_only_the_completion_is_supervised(tokenizer: Any) -> None:
    example = tokenize(tokenizer, {"prompt": "w1 w2", "completion": "w3"})
    w1, w2, w3 = ids(tokenizer, "w1 w2 w3")
    assert example.input_ids.tolist() == [BOS, w1, w2, w3, EOS]
    assert example.labels.tolist() == [IGNORE, IGNORE, IGNORE, w3, EOS]
    assert example.prompt_tokens == 3
    assert CausalLM().num_targets(example) == 2


def test_the_prompt_is_cut_first_behind_its_first_token_and_never_away(tokenizer: Any) -> None:
    row = {"prompt": "w1 w2 w3 w4", "completion": "w5 w6"}
    w4, w5, w6 = ids(tokenizer, "w4 w5 w6")
    example = tokenize(tokenizer, row, max_length=5)
    assert example.input_ids.tolist() == [BOS, w4, w5, w6, EOS]
    assert example.labels.tolist() == [IGNORE, IGNORE, w5, w6, EOS]
    assert example.prompt_tokens == 2
    # Half of the room is the prompt's.
    short = tokenize(tokenizer, row, max_length=4)
    assert short.input_ids.tolist() == [BOS, w4, w5, w6]
    shorter = tokenize(tokenizer, row, max_length=3)
    assert shorter.input_ids.tolist() == [BOS, w5, w6]
    assert CausalLM().num_targets(shorter) == 2
    assert tokenize(tokenizer, row, max_length=None).num_tokens == 8


@pytest.fixture(scope="module")
def chatty(hub: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(hub / "gpt2")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def turns(*pairs: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


def test_in_a_chat_every_answer_is_supervised_and_nothing_else(chatty: Any) -> None:
    chat = turns(("user", "w1"), ("assistant", "w2 w3"), ("user", "w4"), ("assistant", "w5"))
    example = tokenize(chatty, chat)
    whole = chatty.apply_chat_template(chat["messages"], tokenize=False)
    assert example.input_ids.tolist() == ids(chatty, whole)
    seen = [token if keep else IGNORE for token, keep in zip(
        ids(chatty, "U w1 [EOS] A w2 w3 [EOS] U w4 [EOS] A w5 [EOS]"),
        [False] * 4 + [True] * 3 + [False] * 4 + [True] * 2,
        strict=True,
    )]  # fmt: skip
    assert example.labels.tolist() == seen
    assert example.prompt_tokens == 4


def test_a_chat_without_answers_supervises_nothing(chatty: Any) -> None:
    example = tokenize(chatty, turns(("user", "w1"), ("user", "w2")))
    assert CausalLM().num_targets(example) == 0


def test_a_chat_needs_a_template(tokenizer: Any) -> None:
    chat = turns(("user", "w1"), ("assistant", "w2"))
    with pytest.raises(UserError, match="has no chat template"):
        tokenize(tokenizer, chat)


def test_classification_truncates_and_keeps_labels(tokenizer: Any) -> None:
    rows = Dataset.from_dict({"text": ["w1 w2 w3", "w4"], "label": [2, 0]})
    first, second = Classification().tokenize(rows, tokenizer, 2)
    assert first.input_ids.tolist() == ids(tokenizer, "w1 w2")
    assert (int(first.labels), int(second.labels)) == (2, 0)
    assert (first.index, second.index) == (0, 1)
    assert Classification().tokenize(rows.select([]), tokenizer, 2) == []


# Losses and metrics


def test_summed_losses_over_batches_are_the_mean_over_all() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, 7, generator=draw, dtype=torch.float64)
    labels = torch.randint(7, (6, 5), generator=draw)
    labels[torch.rand(6, 5, generator=draw) < 0.5] = IGNORE
    whole, count = CausalLM().loss(logits, labels)
    parts = [CausalLM().loss(logits[rows], labels[rows]) for rows in (slice(2), slice(2, 6))]
    assert float(whole) == pytest.approx(sum(float(loss) for loss, _ in parts), rel=1e-12)
    assert count == sum(n for _, n in parts) == int((labels[:, 1:] != IGNORE).sum())
    mean = nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE
    )
    assert float(whole) / count == pytest.approx(float(mean), rel=1e-12)
    nothing, none = CausalLM().loss(logits, torch.full_like(labels, IGNORE))
    assert (float(nothing), none) == (0.0, 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_macro_f1_is_that_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    predicted, expected = (list(column) for column in zip(*pairs, strict=True))
    said, meant = torch.tensor(predicted), torch.tensor(expected)
    counts = [torch.bincount(found, minlength=6) for found in (said[said == meant], said, meant)]
    ours = macro_f1(*counts)
    theirs = f1_score(expected, predicted, average="macro", zero_division=0)
    assert ours == pytest.approx(theirs, abs=1e-12)


class ByToken(nn.Module):
    """Says something about each token, or each text by its first token; never looks elsewhere."""

    def __init__(self, classes: int, per_text: bool) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(1)
        self.table = nn.Parameter(torch.randn(64, classes, generator=draw))
        self.per_text = per_text

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        logits = self.table[input_ids]
        return SimpleNamespace(logits=logits[:, 0] if self.per_text else logits)


@pytest.mark.parametrize("tokens", [1, 24, 512])
def test_metrics_do_not_depend_on_batches(tokenizer: Any, tokens: int) -> None:
    texts = [" ".join(f"w{(i * j) % 9}" for j in range(1, 2 + i % 5)) for i in range(1, 11)]
    labels = [i % 3 for i in range(10)]
    rows = Dataset.from_dict({"text": texts, "label": labels})
    model = ByToken(3, per_text=True)
    task = Classification()
    found = task.evaluate(model, task.tokenize(rows, tokenizer, 64), tokenizer, tokens)
    logits = torch.stack([model.table[ids(tokenizer, text)[0]] for text in texts]).detach()
    best = logits.argmax(-1)
    loss = nn.functional.cross_entropy(logits, torch.tensor(labels))
    assert found["accuracy"] == pytest.approx(float((best == torch.tensor(labels)).double().mean()))
    assert found["f1"] == pytest.approx(f1_score(labels, best, average="macro", zero_division=0))
    assert found["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert found["num_examples"] == 10
    answers = task.answers(model, task.tokenize(rows, tokenizer, 64), tokenizer, tokens)
    pairs = Counter(zip(labels, best.tolist(), strict=True))
    assert answers == {"confusion": [[*pair, times] for pair, times in sorted(pairs.items())]}


@pytest.mark.parametrize("most", [1, 24, 512])
def test_perplexity_is_over_all_response_tokens(tokenizer: Any, most: int) -> None:
    pairs = [
        {"prompt": "w1 w2 w3 w4 w5 w6 w7 w8", "completion": "w3"},
        {"prompt": "w4", "completion": "w5 w6 w7 w8"},
        {"prompt": "w9", "completion": "w1 w2"},
    ]
    model, task = ByToken(44, per_text=False), CausalLM()
    examples = task.tokenize(Dataset.from_list(pairs), tokenizer, 64)
    found = task.evaluate(model, examples, tokenizer, most)
    losses, hits = [], []
    for example in examples:
        tokens = example.input_ids
        for place in range(example.prompt_tokens, len(tokens)):
            log_p = model.table[tokens[place - 1]].detach().log_softmax(-1)
            losses.append(-float(log_p[tokens[place]]))
            hits.append(int(log_p.argmax()) == int(tokens[place]))
    mean = sum(losses) / len(losses)
    assert found["loss"] == pytest.approx(mean, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)
    assert found["token_accuracy"] == pytest.approx(sum(hits) / len(hits))


def test_the_first_prompts_are_answered_for_the_report(tokenizer: Any, hub: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(hub / "gpt2")).eval()
    rows = Dataset.from_list([{"prompt": f"w{i} w1", "completion": f"w{i}"} for i in range(1, 9)])
    task = CausalLM(generate=8, max_new_tokens=3)
    examples = task.tokenize(rows, tokenizer, 64)
    texts = task.answers(model, examples, tokenizer, 4)["texts"]
    assert [text["prompt"] for text in texts] == [f"w{i} w1" for i in range(1, 7)]
    assert [text["reference"] for text in texts] == [f"w{i}" for i in range(1, 7)]
    first = examples[0].input_ids[: examples[0].prompt_tokens][None]
    written = model.generate(first, max_new_tokens=3, do_sample=False, pad_token_id=0)
    said = tokenizer.decode(written[0, first.shape[1] :], skip_special_tokens=True).strip()
    assert said.startswith(texts[0]["answer"])
    assert CausalLM().answers(model, examples, tokenizer, 4) == {}, "none is asked for"
    found = task.evaluate(model, examples, tokenizer, 3)
    pairs = [*task._answered(model, examples, tokenizer, 1)]
    assert {name: found[name] for name in TEXT_SCORES} == pytest.approx(text_scores(pairs))
    assert TEXT_SCORES[0] not in CausalLM().evaluate(model, examples, tokenizer, 3)


# Batches


def examples(lengths: list[int]) -> list[Example]:
    return [Example(i, torch.arange(1, n + 1), torch.tensor(0)) for i, n in enumerate(lengths)]


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    size=st.integers(1, 9),
    seed=st.integers(0, 2**31),
)
def test_each_way_to_batch_yields_each_example_once(
    lengths: list[int], size: int, seed: int
) -> None:
    own = examples(lengths)
    draw = torch.Generator().manual_seed(seed)
    for chunks in (epoch(own, size, draw), in_order(own, size), by_length(own, size)):
        found = list(chunks)
        assert Counter(e.index for chunk in found for e in chunk) == Counter(range(len(own)))
        assert all(1 <= len(chunk) <= size for chunk in found)
        assert len(found) == math.ceil(len(own) / size)


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 200))
@settings(max_examples=50, deadline=None)
def test_batches_have_at_most_so_many_tokens(lengths: list[int], most: int) -> None:
    own = examples(lengths)
    found = list(by_tokens(own, most))
    assert Counter(e.index for chunk in found for e in chunk) == Counter(range(len(own)))
    sizes = [len(chunk) * padded(max(e.num_tokens for e in chunk)) for chunk in found]
    assert all(size <= most or len(chunk) == 1 for size, chunk in zip(sizes, found, strict=True))
    for chunk, after in pairwise(found):  # and as many as fit
        assert (len(chunk) + 1) * padded(after[0].num_tokens) > most


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_padding_is_on_the_right_and_masked(lengths: list[int]) -> None:
    batch = collate(examples(lengths), 9, torch.device("cpu"))
    width = batch.input_ids.shape[1]
    assert width % 8 == 0
    assert 0 <= width - max(lengths) < 8
    for row, length in enumerate(lengths):
        assert batch.attention_mask[row].tolist() == [1] * length + [0] * (width - length)
        assert batch.input_ids[row].tolist() == [*range(1, length + 1), *[9] * (width - length)]
    assert batch.indices == tuple(range(len(lengths)))
