"""Tables as they are: only named columns are read, and what cannot be is refused in three parts."""

from __future__ import annotations

import datetime
import decimal
import gzip
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from chatty import STRICT, byte_level
from trillium.config.given import asked
from trillium.data.deployed import read_rows
from trillium.data.load import row_keys
from trillium.data.sources import RawData
from trillium.data.sources.files import Files
from trillium.data.sources.hub import Hub
from trillium.errors import UserError, shareable
from trillium.tasks.causal_lm import CausalLM

GOOD = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]


def load(path: Path, task: str = "classification", **options: Any) -> RawData:
    return Files(train=path, **options).load(task, 0)


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_a_first_row_may_lack_a_key(suffix: str, tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"text": "b", "label": "x", "more": 1}]
    path = tmp_path / f"a.{suffix}"
    path.write_text(json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match="1 of 2 rows have no value, the first is row 1"):
        load(path)
    assert len(load(path, "causal_lm", prompt="", completion="text").train) == 2


def test_two_columns_of_one_name_are_refused_where_they_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label,label,id,id\na,x,y,1,2\nb,y,y,1,2\n")
    with pytest.raises(UserError, match=r"label: label in a\.csv: more than one column"):
        load(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("text,label,id,id\na,x,1,2\nb,y,1,2\n")
    assert load(tmp_path / "b.csv").labels == ("x", "y")
    (tmp_path / "c.jsonl").write_text('{"text": "a", "label": "x", "label": "y"}\n')
    with pytest.raises(UserError, match="more than one column"):
        load(tmp_path / "c.jsonl")
    table = pa.table([["a"], ["x"], ["y"]], names=["text", "label", "label"])
    parquet.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(UserError, match="more than one column"):
        load(tmp_path / "d.parquet")


def test_a_column_that_nobody_names_may_hold_anything(tmp_path: Path) -> None:
    mixed: list[Any] = [1, "a", None, {"b": [1]}, [[2]], True, {"c": 1}, 1.5, float("nan")]
    rows = [{"text": f"t{i}", "label": "xy"[i % 2], "other": v} for i, v in enumerate(mixed)]
    assert len(load(jsonl(tmp_path / "a.jsonl", rows)).train) == len(mixed)


ODD = {
    "binary": pa.array([b"\xff", b"b"]),
    "decimal": pa.array([decimal.Decimal("1.50"), decimal.Decimal("2.00")]),
    "date": pa.array([datetime.date(2020, 1, 1), datetime.date(2021, 1, 1)]),
    "timestamp": pa.array([datetime.datetime(2020, 1, 1), datetime.datetime(2021, 1, 1)]),
    "far": pa.array([2**62, 2**61], pa.timestamp("us")),
    "struct": pa.array([{"a": 1}, {"a": 2}]),
    "list": pa.array([["a"], ["b"]]),
    "duration": pa.array([1, 2], pa.duration("s")),
    "broken": pa.Array.from_buffers(
        pa.string(), 2, pa.array([b"\xff", b"\xfe"]).buffers(), null_count=0
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_parquet_columns_of_any_type_are_refused_or_not_read(kind: str, tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b"], "label": ["x", "y"], "odd": ODD[kind]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet").labels == ("x", "y")
    for options in ({"text": "odd"}, {"label": "odd"}, {"text": "{odd}"}, {"client": "odd"}):
        with pytest.raises(UserError):
            load(tmp_path / "a.parquet", **options)


def test_parquet_texts_of_other_layouts_are_texts(tmp_path: Path) -> None:
    columns = {
        "dictionary": pa.array(["007", "b", "007"]).dictionary_encode(),
        "large": pa.array(["007", "b", "007"], pa.large_string()),
        "view": pa.array(["007", "b", "007"], pa.string_view()),
        "a.b": pa.array(["007", "b", "007"]),
    }
    folder = tmp_path / "label=1"  # no column of a folder's name
    folder.mkdir()
    parquet.write_table(pa.table({**columns, "label": [1, 2, 1]}), folder / "a.parquet")
    for name in columns:
        raw = load(folder / "a.parquet", text=name)
        assert list(raw.train["text"]) == ["007", "b", "007"]
        assert raw.labels == ("1", "2")
    assert list(load(folder / "a.parquet", text="{a.b}!").train["text"])[1] == "b!"


def test_nulls_and_nan_are_gaps(tmp_path: Path) -> None:
    gaps: list[Any] = [None, float("nan"), "", " ", []]
    for gap in gaps:
        path = jsonl(tmp_path / "a.jsonl", [*GOOD, {"text": gap, "label": "x"}])
        with pytest.raises(UserError, match="1 of 3 rows have no value, the first is row 3"):
            load(path)
        path = jsonl(tmp_path / "a.jsonl", [*GOOD, {"text": "a", "label": gap}])
        with pytest.raises(UserError, match=r"rows have no value, the first is row 3"):
            load(path)


def test_rows_that_a_template_leaves_empty_are_refused(tmp_path: Path) -> None:
    rows = [{"a": "1", "b": "2", "label": "x"}, {"a": "", "b": None, "label": "y"}]
    path = jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError, match="1 of 2 rows have no value, the first is row 2"):
        load(path, text="{a}{b}")
    assert list(load(path, text="{a}|{b}").train["text"]) == ["1|2", "|"]
    with pytest.raises(UserError, match="without formats"):
        load(path, text="{a:>3}")


def test_separators_of_a_csv_are_those_of_its_header(tmp_path: Path) -> None:
    for separator in ";\t|":
        (tmp_path / "a.csv").write_text(
            f'text{separator}label\n"a, b"{separator}x\nc,d{separator}y\n'
        )
        assert list(load(tmp_path / "a.csv").train["text"]) == ["a, b", "c,d"]
    (tmp_path / "a.tsv").write_text("text\tlabel\na\tx\nb\ty\n")
    assert load(tmp_path / "a.tsv").labels == ("x", "y")


def test_a_file_of_no_known_format_is_no_hub_id(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    source = asked(None, [], {"data": tmp_path / "a.xlsx"}).tree["data"]["source"]
    assert source == {"name": "files", "train": str(tmp_path / "a.xlsx")}


PACKED = gzip.compress(b"text,label\na,x\n" * 9, mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.csv", b"", "no rows"),
        ("a.csv", b"text,label\n", "no rows"),
        ("a.csv", b"text,label\na,b,c\n", "row 1 has 3 values"),
        ("a.csv", b'text,label\n"a,x\nb,y\n', "line 3: it cannot be read: unexpected end"),
        ("a.csv", b'text,label\n"a"b,x\n', "line 2: it cannot be read"),
        ("a.jsonl", b"", "no rows"),
        ("a.jsonl", b"\n\n", "no rows"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b",}\n', "line 2"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', "line 2: expected an object"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000, "line 1"),
        ("a.jsonl", b'{"text": ' + b"9" * 5_000 + b"}", "line 1"),
        ("a.json", b'{"text": ["a"], "label": ["x"]}', "list of objects"),
        ("a.json", b'[{"text": "a"}, 7]', "row 2: expected a list of objects"),
        ("a.json", b"[" * 100_000, "cannot be read"),
        ("a.parquet", b"text,label\na,x\n", "cannot be read"),
        ("a.parquet", b"", "cannot be read"),
        ("a.csv", b"PAR1 and more", "it is a Parquet file"),
        ("a.csv", b"PK\x03\x04", "a spreadsheet"),
        ("a.csv.gz", PACKED[:-9], "compressed by gzip, and broken"),
        ("a.jsonl.gz", b"\x1f\x8bnonsense", "compressed by gzip, and broken"),
        ("a.csv.zst", b"", "names no known format"),
    ],
)  # fmt: skip
def test_broken_files_are_refused(name: str, content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=why):
        load(tmp_path / name)


def test_json_in_lines_or_in_a_list_whatever_the_suffix(tmp_path: Path) -> None:
    lines = "\n\r\n".join(map(json.dumps, GOOD))
    for name, content in (
        ("a.json", lines),
        ("b.jsonl", json.dumps(GOOD, indent=1)),
        ("c.jsonl", lines),
        ("d.json", json.dumps(GOOD)),
    ):
        (tmp_path / name).write_text(content)
        assert list(load(tmp_path / name).train["text"]) == ["a", "b"]


def test_a_very_long_line_is_read(tmp_path: Path) -> None:
    long = "word " * 400_000
    (tmp_path / "a.csv").write_text(f"text,label\n{long},x\nb,y\n")
    assert list(load(tmp_path / "a.csv").train["text"]) == [long, "b"]


def test_folders_that_save_to_disk_wrote(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    rows = Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, 1]}, features)
    rows.save_to_disk(tmp_path / "one")
    DatasetDict(train=rows, test=rows.select([0])).save_to_disk(tmp_path / "both")
    raw = load(tmp_path / "one")
    assert raw.labels == ("no", "yes")
    assert list(raw.train["label"]) == [1, 0, 1]
    both = Hub(path=str(tmp_path / "both"), train_split="train[:2]").load("classification", 0)
    assert both.test is not None
    assert (len(both.train), len(both.test), both.labels) == (2, 1, ("no", "yes"))
    with pytest.raises(UserError, match="test_split: validation"):
        Hub(path=str(tmp_path / "both"), test_split="validation").load("classification", 0)
    with pytest.raises(UserError, match=r"Name one of its splits.*both/test"):
        load(tmp_path / "both")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither a file"):
        load(tmp_path / "empty")
    assert asked(None, [], {"data": tmp_path / "one"}).tree["data"]["source"]["name"] == "files"
    assert asked(None, [], {"data": tmp_path / "both"}).tree["data"]["source"]["name"] == "hub"


def test_the_order_of_class_names_survives_a_parquet_file(tmp_path: Path) -> None:
    features = Features(
        {"text": Value("string"), "label": ClassLabel(names=["no", "maybe", "yes"])}
    )
    rows = Dataset.from_dict({"text": ["a", "b"], "label": [2, 0]}, features)
    rows.to_parquet(tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet").labels == ("no", "maybe", "yes")


def test_nothing_of_a_row_is_in_what_a_node_may_say(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("secret name,secret class\nb,x\n")
    with pytest.raises(UserError) as found:
        load(tmp_path / "a.csv")
    assert "secret" not in found.value.why
    path = jsonl(tmp_path / "b.jsonl", [{"text": "a", "label": "secret class"}])
    with pytest.raises(UserError, match="secret class") as found:
        load(jsonl(tmp_path / "c.jsonl", GOOD), test=path)
    assert "secret" not in found.value.why


def read_or_refused(path: Path, task: str = "classification", **options: Any) -> RawData | None:
    """Anything but a `UserError` goes through."""
    with suppress(UserError):
        return load(path, task, **options)
    return None


SECRET = "Ada born 1815"
PLACES = (
    "role",
    "content",
    "from",
    "value",
    "weight",
    "tool_calls",
    "function_call",
    "name",
    "type",
)


@settings(max_examples=150, deadline=None)
@given(
    turn=st.dictionaries(
        st.sampled_from((*PLACES, SECRET)),
        st.sampled_from(
            (SECRET, "user", "assistant", 7, [SECRET], {SECRET: SECRET}, [{"type": SECRET}])
        ),
        max_size=4,
    ),
    column=st.sampled_from(("messages", "text", "label", "tools", "prompt", SECRET)),
    task=st.sampled_from(("classification", "causal_lm")),
)
def test_nothing_of_a_chat_is_in_what_a_node_may_say(
    turn: dict[str, Any], column: str, task: str, tmp_path_factory: Any
) -> None:
    row = {"text": SECRET, "label": SECRET, "completion": [turn], column: [turn]}
    path = jsonl(tmp_path_factory.getbasetemp() / f"{SECRET}.jsonl", [row])
    said = ""
    try:
        rows = read_rows(path, Files(train=path), task, ["other"])
        CausalLM().tokenize(rows, byte_level(STRICT), 1000)
    except UserError as error:
        said = shareable(error)
    except KeyError:  # a classifier's rows are no chats
        assert task == "classification"
    assert "Ada" not in said
    assert "1815" not in said


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
TURNS = st.lists(
    st.dictionaries(
        st.sampled_from(
            ["role", "from", "content", "value", "weight", "tool_calls", "type", "text", "name"]
        ),
        st.sampled_from(["user", "assistant", "gpt", "human", "text", 0, 1, "x"]) | VALUES,
        max_size=4,
    ),
    max_size=3,
)
NAMES = ["text", "label", "prompt", "completion", "messages", "conversations", "instruction"]
NAMES += ["output", "tools"]
ROWS = st.lists(
    st.dictionaries(st.sampled_from(NAMES), VALUES | TURNS, min_size=1), min_size=1, max_size=4
)


@settings(max_examples=100, deadline=None)
@given(
    rows=ROWS,
    task=st.sampled_from(["classification", "causal_lm"]),
    form=st.sampled_from(["jsonl", "json"]),
    messages=st.sampled_from([None, None, "messages", "text"]),
    system=st.sampled_from(["keep", "fold"]),
)
def test_any_table_is_read_or_refused_in_three_parts(
    rows: list[Any], task: str, form: str, messages: Any, system: Any, tmp_path_factory: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any.{form}"
    text = json.dumps(rows) if form == "json" else "".join(json.dumps(r) + "\n" for r in rows)
    path.write_text(text)
    raw = read_or_refused(path, task, messages=messages, system=system)
    assert raw is None or len(raw.train) == len(row_keys(raw.train)) == len(rows)


@settings(max_examples=100, deadline=None)
@given(
    content=st.binary(max_size=60)
    | st.text(alphabet='ab,;"\n\r\t|\0é', max_size=60).map(str.encode),
    suffix=st.sampled_from(["csv", "tsv", "jsonl", "json", "parquet", "csv.gz"]),
    head=st.sampled_from([b"", b"text,label\n", b'{"text": ', b"\x1f\x8b"]),
)
def test_any_bytes_are_read_or_refused_in_three_parts(
    content: bytes, suffix: str, head: bytes, tmp_path_factory: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / f"bytes.{suffix}"
    path.write_bytes(head + content)
    read_or_refused(path)
