"""Example-level differential privacy: one example more or less hardly changes what its client sends.

Deep Learning with Differential Privacy (Abadi et al., 2016, arXiv 1607.00133): the gradient of each
example is scaled down to a bound, and noise is added to their sum, in every step of every client by
itself. The server is not trusted. Each example is in a batch or not by a coin of the client's (Poisson
sampling), and nothing is divided by how many there were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from trillium.privacy import Guarantee, listed
from trillium.privacy.account import Release
from trillium.privacy.noise import chance, on_grid, released
from trillium.wire.message import Message

T = TypeVar("T")


class ExampleLevel(Guarantee, name="example"):
    """Hide whether an example was among those of a client, from the server and everybody else.

    `training.batch_size` is then the size of a batch on average. The examples of all clients together
    train with as much noise as there are clients.

    Attributes:
        clip: the bound of the gradient of an example's mean loss.
        population: how many examples a client has, as everybody may know: about as many as most have.
            If it has fewer, or more, the guarantee still holds; its batches are smaller, or larger.
    """

    clip: float = Field(default=1.0, gt=0)
    population: int | None = Field(default=None, ge=1)

    unit: ClassVar[str] = "example"
    adversary: ClassVar[str] = "whoever sees all that clients send, the server among them"
    uncounted: ClassVar[str] = (
        "how settings were chosen, other runs on the same examples, class names, how long clients "
        "take, and who takes part"
    )

    def closed(self, reply: Message, request: Message) -> Message:
        """Return a reply with what is added up alone: it bears noise already."""
        return Message(reply.verb, listed(reply, f"privacy={self.name}"), previewed=reply.previewed)


@dataclass
class NoisySteps:
    """How a client takes its steps: batches by coins, bounded gradients, noise.

    Attributes:
        clip: bound of the gradient of an example.
        noise: standard deviation over the bound.
        rate: probability of an example to be in a batch.
        size: of a batch, on average; what sums are divided by.
        secret: gives a key for a purpose.
        spend: is told of each sum that is drawn noise for, before it is.
    """

    clip: float
    noise: float
    rate: float
    size: int
    secret: Callable[[str], bytes]
    spend: Callable[[Release], None] = lambda release: None

    def batches(self, examples: Sequence[T], count: int) -> Iterator[list[T]]:
        """Yield so many batches, each example in each of them by a coin of its own."""
        for step in range(count):
            key = self.secret(f"batch {step}")
            yield [e for place, e in enumerate(examples) if chance(key, str(place)) < self.rate]

    def gradient(
        self, rows: Sequence[dict[str, Tensor]], state: dict[str, nn.Parameter], step: int
    ) -> None:
        """Leave the noisy mean of some gradients in the parameters' `grad`.

        Args:
            rows: of parts of a batch: by name `(examples, *shape)`.
            step: counts those of the round.
        """
        self.spend(Release(self.noise, self.rate))
        moved = {name: p for name, p in state.items() if p.requires_grad}
        deviation = self.noise * self.clip
        like = next(iter(moved.values()))
        width = sum(p.numel() for p in moved.values())
        dtype = torch.int64 if deviation else torch.float64
        total = like.detach().new_zeros(width, dtype=dtype, device="cpu")
        for part in rows:
            count = len(next(iter(part.values())))
            rested = {n: p.new_zeros(count, *p.shape) for n, p in moved.items() if n not in part}
            flat = torch.cat([{**part, **rested}[name].flatten(1) for name in moved], 1)
            if deviation:
                total += on_grid(flat, self.clip, deviation).sum(0)
            else:
                norms = flat.double().norm(dim=1, keepdim=True).clamp_min(1e-300)
                total += (flat.double() * (self.clip / norms).clamp(max=1.0)).sum(0).cpu()
        noisy = total
        if deviation:
            key = hashlib.blake2b(str(step).encode(), key=self.secret("steps"), digest_size=32)
            noisy = released(total, deviation, key.digest())
        means = torch.split(noisy / self.size, [p.numel() for p in moved.values()])
        for p, mean in zip(moved.values(), means, strict=True):
            p.grad = mean.reshape(p.shape).to(p)

    def sums(self, rows: Tensor, groups: Tensor, num_groups: int, noise: float) -> Tensor:
        """Return sums of rows of length 1 by group, with noise of so many times that of a step."""
        self.spend(Release(self.noise * noise))
        deviation = self.noise * noise
        zeros = rows.new_zeros(num_groups, rows.shape[1])
        if not deviation:
            return zeros.index_add(0, groups, rows)
        steps = on_grid(rows, 1.0, deviation)
        total = steps.new_zeros(zeros.shape).index_add(0, groups, steps)
        return released(total, deviation, self.secret("sums"))


def mean_losses(rows: dict[str, Tensor], counts: Sequence[int]) -> dict[str, Tensor]:
    """Return the gradients of each example's mean loss from those of its summed loss."""
    shares = [1.0 / max(count, 1) for count in counts]
    if all(share == 1.0 for share in shares):
        return rows
    return {
        name: own * own.new_tensor(shares).view(-1, *[1] * (own.dim() - 1))
        for name, own in rows.items()
    }
