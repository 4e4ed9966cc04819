"""How a side trains."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any, Final, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from trillium.errors import UserError
from trillium.models.first_blocks import FirstBlocks
from trillium.models.known import Known
from trillium.models.load import LanguageModel
from trillium.models.slots import State, matches, train_only
from trillium.training.optimizers import Optimizer
from trillium.wire.codecs import Codec
from trillium.wire.codecs.cast import Cast
from trillium.wire.codecs.integers import Int8

CACHE_BYTES: Final = 4 * 2**30
_STACKS: Final[dict[str, tuple[Codec, ...]]] = {
    "full": (),
    "bfloat16": (Cast(),),
    "int8": (Int8(),),
}


class Training(BaseModel):
    """How a side trains.

    Attributes:
        batch_size: examples in one optimiser step of one client.
        micro_batch_size: examples of a batch that go through the model at once; their gradients are
            summed to the same step. Null takes the whole batch. In a split, where a part waits for the
            other side, it runs once more on the way back.
        local_epochs: passes over a client's data in one round.
        local_steps: optimiser steps in one round instead; the data is passed as often as it takes.
        optimizer: optimiser of the clients and, in a split, of each part.
        schedule: course of the learning rate over the whole run, behind its warm-up.
        warmup: share of the run over which the learning rate rises from zero.
        weight_decay: pulls all that trains towards zero, as the optimiser does it.
        lr_factors: multiplies the learning rate of tensors by a pattern of their names: `head`, a part
            of the name such as `lora_B` (LoRA+ gives it 16), or a pattern with `*`. 0 freezes them.
        max_grad_norm: gradients are scaled down to this global l2 norm; null does not clip.
        gradient_checkpointing: blocks of the model keep their inputs alone, and run once more on the
            way back: a fraction of the memory, for up to half as much compute again. It changes no
            result.
        autocast: computes the forward passes of training in `bfloat16` where PyTorch holds that for
            safe, with weights, gradients and optimiser in float32, which `model.dtype` must be.
            Evaluation, predictions for others and activations that are sent once stay in float32.
        cache_frozen: computes once what the first blocks of the model make of a text, and keeps it,
            where nothing in them trains and nothing is random: `adapter.layers` names the last blocks,
            and there is no dropout. Results are the same but for the rounding of floats. `auto` does so
            where it can, without `autocast`; `true` refuses where it cannot; `false` never does.
        cache_precision: of what is kept: `full` as it is computed, `bfloat16` in half as many bytes as
            float32, `int8` in about a quarter; these two change results a little.
        cache_bytes: most that one side keeps, in a temporary file. A batch with a text for which there
            was no room goes through all blocks.
        max_length: tokens of an example; longer ones are cut, and counted. Null takes what the texts of
            the run need: the longest, or 99 % where few are far longer; at most 1,024, and what the
            model has positions for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(default=16, ge=1)
    micro_batch_size: int | None = Field(default=None, ge=1)
    local_epochs: int = Field(default=1, ge=1)
    local_steps: int | None = Field(default=None, ge=1)
    optimizer: Optimizer = Optimizer(name="adamw", lr=1e-3)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    lr_factors: dict[str, Annotated[float, Field(ge=0)]] = {}
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    gradient_checkpointing: bool = False
    autocast: Literal["bfloat16"] | None = None
    cache_frozen: bool | Literal["auto"] = "auto"
    cache_precision: Literal["full", "bfloat16", "int8"] = "full"
    cache_bytes: int = Field(default=CACHE_BYTES, ge=1)
    max_length: int | None = Field(default=None, ge=4)

    @model_validator(mode="after")
    def _decays(self) -> Self:
        """Refuse weight decay in another place, and where the optimiser has none."""
        if "weight_decay" in self.optimizer.options:
            raise UserError(
                f"optimizer.weight_decay={self.optimizer.options['weight_decay']}",
                "of local training it is an option of its own",
                f"Write training.weight_decay={self.optimizer.options['weight_decay']}",
            )
        if self.weight_decay and not self.optimizer.decays:
            raise UserError(
                f"weight_decay={self.weight_decay} with training.optimizer={self.optimizer.name}",
                "this optimiser has no weight decay",
                "Write training.optimizer.name=adamw, or leave training.weight_decay out",
            )
        return self

    @model_validator(mode="after")
    def _divides(self) -> Self:
        """Refuse parts of a batch that are larger than it."""
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise UserError(
                f"micro_batch_size={self.micro_batch_size} with training.batch_size={self.batch_size}",
                "a part of a batch cannot be larger than the batch",
                f"Write training.micro_batch_size={self.batch_size} or less, or leave it out",
            )
        return self

    @model_validator(mode="after")
    def _has_kept(self) -> Self:
        """Refuse a precision of what is not kept."""
        if self.cache_precision != "full" and not self.keeps:
            why = "autocast" if self.cache_frozen else "cache_frozen=false"
            raise UserError(
                f"cache_precision={self.cache_precision} with training.{why}",
                "nothing is kept that could have a precision",
                "Leave it out, or write training.cache_frozen=true",
            )
        return self

    @property
    def keeps(self) -> bool:
        """Whether to keep what first blocks make of texts that are the same in all rounds."""
        return self.cache_frozen is True or (bool(self.cache_frozen) and self.autocast is None)

    def prepare(self, model: LanguageModel) -> None:
        """Find the first blocks of a model, if there is something to keep.

        Raises:
            UserError: there is nothing, and something was wanted.
        """
        if not self.keeps:
            return
        try:
            model.find_first()
        except UserError as error:
            given = "cache_frozen=true"
            if self.cache_frozen == "auto":
                given = f"cache_precision={self.cache_precision}"
            if given == "cache_precision=full":
                return
            raise UserError(
                f"training.{given} with {error.given}",
                f"nothing can be kept: {error.why}",
                f"{error.instead}, or leave training.{given} out",
            ) from error

    def known(self, first: FirstBlocks, log: list[Tensor]) -> Known:
        """Return what keeps what first blocks make of texts, where a log says what is known."""
        stack = _STACKS[self.cache_precision]
        return Known(first, log, stack, self.cache_bytes, self.at_once)

    def precision(self, device: torch.device) -> AbstractContextManager[Any]:
        """Return the context of a forward pass in training; the way back is outside of it."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(device.type, getattr(torch, self.autocast))

    @property
    def at_once(self) -> int:
        """Examples of one client that go through the model at once."""
        return self.micro_batch_size or self.batch_size

    @property
    def limit(self) -> int:
        """Tokens of an example at most; known once the data has been read."""
        assert self.max_length is not None, "texts have not been counted"
        return self.max_length

    def num_steps(self, num_examples: int) -> int:
        """Return the optimiser steps of one round on so many examples."""
        if self.local_steps is not None:
            return self.local_steps
        return self.local_epochs * math.ceil(num_examples / self.batch_size)

    def factor(self, name: str) -> float:
        """Return by how much the learning rate of a tensor is multiplied."""
        return next((f for p, f in self.lr_factors.items() if matches(name, [p])), 1.0)

    def trained(self, names: Iterable[str]) -> list[str]:
        """Return those of the tensors that the learning rate does not freeze."""
        return [name for name in names if self.factor(name) > 0]

    def build(self, state: State, saved: Mapping[str, Any] | None = None) -> torch.optim.Optimizer:
        """Return an optimiser over those parameters of a state that train; freeze those of factor 0.

        Args:
            saved: `state_dict` of an earlier one over the same parameters, which it goes on from.
        """
        groups: dict[float, list[nn.Parameter]] = {}
        train_only(state, self.trained(n for n, p in state.items() if p.requires_grad))
        for name, parameter in state.items():
            if parameter.requires_grad:
                groups.setdefault(self.factor(name), []).append(parameter)
        found: list[dict[str, Any]] = [
            {"params": params, "lr": self.optimizer.lr * factor, "lr_factor": factor}
            for factor, params in groups.items()
        ]
        decay = {"weight_decay": self.weight_decay} if self.weight_decay else {}
        return self.optimizer.build(found, saved, **decay)

    def learning_rate(self, progress: float) -> float:
        """Return the learning rate at a point of the run, `progress` from 0 to 1."""
        if progress < self.warmup:
            return self.optimizer.lr * progress / self.warmup
        progress = (progress - self.warmup) / (1.0 - self.warmup)
        factor = {
            "constant": 1.0,
            "linear": 1.0 - progress,
            "cosine": 0.5 + 0.5 * math.cos(math.pi * progress),
        }[self.schedule]
        return self.optimizer.lr * factor
