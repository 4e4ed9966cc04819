"""Soft labels between tokenizers: what is aligned, against offsets, brute force and matrices."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from trillium.errors import UserError
from trillium.frameworks.kd.alignment.labels import translate, translate_labels
from trillium.frameworks.kd.alignment.pieces import Pieces
from trillium.frameworks.kd.alignment.sequence import Alignment, align
from trillium.frameworks.kd.alignment.vocabulary import Vocabularies, VocabularyMap
from trillium.tasks import IGNORE, Example
from trillium.tasks.causal_lm import CausalLM
from trillium.wire import soft_labels
from trillium.wire.codecs.rows import LEAST, FullRows
from trillium.wire.codecs.top_classes import TopClasses
from trillium.wire.soft_labels import SoftLabels, Writer

CORPUS = [
    "the cat sat on the mat and the dog sat on the cat",
    "the unhappy dogs were running after the happy cats",
    "a happier man walked on walking and talking unhappily",
    "Cafés, naïve 日本語 and 🙂 are letters of more bytes than one",
]
LETTERS = sorted({letter for line in CORPUS for letter in line})
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def wrapped(raw: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=raw, **(special or SPECIAL))


def listed(words: Iterable[str], specials: Iterable[str] = SPECIAL.values()) -> dict[str, int]:
    return {word: index for index, word in enumerate([*specials, *words])}


@cache
def chars() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordLevel(listed(LETTERS), unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.decoder = decoders.Fuse()
    return wrapped(raw)


@cache
def words() -> PreTrainedTokenizerFast:
    found = sorted({word for line in CORPUS for word in line.split()})
    raw = Tokenizer(models.WordLevel(listed(found), unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return wrapped(raw)


@cache
def byte_level(size: int = 330) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    return wrapped(raw, bos_token="<|end|>", eos_token="<|end|>")


@cache
def sentencepiece() -> PreTrainedTokenizerFast:
    """Made as Llama's first: a space in front, bytes for letters that are not in the vocabulary."""
    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=[*SPECIAL.values(), *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=25,
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    return wrapped(raw)


@cache
def unigram() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    raw.decoder = decoders.Metaspace(prepend_scheme="never")
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=[*SPECIAL.values()], unk_token="<unk>", show_progress=False
    )
    raw.train_from_iterator(CORPUS, trainer)
    return wrapped(raw)


@cache
def wordpiece() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordPiece(unk_token="<unk>"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=120, special_tokens=[*SPECIAL.values()], show_progress=False
    )
    raw.train_from_iterator([*CORPUS, *LETTERS], trainer)
    return wrapped(raw)


TOKENIZERS = {
    "chars": chars,
    "words": words,
    "byte_level": byte_level,
    "sentencepiece": sentencepiece,
    "unigram": unigram,
    "wordpiece": wordpiece,
}
EXACT = ["chars", "byte_level", "unigram", "sentencepiece"]  # those that keep every space


