"""What the last layer sees, in few dimensions through a random orthonormal map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from trillium.errors import UserError
from trillium.frameworks.kd.hiddens import Hidden
from trillium.frameworks.kd.hiddens.probe import (
    Probe,
    Watch,
    before_head_layer,
    before_vocabulary_layer,
)
from trillium.frameworks.kd.last_layer import output_layer
from trillium.models.heads import head_layer
from trillium.rng import generator

if TYPE_CHECKING:
    from trillium.federation.setting import Setting
    from trillium.federation.side import Side


class Projected(Hidden, name="projected"):
    """The features in front of the last layer, times an orthonormal map drawn from the seed.

    In classification, those that the model pools a text to; in language modelling, those at each
    token in front of a supervised one. In training they are what the last layer sees then, so the
    model's dropout in front of it is in them.

    Attributes:
        size: dimensions that are left; a row weighs four bytes for each, before the codecs.
        weight: factor of the mean-squared error in the distillation loss.
    """

    size: int = Field(default=32, ge=1)
    weight: float = Field(default=0.1, gt=0)

    def check(self, config: Setting) -> None:
        """Refuse different models."""
        self._check_common_space(config)

    def probe(self, side: Side) -> Probe:
        """Return what reads them."""
        module = side.model.module
        watch: Watch
        if side.task.peft_task == "SEQ_CLS":
            watch, width = before_head_layer, head_layer(module)[1].in_features
        else:
            layer = output_layer(module)
            if layer is None:
                raise UserError(
                    f"framework.hidden={self.name} on {type(module).__name__}",
                    "the model does not tell its last layer",
                    "Write framework.hidden=none",
                )
            watch, width = before_vocabulary_layer, int(layer.weight.shape[1])
        if self.size > width:
            raise UserError(
                f"framework.hidden.size={self.size}",
                f"there are {width} features in front of the last layer of this model",
                f"Write at most {width}",
            )
        matrix = orthonormal(width, self.size, generator(side.seed, "hidden"))
        return Probe(watch, matrix, side.task, self.weight)


def orthonormal(width: int, size: int, draw: torch.Generator) -> Tensor:
    """Return a map `(width, size)` float64 with orthonormal columns, uniformly at random."""
    basis, upper = torch.linalg.qr(torch.randn(width, size, generator=draw, dtype=torch.float64))
    # Signs that the algorithm leaves open are fixed, so that all machines hold the same map.
    found: Tensor = basis * torch.where(upper.diagonal() < 0, -1.0, 1.0)
    return found
