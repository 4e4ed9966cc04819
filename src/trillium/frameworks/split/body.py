"""The server's part of a cut model at work: forward, back, and the step that both sides take."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trillium.federation.agreed import MANY
from trillium.frameworks.split.micro import in_parts, paddings, rows_at_once
from trillium.frameworks.split.pooled import Pooled
from trillium.models.parts import Parts
from trillium.models.slots import State
from trillium.tasks import Task
from trillium.tasks.preference import without_adapter
from trillium.training.meters import Meter, resident_tensors
from trillium.training.optimizers import set_learning_rate
from trillium.training.settings import Training
from trillium.wire.kinds import has_values


@dataclass(frozen=True)
class Step:
    """How both sides of the cut take one step.

    Attributes:
        scale: what the gradients are multiplied by, to clip them.
    """

    scale: float = 1.0
    rate: float = 0.0

    def tensors(self) -> dict[str, Tensor]:
        """Return what tells a client."""
        return {"control/step": torch.tensor([self.scale, self.rate], dtype=torch.float64)}


class Body:
    """A server part: its trainable parameters and their optimiser.

    Args:
        saved: what `optimizer_state` returned in an earlier round.
    """

    def __init__(
        self,
        owner: str,
        parts: Parts,
        state: State,
        training: Training,
        saved: Mapping[str, Any] | None,
        meter: Meter,
        task: Task,
    ) -> None:
        self.owner, self.parts, self.state, self.meter = owner, parts, state, meter
        self._size, self._training = rows_at_once(training, task), training
        trains = any(parameter.requires_grad for parameter in state.values())
        self._optimizer = training.build(state, saved) if trains else None

    def optimizer_state(self) -> dict[str, Any] | None:
        """Return what the next round goes on from."""
        return None if self._optimizer is None else self._optimizer.state_dict()

    def forward(self, pooled: Pooled, *, gradient: bool) -> None:
        """Fill `pooled.output`; `gradient` says whether the clients want one back."""
        self._mount()
        pooled.hidden.requires_grad_(gradient)
        key, resident = self._cost("body forward", pooled)
        pooled.output = self.meter.run(
            key, partial(self._run, pooled.hidden, pooled.mask), resident
        )
        pooled.output_gradient = torch.zeros_like(pooled.output)

    def refer(self, pooled: Pooled, task: Task | None) -> None:
        """Fill `pooled.reference` by the part without its adapter.

        Args:
            task: says what it is where the body ends in logits; in the U shape it is the output.
        """
        self._mount()
        body = self.parts.split.body

        def run() -> Tensor:
            with torch.no_grad(), without_adapter(body):
                output = self._run(pooled.reference_hidden, pooled.mask)
                if task is None:
                    return output
                with self._training.precision(output.device):
                    return task.scores(output, pooled.labels, body.apart)

        key, resident = self._cost(f"body reference of {self._rows(pooled, task)}", pooled)
        pooled.reference = self.meter.run(key, run, resident)

    def _run(self, hidden: Tensor, mask: Tensor) -> Tensor:
        def part(hidden: Tensor, mask: Tensor) -> Tensor:
            # Of a leaf, unlike of the unsplit model's states, autocast keeps one copy for all uses.
            own = hidden.view_as(hidden)
            with self._training.precision(hidden.device):
                return self.parts.split.body.run(own, attention_mask=mask).to(hidden.dtype)

        return in_parts(part, self._size, hidden, mask)

    def _rows(self, pooled: Pooled, task: Task | None) -> int:
        """Return how many logits are computed apart, if any are."""
        if task is None or self.parts.split.body.apart is None:
            return 0
        return task.num_rows(pooled.labels)

    def backward(self, pooled: Pooled, task: Task | None) -> None:
        """Compute the gradients of the mean loss over the pooled batch.

        Args:
            pooled: after `forward`.
            task: gives the loss where the body ends in logits; `None` in the U shape, where
                `pooled.output_gradient` has come from the clients.
        """
        if not pooled.output.requires_grad and task is None:
            return  # nothing on this side or before it trains
        self._mount()  # another body's may be there since `forward`, and blocks may run again

        def run(output: Tensor) -> float:
            if task is None:
                output.backward(pooled.output_gradient)  # type: ignore[no-untyped-call]
                return pooled.loss
            apart, reference = self.parts.split.body.apart, pooled.reference
            with self._training.precision(output.device):
                loss, count = task.loss(output, pooled.labels, apart, reference=reference)
            (loss / max(count, 1)).backward()  # type: ignore[no-untyped-call]
            return float(loss.detach())

        key, resident = self._cost(f"body backward of {self._rows(pooled, task)}", pooled)
        fills = [pooled.hidden, *self.state.values()]
        needs = [pooled.output]
        pooled.loss = self.meter.run(key, run, resident, fills=fills, needs=needs)

    def step(self, pooled: Pooled, rate: float, max_grad_norm: float | None) -> Step:
        """Clip across the cut, as `clip_grad_norm_` does on the unsplit model, and step.

        Returns:
            What the clients of the batch have to do with their gradients.
        """
        scale = 1.0
        if max_grad_norm is not None:
            own = squared_norm(self.state.values())
            # What a client says of its part cannot be seen from here: it may not drown this one.
            said = (
                min(pooled.client_squared_norm, MANY**2 * own)
                if own
                else pooled.client_squared_norm
            )
            norm = (own + said) ** 0.5
            scale = min(1.0, max_grad_norm / (norm + 1e-6))
        if self._optimizer is not None:
            scaled_step(self._optimizer, scale, rate)
        return Step(scale, rate)

    def _mount(self) -> None:
        self.parts.body.mount(self.state)
        self.parts.split.body.train()

    def _cost(self, what: str, pooled: Pooled) -> tuple[Hashable, Callable[[], Iterable[Tensor]]]:
        """Return on what the cost of a batch depends, and what is in memory besides."""
        optimizers = [self._optimizer] if self._optimizer is not None else []
        stepped = any(optimizer.state for optimizer in optimizers)  # its moments take memory then
        layout = (*pooled.hidden.shape, paddings(pooled.mask, self._size))
        key = (what, layout, pooled.hidden.requires_grad, tuple(self.state), stepped)
        return key, lambda: resident_tensors(self.parts.split.body, *optimizers)


def scaled_step(optimizer: torch.optim.Optimizer, scale: float, rate: float) -> None:
    """Scale the gradients, step with a learning rate, and drop the gradients."""
    set_learning_rate(optimizer, rate)
    for group in optimizer.param_groups if scale != 1.0 else ():
        for parameter in group["params"]:
            if parameter.grad is not None and has_values(parameter):
                parameter.grad *= scale
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def squared_norm(parameters: Iterable[nn.Parameter]) -> float:
    """Return the squared l2 norm of all gradients."""
    found = [p.grad for p in parameters if p.grad is not None]
    if found and not has_values(found[0]):
        return 1.0
    grads = [gradient.double() for gradient in found]
    return float(sum((grad.square().sum() for grad in grads), torch.zeros(()).double()))
