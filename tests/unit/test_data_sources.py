"""Rows from files and from folders in the hub's format come out in the canonical columns."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from trillium.data.sources.files import Files
from trillium.data.sources.hub import Hub
from trillium.errors import UserError

Row = dict[str, object]
TRAIN: list[Row] = [
    {"text": 'a "quoted", text\nof two lines', "label": "null", "who": 1},
    {"text": "zwölf", "label": "apple", "who": 2},
    {"text": "None", "label": "pear", "who": 1},
]
TEST: list[Row] = [{"text": "x", "label": "pear", "who": 3}]


def write_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path: Path, rows: list[Row]) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")


def write_json(path: Path, rows: list[Row]) -> None:
    path.write_text(json.dumps(rows), encoding="utf-8")


def write_parquet(path: Path, rows: list[Row]) -> None:
    Dataset.from_list(rows).to_parquet(path)


WRITERS: dict[str, Callable[[Path, list[Row]], None]] = {
    "csv": write_csv,
    "jsonl": write_jsonl,
    "json": write_json,
    "parquet": write_parquet,
}


def jsonl(path: Path, rows: list[Row]) -> Path:
    write_jsonl(path, rows)
    return path


@pytest.mark.parametrize("suffix", WRITERS)
def test_each_format_gives_the_same_rows(suffix: str, tmp_path: Path) -> None:
    WRITERS[suffix](tmp_path / f"train.{suffix}", TRAIN)
    WRITERS[suffix](tmp_path / f"test.{suffix}", TEST)
    source = Files(
        train=tmp_path / f"train.{suffix}", test=tmp_path / f"test.{suffix}", client="who"
    )
    raw = source.load("classification", 0)
    assert raw.labels == ("apple", "null", "pear")  # sorted; "null" is a word, not a gap
    assert list(raw.train) == [
        {"text": TRAIN[0]["text"], "label": 1, "client": "1"},
        {"text": "zwölf", "label": 0, "client": "2"},
        {"text": "None", "label": 2, "client": "1"},
    ]
    assert raw.test is not None
    assert list(raw.test) == [{"text": "x", "label": 2}]  # test rows are nobody's


def test_integer_labels_sort_as_numbers(tmp_path: Path) -> None:
    rows: list[Row] = [{"text": "t", "label": label} for label in (10, 2, 1)]
    raw = Files(train=jsonl(tmp_path / "a.jsonl", rows)).load("classification", 0)
    assert raw.labels == ("1", "2", "10")
    assert list(raw.train["label"]) == [2, 1, 0]


def test_a_template_joins_columns(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"premise": "a", "claim": "b", "label": 0},
        {"premise": None, "claim": "c", "label": 1},
    ]
    source = Files(train=jsonl(tmp_path / "a.jsonl", rows), text="{premise} => {claim}")
    assert list(source.load("classification", 0).train["text"]) == ["a => b", " => c"]


def test_a_broken_template_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", TRAIN)
    with pytest.raises(UserError, match="it is not a template"):
        Files(train=path, text="{text").load("classification", 0)


def test_causal_lm_needs_no_labels(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"question": "q", "answer": "a"}])
    raw = Files(train=path, prompt="question", completion="answer").load("causal_lm", 0)
    assert list(raw.train) == [{"prompt": "q", "completion": "a"}]
    assert raw.labels == ()
    plain = Files(train=path, prompt="", completion="answer").load("causal_lm", 0)
    assert list(plain.train) == [{"prompt": "", "completion": "a"}]


def test_chats_keep_roles_and_contents(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    path = jsonl(tmp_path / "a.jsonl", [{"chat": [{**turn, "id": 7} for turn in turns]}])
    raw = Files(train=path, messages="chat").load("causal_lm", 0)
    assert list(raw.train) == [{"messages": turns, "row": "row 1 of a.jsonl"}]


def test_a_chat_of_another_form_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"messages": ["hi", "hello"]}])
    with pytest.raises(UserError, match="role"):
        Files(train=path, messages="messages").load("causal_lm", 0)


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", TRAIN)
    with pytest.raises(UserError, match=r"no such file. Did you mean 'train\.jsonl'"):
        Files(train=tmp_path / "tran.jsonl").load("classification", 0)


def test_an_unknown_suffix_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"Choose one of: \.csv, \.json, \.jsonl, \.ndjson, \.parquet"
    ):
        Files(train=tmp_path / "train.xlsx").load("classification", 0)


@pytest.mark.parametrize("content", ["", "text,label\n", "a,b\n1\n"])
def test_empty_and_ragged_csv_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(UserError, match=r"no rows|cannot be read"):
        Files(train=tmp_path / "a.csv").load("classification", 0)


def test_broken_json_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(UserError, match="line 2"):
        Files(train=tmp_path / "a.jsonl").load("classification", 0)


def test_a_json_file_must_be_a_list_of_objects(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"rows": []}')
    with pytest.raises(UserError, match="list of objects"):
        Files(train=tmp_path / "a.json").load("classification", 0)


def test_a_missing_column_names_the_nearest_and_all(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"sentence": "a", "label": 0}])
    with pytest.raises(UserError, match=r"it has: sentence, label\. Did you mean 'sentence'"):
        Files(train=path, text="sentense").load("classification", 0)


@pytest.mark.parametrize("gap", [None, ""])
def test_a_row_without_label_is_refused(gap: object, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": gap}])
    with pytest.raises(UserError, match="1 of 2 rows have no value, the first is row 2"):
        Files(train=path).load("classification", 0)


def test_labels_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": 0.5}])
    with pytest.raises(UserError, match=r"row 1 of a\.jsonl, which holds 0\.5: a class is"):
        Files(train=path).load("classification", 0)


def test_rows_marked_as_unlabelled_are_refused(folder: Path) -> None:
    features = Dataset.from_parquet(str(next(folder.glob("data/train*")))).features
    unlabelled = Dataset.from_dict({"utterance": ["d"], "intent": [-1]}, features)
    unlabelled.to_parquet(next(folder.glob("data/test*")))
    with pytest.raises(UserError, match="the test split: some rows are marked -1"):
        Hub(path=str(folder), text="utterance", label="intent").load("classification", 0)


def test_a_test_label_unseen_in_train_is_refused(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "a.jsonl", TRAIN)
    test = jsonl(tmp_path / "b.jsonl", [{"text": "a", "label": "plum"}])
    with pytest.raises(UserError, match="no row of class plum"):
        Files(train=train, test=test).load("classification", 0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder in the hub's format: Parquet per split, class names in the schema."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = Features(
        {"utterance": Value("string"), "intent": ClassLabel(names=["no", "maybe", "yes"])}
    )
    splits = DatasetDict(
        train=Dataset.from_dict({"utterance": ["a", "b", "c"], "intent": [2, 0, 1]}, features),
        test=Dataset.from_dict({"utterance": ["d"], "intent": [1]}, features),
    )
    for split, rows in splits.items():
        (tmp_path / "hub" / "data").mkdir(parents=True, exist_ok=True)
        rows.to_parquet(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    return tmp_path / "hub"


def test_hub_reads_a_folder_and_keeps_the_order_of_class_names(folder: Path) -> None:
    raw = Hub(path=str(folder), text="utterance", label="intent").load("classification", 0)
    assert raw.labels == ("no", "maybe", "yes")
    assert list(raw.train) == [
        {"text": "a", "label": 2},
        {"text": "b", "label": 0},
        {"text": "c", "label": 1},
    ]
    assert raw.test is not None
    assert list(raw.test) == [{"text": "d", "label": 1}]


def test_hub_takes_slices_and_goes_without_test(folder: Path) -> None:
    source = Hub(
        path=str(folder), train_split="train[:2]", test_split=None, text="utterance", label="intent"
    )
    raw = source.load("classification", 0)
    assert len(raw.train) == 2
    assert raw.test is None


def test_hub_names_the_split_that_is_not_there(folder: Path) -> None:
    with pytest.raises(UserError, match=r"test_split: validation.*test_split: null"):
        Hub(path=str(folder), test_split="validation").load("classification", 0)


def test_hub_names_the_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        Hub(path=str(tmp_path / "nowhere")).load("classification", 0)


def test_a_broken_file_of_a_hub_folder_is_refused(folder: Path) -> None:
    next(folder.glob("data/train*")).write_bytes(b"PAR1 but not more")
    with pytest.raises(UserError, match=r"Check path, subset and revision|its splits"):
        Hub(path=str(folder), text="utterance", label="intent").load("classification", 0)


def test_a_folder_of_several_sets_asks_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names = "".join(f"- config_name: {n}\n  data_files: {n}.csv\n" for n in ("one", "two"))
    write_csv(tmp_path / "one.csv", TRAIN)
    write_csv(tmp_path / "two.csv", TRAIN[::-1])
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{names}---\n")
    with pytest.raises(UserError, match="Check path, subset and revision") as found:
        Hub(path=str(tmp_path), test_split=None).load("classification", 0)
    assert "'one', 'two'" in found.value.why
    raw = Hub(path=str(tmp_path), subset="two", test_split=None).load("classification", 0)
    assert raw.train["text"][0] == "None"
