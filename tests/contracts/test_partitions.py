"""What every partition promises: each row once, no client empty, same seed same parts."""

from collections import Counter
from typing import cast

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from trillium.component import known
from trillium.data.partitions import Partition
from trillium.errors import UserError

PARTITIONS = cast(dict[str, type[Partition]], known(Partition))


def make_rows(labels: list[int], num_owners: int) -> Dataset:
    return Dataset.from_dict(
        {
            "text": [f"row {i}" for i in range(len(labels))],
            "label": labels,
            "client": [f"owner {i % num_owners}" for i in range(len(labels))],
        }
    )


def check(parts: list[list[int]], num_rows: int, num_clients: int) -> None:
    assert len(parts) == num_clients
    assert all(parts), "a client has no rows"
    assert Counter(row for part in parts for row in part) == Counter(range(num_rows))
    assert all(type(row) is int for part in parts for row in part)


def test_all_shipped_partitions_are_registered() -> None:
    assert {"iid", "dirichlet", "shard", "natural", "size_skewed"} <= set(PARTITIONS)


@pytest.mark.parametrize("name", PARTITIONS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_row_once_and_no_client_empty(name: str, data: st.DataObject) -> None:
    num_clients = data.draw(st.integers(1, 12))
    labels = data.draw(st.lists(st.integers(0, 7), min_size=num_clients, max_size=60))
    seed = data.draw(st.integers(0, 2**63 - 1))
    rows = make_rows(labels, num_owners=min(len(labels), num_clients + 3))
    parts = PARTITIONS[name]().assign(rows, num_clients, seed)
    check(parts, len(labels), num_clients)
    assert parts == PARTITIONS[name]().assign(rows, num_clients, seed)


@pytest.mark.parametrize("name", PARTITIONS)
def test_another_seed_gives_other_parts(name: str) -> None:
    rows = make_rows([i % 10 for i in range(200)], num_owners=20)
    assert PARTITIONS[name]().assign(rows, 5, 0) != PARTITIONS[name]().assign(rows, 5, 1)


@pytest.mark.parametrize("name", PARTITIONS)
def test_more_clients_than_rows_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"num_clients: 5.*Write num_clients: 4 or less"):
        PARTITIONS[name]().assign(make_rows([0, 1, 2, 3], num_owners=4), 5, 0)


@pytest.mark.parametrize(
    "parts", [[[0, 1], []], [[0, 1], [1]], [[0], [2]]], ids=["empty", "twice", "foreign"]
)
def test_the_check_itself_can_fail(parts: list[list[int]]) -> None:
    with pytest.raises(AssertionError):
        check(parts, 2, 2)
