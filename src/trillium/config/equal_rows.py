"""Arms of a comparison have the same rows at their clients, whatever public set some of them have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress

from trillium.config.experiment import Tree, acting, experiment, merge
from trillium.errors import UserError


def of_equal_rows(trees: Mapping[str, Tree], least: int = 0) -> dict[str, Tree]:
    """Return the trees of arms, none of whose clients have rows that another arm holds back.

    Args:
        least: how many rows arms that are not here hold back.
    """
    held = {label: _held_back(tree) for label, tree in trees.items()}
    most = max([least, *held.values()])
    aside = {"data": {"set_aside": most}}
    return {
        label: tree if held[label] == most else merge(tree, aside) for label, tree in trees.items()
    }


def _held_back(tree: Tree) -> int:
    """Return how many training rows no client of an arm has."""
    config = experiment(tree)
    return max(0 if config.data.public.is_written else config.public_size, config.data.set_aside)


def most_held_back(base: Tree, arms: Iterable[Tree]) -> int:
    """Return the most of all arms that can be run: which are run makes no difference."""
    most = 0
    for arm in arms:
        with suppress(UserError):
            most = max(most, _held_back(acting(merge(base, arm), {})[0]))
    return most
