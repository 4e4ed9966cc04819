"""Choose the codec by what the link can carry.

Compression chosen by bandwidth as in Adaptive Gradient Quantization (Jhunjhunwala et al., 2021, arXiv
2102.04487) and L-GreCo (Markov et al., 2022, arXiv 2210.17357), here with a byte budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor

from trillium.component import Choice
from trillium.errors import UserError
from trillium.wire.codecs import Codec
from trillium.wire.codecs.cast import Cast
from trillium.wire.codecs.integers import Int2, Int4, Int8
from trillium.wire.codecs.parts import most_of
from trillium.wire.codecs.rows import RowCodec
from trillium.wire.codecs.stack import decode_stack, encode_stack
from trillium.wire.kinds import NATURES, Nature

Steps = tuple[tuple[Choice[Codec], ...], ...]


class Adaptive(Codec, name="adaptive"):
    """Encode with the first step whose parts fit the budget, or else with the last one.

    The budget is for each tensor that is sent; the tensors of a kind are sent as one. One byte
    names the step, so the other side need not know the budget.

    Attributes:
        steps: codecs, or lists of codecs that are applied in order, from the least to the most lossy.
        max_bytes: budget of a tensor, all of its parts together; `null` sets none.
        seconds: how long a tensor may take over the client's link; a further budget where the
            speed of the link is known.
    """

    steps: Steps = Field(((Cast(),), (Int8(),), (Int4(),), (Int2(),)), min_length=1, max_length=256)
    max_bytes: int | None = Field(None, ge=1)
    seconds: float | None = Field(None, gt=0)

    @field_validator("steps", mode="before")
    @classmethod
    def _single_codecs(cls, steps: Any) -> Any:
        """Read a single codec as a list of one."""
        if not isinstance(steps, list | tuple):
            return steps
        return tuple(step if isinstance(step, list | tuple) else (step,) for step in steps)

    @field_validator("steps")
    @classmethod
    def _no_rows(cls, steps: Steps) -> Steps:
        """Refuse codecs of rows, which have budgets of their own."""
        for codec in (codec for step in steps for codec in step):
            if isinstance(codec, RowCodec):
                raise UserError(
                    f"codec {codec.name} in a step of {cls.name}",
                    "it encodes soft labels by rows, and stands first in a stack",
                    "Write top_classes with max_bytes or seconds in wire.up or wire.down",
                )
        return steps

    @property
    def lossless(self) -> bool:  # type: ignore[override]
        """Whether every step is lossless."""
        return all(codec.lossless for step in self.steps for codec in step)

    @property
    def any_dtype(self) -> bool:  # type: ignore[override]
        """Whether every step begins with a codec for any dtype."""
        return all(not step or step[0].any_dtype for step in self.steps)

    @property
    def suits(self) -> frozenset[Nature]:  # type: ignore[override]
        """What every step may be applied to."""
        return NATURES.intersection(*(codec.suits for step in self.steps for codec in step))

    @property
    def expands(self) -> bool:
        """Whether the error of any step may exceed the tensor."""
        return any(codec.expands for step in self.steps for codec in step)

    def fit(self, bits_per_second: float | None) -> Codec:
        """Return the codec with the budget of this link."""
        if bits_per_second is None or self.seconds is None:
            return self
        budget = max(1, int(self.seconds * bits_per_second / 8))
        return self.model_copy(update={"max_bytes": min(budget, self.max_bytes or budget)})

    def encode(self, tensor: Tensor, key: int) -> dict[str, Tensor]:
        """Return the parts of the chosen step, and its number as uint8."""
        for number, step in enumerate(self.steps):
            parts = encode_stack(step, tensor, key)
            parts["step"] = torch.tensor(number, dtype=torch.uint8)
            size = sum(part.nbytes for part in parts.values())
            if self.max_bytes is None or size <= self.max_bytes:
                break
        return parts

    def decode(self, parts: Mapping[str, Tensor], key: int) -> Tensor:
        """Return the tensor as the chosen step does."""
        step = parts["step"]
        if step.dtype != torch.uint8 or step.shape != () or int(step) >= len(self.steps):
            raise ValueError(f"no step {step.dtype} {tuple(step.shape)} among {len(self.steps)}")
        others = {part: tensor for part, tensor in parts.items() if part != "step"}
        return decode_stack(self.steps[int(step)], others, key, most_of(parts))
