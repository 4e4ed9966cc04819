"""The two sides of a cut model at work: parts with their slots, and the server's body."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trillium.errors import UserError
from trillium.models.blocks import evaluating
from trillium.models.slots import Slots, State, Tensors
from trillium.models.split import SplitModel, shared_parameters
from trillium.tasks import IGNORE, Task
from trillium.training.meters import Meter, resident_tensors
from trillium.training.optimizers import Optimizer, set_learning_rate


class Parts:
    """A cut model with the places of each part's trainable parameters.

    Attributes:
        split: the parts.
        head, body, tail: slots of each; `tail` has none in two parts.
        width: size of the hidden states at the cut.
        num_classes: size of the last dimension of the logits.
    """

    def __init__(self, split: SplitModel, probe: Mapping[str, Tensor]) -> None:
        self.split = split
        self.head, self.body = Slots(split.head), Slots(split.body)
        self.tail = Slots(split.tail if split.tail is not None else nn.Module())
        client = {*self.head.names, *self.tail.names}
        tied = (client & {*self.body.names}) | (shared_parameters(split) & client)
        if tied:
            raise UserError(
                f"framework.cut={split.cut}",
                f"{', '.join(sorted(tied))} would train in two parts at once (tied weights)",
                "Write adapter=lora, which keeps them frozen, or choose a model without tied weights",
            )
        mask = probe["attention_mask"]
        with evaluating(*split.parts), torch.no_grad():
            hidden = split.head(None, input_ids=probe["input_ids"], attention_mask=mask)
            self.width = hidden.shape[-1]
            for part in split.parts[1:]:
                hidden = part(hidden, attention_mask=mask)
            self.num_classes = hidden.shape[-1]


@dataclass(frozen=True)
class Forwarded:
    """One client's batch as the server sees it.

    Attributes:
        hidden: activations at the cut `(batch, seq, hidden)`.
        mask: `(batch, seq)` int64, 0 where padded.
        labels: as in `Batch`; `None` where they stay with the client.
        count: how many predictions are supervised.
    """

    hidden: Tensor
    mask: Tensor
    labels: Tensor | None
    count: int


@dataclass
class Pooled:
    """The batches of some clients as one, padded on the right to one length.

    Attributes:
        members: by client, in the order of the rows.
        hidden: `(rows, seq, hidden)`, a leaf; its `grad` goes back to the clients.
        output: what the body made of it.
        output_gradient: gradient of the output, filled by the clients in the U shape.
        loss: summed loss.
        client_squared_norm: squared l2 norm of the gradients of the clients' parameters, each of the
            mean loss of the client's own batch, weighted by its share of the predictions.
    """

    members: dict[str, Forwarded]
    hidden: Tensor = field(init=False)
    mask: Tensor = field(init=False)
    output: Tensor = field(init=False)
    output_gradient: Tensor = field(init=False)
    loss: float = 0.0
    client_squared_norm: float = 0.0

    def __post_init__(self) -> None:
        length = max(member.mask.shape[1] for member in self.members.values())
        hidden, mask = [], []
        for member in self.members.values():
            extra = length - member.mask.shape[1]
            hidden.append(functional.pad(member.hidden, (0, 0, 0, extra)))
            mask.append(functional.pad(member.mask, (0, extra)))
        self.hidden, self.mask = torch.cat(hidden), torch.cat(mask)

    @property
    def count(self) -> int:
        """Supervised predictions in all."""
        return max(sum(member.count for member in self.members.values()), 1)

    @property
    def labels(self) -> Tensor:
        """The labels of all rows, padded like the hidden states."""
        length = self.mask.shape[1]
        found = []
        for member in self.members.values():
            assert member.labels is not None
            per_token = member.labels.dim() == 2
            extra = length - member.mask.shape[1] if per_token else 0
            found.append(functional.pad(member.labels, (0, extra), value=IGNORE))
        return torch.cat(found)

    def share(self, client: str) -> float:
        """The client's share of the supervised predictions; above zero also where it has none."""
        return max(self.members[client].count, 1) / self.count

    def rows(self, client: str, tensor: Tensor) -> Tensor:
        """Return the client's rows of a tensor `(rows, seq, …)`, cut to the client's length."""
        start = 0
        for name, member in self.members.items():
            if name == client:
                break
            start += len(member.mask)
        member = self.members[client]
        return tensor[start : start + len(member.mask), : member.mask.shape[1]]


