"""What clients have said of themselves at the start and are held to, and who stands out among them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from trillium.wire.arrived import Arrived
from trillium.wire.kinds import MessageError, has_values
from trillium.wire.message import Message

log = logging.getLogger(__name__)

MANY: Final = 100  # times what others have, or send: then it is said who has it
APART: Final = 10  # times as far from the middle as others are, in what is said of public examples
LARGEST: Final = 1e12  # squared norm of the gradients of a batch
MOST: Final = 2**40  # examples or tokens, where a client has said nothing


@dataclass
class Agreed:
    """How much data each client has, as far as it has said so; its weights and steps follow from it.

    Attributes:
        targets: of one example, at most, in the weight of a client.
        steps: returns how many optimiser steps a client takes in a round with so many examples.
        examples: by client.
        held_out: how many of them, beside these, it measures on.
    """

    targets: int = MOST
    steps: Callable[[str, int], int] | None = None
    examples: dict[str, int] = field(default_factory=dict)
    held_out: dict[str, int] = field(default_factory=dict)

    def note(self, counts: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
        """Take down what clients say that they have; return those that said something else before."""
        changed = {}
        for client, own in sorted(counts.items()):
            count = own.get("texts", 0) - own.get("left_out", 0)
            self.held_out.setdefault(client, own.get("held_out", MOST))
            if self.examples.setdefault(client, count) != count:
                changed[client] = (
                    f"it has {count} examples, and said {self.examples[client]} before"
                )
        others = lower_median(list(self.examples.values()))
        for client in counts.keys() - changed.keys():
            if len(self.examples) > 1 and self.examples[client] > MANY * max(others, 1):
                log.warning("%s says that it has %d examples", client, self.examples[client])
        return changed

    def check(self, client: str, reply: Message) -> None:
        """Refuse a weight or steps that are not those of the client's examples, and absurd norms."""
        norm = "control/squared_norm"
        if norm in reply.tensors and reply.not_negative(norm) > LARGEST:
            raise MessageError(f"{reply.verb}: a squared norm above {LARGEST:g}")
        examples = self.examples.get(client)
        if "control/weight" in reply.tensors:
            most = MOST if examples is None else examples * self.targets
            weight = reply.positive("control/weight")
            if weight > most:
                raise MessageError(
                    f"{reply.verb}: a weight of {weight:g}, at most {most} is agreed"
                )
        if "control/num_steps" in reply.tensors:
            steps, most = reply.positive("control/num_steps"), MOST
            if examples is not None and self.steps is not None:
                most = self.steps(client, examples)
            if steps > most:
                raise MessageError(f"{reply.verb}: {steps:g} steps, at most {most} are agreed")


@dataclass
class Sizes:
    """What clients have sent in a round, by how it stands out.

    Attributes:
        found: the largest value of each kind of tensor, by kind and client.
        apart: returns how far each client is from the middle in what it says of the same things; only
            looked at where a round has gone wrong.
    """

    found: dict[str, dict[str, float]] = field(default_factory=dict)
    apart: Callable[[], Mapping[str, float]] | None = None

    def note(self, client: str, reply: Message) -> None:
        """Take note of what was read of a reply."""
        read = reply.tensors.found if isinstance(reply.tensors, Arrived) else {}
        for name, tensor in read.items():
            kind = name.partition("/")[0]
            if kind == "control" or not tensor.is_floating_point() or not tensor.numel():
                continue
            if has_values(tensor):
                low, high = torch.aminmax(tensor)
                sizes = self.found.setdefault(kind, {})
                sizes[client] = max(sizes.get(client, 0.0), float(high), -float(low))

    def suspect(self) -> tuple[str, str] | None:
        """Return the client that sent what stands out by far this round, and what that is."""
        for kind, sizes in self.found.items():
            if worst := _outlier(sizes, MANY):
                client, size, others = worst
                return (
                    client,
                    f"it sent {kind} of up to {size:.3g}, the others of up to {others:.3g}",
                )
        if self.apart is not None and (worst := _outlier(self.apart(), APART)):
            client, size, others = worst
            return client, f"what it says is {size:.3g} from the middle, the others {others:.3g}"
        return None


def _outlier(sizes: Mapping[str, float], times: float) -> tuple[str, float, float] | None:
    """Return who has the most, if that is so many times what the others have in the middle."""
    if len(sizes) < 2:
        return None
    client = max(sorted(sizes), key=lambda name: sizes[name])
    others = lower_median([size for name, size in sizes.items() if name != client])
    is_far = sizes[client] > times * max(others, 1e-30)
    return (client, sizes[client], others) if is_far else None


def lower_median(values: Sequence[float]) -> float:
    """Return the value in the middle, the lower one of two; 0 of none."""
    return sorted(values)[(len(values) - 1) // 2] if values else 0.0
