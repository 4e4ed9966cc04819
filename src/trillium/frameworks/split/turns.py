"""Whose batches the server of a cut model takes next, and when it asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter

import torch

from trillium.federation.fleet import Fleet
from trillium.frameworks.split.pooled import Forwarded
from trillium.wire.message import Message


def turns(
    num_steps: Mapping[str, int], one_by_one: bool, order: torch.Generator
) -> Iterator[list[str]]:
    """Yield whose batches the server takes next, as one.

    Args:
        one_by_one: whether each turn is one client's, in random order, or that of all that have one
            left.
    """
    for turn in range(max(num_steps.values(), default=0)):
        active = [client for client in sorted(num_steps) if turn < num_steps[client]]
        if one_by_one:
            yield from ([client] for client in shuffled(active, order))
        else:
            yield active


def num_turns(num_steps: Mapping[str, int], one_by_one: bool) -> int:
    """Return how many `turns` there are."""
    steps = num_steps.values()
    return sum(steps) if one_by_one else max(steps, default=0)


def arrivals(
    fleet: Fleet,
    turns: Iterable[Sequence[str]],
    request: Callable[[str], Message],
    reader: Callable[[str], Callable[[Message], Forwarded]],
    *,
    ahead: bool,
) -> Iterator[dict[str, Forwarded]]:
    """Yield the batches of each turn, by client, as they are asked for.

    Args:
        ahead: whether the clients of the next turn are asked before the batches of a turn are yielded,
            and work while the server does.
    """
    waiting: Iterator[tuple[str, Forwarded]] | None = None
    for clients in turns:
        present = [client for client in clients if client in fleet.cohort]
        asks = {client: request(client) for client in present}
        read = {client: reader(client) for client in present}
        if ahead:
            arriving, waiting = waiting, fleet.post(asks, read)
        else:
            arriving = fleet.ask(asks, read)
        if arriving is not None:
            yield _by_client(arriving)
    if waiting is not None:
        yield _by_client(waiting)


def shuffled(names: Sequence[str], order: torch.Generator) -> list[str]:
    """Return names in random order."""
    return [names[index] for index in torch.randperm(len(names), generator=order).tolist()]


def _by_client(found: Iterator[tuple[str, Forwarded]]) -> dict[str, Forwarded]:
    """Return batches sorted by client, because sums of floats depend on their order."""
    return dict(sorted(found, key=itemgetter(0)))
