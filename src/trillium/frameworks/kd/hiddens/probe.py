"""Hidden states read off a forward pass that takes place anyway.

A pass is watched in one place, the rows that count are chosen as predictions are, and a map that all
sides hold takes them to few dimensions, so that the map itself never travels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trillium.errors import UserError
from trillium.frameworks.kd.last_layer import output_layer
from trillium.models.heads import features, head_layer
from trillium.tasks import Batch, Task

Watch = Callable[[nn.Module], AbstractContextManager[list[Tensor]]]
"""Notes, within its block, each tensor that comes by a place of the module."""


@dataclass(frozen=True)
class Probe:
    """Reads projected hidden states, one row for each prediction that counts.

    Attributes:
        watch: the place where hidden states come by.
        matrix: the map `(width, size)`, equal on all sides.
        task: chooses the rows.
        weight: factor of the loss.
    """

    watch: Watch
    matrix: Tensor
    task: Task
    weight: float

    @property
    def size(self) -> int:
        """Entries of a row."""
        return self.matrix.shape[1]

    def rows(self, seen: list[Tensor], batch: Batch) -> Tensor:
        """Return the projected rows `(rows, size)` of a batch, float64 for a float64 model.

        Args:
            seen: what came by in its forward pass. Where that is a hidden state of each token, in
                classification, a row is the mean over the text.
            batch: says which rows count, and what is text.

        Raises:
            UserError: the tokens did not come by in their order.
        """
        rows, length = batch.input_ids.shape
        shape = tuple(seen[-1].shape) if seen else ()
        if shape[:1] == (rows,) and len(shape) == 3 and shape[1] >= length:
            hidden = self._choose(seen[-1][:, -length:], batch)  # virtual tokens stand in front
        elif shape[:1] == (rows,) and len(shape) == 2 and self._is_per_text:
            hidden = _wide(seen[-1])
        else:
            raise UserError(
                "framework.hidden",
                f"what comes by there in a batch of {rows} x {length} tokens, {shape or 'nothing'}, "
                "is no hidden state of each",
                "Name another layer, or write framework.hidden=projected",
            )
        return hidden @ self.matrix.to(hidden)

    @property
    def _is_per_text(self) -> bool:
        return self.task.peft_task == "SEQ_CLS"

    def _choose(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Return the rows that count of hidden states `(batch, seq, width)`."""
        if not self._is_per_text:
            return _wide(self.task.select(hidden, batch.labels)[0])
        mask = batch.attention_mask[..., None]
        return (_wide(hidden) * mask).sum(1) / mask.sum(1)


def _wide(hidden: Tensor) -> Tensor:
    return hidden if hidden.dtype == torch.float64 else hidden.float()


@contextmanager
def reading(probe: Probe | None, module: nn.Module, batch: Batch) -> Iterator[list[Tensor]]:
    """Read hidden states off the one forward pass of the block.

    Yields:
        A list that holds the projected rows `(rows, size)` once the block has ended; it stays empty
        without a probe.
    """
    found: list[Tensor] = []
    if probe is None:
        yield found
        return
    with probe.watch(module) as seen:
        yield found
    found.append(probe.rows(seen, batch))


@contextmanager
def inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Note what a layer is given."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


def before_vocabulary_layer(module: nn.Module) -> AbstractContextManager[list[Tensor]]:
    """Note what the last layer of a language model is given, or whatever stands in its place."""
    return inputs_of(output_layer(module))


@contextmanager
def before_head_layer(module: nn.Module) -> Iterator[list[Tensor]]:
    """Note what the last layer of a classifier is given, for each text.

    Some models apply that layer to every token and then pick one. So the model pools what stands in
    front of the layer, by its own code, and the layer follows; the logits are the same.
    """
    seen: list[Tensor] = []
    _, layer = head_layer(module)

    def finish(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        seen.append(output.logits)
        output.logits = layer(output.logits)
        return output

    with features(module):
        handle = module.register_forward_hook(finish)
        try:
            yield seen
        finally:
            handle.remove()
