"""Drift: how clients with different data are kept from moving apart while they train alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from pydantic import Field

from trillium.component import Component
from trillium.models.slots import State
from trillium.wire.kinds import Tensors


class Correction:
    """What one client does to its gradients in one round; nothing, unless a subclass does."""

    @property
    def label(self) -> str:
        """What the memory of a step depends on, beside the shapes."""
        return ""

    def apply(self) -> None:
        """Change the gradients in place; called after every backward pass, before clipping."""

    def answer(self) -> Tensors:
        """Return what goes back to the server beside the update."""
        return {}

    def sent(self, seen: Tensors) -> None:
        """Take note of what the server reads of the answer, once the codecs are through with it."""


@dataclass(frozen=True)
class Answered:
    """What one client answered: its weight in means, and the tensors of its correction."""

    weight: float
    tensors: Tensors


class Drift(Component, kind="drift", package="trillium.frameworks.fedllm.drifts"):
    """A pair of halves: what the server sends along and learns, what a client does to gradients."""

    answers: ClassVar[bool] = False
    """Whether clients send tensors back beside their updates."""

    def send(self, server: dict[str, Tensors], like: Tensors) -> Tensors:
        """Return what goes down beside the state: nothing, or a tensor for each in `like`."""
        return {}

    def correction(
        self, client: dict[str, Tensors], state: State, start: Tensors, received: Tensors
    ) -> Correction:
        """Return what a client does in this round."""
        return Correction()

    def absorb(
        self, server: dict[str, Tensors], answers: Mapping[str, Answered], num_clients: int
    ) -> None:
        """Let the server's half learn from the answers of a round."""


class NoDrift(Drift, name="none"):
    """Clients follow their own gradients."""


@dataclass
class _Pull(Correction):
    """The gradient of `mu / 2 * ||state - start||^2`."""

    state: State
    start: Tensors
    mu: float

    @torch.no_grad()
    def apply(self) -> None:
        for name, parameter in self.state.items():
            if parameter.grad is not None:
                parameter.grad.add_(parameter - self.start[name], alpha=self.mu)


class Prox(Drift, name="prox"):
    """Add `mu / 2 * ||state - received||^2` to the loss: FedProx (Li et al., 2020, arXiv 1812.06127).

    Attributes:
        mu: how strongly a client is held to what it received; 0 is federated averaging.
    """

    mu: float = Field(default=0.01, ge=0)

    def correction(
        self, client: dict[str, Tensors], state: State, start: Tensors, received: Tensors
    ) -> Correction:
        """Return the pull towards the received state."""
        return _Pull(state, start, self.mu)


@dataclass
class _Control(Correction):
    """Replace the client's expected gradient by everybody's, step by step."""

    keeps: dict[str, Tensors]
    state: State
    common: Tensors  # the server's variate
    own: Tensors  # the client's
    sums: Tensors = field(init=False)
    num_steps: int = 0

    def __post_init__(self) -> None:
        # All at once, so that every step finds the same memory in use.
        self.sums = {n: torch.zeros_like(p) for n, p in self.state.items() if p.requires_grad}

    @property
    def label(self) -> str:
        return f" with variates {bool(self.common)} {bool(self.own)}"

    @torch.no_grad()
    def apply(self) -> None:
        self.num_steps += 1
        for name, parameter in self.state.items():
            gradient = parameter.grad
            if gradient is None:
                continue
            self.sums[name] += gradient
            for variates, sign in ((self.common, 1.0), (self.own, -1.0)):
                if name in variates:
                    gradient.add_(variates[name].to(gradient.device), alpha=sign)

    def answer(self) -> Tensors:
        found = {}
        for name, total in self.sums.items():
            mean = (total / self.num_steps).cpu()
            found[name] = mean - self.own[name] if name in self.own else mean
        return found

    def sent(self, seen: Tensors) -> None:
        # What a codec lost is not gone: the client keeps what the server believes.
        kept = self.keeps.setdefault("own", {})
        for name, change in seen.items():
            kept[name] = kept[name] + change if name in kept else change


class Scaffold(Drift, name="scaffold"):
    """Control variates, added to the gradients: SCAFFOLD (Karimireddy et al., 2020, arXiv 1910.06378).

    The paper's second option, `c_k - c + (x - y_k) / (K lr)`, is for plain SGD the mean of the
    gradients along the way; that mean is what is kept here, so it is right for any optimiser, and the
    correction comes before the optimiser's preconditioning (after it, Adam would undo it).
    """

    answers: ClassVar[bool] = True

    def send(self, server: dict[str, Tensors], like: Tensors) -> Tensors:
        """Return the mean of the variates; nothing before there is one."""
        common = server.get("common")
        if common is None:
            return {}
        return {name: common.get(name, torch.zeros_like(t)) for name, t in like.items()}

    def correction(
        self, client: dict[str, Tensors], state: State, start: Tensors, received: Tensors
    ) -> Correction:
        """Return the correction by the received and the client's own variate."""
        return _Control(client, state, received, dict(client.get("own", {})))

    def absorb(
        self, server: dict[str, Tensors], answers: Mapping[str, Answered], num_clients: int
    ) -> None:
        """Add the weighted mean change, times the share of the clients that took part."""
        common = server.setdefault("common", {})
        total = sum(answer.weight for answer in answers.values())
        share = len(answers) / num_clients
        for _, answer in sorted(answers.items()):
            for name, change in answer.tensors.items():
                scaled = change * (share * answer.weight / total)
                common[name] = common[name] + scaled if name in common else scaled
