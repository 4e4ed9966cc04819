"""A small head on the activations at the cut, for clients that train their blocks by themselves.

Local losses of split learning: Han et al. (2021, "Accelerating Federated Learning with Split Learning
on Locally Generated Losses"), Ampere (2025, arXiv 2507.07130). For what is said of a text it is a
linear layer on the mean over the tokens, for what is said of tokens on each of them; in language
modelling a projection into the space of the client's own word embeddings, which stand in for the output
layer. It is used in training alone, no part of the model.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional

from trillium.models.parts import Parts
from trillium.tasks import Adjustment, Batch, Task
from trillium.wire.kinds import Tensors

WEIGHT, BIAS = "auxiliary.weight", "auxiliary.bias"


class Auxiliary:
    """The head's form; its values are in states, beside those of the client's blocks."""

    def __init__(self, parts: Parts, task: Task) -> None:
        self._task, self._width, self._classes = task, parts.width, parts.num_classes
        self._embeddings = parts.split.head.embeddings()

    def initial(self) -> Tensors:
        """Return the values at the start, the same on all sides: no opinion, or the identity."""
        words = self._embeddings
        if self._task.peft_task != "CAUSAL_LM":
            weight = words.new_zeros(self._classes, self._width, device="cpu")
            return {WEIGHT: weight, BIAS: words.new_zeros(self._classes, device="cpu")}
        zeros = words.new_zeros(words.shape[1], self._width, device="cpu")
        return {WEIGHT: zeros.fill_diagonal_(1.0)}

    def loss(
        self,
        state: Mapping[str, nn.Parameter],
        hidden: Tensor,
        batch: Batch,
        adjustment: Adjustment | None,
    ) -> Loss:
        """Return the summed loss of a batch and how many predictions it sums over.

        Args:
            hidden: activations at the cut `(batch, seq, hidden)`.
            adjustment: what the task adds to the logits.
        """
        rows = functional.layer_norm(hidden, hidden.shape[-1:])
        if self._task.peft_task == "CAUSAL_LM":
            logits = functional.linear(rows, state[WEIGHT]) @ self._embeddings.T
        else:
            if not self._task.per_token:
                mask = batch.attention_mask[..., None].to(rows.dtype)
                rows = (rows * mask).sum(1) / mask.sum(1)
            logits = functional.linear(rows, state[WEIGHT], state[BIAS])
        return self._task.loss(logits, batch.labels, adjustment=adjustment)


Loss = tuple[Tensor, int]
