"""Changes of base weights that an aggregator makes, brought to all sides: two halves of one message.

Down: the low-rank factors of every change that a client has not had, as `snapshot`, so that no lossy
codec touches them and all sides add the same numbers. Up: nothing.
"""

from __future__ import annotations

from trillium.federation.client import Client
from trillium.federation.fleet import Fleet
from trillium.federation.server import Server
from trillium.models.folds import Fold, as_fold, fold_into, pack_folds, plain, unpack_folds
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message


def keep_fold(server: Server, fold: Fold) -> None:
    """Add a change to the server's base weights, and keep it for the clients."""
    weights = server.model.base
    kept = plain(fold, weights)
    server.store.setdefault("folds", []).append(kept)
    server.store["base"] = fold_into(server.base, as_fold(kept), server.model.factors, weights)


def send_folds(server: Server, fleet: Fleet) -> None:
    """Bring the base weights of the cohort in step."""
    folds, done = server.store.get("folds", []), server.store.setdefault("folded", {})
    for name in fleet.newcomers:
        done.pop(name, None)
    late = {name: done.get(name, 0) for name in fleet.cohort if done.get(name, 0) < len(folds)}
    requests = {name: pack_folds(folds, first) for name, first in late.items()}
    came = fleet.tell(requests)
    done |= dict.fromkeys(came, len(folds))
    for name in late.keys() - came:  # nobody knows what it holds, so it begins anew
        done.pop(name, None)


def receive_folds(client: Client, message: Message) -> Message:
    """Add what comes to the client's base weights; `MessageError` if one before it is missing here."""
    factors, weights = client.model.factors, client.model.base
    first, folds = unpack_folds(message, factors, weights)
    if first not in (0, client.store.get("num_folds", 0)):
        raise MessageError(f"the first fold is {first}, which is not the next one here")
    base = client.base if first else {}
    for fold in folds:
        base = fold_into(base, fold, factors, weights)
    client.store["base"], client.store["num_folds"] = base, first + len(folds)
    return Message("fold")
