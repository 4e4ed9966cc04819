"""What goes out in a round of FedLLM: made once for all clients of a tier that hold the same."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

from trillium.federation.fleet import Fleet
from trillium.federation.server import Server
from trillium.frameworks.fedllm.downloads import Parcel, Sent
from trillium.frameworks.fedllm.settings import FedLLMSettings
from trillium.frameworks.fedllm.shares import Share
from trillium.wire.kinds import Tensors
from trillium.wire.message import Message, named


@dataclass(frozen=True)
class Outgoing:
    """What one client is sent, and what is known of it; `like` has the form of what it sends back."""

    message: Message
    share: Share
    like: Tensors
    parcel: Parcel
    sent: Sent


def outgoing(
    framework: FedLLMSettings, server: Server, fleet: Fleet, current: Tensors
) -> dict[str, Outgoing]:
    """Return what goes to each client of the cohort."""
    known = framework.known(server)
    downloads = server.store.setdefault("downloads", {})
    made: dict[Hashable, Outgoing] = {}
    result = {}
    for client in fleet.cohort:
        tier, is_new = server.tiers[client], client in fleet.newcomers
        key = id(tier), framework.download.state_of(downloads, client, is_new)
        if key not in made:
            share = framework.share(server, tier)
            parcel = Parcel(
                client=client,
                target=share.take(current, share.down),
                start=share.take(known, share.down),
                number=server.round,
                is_new=is_new,
                wire=fleet.wire_of(client),
            )
            sent, like = framework.download.send(downloads, parcel), share.take(current, share.up)
            beside = framework.drift.send(server.store.setdefault("drift", {}), like)
            tensors = {**sent.message.tensors, **named("gradients", beside)}
            message = replace(sent.message, tensors=tensors)
            made[key] = Outgoing(message, share, like, parcel, sent)
        found = made[key]
        result[client] = replace(found, parcel=replace(found.parcel, client=client))
    return result