def encoded(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def example(tokenizer: Any, *spans: tuple[str, bool], end: bool = True) -> Example:
    """Tokenise spans one by one; those that are supervised end with the end of text."""
    tokens: list[int] = []
    labels: list[int] = []
    for text, is_supervised in spans:
        ids = encoded(tokenizer, text)
        ids += [tokenizer.eos_token_id] if is_supervised and end else []
        tokens += ids
        labels += ids if is_supervised else [IGNORE] * len(ids)
    return Example(0, torch.tensor(tokens), torch.tensor(labels), 1)


def rows_between(source: Any, target: Any, *spans: tuple[str, bool]) -> list[int]:
    both = [source, target]
    examples = [example(tokenizer, *spans) for tokenizer in both]
    pieces = [Pieces.of(tokenizer) for tokenizer in both]
    rows: list[int] = align([examples[0]], [examples[1]], *pieces).rows.tolist()
    return rows


def vocabularies(source: Any, target: Any) -> Vocabularies:
    return Vocabularies(Pieces.of(source), Pieces.of(target), len(source), len(target))


def drawn(num_rows: int, num_classes: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(num_rows, num_classes, generator=draw, dtype=torch.float64)
    return logits.log_softmax(-1)


# Pieces


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("text", [*CORPUS, "  two  spaces ", "a"])
def test_pieces_of_a_text_are_its_bytes(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]()
    pieces = Pieces.of(tokenizer)
    assert pieces.keeps_spaces
    assert pieces.keeps_case
    found = "".join(str(pieces.pieces[token]) for token in encoded(tokenizer, text))
    wanted = f" {text}" if name == "sentencepiece" else text
    assert found.encode("latin-1") == wanted.encode()


@pytest.mark.parametrize("name", ["words", "wordpiece"])
@pytest.mark.parametrize("text", CORPUS[:3])
def test_words_begin_with_a_space_and_continuations_do_not(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]()
    pieces = Pieces.of(tokenizer)
    assert not pieces.keeps_spaces
    assert pieces.keeps_case == (name == "words")
    found = "".join(str(pieces.pieces[token]) for token in encoded(tokenizer, text))
    assert found.encode("latin-1") == f" {text}".lower().encode()


def test_special_tokens_are_told_by_their_role_not_their_name() -> None:
    found = vocabularies(byte_level(), sentencepiece()).map().index
    assert int(found[byte_level().eos_token_id]) == sentencepiece().eos_token_id
    back = vocabularies(sentencepiece(), byte_level()).map()
    assert int(back.index[sentencepiece().eos_token_id]) == byte_level().eos_token_id
    assert int(back.index[sentencepiece().unk_token_id]) == -1  # no token is unknown to bytes
    assert back.account.role == 1


def test_the_vocabulary_tells_what_a_tokenizer_in_python_is_made_of() -> None:
    def read(*tokens: str) -> list[str | None]:
        stub = SimpleNamespace(get_vocab=lambda: listed(tokens, ()), eos_token_id=None)
        return list(Pieces.of(stub).pieces)

    assert read("Ġa", "b", "Ċ", "Ã©") == [" a", "b", "\n", "\xc3\xa9"]
    assert read("▁a", "b", "<0x0A>") == [" a", "b", "\n"]
    assert read("a", "##b", ".") == [" a", "b", "."]
    assert read("a", "b", " ") == ["a", "b", " "]


def test_marks_at_the_end_of_words_are_refused() -> None:
    raw = Tokenizer(models.BPE({"a</w>": 0}, [], end_of_word_suffix="</w>"))
    with pytest.raises(UserError, match="mark the ends of words"):
        Pieces.of(PreTrainedTokenizerFast(tokenizer_object=raw))


# Identity


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_same_tokenizer_changes_nothing(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    same = vocabularies(tokenizer, tokenizer)
    vocabulary = same.map()
    size = len(tokenizer)
    assert vocabulary.index.tolist() == list(range(size))
    assert vocabulary.account.exact + vocabulary.account.role == size
    assert vocabulary is same.map()
    text = CORPUS[1]
    rows = rows_between(tokenizer, tokenizer, ("a", False), (text, True))
    assert rows == list(range(len(encoded(tokenizer, text)) + 1))
    log_probs = drawn(5, size)
    found, lost = translate(log_probs, vocabulary)
    assert torch.equal(found, log_probs)
    assert torch.equal(lost, torch.zeros(5, dtype=torch.float64))


def test_a_permutation_is_translated_exactly_and_by_id_it_would_not_be() -> None:
    def made(order: list[str]) -> PreTrainedTokenizerFast:
        raw = Tokenizer(models.WordLevel(listed(order, ()), unk_token="<unk>"))
        raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        raw.decoder = decoders.Fuse()
        return wrapped(raw)

    order = [*LETTERS, *SPECIAL.values()]
    other = [order[place] for place in torch.randperm(len(order)).tolist()]
    pair = vocabularies(made(order), made(other))
    log_probs = drawn(4, len(order))
    wanted = torch.stack([log_probs[:, order.index(token)] for token in other], 1)
    found, _ = translate(log_probs, pair.map())
    assert torch.equal(found, wanted)
    back, _ = translate(found, vocabularies(made(other), made(order)).map())
    assert torch.equal(back, log_probs)
    by_id = VocabularyMap(torch.arange(len(order)), pair.map().free, len(order), pair.map().account)
    assert not torch.allclose(translate(log_probs, by_id)[0], wanted, atol=0.1)


# Vocabularies


def pieces_of(texts: Iterable[str]) -> Pieces:
    listed_texts = tuple(texts)
    return Pieces(listed_texts, tuple(text.encode().decode("latin-1") for text in listed_texts))


def test_the_opening_is_what_is_written_first() -> None:
    target = [" token", "ization", " to", "k", " dog", "x"]
    source = [" tokenization", " tokenx", " tokens", " dogk", " cat", "xx"]
    pair = Vocabularies(pieces_of(source), pieces_of(target), 6, 6)
    assert pair.map().index.tolist() == [0, 0, -1, 4, -1, 5]
    # In a vocabulary of letters, it is the first letter.
    index = vocabularies(words(), chars()).map(-1).index
    for word, token in words().get_vocab().items():
        if word not in SPECIAL.values():
            assert chars().convert_ids_to_tokens(int(index[token])) == word[0]


def test_pieces_are_looked_up_as_the_target_spells_them() -> None:
    cases = {" Dog": " dog", " (": "(", " DOGMA": " dog", " houses": " house"}
    target = replace(
        pieces_of([" dog", "(", " house", "ma", "s"]), keeps_spaces=False, keeps_case=False
    )
    found = Vocabularies(pieces_of(cases), target, 4, 5).map()
    assert [target.tokens[place] for place in found.index.tolist()] == [*cases.values()]
    assert (found.account.exact, found.account.similar) == (2, 2)


def test_letters_are_preferred_to_bytes_of_the_same_text() -> None:
    found = vocabularies(byte_level(), sentencepiece()).map().index
    letter = byte_level().convert_tokens_to_ids("a")
    assert sentencepiece().convert_ids_to_tokens(int(found[letter])) == "a"
    space = byte_level().convert_tokens_to_ids("Ġ")
    assert sentencepiece().convert_ids_to_tokens(int(found[space])) == "▁"
    newline = byte_level().convert_tokens_to_ids("Ċ")
    assert sentencepiece().convert_ids_to_tokens(int(found[newline])) == "<0x0A>"


# Sequences


def borders(tokenizer: Any, text: str) -> list[int]:
    """Where each token of a text begins, by the tokenizer's own account, and where the text ends."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return [begin for begin, _ in offsets["offset_mapping"]] + [len(text)]


SENTENCES = st.lists(
    st.sampled_from(
        ["the", "cat", "unhappy", "happily", "walking", "running", "onon", "a", "dogs"]
    ),
    min_size=1,
    max_size=8,
).map(" ".join)


@settings(max_examples=40, deadline=None)
@given(
    SENTENCES, st.sampled_from(list(itertools.permutations(["chars", "unigram", "byte_level"], 2)))
)
def test_rows_meet_where_tokens_end_together(text: str, names: tuple[str, str]) -> None:
    source, target = (TOKENIZERS[name]() for name in names)
    left, right = borders(source, text), borders(target, text)
    wanted = [left.index(border) if border in left else -1 for border in right]
    assert rows_between(source, target, ("a", False), (text, True)) == wanted
    assert wanted[0] == 0
    assert wanted[-1] == len(left) - 1


def test_some_rows_have_no_partner() -> None:
    rows = rows_between(unigram(), chars(), ("a", False), (CORPUS[0], True))
    assert -1 in rows
    # Were rows paired in proportion, as costs alone may pair them, others would be found.
    last = len(rows_between(chars(), unigram(), ("a", False), (CORPUS[0], True))) - 1
    evenly = [round(row * last / (len(rows) - 1)) for row in range(len(rows))]
    assert any(row not in (-1, even) for row, even in zip(rows, evenly, strict=True))


def test_a_space_that_one_tokenizer_puts_in_front_is_no_difference() -> None:
    text = "the happy cats"
    examples = [example(t, ("a", False), (text, True)) for t in (sentencepiece(), byte_level())]
    pieces = [Pieces.of(t) for t in (sentencepiece(), byte_level())]
    there = align(examples[:1], examples[1:], *pieces)
    back = align(examples[1:], examples[:1], pieces[1], pieces[0])
    assert there.rows[0] == back.rows[0] == 0
    assert there.spaces.tolist() == [-1] + [0] * (len(there.rows) - 1)
    assert back.spaces.tolist() == [1] + [0] * (len(back.rows) - 1)
    # So the first row is translated to words without the space, and only the first.
    pair = vocabularies(sentencepiece(), byte_level())
    assert "the" in byte_level().get_vocab()
    token = sentencepiece().convert_tokens_to_ids("▁the")
    spelled = [byte_level().convert_ids_to_tokens(int(pair.map(s).index[token])) for s in (-1, 0)]
    assert spelled == ["the", "Ġthe"]


def test_spaces_and_case_that_are_not_kept_do_not_count() -> None:
    text = "The  cat, sat"
    source, target = byte_level(), wordpiece()
    found = rows_between(source, target, ("a", False), (text, True))
    small = text.replace(" ", "").lower()
    left = borders(source, text)
    place = {len(text[:border].replace(" ", "")): row for row, border in enumerate(left)}
    right = [len(text[:border].replace(" ", "")) for border in borders(target, text)]
    assert right[-1] == len(small)
    assert found == [place.get(border, -1) for border in right]
    assert sum(row >= 0 for row in found) >= 4


def chat(tokenizer: Any, prompt: str, end: bool = True) -> Example:
    spans = [(prompt, False), ("the cat", True), ("a dog" + prompt, False), ("sat on", True)]
    return example(tokenizer, *spans, end=end)


def test_turns_are_aligned_one_by_one_whatever_stands_between() -> None:
    source, target = chat(chars(), "the mat "), chat(unigram(), "walking on ")
    pieces = Pieces.of(chars()), Pieces.of(unigram())
    found = align([source], [target], *pieces).rows.tolist()
    left = [borders(chars(), text) for text in ("the cat", "sat on")]
    right = [borders(unigram(), text) for text in ("the cat", "sat on")]
    wanted = [left[0].index(b) if b in left[0] else -1 for b in right[0]]
    second = [left[1].index(b) if b in left[1] else -1 for b in right[1]]
    wanted += [row if row < 0 else row + len(left[0]) for row in second]
    assert found == wanted
    # Cut anywhere, what is left is aligned as it was.
    for length in range(len(source.labels)):
        cut = Example(0, source.input_ids[:length], source.labels[:length], 1)
        num_rows = int((cut.labels[1:] != IGNORE).sum())
        kept = align([cut], [target], *pieces).rows.tolist()
        ends = [row if row < num_rows else -1 for row in wanted]
        assert kept == ends


def test_after_a_difference_nothing_is_aligned() -> None:
    pieces = Pieces.of(chars())
    one = example(chars(), ("a", False), ("the cat", True), end=False)
    other = example(chars(), ("a", False), ("the mat", True), end=False)
    found = align([one], [other], pieces, pieces).rows.tolist()
    assert found == [0, 1, 2, 3, 4, -1, -1]
    foreign = example(chars(), ("a", False), ("sat on", True), end=False)
    assert align([one], [foreign], pieces, pieces).rows.tolist() == [-1] * 6
    # There, the next tokens tell nothing of how a space is spelled.
    spaced = example(chars(), ("a", False), ("the at", True), end=False)
    parted = example(chars(), ("a", False), ("theat", True), end=False)
    found_parted = align([spaced], [parted], pieces, pieces)
    assert found_parted.rows.tolist() == [0, 1, 2, 3, -1]
    assert found_parted.spaces.tolist() == [0] * 5
    unknown = example(chars(), ("a", False), ("theQcat", True), end=False)
    assert align([unknown], [unknown], pieces, pieces).rows.tolist() == [0, 1, 2, 3] + [-1] * 3


def test_rows_are_counted_as_the_task_counts_them() -> None:
    task, pieces = CausalLM(), (Pieces.of(chars()), Pieces.of(byte_level()))
    rows = [{"prompt": line[:9], "completion": line[9:]} for line in CORPUS[:3]]
    data = Dataset.from_list(rows)
    for length in (8, 12, 200):
        source, target = (task.tokenize(data, t, length) for t in (chars(), byte_level()))
        found = align(source, target, *pieces)
        counts = [sum(task.num_targets(e) for e in examples) for examples in (source, target)]
        assert len(found.rows) == counts[1]
        assert int(found.rows.max()) < counts[0]
        starts = [0, *itertools.accumulate(task.num_targets(e) for e in target)][:-1]
        assert bool(found.present[starts].all())  # every response begins in both
    assert str(found) == f"{int(found.present.sum())} of {counts[1]} predictions aligned"


def test_rows_of_examples_stand_one_after_the_other() -> None:
    both = [
        [example(t, ("a", False), (line, True)) for line in CORPUS] for t in (chars(), unigram())
    ]
    pieces = Pieces.of(chars()), Pieces.of(unigram())
    found = align(both[0], both[1], *pieces).rows.tolist()
    wanted, start = [], 0
    for one, other in zip(*both, strict=True):
        rows = align([one], [other], *pieces).rows
        wanted += [row + start if row >= 0 else -1 for row in rows.tolist()]
        start += CausalLM().num_targets(one)
    assert found == wanted
    assert max(found) == start - 1


def test_nothing_predicts_the_very_first_token() -> None:
    one = example(chars(), ("the cat", True))
    other = example(chars(), ("a", False), ("the cat", True))
    pieces = Pieces.of(chars())
    assert align([one], [one], pieces, pieces).rows.tolist() == list(range(7))
    assert align([one], [other], pieces, pieces).rows.tolist() == [-1, *range(7)]
    assert align([other], [one], pieces, pieces).rows.tolist() == list(range(1, 8))


# Labels


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.randoms(use_true_random=False), st.booleans())
def test_translation_is_a_product_with_a_matrix(
    num_sources: int, num_targets: int, random: Any, is_wide: bool
) -> None:
    index = torch.tensor([random.randint(-1, num_targets - 1) for _ in range(num_sources)])
    free = torch.tensor([t for t in range(num_targets) if t not in index.tolist()])
    free = free if len(free) else torch.arange(num_targets)
    account = vocabularies(chars(), chars()).map().account
    vocabulary = VocabularyMap(index, free, num_targets, account)
    log_probs = drawn(3, num_sources, random.randint(0, 99), 20.0 if is_wide else 2.0)
    matrix = torch.zeros(num_sources, num_targets, dtype=torch.float64)
    for source, target in enumerate(index.tolist()):
        if target < 0:
            matrix[source, free] = 1 / len(free)
        else:
            matrix[source, target] = 1
    found, lost = translate(log_probs, vocabulary)
    wanted = log_probs.exp() @ matrix
    torch.testing.assert_close(found.exp(), wanted, atol=1e-14, rtol=1e-12)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(lost, log_probs.exp()[:, index < 0].sum(-1))
    single, _ = translate(log_probs.float(), vocabulary)
    torch.testing.assert_close(single.exp().double(), wanted, atol=1e-6, rtol=1e-5)


def test_small_masses_are_added_and_not_lost() -> None:
    account = vocabularies(chars(), chars()).map().account
    vocabulary = VocabularyMap(torch.tensor([0, 1, 1, 1]), torch.tensor([2]), 3, account)
    log_probs = torch.tensor([[0.0, -70.0, -71.0, float("-inf")]])
    found, _ = translate(log_probs, vocabulary)
    assert float(found[0, 1]) == pytest.approx(-70 + torch.tensor([0.0, -1.0]).logsumexp(0).item())
    assert found[0].tolist()[::2] == [0.0, LEAST]


def written_labels(log_probs: Tensor) -> SoftLabels:
    writer = Writer(FullRows(), len(log_probs), log_probs.shape[1], 0)
    writer.add(log_probs)
    return writer.done()


def test_labels_are_translated_row_by_row_however_many_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = vocabularies(sentencepiece(), byte_level())
    log_probs = drawn(6, len(sentencepiece())).float()
    rows = torch.tensor([2, -1, 0, 5, 5, -1, 3])
    spaces = torch.tensor([-1, 0, 0, 1, 0, 0, 0], dtype=torch.int8)
    found = []
    for chunk in (2**22, 2500, 1):
        monkeypatch.setattr(soft_labels, "CHUNK", chunk)
        writer = Writer(FullRows(), 7, len(byte_level()), 0)
        labels = written_labels(log_probs)
        found.append(translate_labels(labels, Alignment(rows, spaces), pair, writer))
    for one in found:
        assert torch.equal(one.labels.records, found[0].labels.records)
        assert torch.equal(one.lost, found[0].lost)
    assert found[0].present.tolist() == [row >= 0 for row in rows.tolist()]
    taken = found[0].labels.take(slice(None))
    for place, (row, space) in enumerate(zip(rows.tolist(), spaces.tolist(), strict=True)):
        if row < 0:
            torch.testing.assert_close(taken[place].exp(), torch.full_like(taken[place], 1 / 330))
            assert float(found[0].lost[place]) == 0
        else:
            wanted, lost = translate(log_probs[row : row + 1], pair.map(space))
            torch.testing.assert_close(taken[place], wanted[0])
            assert float(found[0].lost[place]) == pytest.approx(float(lost[0]), rel=1e-5)
    assert "5 of 7 predictions aligned" in str(found[0])


def test_labels_may_be_encoded_on_both_sides() -> None:
    pair = vocabularies(byte_level(), byte_level())
    log_probs = drawn(3, 330)
    codec = TopClasses(k=8, values="float32")
    writer = Writer(codec, 3, 330, 0)
    writer.add(log_probs)
    again = Alignment(torch.arange(3), torch.zeros(3, dtype=torch.int8))
    labels = writer.done()
    found = translate_labels(labels, again, pair, Writer(codec, 3, 330, 1)).labels
    assert torch.equal(found.named(slice(None)), labels.named(slice(None)))  # type: ignore[arg-type]
    torch.testing.assert_close(found.take(slice(None)), labels.take(slice(None)))


# Real vocabularies


@pytest.mark.shared_data("data/gpt2_tokenizer")
def test_gpt2_contains_what_a_small_tokenizer_of_bytes_says() -> None:
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "gpt2_tokenizer"
    raw = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    gpt2 = wrapped(raw, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    there, back = vocabularies(byte_level(), gpt2).map(), vocabularies(gpt2, byte_level()).map()
    own, other = byte_level().get_vocab(), gpt2.get_vocab()
    shared = own.keys() & other.keys()
    assert there.account.exact == back.account.exact == len(shared)
    assert all(int(there.index[own[token]]) == other[token] for token in shared)
    rows = rows_between(gpt2, byte_level(), ("a", False), (CORPUS[1], True))
    left, right = borders(gpt2, CORPUS[1]), borders(byte_level(), CORPUS[1])
    assert rows == [left.index(b) if b in left else -1 for b in right]