@dataclass(frozen=True)
class Step:
    """How both sides of the cut take one step.

    Attributes:
        scale: what the gradients are multiplied by, to clip them.
        rate: learning rate.
    """

    scale: float = 1.0
    rate: float = 0.0

    def tensors(self) -> dict[str, Tensor]:
        """Return what tells a client."""
        return {"control/step": torch.tensor([self.scale, self.rate], dtype=torch.float64)}


class Body:
    """A server part: its trainable parameters and their optimiser.

    Attributes:
        owner: whose optimiser it is.
        state: by name.

    Args:
        saved: what `optimizer_state` returned in an earlier round.
    """

    def __init__(
        self,
        owner: str,
        parts: Parts,
        state: State,
        optimizer: Optimizer,
        saved: Mapping[str, Any] | None,
        meter: Meter,
    ) -> None:
        self.owner, self.parts, self.state, self.meter = owner, parts, state, meter
        trained = [p for p in state.values() if p.requires_grad]
        self._optimizer = optimizer.build(trained, saved) if trained else None

    def optimizer_state(self) -> dict[str, Any] | None:
        """Return what the next round goes on from."""
        return None if self._optimizer is None else self._optimizer.state_dict()

    def forward(self, pooled: Pooled, *, gradient: bool) -> None:
        """Fill `pooled.output`; `gradient` says whether the clients want one back."""
        self._mount()
        pooled.hidden.requires_grad_(gradient)
        with self._measured("body forward", pooled):
            pooled.output = self.parts.split.body(pooled.hidden, attention_mask=pooled.mask)
        pooled.output_gradient = torch.zeros_like(pooled.output)

    def backward(self, pooled: Pooled, task: Task | None) -> None:
        """Compute the gradients of the mean loss over the pooled batch.

        Args:
            pooled: after `forward`.
            task: gives the loss where the body ends in logits; `None` in the U shape, where
                `pooled.output_gradient` has come from the clients.
        """
        if not pooled.output.requires_grad and task is None:
            return  # nothing on this side or before it trains
        with self._measured("body backward", pooled):
            if task is None:
                pooled.output.backward(pooled.output_gradient)  # type: ignore[no-untyped-call]
            else:
                loss, count = task.loss_sum(pooled.output, pooled.labels)
                pooled.loss = float(loss.detach())
                (loss / max(count, 1)).backward()  # type: ignore[no-untyped-call]

    def step(self, pooled: Pooled, rate: float, max_grad_norm: float | None) -> Step:
        """Clip across the cut, as `clip_grad_norm_` does on the unsplit model, and step.

        Returns:
            What the clients of the batch have to do with their gradients.
        """
        scale = 1.0
        if max_grad_norm is not None:
            norm = (squared_norm(self.state.values()) + pooled.client_squared_norm) ** 0.5
            scale = min(1.0, max_grad_norm / (norm + 1e-6))
        if self._optimizer is not None:
            scaled_step(self._optimizer, scale, rate)
        return Step(scale, rate)

    def _mount(self) -> None:
        self.parts.body.mount(self.state)
        self.parts.split.body.train()

    def _measured(self, what: str, pooled: Pooled) -> AbstractContextManager[None]:
        optimizers = [self._optimizer] if self._optimizer is not None else []
        stepped = any(optimizer.state for optimizer in optimizers)  # its moments take memory then
        layout = (*pooled.hidden.shape, bool(pooled.mask.all()))
        key = (what, layout, pooled.hidden.requires_grad, tuple(self.state), stepped)
        return self.meter.measure(key, lambda: resident_tensors(self.parts.split.body, *optimizers))


def scaled_step(optimizer: torch.optim.Optimizer, scale: float, rate: float) -> None:
    """Scale the gradients, step with a learning rate, and drop the gradients."""
    set_learning_rate(optimizer, rate)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and scale != 1.0:
                parameter.grad *= scale
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def squared_norm(parameters: Iterable[nn.Parameter]) -> float:
    """Return the squared l2 norm of all gradients."""
    grads = [p.grad.double() for p in parameters if p.grad is not None]
    return float(sum((grad.square().sum() for grad in grads), torch.zeros(()).double()))


@torch.no_grad()
def load_values(state: State, tensors: Tensors) -> None:
    """Write values into a state's own parameters, which keep their optimiser."""
    for name, tensor in tensors.items():
        state[name].copy_(tensor)
