"""SCAFFOLD: Stochastic Controlled Averaging (Karimireddy et al., 2020, arXiv 1910.06378).

Each client keeps a control variate, the mean of its gradients in the last round that it took part in;
the server keeps their mean. Down, beside the state: the server's. Up: the change of the client's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from trillium.drifts import Answered, Correction, Drift
from trillium.models.slots import State, Tensors


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
    """Control variates, added to the gradients themselves.

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
