"""Words with tags: how rows say them, which tokens bear them, and entities against seqeval's own."""

from __future__ import annotations

import json
import pickle
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from seqeval.metrics import classification_report
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from trillium.data.sources import RawData
from trillium.data.sources.files import Files
from trillium.data.sources.hub import Hub
from trillium.errors import UserError
from trillium.tasks import IGNORE, Example
from trillium.tasks.token_classification import (
    UNKNOWN,
    TokenClassification,
    entities,
    entity_counts,
    entity_scores,
)

NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TASK = TokenClassification()


def pieces() -> Any:
    """Return a tokenizer of WordPiece, whose tokens are at most two letters long."""
    letters = "abcdefghijklmnopqrstuvwxyzAO.,"
    parts = [*letters, *(a + b for a in letters for b in letters)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *parts, *(f"##{part}" for part in parts)]
    raw = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]")


def load(path: Path, *rows: dict[str, Any], **options: Any) -> RawData:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Files(train=path, **options).load("token_classification", 0)


def tags(raw: RawData) -> list[list[str]]:
    return [[raw.labels[n] for n in own] for own in raw.train["label"]]


def words(raw: RawData) -> list[list[str]]:
    rows = zip(raw.train["text"], raw.train["words"], strict=True)
    return [[text[start:end] for start, end in own] for text, own in rows]


def test_lists_of_words_are_texts_with_places(tmp_path: Path) -> None:
    row = {
        "tokens": ["Anna", "lives", "in", "Oslo", "."],
        "label": ["B-PER", "O", "O", "B-LOC", "O"],
    }
    raw = load(tmp_path / "a.jsonl", row)
    assert raw.train["text"][0] == "Anna lives in Oslo ."
    assert words(raw) == [row["tokens"]]
    assert tags(raw) == [row["label"]]
    assert set(raw.labels) == {*row["label"], "I-PER", "I-LOC"}, "entities may be longer elsewhere"


def test_lists_in_a_table_of_texts_are_json(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('tokens,ner\n"[""a"", ""b""]","[""O"", ""x""]"\n')
    raw = Files(train=path, label="ner").load("token_classification", 0)
    assert (words(raw), tags(raw)) == ([["a", "b"]], [["O", "x"]])


def test_a_data_set_names_its_tags_in_order(tmp_path: Path) -> None:
    features = Features(
        {"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=list(NAMES)))}
    )
    rows = Dataset.from_dict({"tokens": [["a", "b"]], "ner_tags": [[3, 0]]}, features=features)
    DatasetDict({"train": rows}).save_to_disk(tmp_path / "hub")
    source = Hub(path=str(tmp_path / "hub"), test_split=None, label="ner_tags")
    raw = source.load("token_classification", 0)
    assert raw.labels == NAMES
    assert list(raw.train["label"]) == [[3, 0]]


def test_spans_cut_words_and_begin_entities(tmp_path: Path) -> None:
    text = "Dr.Anna Lee, of Oslo-Nord"
    spans = [
        {"start": 16, "end": 20, "label": "LOC"},
        {"start": 3, "end": 11, "label": "PER"},
    ]
    raw = load(
        tmp_path / "a.jsonl", {"text": text, "spans": spans}, {"text": "no one", "spans": []}
    )
    assert words(raw)[0] == ["Dr", ".", "Anna", "Lee", ",", "of", "Oslo", "-", "Nord"]
    expected = ["O", "O", "B-PER", "I-PER", "O", "O", "B-LOC", "O", "O"]
    assert tags(raw) == [expected, ["O", "O"]]
    assert raw.labels == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    inside = load(
        tmp_path / "b.jsonl",
        {"text": "unbelievable", "spans": [{"start": 2, "end": 9, "label": "X"}]},
    )
    assert words(inside) == [["un", "believa", "ble"]]
    assert tags(inside) == [["O", "B-X", "O"]]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"tokens": ["a", "b"], "label": ["O"]}, "1 tags for 2 words"),
        ({"tokens": ["a", " "], "label": ["O", "O"]}, "each word is a text"),
        ({"tokens": ["a", 1], "label": ["O", "O"]}, "each word is a text"),
        ({"tokens": "a b", "label": ["O", "O"]}, "a list is wanted"),
        ({"tokens": ["a"], "label": "O"}, "a list is wanted"),
        ({"tokens": ["a"]}, "no such column"),
        ({"text": "a b"}, "no such column"),
        ({"text": "ab", "spans": [{"start": 0, "end": 3, "label": "X"}]}, "characters of the text"),
        ({"text": "ab", "spans": [{"start": 1, "end": 1, "label": "X"}]}, "characters of the text"),
        ({"text": "ab", "spans": [[0, 1, "X"]]}, "characters of the text"),
        (
            {"text": "ab", "spans": [{"start": 0, "end": 2, "label": "X"}] * 2},
            "two of its spans overlap",
        ),
    ],
)
def test_rows_without_tags_are_refused(row: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=why):
        load(tmp_path / "a.jsonl", row)


def example(text: str, marked: list[str], labels: list[int], most: int | None = None) -> Example:
    places, at = [], 0
    for word in marked:
        at = text.index(word, at)
        places.append([at, at + len(word)])
        at += len(word)
    rows = Dataset.from_dict({"text": [text], "words": [places], "label": [labels]})
    (found,) = TASK.tokenize(rows, pieces(), most)
    return found


