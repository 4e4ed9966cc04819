"""Text is text: what stands in a file comes out as it is, or the file is refused with the row."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from trillium.data.sources import RawData
from trillium.data.sources.files import Files
from trillium.data.sources.hub import Hub
from trillium.errors import UserError

GUESSED: tuple[str, ...] = (
    "001",
    "1.50",
    "true",
    "1e5",
    "+49123",
    "10:30",
    "12345678901234567890",
    "NA",
    "null",
    "nan",
)
GUESSED += ("2020-01-01", "2020-01-01T00:00:00", "0x1F", "-0", "1_000", "None", " padded ", "١٢")


def load(path: Path, task: str = "classification", **options: Any) -> RawData:
    return Files(train=path, **options).load(task, 0)


def csv_text(columns: dict[str, list[str]], **dialect: Any) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out, **dialect)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return out.getvalue()


def test_a_csv_is_never_guessed_from(tmp_path: Path) -> None:
    columns = {"text": list(GUESSED), "label": [f"class {g}" for g in GUESSED]}
    (tmp_path / "a.csv").write_text(csv_text(columns), encoding="utf-8")
    raw = load(tmp_path / "a.csv")
    assert list(raw.train["text"]) == list(GUESSED)
    assert [raw.labels[i] for i in raw.train["label"]] == columns["label"]


def test_a_class_of_one_file_is_not_that_of_another(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,01\nb,2\n")
    (tmp_path / "b.csv").write_text("text,label\nc,1\n")
    assert load(tmp_path / "a.csv").labels == ("01", "2")
    with pytest.raises(UserError, match="no row of class 1; it has 01, 2"):
        load(tmp_path / "a.csv", test=tmp_path / "b.csv")


def test_whole_numbers_and_booleans_are_classes(tmp_path: Path) -> None:
    lines = [{"text": "a", "label": value} for value in (10, 2, True, "x", "2", -1)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert load(tmp_path / "a.jsonl").labels == ("-1", "10", "2", "true", "x")
    (tmp_path / "b.csv").write_text("text,label\na,true\nb,10\nc,2\n")
    assert load(tmp_path / "a.jsonl", test=tmp_path / "b.csv").test is not None
    (tmp_path / "c.csv").write_text("text,label\na,10\nb,9\nc,-1\n")
    assert load(tmp_path / "c.csv").labels == ("-1", "9", "10")


NO_TEXTS: tuple[Any, ...] = (7, 1.5, True, b"caf\xe9", {"a": 1}, ["a"])


@pytest.mark.parametrize("value", NO_TEXTS, ids=repr)
def test_what_is_no_text_is_refused_with_row_and_value(value: Any, tmp_path: Path) -> None:
    rows = Dataset.from_dict({"text": [value], "label": ["x"]})
    rows.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"text: text, row 1 of a\.parquet, which holds") as found:
        load(tmp_path / "a.parquet")
    assert repr(value)[:20] in found.value.given
    assert repr(value) not in found.value.why  # which may be said elsewhere


def test_a_template_takes_texts_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"age": 7, "completion": "x"}\n')
    with pytest.raises(UserError, match=r"prompt: age, row 1 of a\.jsonl, which holds 7"):
        load(tmp_path / "a.jsonl", "causal_lm", prompt="{age} years")


@pytest.mark.parametrize("value", [1.0, 0.5, {"a": 1}, ["x"], b"x"], ids=repr)
def test_what_is_no_class_is_refused_with_row_and_value(value: Any, tmp_path: Path) -> None:
    Dataset.from_dict({"text": ["a"], "label": [value]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"label: label, row 1 of a\.parquet, which holds"):
        load(tmp_path / "a.parquet")


def test_half_a_surrogate_pair_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"text": "a", "label": "x"}\n{"text": "\\ud800", "label": "y"}\n'
    )
    with pytest.raises(UserError, match=r"row 2 of a\.jsonl.*half of a surrogate pair"):
        load(tmp_path / "a.jsonl")


LATIN = "text,label\ncafé crème,x\nnaïve,y\n"
ENCODINGS = {
    "latin-1": LATIN,
    "cp1252": "text,label\n“café”,x\nb,y\n",
    "utf-16": LATIN,
    "utf-16-le": LATIN,
    "utf-32": LATIN,
    "cp1251": "text,label\nПривет мир,x\nхорошо спасибо,y\n",
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json"])
def test_another_encoding_is_named_or_read_if_it_is(
    encoding: str, suffix: str, tmp_path: Path
) -> None:
    rows = list(csv.DictReader(io.StringIO(ENCODINGS[encoding])))
    content = {
        "csv": ENCODINGS[encoding],
        "jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        "json": json.dumps(rows, ensure_ascii=False),
    }[suffix]
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content.encode(encoding))
    with pytest.raises(UserError, match=f"not UTF-8, but probably {encoding}"):
        load(path)
    assert list(load(path, encoding=encoding).train["text"]) == [row["text"] for row in rows]


def test_a_wrong_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(LATIN, encoding="latin-1")
    with pytest.raises(UserError, match="it is in another encoding"):
        load(tmp_path / "a.csv", encoding="ascii")
    with pytest.raises(ValueError, match="there is no such encoding"):
        Files(train=tmp_path / "a.csv", encoding="latin-99")
    Dataset.from_dict({"text": ["a"], "label": ["x"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="other formats name their encoding themselves"):
        load(tmp_path / "a.parquet", encoding="latin-1")


def test_utf_8_with_a_wrong_byte_is_called_so(tmp_path: Path) -> None:
    """To read it as latin-1 would spoil all that is right."""
    (tmp_path / "a.csv").write_bytes("text,label\ncafé crème,x\nnaïve ".encode() + b"\xe9,y\n")
    with pytest.raises(UserError, match="line 3: it is UTF-8 but for 1 bytes"):
        load(tmp_path / "a.csv")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("csv", "text,label\né,x\n"),
        ("jsonl", '{"text": "é", "label": "x"}\n'),
        ("json", '[{"text": "é", "label": "x"}]'),
    ],
)
def test_a_byte_order_mark_and_gzip_are_read(
    suffix: str, content: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / (f"a.{suffix}.gz" if pack is gzip.compress else f"a.{suffix}")
    path.write_bytes(pack(content.encode("utf-8-sig")))
    assert list(load(path).train["text"]) == ["é"]


def test_a_csv_of_a_hub_folder_is_text_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "train.csv").write_text("text,label\n001,NA\n1.50,true\n2,NA\n")
    (folder / "test.csv").write_text("text,label\n7,NA\n")
    raw = Hub(path=str(folder), train_split="train[:2]").load("classification", 0)
    assert list(raw.train["text"]) == ["001", "1.50"]
    assert raw.labels == ("NA", "true")
    assert raw.test is not None
    assert list(raw.test["text"]) == ["7"]


def test_a_csv_that_the_library_alone_can_unpack_is_text_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "hub").mkdir()
    packed = lzma.compress(b"text,label\n001,NA\n1.50,true\n")
    (tmp_path / "hub" / "train.csv.xz").write_bytes(packed)
    raw = Hub(path=str(tmp_path / "hub"), test_split=None).load("classification", 0)
    assert list(raw.train["text"]) == ["001", "1.50"]
    assert raw.labels == ("NA", "true")


TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text.strip()),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(texts=TEXTS, separator=st.sampled_from(",;\t|"))
def test_any_text_survives_a_csv(texts: list[str], separator: str, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    text = csv_text({"text": texts, "label": texts}, delimiter=separator)
    path.write_bytes(text.encode())
    raw = load(path)
    assert list(raw.train["text"]) == texts
    assert [raw.labels[i] for i in raw.train["label"]] == texts


@settings(max_examples=60, deadline=None)
@given(
    texts=TEXTS, form=st.sampled_from(["jsonl", "json", "parquet", "jsonl.gz"]), ascii=st.booleans()
)
def test_any_text_survives_the_other_formats(
    texts: list[str], form: str, ascii: bool, tmp_path_factory: Any
) -> None:
    path = tmp_path_factory.mktemp("texts") / f"a.{form}"
    rows = [{"text": text, "label": text} for text in texts]
    lines = "".join(json.dumps(row, ensure_ascii=ascii) + "\n" for row in rows).encode()
    match form:
        case "parquet":
            Dataset.from_list(rows).to_parquet(path)
        case "json":
            path.write_text(json.dumps(rows, ensure_ascii=ascii), encoding="utf-8")
        case _:
            path.write_bytes(gzip.compress(lines) if form.endswith("gz") else lines)
    raw = load(path)
    assert list(raw.train["text"]) == texts
    assert [raw.labels[i] for i in raw.train["label"]] == texts
