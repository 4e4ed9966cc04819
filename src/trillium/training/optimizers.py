"""Any optimiser of `torch.optim`, by name and with its own options, and Yogi, which it lacks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema
from torch import nn

from trillium.errors import UserError, suggest


class Yogi(torch.optim.Optimizer):
    """Yogi (Zaheer et al., 2018), as the server optimiser of Reddi et al. (2021, arXiv 2003.00295).

    Adam whose second moment moves by at most the squared gradient, so that one round of large
    updates is not forgotten all at once nor lets the step jump:
    `m = b1 m + (1 - b1) g`, `v = v - (1 - b2) g^2 sign(v - g^2)`, `x = x - lr m / (sqrt(v) + eps)`.
    Moments are not corrected for their start: `v` begins at `eps^2`. A large `eps`, the tau of the
    paper, makes it plain momentum.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-3,
    ) -> None:
        if not lr > 0.0 or not eps > 0.0 or not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"lr={lr} and eps={eps} must be above 0, betas={betas} in [0, 1)")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; return what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            (beta1, beta2), eps = group["betas"], group["eps"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["mean"] = torch.zeros_like(parameter)
                    state["square"] = torch.full_like(parameter, eps**2)
                squared = parameter.grad.square()
                state["mean"].lerp_(parameter.grad, 1.0 - beta1)
                towards = (state["square"] - squared).sign_()
                state["square"].addcmul_(squared, towards, value=beta2 - 1.0)
                parameter.addcdiv_(
                    state["mean"], state["square"].sqrt().add_(eps), value=-group["lr"]
                )
        return loss


def _classes() -> dict[str, Callable[..., torch.optim.Optimizer]]:
    found = vars(torch.optim).items()
    ours: dict[str, Callable[..., torch.optim.Optimizer]] = {"yogi": Yogi}
    return ours | {
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
        name: a class of `torch.optim`, in lower case, or `yogi`.
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
                f"the optimiser refuses it ({error})",
                f"See the documentation of {classes[self.name].__module__}.{self.name}",
            ) from error
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Say to editors which names and which options there are, those of all optimisers."""
        made = handler.resolve_ref_schema(handler(schema))
        classes = _classes()
        options = {key for found in classes.values() for key in inspect.signature(found).parameters}
        own = made["properties"] = {
            **{key: {} for key in sorted(options - {"params"})},
            **made["properties"],
        }
        own["name"]["enum"] = sorted(classes)
        full = {**made, "additionalProperties": False}
        made.clear()
        made["anyOf"] = [{"title": "an optimiser by its name", "enum": sorted(classes)}, full]
        return made

    @property
    def options(self) -> Mapping[str, Any]:
        """The options beyond `lr`."""
        return dict(self.model_extra or {})

    @property
    def decays(self) -> bool:
        """Whether it knows weight decay."""
        return "weight_decay" in inspect.signature(_classes()[self.name]).parameters

    def build(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        saved: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> torch.optim.Optimizer:
        """Return an optimiser over the parameters, or groups of them.

        It goes on from `saved`, the `state_dict` of an earlier one over the same. Further options lie
        over its own.
        """
        found = _classes()[self.name]
        options = {**self.options, **more}
        if self.decays:
            options.setdefault("weight_decay", 0.0)
        if isinstance(options.get("betas"), list):
            options["betas"] = tuple(options["betas"])
        optimizer = found(parameters, lr=self.lr, **options)
        if saved is not None:
            optimizer.load_state_dict(dict(saved))
        return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups, each times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)
