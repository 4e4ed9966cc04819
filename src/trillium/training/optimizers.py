"""Any optimiser of `torch.optim`, by name and with its own options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from trillium.errors import UserError, suggest


def _classes() -> dict[str, Callable[..., torch.optim.Optimizer]]:
    found = vars(torch.optim).items()
    return {
        name.lower(): value
        for name, value in found
        if inspect.isclass(value) and value.__module__.startswith("torch.optim")
        if issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }


class Optimizer(BaseModel):
    """An optimiser: `adamw`, or `{name: sgd, lr: 0.1, momentum: 0.9}`.

    Every further option is passed to the class in `torch.optim`. Weight decay is zero unless it is
    given: PyTorch's default for AdamW would pull adapters towards zero, also on the server.

    Attributes:
        name: a class of `torch.optim`, in lower case.
        lr: learning rate.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = "adamw"
    lr: float = Field(default=1e-3, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known(self) -> Optimizer:
        classes = _classes()
        if self.name not in classes:
            raise UserError(
                f"optimizer {self.name!r}", "torch.optim has none", suggest(self.name, classes)
            )
        accepted = inspect.signature(classes[self.name]).parameters
        for option in self.model_extra or {}:
            if option not in accepted:
                raise UserError(
                    f"optimizer option {option}={self.options[option]!r}",
                    f"{self.name} has no such option",
                    suggest(option, set(accepted) - {"params"}),
                )
        try:
            # One step on a dense gradient: LBFGS, SparseAdam and the like ask for something else.
            probe = nn.Parameter(torch.zeros(2, 2))
            probe.grad = torch.zeros(2, 2)
            self.build([probe]).step()
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"optimizer {self.model_dump()}",
                f"torch.optim refuses it ({error})",
                f"See the documentation of torch.optim.{self.name}",
            ) from error
        return self

    @property
    def options(self) -> Mapping[str, Any]:
        """The options beyond `lr`."""
        return dict(self.model_extra or {})

    def build(
        self, parameters: Iterable[nn.Parameter], saved: Mapping[str, Any] | None = None
    ) -> torch.optim.Optimizer:
        """Return an optimiser over the parameters.

        Args:
            parameters: what it steps.
            saved: `state_dict` of an earlier one over the same parameters, which it goes on from.
        """
        found = _classes()[self.name]
        options = dict(self.options)
        if "weight_decay" in inspect.signature(found).parameters:
            options.setdefault("weight_decay", 0.0)
        if isinstance(options.get("betas"), list):
            options["betas"] = tuple(options["betas"])
        optimizer = found(parameters, lr=self.lr, **options)
        if saved is not None:
            optimizer.load_state_dict(dict(saved))
        return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr
