"""Test, public set and clients share no text, and everything follows from the seed."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from trillium.component import known
from trillium.config.comparison import comparison
from trillium.config.experiment import merge
from trillium.config.given import default_comparison
from trillium.data.federated import FederatedData
from trillium.data.load import load_data, row_keys
from trillium.data.partitions.dirichlet import Dirichlet
from trillium.data.settings import DataConfig
from trillium.data.sources.files import Files
from trillium.errors import UserError
from trillium.tasks import Task

SMALL = {"name": "builtin", "num_train": 300, "num_test": 80}


def config(**fields: object) -> DataConfig:
    return DataConfig.model_validate({"source": SMALL, "public_size": 40, **fields})


def texts(data: FederatedData) -> tuple[list[str], list[str], list[str]]:
    clients = [key for rows in data.clients.values() for key in row_keys(rows)]
    return clients, row_keys(data.public), row_keys(data.test)


def check_disjoint(data: FederatedData) -> None:
    clients, public, test = (set(keys) for keys in texts(data))
    assert not clients & public
    assert not clients & test
    assert not public & test


@pytest.fixture
def overlapping(tmp_path: Path) -> DataConfig:
    """Return data where 5 of 40 training texts are test texts, and all others stand there twice."""
    train = [f"Text {i}" for i in range(20)] + [f" text {i} " for i in range(20)]
    for name, rows in {"train": train, "test": [f"TEXT {i}" for i in (0, 1)] + ["other"]}.items():
        lines = [json.dumps({"text": text, "label": i % 2}) for i, text in enumerate(rows)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    source = {
        "name": "files",
        "train": str(tmp_path / "train.jsonl"),
        "test": str(tmp_path / "test.jsonl"),
    }
    return DataConfig.model_validate({"source": source, "num_clients": 3, "public_size": 6})


@pytest.mark.parametrize("task", ["classification", "causal_lm"])
def test_every_row_is_used_once(task: str) -> None:
    data = load_data(config(num_clients=7), task, 0)
    check_disjoint(data)
    clients, public, test = texts(data)
    assert (len(clients), len(public), len(test)) == (260, 40, 80)
    assert len({*clients, *public, *test}) == 380


def test_overlaps_are_removed_and_counted(overlapping: DataConfig) -> None:
    data = load_data(overlapping, "classification", 0)
    check_disjoint(data)
    clients, public, _ = texts(data)
    assert len(set(public)) == len(public) == 6
    assert data.removed == {"same_text_as_test": 4, "same_text_as_public": 6}
    assert len(clients) == 40 - 4 - 6 - 6
    assert data.summary()["removed"] == data.removed


def test_the_disjointness_check_can_fail() -> None:
    rows = Dataset.from_dict({"text": ["a"], "label": [0]})
    public = Dataset.from_dict({"text": [" A"]})
    with pytest.raises(AssertionError):
        check_disjoint(FederatedData({"client-0": rows}, rows, public, ("x",)))


def test_public_rows_belong_to_nobody(overlapping: DataConfig) -> None:
    options = {**overlapping.source.model_dump(), "client": "label"}
    data = load_data(
        overlapping.model_copy(update={"source": Files.model_validate(options)}),
        "classification",
        0,
    )
    assert "client" not in data.public.column_names
    assert "client" in data.clients["client-0"].column_names


def test_same_seed_same_data_and_other_seed_other_data() -> None:
    first, again, other = (texts(load_data(config(), "classification", s)) for s in (5, 5, 6))
    assert first == again
    assert first[0] != other[0]
    assert first[1] != other[1]


def test_the_partition_changes_neither_test_nor_public() -> None:
    iid = texts(load_data(config(), "classification", 0))
    skewed = texts(load_data(config(partition=Dirichlet(alpha=0.1)), "classification", 0))
    assert iid[1:] == skewed[1:]
    assert iid[0] != skewed[0]
    assert sorted(iid[0]) == sorted(skewed[0])


def test_client_ids_sort_by_number() -> None:
    clients = list(load_data(config(num_clients=11), "classification", 0).clients)
    assert clients[0] == "client-00"
    assert clients == sorted(clients) == [f"client-{i:02d}" for i in range(11)]
    assert list(load_data(config(num_clients=2), "classification", 0).clients) == [
        "client-0",
        "client-1",
    ]


def test_clients_can_have_names_and_these_say_how_many_there_are() -> None:
    plain, named = config(num_clients=3), config(client_names=["oslo", "bergen", "b-3"])
    assert named.num_clients == 3
    one, other = load_data(plain, "classification", 0), load_data(named, "classification", 0)
    assert [*other.clients] == ["oslo", "bergen", "b-3"]
    for mine, yours in zip(one.clients.values(), other.clients.values(), strict=True):
        assert mine[:] == yours[:]


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["a", "b"], "there are 3 clients"),
        (["a", "b", "a"], "two clients are called a"),
        (["a", "b", "../c"], "a client's name is a file name"),
        (["a", "b", "server"], "'server' is the server's"),
    ],
)
def test_names_that_cannot_be_are_refused(names: list[str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        config(num_clients=3, client_names=names)


def test_test_size_samples_the_test_rows() -> None:
    full = texts(load_data(config(), "classification", 0))[2]
    cut = texts(load_data(config(test_size=10), "classification", 0))[2]
    assert len(cut) == 10
    assert set(cut) < set(full)
    assert cut != full[:10]


def test_without_a_test_split_a_fraction_is_held_back(overlapping: DataConfig) -> None:
    source = {**overlapping.source.to_config(), "test": None}
    data = load_data(
        DataConfig.model_validate({"source": source, "public_size": 0, "test_fraction": 0.25}),
        "classification",
        0,
    )
    assert len(data.test) == 10
    check_disjoint(data)


def test_summary_is_json_and_counts_labels() -> None:
    data = load_data(config(num_clients=2), "classification", 0)
    summary = json.loads(json.dumps(data.summary()))
    client = summary["clients"]["client-1"]
    assert client["num_examples"] == 130
    assert sum(client["labels"].values()) == 130
    name, count = next(iter(client["labels"].items()))
    labels = list(data.clients["client-1"]["label"])
    assert labels.count(data.labels.index(name)) == count
    assert summary["public"]["num_examples"] == 40
    assert summary["test"]["num_examples"] == 80


def test_summary_without_labels() -> None:
    summary = load_data(config(), "causal_lm", 0).summary()
    assert summary["labels"] == []
    assert summary["clients"]["client-0"]["labels"] == {}


@pytest.mark.parametrize("size", [300, 1000])
def test_a_public_set_that_leaves_nothing_is_refused(size: int) -> None:
    with pytest.raises(UserError, match=f"data.public_size={size}"):
        load_data(config(public_size=size), "classification", 0)


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(UserError, match="Did you mean 'classification'"):
        load_data(config(), "clasification", 0)


def test_config_survives_a_round_trip() -> None:
    given = config(partition={"name": "dirichlet", "alpha": 0.1})
    assert DataConfig.model_validate(given.model_dump(mode="json")) == given


def test_chats_with_the_same_words_are_the_same_row() -> None:
    turns = [[{"role": "user", "content": text}] for text in ("Hi ", "hi", "ho")]
    first, second, third = row_keys(Dataset.from_dict({"messages": turns}))
    assert first == second != third


def test_settings_are_chosen_by_rows_that_are_neither_tested_nor_trained_on(
    overlapping: DataConfig,
) -> None:
    reported = load_data(overlapping, "classification", 0)
    chosen = load_data(
        overlapping.model_copy(update={"validation_fraction": 0.25}), "classification", 0
    )
    check_disjoint(chosen)
    everything = {key for keys in texts(chosen) for key in keys}
    assert not everything & {*row_keys(reported.test)}, "nobody sees a test row"
    assert len(chosen.test) == 9, "a quarter of the 36 training rows that are no test rows"
    clients, public, _ = texts(reported)
    assert {*row_keys(chosen.test)} < {*clients, *public}


def test_a_public_set_that_is_left_out_fits_few_rows(tmp_path: Path) -> None:
    """All arms hold back as many, and one that is asked for is still refused."""
    lines = [json.dumps({"text": f"t{i}", "label": i % 2}) for i in range(75)]
    (tmp_path / "few.jsonl").write_text("\n".join(lines))
    source = {"name": "files", "train": str(tmp_path / "few.jsonl")}
    plain = DataConfig.model_validate({"source": source})
    beside = plain.model_copy(update={"set_aside": 256})
    with_public, without = (
        load_data(plain, "classification", 0, 256),
        load_data(beside, "classification", 0, 0),
    )
    assert len(with_public.public) == 60 // 4
    assert len(without.public) == 0
    for name, rows in with_public.clients.items():
        assert rows["text"] == without.clients[name]["text"]
    asked = plain.model_copy(update={"public_size": 256})
    with pytest.raises(UserError, match="would leave nothing"):
        load_data(asked, "classification", 0, 256)


def test_the_default_comparison_fits_the_data_and_the_model_that_are_named() -> None:
    own = default_comparison({"data": {"source": {"name": "files", "train": "mine.csv"}}})
    assert "public_size" not in own["data"]
    assert "layers" not in default_comparison({"model": {"id": "roberta-base"}})["adapter"]
    whole = default_comparison({"data": {"num_clients": 4}, "model": {"dtype": "bfloat16"}})
    assert whole["data"]["public_size"] == 200
    assert whole["adapter"]["layers"] == [3, 4, 5]


@pytest.mark.parametrize("task", known(Task))
def test_the_default_comparison_suits_every_task(task: str) -> None:
    own = {"task": task, "data": {"source": {"name": "files", "train": "mine.jsonl"}}}
    labels = {label for label, _ in comparison(default_comparison(own), own).experiments([0])}
    assert {"fedllm", "split", "local_only", "centralised"} <= labels


def test_the_default_comparison_of_language_models_is_a_recipe_of_its_own() -> None:
    assert default_comparison({"task": {"name": "causal_lm"}})["model"]["id"] == "smollm2"
    for own in ({"model": {"id": "gpt2"}}, {"data": {"source": {"name": "hub", "path": "a/b"}}}):
        found = default_comparison({"task": "causal_lm", **own})
        assert "optimizer" not in found["training"]  # what a run has by default
        tree = merge(merge(found, {"task": "causal_lm", **own}), {"rounds": 1})
        for config in comparison(tree, {}).experiments([0]).values():
            if config.framework.name != "zero_shot":
                assert config.training.optimizer.lr == 2e-4
            if config.framework.name == "kd":  # not gigabytes
                assert all(codec.name == "top_classes" for codec in config.wire.up)