def test_the_first_token_of_a_word_bears_its_tag() -> None:
    found = example("Anna lives in Oslo.", ["Anna", "lives", "in", "Oslo", "."], [1, 0, 0, 3, 0])
    told = pieces().convert_ids_to_tokens(found.input_ids.tolist())
    assert told == ["An", "##na", "li", "##ve", "##s", "in", "Os", "##lo", "."]
    wanted = [1, IGNORE, 0, IGNORE, IGNORE, 0, 3, IGNORE, 0]
    assert found.labels.tolist() == wanted
    assert TASK.num_targets(found) == 5
    cut = example("Anna lives in Oslo.", ["Anna", "lives", "in", "Oslo", "."], [1, 0, 0, 3, 0], 4)
    assert cut.labels.tolist() == wanted[:4]
    assert cut.words == ((0, 4), (5, 10))
    hidden = TASK.unlabelled(found)
    assert hidden.labels.tolist() == [n if n == IGNORE else UNKNOWN for n in wanted]
    rows, targets = TASK.select(torch.zeros(1, 9, 5), hidden.labels[None])
    assert rows.shape == (5, 5)
    assert (targets == IGNORE).all()
    assert TASK.loss(torch.zeros(1, 9, 5), hidden.labels[None])[1] == 0


def test_an_example_travels_whole() -> None:
    worse = example("so", ["so"], [0])
    found = replace(example("An ox", ["An", "ox"], [1, 0]), prompt_tokens=1, rejected=worse)
    again = pickle.loads(pickle.dumps(found))
    for field in fields(Example):
        kept, sent = getattr(again, field.name), getattr(found, field.name)
        if isinstance(sent, Tensor):
            assert torch.equal(kept, sent)
        elif isinstance(sent, Example):
            assert kept.words == sent.words
            assert torch.equal(kept.labels, sent.labels)
        else:
            assert kept == sent


def test_raw_text_is_read_in_words_and_marks() -> None:
    (found,) = TASK.tokenize(Dataset.from_dict({"text": ["Anna, Oslo."]}), pieces(), None)
    assert found.words == ((0, 4), (4, 5), (6, 10), (10, 11))
    assert TASK.num_targets(found) == 4


def test_a_slow_tokenizer_is_refused() -> None:
    rows = Dataset.from_dict({"text": ["a"]})
    with pytest.raises(UserError, match="where in a text its tokens are"):
        TASK.tokenize(rows, SimpleNamespace(is_fast=False), None)


class ByToken(nn.Module):
    """Answers each token with fixed tags."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(2)
        self.table = nn.Parameter(torch.randn(2000, len(NAMES), generator=draw))
        self.config = SimpleNamespace(id2label=dict(enumerate(NAMES)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return SimpleNamespace(logits=self.table[input_ids])


@pytest.mark.parametrize("most", [8, 512])
def test_entities_are_scored_as_by_seqeval(most: int) -> None:
    texts = ["Anna lives in Oslo", "no one", "Oslo Anna Oslo", "an ox in An Oslo or so"]
    rows = [
        example(text, text.split(), [(7 * n) % 5 for n, _ in enumerate(text.split())])
        for text in texts
    ]
    found = TASK.evaluate(ByToken(), rows, pieces(), most)
    said, meant, losses = [], [], []
    for row in rows:
        counted = row.labels != IGNORE
        logits = ByToken().table[row.input_ids][counted].detach()
        said.append([NAMES[n] for n in logits.argmax(-1).tolist()])
        meant.append([NAMES[n] for n in row.labels[counted].tolist()])
        losses += nn.functional.cross_entropy(
            logits, row.labels[counted], reduction="none"
        ).tolist()
    report = classification_report(meant, said, output_dict=True, zero_division=0)["micro avg"]
    for name, of in (("f1", "f1-score"), ("precision", "precision"), ("recall", "recall")):
        assert found[f"entity_{name}"] == pytest.approx(report[of])
    hits = sum(a == b for x, y in zip(said, meant, strict=True) for a, b in zip(x, y, strict=True))
    assert found["token_accuracy"] == pytest.approx(hits / len(losses))
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_tags_without_a_prefix_go_on_as_long_as_they_are_the_same() -> None:
    assert entities(["PER", "PER", "O", "LOC", "PER"]) == [
        ("PER", 0, 1),
        ("LOC", 3, 3),
        ("PER", 4, 4),
    ]
    pairs = [(["B-X", "I-X", "O"], ["B-X", "O", "O"]), (["B-Y"], ["B-Y"])]
    counts = [entity_counts(said, meant) for said, meant in pairs]
    half = entity_scores(*map(sum, zip(*counts, strict=True)))
    assert half == {"entity_f1": 0.5, "entity_precision": 0.5, "entity_recall": 0.5}


def test_entities_have_their_places_in_the_text() -> None:
    text = "Anna lives in Oslo"
    row = example(text, text.split(), [0, 0, 0, 0])
    logits = torch.full((16, 5), -9.0)  # with padding behind
    for place, tag in zip(
        (row.labels != IGNORE).nonzero()[:, 0].tolist(), (1, 2, 0, 3), strict=True
    ):
        logits[place, tag] = 9.0
    found = TASK.said(logits, row, NAMES, text)["entities"]
    kinds = [(e["label"], e["text"], e["start"], e["end"]) for e in found]
    assert kinds == [("PER", "Anna lives", 0, 10), ("LOC", "Oslo", 14, 18)]
    assert all(e["score"] > 0.99 for e in found)
