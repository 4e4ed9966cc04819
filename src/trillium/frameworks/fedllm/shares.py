"""Which trainable tensors a client holds, which of them it trains, and which it shares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from trillium.federation.tiers import Tier
from trillium.models.blocks import find_blocks
from trillium.models.factors import Factors
from trillium.models.load import LanguageModel
from trillium.models.slots import matches
from trillium.rng import generator
from trillium.wire.kinds import Tensors


@dataclass(frozen=True)
class Share:
    """What one client does with the trainable tensors in one round.

    Attributes:
        held: names of those that it has; the others stay at their start values.
        trained: names of those that it trains, all of them held.
        local: names of those that never leave it, all of them held.
        rank: LoRA rank of what it holds; the adapter's own where it is `None`.
        factors: which of the tensors are `A` and which `B` of LoRA.
    """

    held: tuple[str, ...]
    trained: frozenset[str]
    local: frozenset[str] = frozenset()
    rank: int | None = None
    factors: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def down(self) -> tuple[str, ...]:
        """Names of what the server keeps in step on this client."""
        return tuple(name for name in self.held if name not in self.local)

    @cached_property
    def up(self) -> tuple[str, ...]:
        """Names of what the client sends."""
        return tuple(name for name in self.down if name in self.trained)

    @property
    def sends_both_factors(self) -> bool:
        """Whether `A` and `B` of LoRA train and are sent, so that their means are taken apart."""
        return {"A", "B"} <= {self.factors[name] for name in self.up if name in self.factors}

    def take(self, tensors: Mapping[str, Tensor], names: Iterable[str]) -> Tensors:
        """Return the named tensors, factors cut to this client's rank."""
        return {name: self._cut(name, tensors[name]) for name in names if name in tensors}

    def _cut(self, name: str, tensor: Tensor) -> Tensor:
        factor = None if self.rank is None else self.factors.get(name)
        if factor is None:
            return tensor
        return tensor[: self.rank] if factor == "A" else tensor[:, : self.rank]


def share(
    model: LanguageModel,
    tier: Tier,
    *,
    trained: Iterable[str],
    local: Sequence[str],
) -> Share:
    """Return what a client of a tier holds and does in a round."""
    factors = model.factors
    names = {f.a: "A" for f in factors} | {f.b: "B" for f in factors}
    held = tuple(name for name in model.initial if _is_of(model, name, names, tier))
    return Share(
        held,
        frozenset(trained) & frozenset(held),
        frozenset(name for name in held if matches(name, local)),
        tier.rank,
        names,
    )


def _is_of(model: LanguageModel, name: str, factors: Mapping[str, str], tier: Tier) -> bool:
    """Whether a tensor is in the layers of a tier; what is not an adapter of a block always is."""
    if tier.layers is None or name not in factors:
        return True
    prefix = f"{find_blocks(model.module)[0]}."
    if not name.startswith(prefix):
        return True
    return int(name.removeprefix(prefix).partition(".")[0]) in tier.layers


def restarted(initial: Tensors, factors: Sequence[Factors], seed: int, number: int) -> Tensors:
    """Return start values with LoRA's factors as they are drawn anew for a round; `B` is zero.

    The first round has those of the start. The columns of each `A` change places and signs, so it
    keeps the distribution that it came from, orthonormal rows too.
    """
    result = dict(initial)
    for layer in factors if number > 1 else ():
        a = initial[layer.a]
        draw = generator(seed, "restart", layer.a, number)
        order = torch.randperm(a.shape[1], generator=draw)
        signs = torch.randint(0, 2, (a.shape[1],), generator=draw) * 2 - 1
        result[layer.a] = a[:, order] * signs.to(a.dtype)
        result[layer.b] = torch.zeros_like(initial[layer.b])
    return result
