"""What sets the partitions apart: how skewed, by what, and what they refuse."""

import numpy as np
import pytest
from datasets import Dataset
from pydantic import ValidationError

from trillium.data.partitions import Partition
from trillium.data.partitions.dirichlet import Dirichlet
from trillium.data.partitions.iid import IID
from trillium.data.partitions.natural import Natural
from trillium.data.partitions.shard import Shard
from trillium.data.partitions.size_skewed import SizeSkewed
from trillium.errors import UserError

LABELS = np.arange(2000) % 10
ROWS = Dataset.from_dict({"label": LABELS.tolist()})


def histograms(partition: Partition, num_clients: int = 10) -> np.ndarray:
    """Return rows per client and class, `(clients, classes)`."""
    parts = partition.assign(ROWS, num_clients, 3)
    return np.array([np.bincount(LABELS[part], minlength=10) for part in parts])


def distance_from_iid(partition: Partition) -> float:
    """Return the mean total variation between a client's class shares and the uniform ones."""
    counts = histograms(partition)
    shares = counts / counts.sum(axis=1, keepdims=True)
    return float(np.abs(shares - 0.1).sum(axis=1).mean() / 2)


def test_iid_parts_differ_by_at_most_one_row() -> None:
    sizes = [len(part) for part in IID().assign(ROWS, 7, 0)]
    assert max(sizes) - min(sizes) <= 1


def test_iid_does_not_keep_the_order_of_the_rows() -> None:
    assert IID().assign(ROWS, 1, 0) != [list(range(2000))]


def test_smaller_alpha_is_more_skewed() -> None:
    skews = [distance_from_iid(Dirichlet(alpha=alpha)) for alpha in (0.05, 0.5, 5.0, 500.0)]
    assert skews == sorted(skews, reverse=True)
    assert skews[0] > 0.7
    assert skews[-1] < 0.1


def test_dirichlet_gives_every_client_its_min_size_without_a_warning(
    recwarn: pytest.WarningsRecorder,
) -> None:
    sizes = histograms(Dirichlet(alpha=0.01, min_size=40), 20).sum(axis=1)
    assert sizes.min() >= 40
    assert not recwarn.list


def test_dirichlet_min_size_beyond_the_rows_is_refused() -> None:
    with pytest.raises(UserError, match="Write num_clients: 6 or less"):
        Dirichlet(min_size=300).assign(ROWS, 10, 0)


@pytest.mark.parametrize("alpha", [0, -1])
def test_dirichlet_refuses_alpha_that_is_no_concentration(alpha: float) -> None:
    with pytest.raises(ValidationError):
        Dirichlet(alpha=alpha)


@pytest.mark.parametrize("held", [1, 2, 3, 10])
def test_shard_gives_each_client_exactly_its_classes(held: int) -> None:
    counts = histograms(Shard(classes_per_client=held))
    assert ((counts > 0).sum(axis=1) == held).all()
    np.testing.assert_allclose(counts.sum(axis=1), 200, atol=held)  # equally many holders each


def test_shard_by_default_holds_as_few_classes_as_cover_all() -> None:
    assert ((histograms(Shard(), 4) > 0).sum(axis=1) == 3).all()


def test_shard_refuses_to_leave_classes_without_a_client() -> None:
    with pytest.raises(UserError, match="Write classes_per_client: 3 or more"):
        Shard(classes_per_client=2).assign(ROWS, 4, 0)


def test_natural_keeps_owners_whole_and_balances_them() -> None:
    owners = [
        name
        for name, size in zip("abcdefg", (50, 30, 20, 10, 9, 8, 3), strict=True)
        for _ in range(size)
    ]
    rows = Dataset.from_dict({"client": owners})
    parts = Natural().assign(rows, 3, 0)
    held = [{owners[row] for row in part} for part in parts]
    assert sum(len(names) for names in held) == 7  # disjoint: nobody's rows are divided
    assert sorted(len(part) for part in parts) == [39, 41, 50]  # 30 + 9, 20 + 10 + 8 + 3, 50


def test_natural_refuses_more_clients_than_owners() -> None:
    rows = Dataset.from_dict({"client": ["a", "b"] * 5})
    with pytest.raises(UserError, match=r"2 natural owners.*Write num_clients: 2 or less"):
        Natural().assign(rows, 3, 0)


def test_natural_without_owners_says_how_to_name_them() -> None:
    with pytest.raises(UserError, match="client: <column>"):
        Natural().assign(ROWS, 3, 0)


def test_sizes_follow_the_power_law() -> None:
    sizes = [len(part) for part in SizeSkewed(power=1).assign(ROWS, 4, 0)]
    np.testing.assert_allclose(sizes, 2000 * np.array([12, 6, 4, 3]) / 25, atol=3)


def test_power_zero_is_equal_sizes() -> None:
    assert {len(part) for part in SizeSkewed(power=0).assign(ROWS, 8, 0)} == {250}


@pytest.mark.parametrize("partition", [Dirichlet(), Shard()])
def test_label_partitions_need_labels(partition: Partition) -> None:
    rows = Dataset.from_dict({"prompt": ["a"] * 10, "completion": ["b"] * 10})
    with pytest.raises(UserError, match="Write partition: iid"):
        partition.assign(rows, 2, 0)
