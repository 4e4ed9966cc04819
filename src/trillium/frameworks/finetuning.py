"""Ends of their own: after the last round each client fine-tunes some tensors of the shipped model.

Federated evaluation of personalization (Wang et al., 2019, arXiv 1910.10252), with the head alone as in
FedBABU (Oh et al., 2022, arXiv 2106.06042). Down: the model that is shipped, as `snapshot`. Up: counts
and sums of it, and of what has come of it, on the client's held-out rows. The tensors stay there.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Final

from trillium.errors import UserError
from trillium.federation.client import Client
from trillium.federation.fleet import Fleet
from trillium.federation.server import Server
from trillium.federation.setting import Finetune, Setting
from trillium.frameworks.measuring import Tally, pooled, received, snapshot_of, tally_readers
from trillium.models.slots import matches, train_only, values
from trillium.training.loop import batches, task_objective
from trillium.wire.message import Message, named

OWN: Final = "finetuned"  # in a client's store
BEFORE, AFTER = "before/", "after/"


def finetune_all(
    server: Server, fleet: Fleet, clients: list[str], config: Setting
) -> dict[str, Any]:
    """Let clients fine-tune the server's model; return the metrics before and after.

    Who has no held-out rows does so, too, and tells nothing.
    """
    own, ask = config.finetune, snapshot_of(server, config.evaluation.batch_tokens)
    meta = {**ask.meta, "local_steps": own.local_steps, "tensors": list(own.tensors)}
    ask = replace(ask, verb="finetune", meta=meta)
    readers = [tally_readers(server, fleet, clients, way) for way in (BEFORE, AFTER)]

    def read(client: str, reply: Message) -> list[Tally]:
        return [of[client](reply) for of in readers]

    reads = {client: partial(read, client) for client in clients}
    found = fleet.ask_all(dict.fromkeys(clients, ask), reads, "evaluate")
    both = {client: tallies for client, tallies in found.items() if all(tallies)}
    before, after = ({c: tallies[place] for c, tallies in both.items()} for place in (0, 1))
    return {"before": pooled(server.task, before), "after": pooled(server.task, after)}


def finetuned(client: Client, message: Message) -> Message:
    """Return what a client answers; its tensors stay in its store."""
    own = Finetune(local_steps=message.meta["local_steps"], tensors=message.meta["tensors"])
    assert own.local_steps is not None
    state, base = received(client, message)
    tokens = int(message.meta["batch_tokens"])
    before = client.tally(state, base, tokens) if client.test else {}
    client.store |= {"base": base} if base else {}
    names = [name for name in state if matches(name, own.tensors)]
    steps = client.training.model_copy(update={"local_steps": own.local_steps})
    client.loop("finetune", train_only(state, names)).fit(
        batches(client.examples, steps, client.generator("finetune")),
        task_objective(client.task, client.examples),
        steps,
        float,  # the schedule of the run begins anew
        own.local_steps,
    )
    client.store[OWN] = values(state)
    after = client.tally(state, base, tokens) if client.test else {}
    told = {
        **{BEFORE + n: t for n, t in before.items()},
        **{AFTER + n: t for n, t in after.items()},
    }
    return Message(message.verb, named("measures", told))


def check_finetune(trains: bool, ships_server: bool, cuts: bool, config: Setting) -> None:
    """Refuse ends of their own where there is nothing to begin from, or to measure them on.

    Args:
        trains, ships_server, cuts: whether the framework does.

    Raises:
        UserError: with the settings that contradict each other.
    """
    given = f"finetune.local_steps={config.finetune.local_steps}"
    if not trains or not ships_server or cuts:
        whole = "its clients hold a part of the model, and could not go on with it alone"
        own = "its clients have models of their own already, or nothing trains"
        raise UserError(
            f"{given} with framework={config.framework.name}",
            whole if cuts else own,
            "Leave it out, or write framework=fedllm",
        )
    if config.evaluation.where == "server":
        raise UserError(
            f"{given} with evaluation.where=server",
            "each client is measured on its own rows, and none is held back for that",
            "Write evaluation.where=clients, or both",
        )
