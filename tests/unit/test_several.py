"""Several labels or numbers a text: how rows say them, and metrics against libraries'."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, root_mean_squared_error
from torch import Tensor, nn
from transformers import AutoTokenizer

from trillium.data.deployed import read_server_data, write_server_data
from trillium.data.federated import FederatedData
from trillium.data.load import load_data
from trillium.data.partitions import classes_of
from trillium.data.settings import DataConfig
from trillium.data.sources import RawData
from trillium.data.sources.files import Files
from trillium.data.sources.hub import Hub
from trillium.errors import UserError
from trillium.tasks.multi_label import MultiLabel
from trillium.tasks.regression import Regression


class ByText(nn.Module):
    """Answers with fixed outputs, chosen by the first token of a text."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(64, outputs, generator=draw))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return SimpleNamespace(logits=self.table[input_ids[:, 0]])


@pytest.fixture(scope="module")
def tokenizer(hub: Path) -> Any:
    return AutoTokenizer.from_pretrained(hub / "gpt2")


def read(path: Path, content: str, form: str = "multi_label", **options: Any) -> RawData:
    path.write_text(content, encoding="utf-8")
    return Files(train=path, **options).load(form, 0)


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_metrics_are_those_of_scikit_learn(tokenizer: Any) -> None:
    texts = [f"w{(7 * i) % 11} w1" for i in range(12)]
    labels = [[n for n in range(4) if (i * 5 + n) % 3 == 0] for i in range(12)]
    rows, model = Dataset.from_dict({"text": texts, "label": labels}), ByText(4)
    task = MultiLabel()
    examples = task.tokenize(rows, tokenizer, 64, 4)
    found = task.evaluate(model, examples, tokenizer, 16)
    logits = torch.stack([model.table[e.input_ids[0]] for e in examples]).detach()
    wanted = torch.tensor([[int(n in own) for n in range(4)] for own in labels])
    given = logits > 0
    for average in ("micro", "macro"):
        expected = f1_score(wanted, given, average=average, zero_division=0)
        assert found[f"f1_{average}"] == pytest.approx(expected)
    loss = nn.functional.binary_cross_entropy_with_logits(logits, wanted.float())
    assert found["loss"] == pytest.approx(float(loss), rel=1e-5)
    strict = MultiLabel(threshold=0.9).evaluate(model, examples, tokenizer, 16)
    surer = logits.sigmoid() > 0.9
    assert strict["f1_micro"] == pytest.approx(f1_score(wanted, surer, average="micro"))
    said = task.said(logits[0], examples[0], "abcd", "")
    assert said["labels"] == [name for name, is_so in zip("abcd", given[0], strict=True) if is_so]
    assert said["probabilities"]["b"] == pytest.approx(float(logits[0, 1].sigmoid()))
    (blank,) = task.tokenize(rows.remove_columns("label").select([0]), tokenizer, 64, 4)
    assert task.num_targets(blank) == 4
    assert task.num_supervised(blank.labels) == 0


ROWS: list[dict[str, Any]] = [
    {"text": "a", "label": ["x", "y"]},
    {"text": "b", "label": []},
    {"text": "c", "label": "y"},
]
SAME: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lists": ("a.jsonl", lines(*ROWS), {}),
    "JSON in a cell": ("a.csv", 'text,label\na,"[""y"", ""x""]"\nb,\nc,y\n', {}),
    "names in a cell": ("a.csv", 'text,label\na,"x, y"\nb,\nc,y\n', {}),
    "another separator": (
        "a.csv",
        "text,tags\na,x|y\nb,\nc,y\n",
        {"label": "tags", "separator": "|"},
    ),
    "columns": ("a.csv", "text,x,y\na,1,true\nb,0,0\nc,False,1\n", {"labels": ("x", "y")}),
}


@pytest.mark.parametrize("way", SAME)
def test_labels_stand_in_rows_in_many_ways(way: str, tmp_path: Path) -> None:
    name, content, options = SAME[way]
    raw = read(tmp_path / name, content, **options)
    assert raw.labels == ("x", "y")
    assert [sorted(own) for own in raw.train["label"]] == [[0, 1], [], [1]]


