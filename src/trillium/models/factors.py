"""The factors of a LoRA adapter: which tensors multiply to the change of which weight.

LoRA changes a weight `W (out, in)` by `scale * B @ A`. Whoever works with the change itself, exact
aggregation or merging above all, needs the pairs, their scale and how the base stores the weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Factors:
    """The two factors `A (r, in)` and `B (out, r)` of one adapted layer, by name.

    Attributes:
        layer: name of the base layer's weight among the module's parameters.
        scale: the weight changes by `scale * B @ A`.
        transposed: whether the base stores its weight as `(in, out)`, as GPT-2's layers and
            embeddings do; the change must be transposed before it is added.
    """

    layer: str
    a: str
    b: str
    scale: float
    transposed: bool


def lora_factors(module: nn.Module) -> tuple[Factors, ...]:
    """Return the factors of all adapted layers, by name of the layer; none if it is not LoRA.

    Experts that are one tensor of three dims have none: they change by a product each.
    """
    found = []
    for name, layer in module.named_modules():
        if not isinstance(layer, LoraLayer) or isinstance(layer, ParamWrapper):
            continue
        for adapter, scale in layer.scaling.items():
            if adapter in layer.lora_embedding_A:
                a, b = f"{name}.lora_embedding_A.{adapter}", f"{name}.lora_embedding_B.{adapter}"
            else:
                a, b = f"{name}.lora_A.{adapter}.weight", f"{name}.lora_B.{adapter}.weight"
            transposed = isinstance(layer.get_base_layer(), Conv1D | nn.Embedding)
            found.append(Factors(f"{name}.base_layer.weight", a, b, float(scale), transposed))
    return tuple(sorted(found, key=lambda factors: factors.layer))


def adapts_experts(module: nn.Module) -> bool:
    """Whether an adapter changes tensors with the weights of many experts."""
    return any(isinstance(layer, ParamWrapper) for layer in module.modules())


def nonlinear_names(module: nn.Module) -> set[str]:
    """Return the names of trainable tensors that no fixing of others makes exact to average.

    With `A` fixed, LoRA's change is linear in `B`. DoRA divides the changed weight by its norm and
    multiplies it with a trained one: whichever of the three is held, the mean of clients' tensors
    is not the mean of their models.
    """
    names = set()
    for name, layer in module.named_modules():
        if isinstance(layer, LoraLayer):
            for adapter in layer.lora_magnitude_vector:
                inside = ("lora_A", "lora_B", "lora_magnitude_vector")
                names |= {f"{name}.{part}.{adapter}.weight" for part in inside}
    return {n for n, p in module.named_parameters() if n in names and p.requires_grad}


@dataclass(frozen=True)
class LowRank:
    """A matrix `(out, in)` as a product of two, `(out, R)` and `(R, in)`."""

    left: Tensor
    right: Tensor

    def to(self, dtype: torch.dtype) -> LowRank:
        """Return it in another dtype."""
        return LowRank(self.left.to(dtype), self.right.to(dtype))

    def dense(self) -> Tensor:
        """Return the matrix itself, `(out, in)`."""
        return self.left @ self.right


def low_rank_of(matrix: Tensor) -> LowRank:
    """Return any matrix as a product: itself, and an identity on its shorter side."""
    out, width = matrix.shape
    identity = torch.eye(min(out, width), dtype=matrix.dtype, device=matrix.device)
    return LowRank(identity, matrix) if out <= width else LowRank(matrix, identity)
