"""Client-level differential privacy: one client more or less hardly changes what is released.

Learning Differentially Private Recurrent Language Models (McMahan et al., 2018, arXiv 1710.06963). What
a client sends is scaled down to a bound; the server, which is trusted, adds it up, adds noise, and
divides by a number that does not depend on who answered. Each client is in a round or not by a coin of
the server's that nobody sees (Poisson sampling), or in turns that everybody knows (`bands`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from trillium.component import Choice
from trillium.privacy import Guarantee, listed
from trillium.privacy.clips import Clip, Fixed
from trillium.privacy.noise import GRID, on_grid, released
from trillium.wire.kinds import Tensors, has_values
from trillium.wire.message import Message

BELOW = "control/below"


class ClientLevel(Guarantee, name="client"):
    """Hide whether a client took part from all who see the model of every round.

    `fleet.clients_per_round` is then the size of a cohort on average; with `fleet.sampling=cyclic`
    clients come in turns, and the noise of a model's rounds partly cancels.

    Attributes:
        clip: the bound of what a client sends.
        population: how many clients there are to draw from, as everybody may know; in a simulation
            `data.num_clients` by default. If there are fewer, or more, the guarantee still holds.
    """

    clip: Choice[Clip] = Fixed()
    population: int | None = Field(default=None, ge=1)

    unit: ClassVar[str] = "client"
    adversary: ClassVar[str] = "whoever sees every round's model; the server is trusted"
    uncounted: ClassVar[str] = (
        "how settings were chosen, other runs on the same clients, class names, and who can watch the "
        "network or the folder of the run, which tell who took part"
    )

    def closed(self, reply: Message, request: Message) -> Message:
        """Return a reply with what is added up, scaled down to the bound that was asked for."""
        tensors = listed(reply, f"privacy={self.name}")
        if not tensors:
            return Message(reply.verb)
        bound = request.positive("control/clip")
        norm = _norm(tensors.values())
        if norm > bound:
            tensors = {name: tensor * (bound / norm) for name, tensor in tensors.items()}
        if self.clip.learns:
            tensors[BELOW] = torch.tensor(float(norm <= bound), dtype=torch.float64)
        return Message(reply.verb, tensors)


def _norm(tensors: Iterable[Tensor]) -> float:
    """Return the l2 norm of tensors together; zero of those without values."""
    squares = [t.detach().double().square().sum() for t in tensors if has_values(t)]
    return math.sqrt(sum(map(float, squares)))


@dataclass
class BoundedSum:
    """A sum to which each client adds what is no longer than a bound, and its release.

    Attributes:
        like: the tensors that are added.
        bound: of their l2 norm together.
        noise: standard deviation over the bound; of what is released in all, with the next.
        count_noise: standard deviation of the number of clients below the bound, if they say that.
    """

    like: Tensors
    bound: float
    noise: float
    count_noise: float = 0.0

    def __post_init__(self) -> None:
        width = sum(tensor.numel() for tensor in self.like.values())
        like = next(iter(self.like.values()))
        dtype = torch.int64 if self.deviation else torch.float64
        self._total = like.new_zeros(width + self._counts, dtype=dtype, device="cpu")

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise in each coordinate."""
        return self.noise * self.bound

    @property
    def _counts(self) -> int:
        return int(self.count_noise > 0)

    @property
    def _scale(self) -> float:
        """What the coordinate of the count is multiplied by: then its noise is that of the others."""
        return self.deviation / self.count_noise if self._counts and self.deviation else 1.0

    def add(self, tensors: Tensors, below: float | None = None) -> None:
        """Add what one client sent, scaled down once more: codecs may have made it longer."""
        parts = [tensors[name].detach().reshape(-1).double().cpu() for name in sorted(self.like)]
        vector, norm = torch.cat(parts), self.bound
        long = vector.norm().clamp(min=1e-300)
        vector = vector * (self.bound / long).clamp(max=1.0)
        if self._counts:
            assert below in (0.0, 1.0)
            own = vector.new_full((1,), (below - 0.5) * self._scale)
            vector, norm = torch.cat([vector, own]), math.hypot(norm, self._scale / 2)
        if self.deviation:
            vector = on_grid(vector[None], norm, self.deviation)[0]
        self._total += vector

    def release(
        self, key: bytes, estimate: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensors, float]:
        """Return the sum with noise, and how many clients more than half were below, with noise.

        Args:
            key: a secret.
            estimate: adds the noise in another way; takes and returns steps of the grid.
        """
        total = self._total.double()
        if self.deviation and estimate is not None:
            total = estimate(self._total) * (self.deviation / GRID)
        elif self.deviation:
            total = released(self._total, self.deviation, key)
        count = float(total[-1]) / self._scale if self._counts and has_values(total) else 0.0
        names = sorted(self.like)
        sizes = [self.like[name].numel() for name in names]
        parts = torch.split(total[: sum(sizes)], sizes)
        shaped = zip(names, parts, strict=True)
        return {name: part.reshape(self.like[name].shape) for name, part in shaped}, count
