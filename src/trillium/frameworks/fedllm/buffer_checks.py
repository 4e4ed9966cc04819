"""What buffered rounds contradict: what would need one state that all clients began from."""

from __future__ import annotations

from collections.abc import Iterator

from trillium.federation.setting import Setting
from trillium.frameworks.fedllm.settings import FedLLMSettings


def breaks_of_buffer(framework: FedLLMSettings, config: Setting) -> Iterator[tuple[str, str, str]]:
    """Yield what would need the state that a client began from, or all clients at once."""
    rule, fleet = framework.aggregator, config.fleet
    size, buffer = fleet.clients_per_round or config.data.num_clients, framework.buffer or 0
    if framework.upload == "parameters":
        yield (
            "framework.upload=parameters",
            "what a client has come to would take back the steps that the server took meanwhile",
            "Write framework.upload=update",
        )
    if rule.reads == "state" or rule.restarts:
        yield (
            f"framework.aggregator={rule.name}",
            "it makes a new state of those of clients, which began from different ones",
            "Write framework.aggregator=mean, or another that reads changes",
        )
    if framework.drift.answers:
        yield (
            f"framework.drift={framework.drift.name}",
            "its control variates are of clients that began from one state",
            "Write framework.drift=none or prox",
        )
    if framework.mask.alternates:
        yield (
            f"framework.mask={framework.mask.name}",
            "a late change would be of tensors that rest in the round in which it comes",
            "Write framework.mask=all or ffa",
        )
    if framework.download.name != "state":
        yield (
            f"framework.download={framework.download.name}",
            "nobody knows what a client holds that is at work",
            "Write framework.download=state",
        )
    if framework.local:
        yield (
            f"framework.local={list(framework.local)}",
            "all clients are asked to measure their own models, and some are at work",
            "Leave framework.local out",
        )
    if fleet.over_sample > 1 or fleet.take is not None:
        yield (
            "fleet.over_sample" if fleet.over_sample > 1 else f"fleet.take={fleet.take}",
            "the buffer says how many answers a round takes, and late ones are used",
            "Write fleet.clients_per_round for how many are at work at a time",
        )
    if buffer > size:
        yield (
            f"framework.asynchronous.buffer={buffer} of {size} clients",
            "no more can answer than are at work",
            f"Write at most {size}",
        )
    if (fleet.min_replies or 0) > buffer:
        yield (
            f"fleet.min_replies={fleet.min_replies}",
            f"a round takes {buffer} answers",
            f"Write at most {buffer}, or a larger framework.asynchronous.buffer",
        )
