"""How good a model is on the rows of the clients: counts and sums go up, and no row.

Down: the trainable values that are to be measured, and base weights that the run has changed; as
`snapshot`, so that no lossy codec touches them. Up: what adds up of them on a client's held-out rows.
Both have the purpose `evaluate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from trillium.errors import UserError
from trillium.federation.agreed import MOST
from trillium.federation.client import Client
from trillium.federation.fleet import Fleet
from trillium.federation.server import Server
from trillium.federation.setting import Setting
from trillium.federation.side import Metrics
from trillium.models.slots import State, values
from trillium.tasks import Task
from trillium.wire.kinds import MessageError, Tensors, has_values
from trillium.wire.message import Message, named

Tally = dict[str, Tensor]
"""Counts and sums of a model on some rows, by name (`Task.tally`)."""


def snapshot_of(server: Server, batch_tokens: int) -> Message:
    """Return what asks a client for the measures of the server's model."""
    base = {**server.model.base, **server.base} if server.base else {}
    meta = {"batch_tokens": batch_tokens, "base": bool(base)}
    return Message("measure", named("snapshot", {**values(server.state), **base}), meta)


def received(client: Client, message: Message) -> tuple[State, Tensors]:
    """Return the model that comes: its trainable values, and base weights that are others now."""
    base = client.model.base if message.meta["base"] else {}
    found = message.expect("snapshot", {**client.initial, **base})
    state = client.model.state({name: found[name] for name in client.initial})
    return state, {name: found[name] for name in base}


def measured(client: Client, message: Message) -> Message:
    """Return what a client answers to it; nothing if it has no held-out rows."""
    if not client.test:
        return Message(message.verb)
    tally = client.tally(*received(client, message), int(message.meta["batch_tokens"]))
    return Message(message.verb, named("measures", tally))


def tally_readers(
    server: Server, fleet: Fleet, clients: Iterable[str], prefix: str = ""
) -> dict[str, Callable[[Message], Tally]]:
    """Return what checks the counts and sums of each client; empty ones of a client that has none.

    It refuses what is not of the task's form, or of which nothing finite follows, and more rows than
    the client has said that it holds back.

    Args:
        prefix: of their names, where a client tells several.
    """
    task, classes, held_out = server.task, server.model.num_classes, fleet.agreed.held_out
    return {c: _reader(task, classes, prefix, held_out.get(c, MOST)) for c in clients}


def _reader(task: Task, num_outputs: int, prefix: str, most: int) -> Callable[[Message], Tally]:

    def read(reply: Message) -> Tally:
        names = (name for name in reply.group("measures") if name.startswith(prefix))
        if not (given := {name.removeprefix(prefix) for name in names}):
            return {}
        shapes = {name: (num_outputs,) if wide else () for name, wide in task.told.items()}
        shapes["num_examples"] = ()
        if given != shapes.keys():
            raise MessageError(f"{reply.verb}: measures {sorted(given)[:8]}")
        found = {
            n: reply.tensor(f"measures/{prefix}{n}", torch.float64, s, signed=n in task.signed)
            for n, s in shapes.items()
        }
        if not has_values(found["num_examples"]):
            return found
        count = float(found["num_examples"])
        if not (0 < count <= most and count.is_integer()):
            raise MessageError(
                f"{reply.verb}: measures of {count:g} rows, where it holds {most} back at most; "
                "it is to measure on these"
            )
        if not all(map(math.isfinite, task.metrics(found).values())):
            raise MessageError(f"{reply.verb}: measures of which nothing finite follows")
        return found

    return read


def pooled(task: Task, tallies: Mapping[str, Tally]) -> Metrics:
    """Return the metrics of the rows of all clients together, and those of each client's own.

    Raises:
        UserError: no client has measured anything.
    """
    if not tallies:
        raise UserError(
            "evaluation.where=clients",
            "no client has answered with measures: none has held-out rows, or all have refused",
            "Give the nodes test files, write a larger evaluation.held_back, or look at their logs",
        )
    own = [tallies[client] for client in sorted(tallies)]
    total = {name: torch.stack([tally[name] for tally in own]).sum(0) for name in own[0]}
    each = {client: task.metrics(tallies[client]) for client in sorted(tallies)}
    return {**task.metrics(total), "clients": each}


def check_measuring(ships_server: bool, config: Setting) -> None:
    """Refuse to measure at the clients what cannot be, or what would leave them uncovered.

    Args:
        ships_server: whether it is the server's model that is measured.

    Raises:
        UserError: with the settings that contradict each other.
    """
    for given, why, instead in _breaks(ships_server, config):
        raise UserError(f"evaluation.where={config.evaluation.where} with {given}", why, instead)


def _breaks(ships_server: bool, config: Setting) -> Iterator[tuple[str, str, str]]:
    at_server = "Write evaluation.where=server"
    if config.privacy.unit:
        yield (
            f"privacy={config.privacy.name}",
            "counts and sums of each client's own rows would leave it without noise, and the epsilon "
            "that is told would not cover them",
            f"{at_server}, with rows that are nobody's secret",
        )
    if config.sums.hides:
        yield (
            f"sums={config.sums.name}",
            "the counts and sums of each client would be seen one by one",
            f"{at_server}, or sums=plain",
        )
    if config.has_other_models and ships_server:
        yield (
            "models or adapters of a tier, or of the server, of their own",
            "the server's model does not fit into those of the clients that would measure it",
            f"{at_server}, or framework.direction=client, which measures the clients' own models",
        )
    if getattr(config.task, "generate", 0):
        yield (
            f"task.generate={getattr(config.task, 'generate', 0)}",
            "how long a client would write, and what that costs it, nobody knows before",
            "Write task.generate=0: loss, perplexity and token accuracy are measured there",
        )
