"""Changes of base weights that an aggregator makes, brought to all sides: two halves of one message.

Down, as `snapshot`, so that no lossy codec touches it and all sides hold the same numbers: the low-rank
factors of every change that a client has not had; or the weights themselves, once the factors outweigh
them. Up: nothing.
"""

from __future__ import annotations

from trillium.federation.client import Client
from trillium.federation.fleet import Fleet
from trillium.federation.server import Server
from trillium.models.folds import (
    Fold,
    as_fold,
    fold_into,
    pack_folds,
    pack_weights,
    plain,
    unpack_folds,
    unpack_weights,
    weigh,
)
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message


def keep_fold(server: Server, fold: Fold) -> None:
    """Add a change to the server's base weights, and keep it for the clients.

    Of all changes the latest are kept, as many as weigh less than the weights: who lacks an earlier one
    gets the weights, and neither checkpoints nor downloads grow with the rounds.
    """
    store, weights = server.store, server.model.base
    folds = [*store.get("folds", ()), plain(fold, weights)]
    base = fold_into(server.base, as_fold(folds[-1]), server.model.factors, weights)
    bound, dropped = sum(tensor.nbytes for tensor in base.values()), 0
    while sum(map(weigh, folds[dropped:])) >= bound:
        dropped += 1
    store |= {"base": base, "folds": folds[dropped:]}
    store["dropped_folds"] = store.get("dropped_folds", 0) + dropped


def send_folds(server: Server, fleet: Fleet) -> None:
    """Bring the base weights of the cohort in step."""
    folds, done = server.store.get("folds", []), server.store.setdefault("folded", {})
    dropped = server.store.get("dropped_folds", 0)
    number = dropped + len(folds)
    for name in fleet.newcomers:
        done.pop(name, None)
    late = {name: done.get(name, 0) for name in fleet.cohort if done.get(name, 0) < number}
    made = {
        first: pack_weights(server.base, number)
        if first < dropped
        else pack_folds(folds[first - dropped :], first)
        for first in {*late.values()}
    }
    came = fleet.tell({name: made[first] for name, first in late.items()})
    done |= dict.fromkeys(came, number)
    for name in late.keys() - came:  # nobody knows what it holds, so it begins anew
        done.pop(name, None)


def receive_folds(client: Client, message: Message) -> Message:
    """Take in what comes, weights or changes of them; `MessageError` if one before these is missing."""
    factors, weights = client.model.factors, client.model.base
    if "number" in message.meta:
        base, number = unpack_weights(message, factors, weights)
        client.store["base"], client.store["num_folds"] = base, number
        return Message("fold")
    first, folds = unpack_folds(message, factors, weights)
    if first not in (0, client.store.get("num_folds", 0)):
        raise MessageError(f"the first fold is {first}, which is not the next one here")
    base = client.base if first else {}
    for fold in folds:
        base = fold_into(base, fold, factors, weights)
    client.store["base"], client.store["num_folds"] = base, first + len(folds)
    return Message("fold")