def test_a_data_set_names_its_labels_in_order(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": List(ClassLabel(names=["z", "a"]))})
    rows = Dataset.from_dict({"text": ["p", "q"], "label": [[1], [0, 1]]}, features=features)
    DatasetDict({"train": rows}).save_to_disk(tmp_path / "hub")
    raw = Hub(path=str(tmp_path / "hub"), test_split=None).load("multi_label", 0)
    assert raw.labels == ("z", "a")
    assert list(raw.train["label"]) == [[1], [0, 1]]


@pytest.mark.parametrize(
    ("content", "options", "why"),
    [
        (lines({"text": "a", "label": ["x", "x"]}), {}, "names a label twice"),
        (lines({"text": "a", "label": []}), {}, "no row has a label"),
        (lines({"text": "a", "label": "[x"}), {}, "begins like a JSON list"),
        (lines({"text": "a", "label": [0.5]}), {}, "not of type float"),
        (lines({"text": "a", "x": "maybe"}), {"labels": ("x",)}, "it is 0 or 1"),
        (lines({"text": "a", "x": 1}), {"labels": ("x", "y")}, "no such column"),
        (lines({"text": "a", "x": 1}), {}, "no such column"),
    ],
)
def test_rows_that_say_no_labels_are_refused(
    content: str, options: dict[str, Any], why: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=why):
        read(tmp_path / "a.jsonl", content, **options)


def test_labels_that_training_rows_lack_are_refused(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(lines({"text": "d", "label": ["x", "new"]}))
    with pytest.raises(UserError, match="no row of class new;"):
        read(tmp_path / "a.jsonl", lines(*ROWS), test=tmp_path / "test.jsonl")


def test_as_many_labels_as_rows_are_refused(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": f"one of {i}"} for i in range(9)]
    (tmp_path / "a.jsonl").write_text(lines(*rows))
    with pytest.raises(UserError, match="most labels have no second row"):
        load_data(DataConfig(source=Files(train=tmp_path / "a.jsonl")), "multi_label", 0)


@pytest.mark.parametrize("form", ["multi_label", "regression", "token_classification"])
def test_rows_survive_a_deployment(form: str, hub: Path, tmp_path: Path) -> None:
    config = DataConfig(source=Files(train=hub / f"{form}.jsonl"), num_clients=2, public_size=5)
    data = load_data(config, form, 0)
    write_server_data(tmp_path, data)
    again = read_server_data(tmp_path, form)
    assert again.labels == data.labels
    assert again.test.to_dict() == data.test.to_dict()
    assert again.public.to_dict() == data.public.to_dict()


NUMBERS: dict[str, tuple[str, str, dict[str, Any], tuple[str, ...]]] = {
    "one": ("a.csv", "text,label\na,1.5\nb,-2e1\n", {}, ("label",)),
    "a list": (
        *("a.jsonl", lines({"text": "a", "label": [1.5, 2]}, {"text": "b", "label": [-20, 0]}), {}),
        ("label_0", "label_1"),
    ),
    "columns": ("a.csv", "text,p,q\na,1.5,2\nb,-20,0\n", {"labels": ("q", "p")}, ("q", "p")),
}


@pytest.mark.parametrize("way", NUMBERS)
def test_numbers_stand_in_rows_in_many_ways(way: str, tmp_path: Path) -> None:
    name, content, options, names = NUMBERS[way]
    raw = read(tmp_path / name, content, "regression", **options)
    assert raw.labels == names
    wanted = {
        "one": [[1.5], [-20]],
        "a list": [[1.5, 2], [-20, 0]],
        "columns": [[2, 1.5], [0, -20]],
    }
    assert list(raw.train["label"]) == wanted[way]


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([{"text": "a", "label": "much"}], "it is no number"),
        ([{"text": "a", "label": True}], "it is no number"),
        ([{"text": "a", "label": "inf"}], "it is no number"),
        ([{"text": "a", "label": None}, {"text": "b", "label": 1}], "1 of 2 rows have no value"),
        ([{"text": "a", "label": [1, 2]}, {"text": "b", "label": [1]}], "row 1 has 2 numbers"),
        ([{"text": "a", "label": [1, None]}, {"text": "b", "label": [1, 2]}], "it is no number"),
    ],
)
def test_what_is_no_number_is_refused(rows: list[dict[str, Any]], why: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=why):
        read(tmp_path / "a.jsonl", lines(*rows), "regression")


def test_test_rows_have_as_many_numbers(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(lines({"text": "d", "label": [1.0]}))
    rows = [{"text": "a", "label": [1, 2]}, {"text": "b", "label": [2, 3]}]
    with pytest.raises(UserError, match="1 numbers, where the training split has 2"):
        read(tmp_path / "a.jsonl", lines(*rows), "regression", test=tmp_path / "test.jsonl")


def test_errors_and_correlations_are_those_of_libraries(tokenizer: Any) -> None:
    texts = [f"w{(7 * i) % 11} w1" for i in range(12)]
    labels = [[float((5 * i) % 7), i / 12, 3.0] for i in range(12)]
    rows, model, task = Dataset.from_dict({"text": texts, "label": labels}), ByText(3), Regression()
    examples = task.tokenize(rows, tokenizer, 64, 3)
    found = task.evaluate(model, examples, tokenizer, 16)
    said = torch.stack([model.table[e.input_ids[0]] for e in examples]).detach().double()
    meant = torch.tensor(labels, dtype=torch.float64)
    for name, of in (("pearson", pearsonr), ("spearman", spearmanr)):
        each = [float(of(said[:, n], meant[:, n]).statistic) for n in range(2)]
        assert found[name] == pytest.approx(sum(each) / 3, rel=1e-5), "one is always the same"
    assert found["rmse"] == pytest.approx(root_mean_squared_error(meant, said), rel=1e-6)
    assert found["loss"] == pytest.approx(float((said - meant).square().mean()), rel=1e-6)
    named = task.said(said[0], examples[0], ("a", "b", "c"), "")["values"]
    assert named == pytest.approx(dict(zip("abc", said[0].tolist(), strict=True)))
    (blank,) = task.tokenize(rows.remove_columns("label").select([0]), tokenizer, 64, 3)
    assert (task.num_targets(blank), task.num_supervised(blank.labels)) == (3, 0)
    loss, count = task.loss(said[:1], blank.labels[None])
    assert (float(loss), count) == (0.0, 0)


def test_numbers_cross_a_cut_bit_for_bit() -> None:
    task, numbers = Regression(), torch.tensor([[[0.1, -3e30]], [[float("nan"), 0.0]]])
    again = task.from_numbers(task.as_numbers(numbers), 2)
    assert torch.equal(again.nan_to_num(7.0), numbers.nan_to_num(7.0))
    with pytest.raises(ValueError, match="infinite"):
        task.from_numbers(task.as_numbers(torch.tensor([float("inf")])), 1)


def test_the_order_of_numbers_may_change() -> None:
    rows = Dataset.from_dict({"text": list("ab"), "label": [[0.5, 1.5, 2.5], [1.0, 2.0, 3.0]]})
    data = FederatedData({"c": rows}, rows, rows.select([]), ("x", "y", "z"))
    assert data.summary()["clients"]["c"]["labels"] == {}
    assert list(data.in_order(["z", "x", "y"]).test["label"]) == [[2.5, 0.5, 1.5], [3.0, 1.0, 2.0]]


def test_a_set_of_labels_is_a_class_of_a_partition() -> None:
    rows = Dataset.from_dict({"label": [[1, 0], [], [0, 1], [2]]})
    first, none, same, other = classes_of(rows)
    assert first == same
    assert len({first, none, other}) == 3


def test_clients_count_their_labels_and_the_order_of_labels_may_change() -> None:
    rows = Dataset.from_dict({"text": list("ab"), "label": [[0, 2], [2]]})
    data = FederatedData({"c": rows}, rows, rows.select([]), ("x", "y", "z"))
    assert data.summary()["clients"]["c"]["labels"] == {"x": 1, "z": 2}
    turned = data.in_order(["z", "x", "y"])
    assert list(turned.test["label"]) == [[1, 0], [0]]
    assert turned.summary()["clients"]["c"]["labels"] == {"x": 1, "z": 2}
