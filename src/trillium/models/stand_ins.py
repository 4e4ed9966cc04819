"""What stands where a module of another party was, so that the model's own forward still runs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Form:
    """How a module answers: with a tensor of so many dims and some width, alone or first in a tuple."""

    width: int
    dims: int
    tuple_size: int | None

    def fill(self, hidden: Tensor) -> object:
        """Return hidden states `(batch, seq, hidden)` in this form; zeros if the width differs."""
        if hidden.dim() > self.dims:  # a pooler answers with one vector for each text
            hidden = hidden[:, 0]
        if hidden.shape[-1] != self.width:  # embeddings narrower than the blocks, or logits
            hidden = hidden.new_zeros(()).expand(*hidden.shape[:-1], self.width)
        return hidden if self.tuple_size is None else (hidden, *[None] * (self.tuple_size - 1))


@dataclass
class Received:
    """The hidden states that a part is working on, seen by all its stand-ins during a forward."""

    hidden: Tensor | None = None


class StandIn(nn.Module):
    """Stands where another party's module was, and has no parameters.

    It answers with the received hidden states; in a model that was never whole (`received` is None),
    with what it is given.
    """

    def __init__(self, absent: nn.Module, form: Form, received: Received | None) -> None:
        super().__init__()
        # Model code reads such things as `layer.attention_type` from outside.
        for name, value in vars(absent).items():
            if not name.startswith("_") and isinstance(value, str | int | float | None):
                setattr(self, name, value)
        self._form, self._received = form, received

    @property
    def weight(self) -> Tensor:
        """Nothing, where a model's code looks where and of what dtype its weights are."""
        assert self._received is not None
        assert self._received.hidden is not None
        return self._received.hidden.new_empty(0)

    def forward(self, *args: object, **kwargs: object) -> object:
        """Return hidden states in the form of the absent module's answer."""
        if self._received is None:
            given = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
            return self._form.fill(given)
        assert self._received.hidden is not None, "the head ran a module that it does not hold"
        return self._form.fill(self._received.hidden)


def is_whole(model: nn.Module) -> bool:
    """Whether a model holds all its modules."""
    return not any(isinstance(module, StandIn) for module in model.modules())
