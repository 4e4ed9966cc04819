"""Logits of a large vocabulary: of the rows that count alone, and never of all of these at once.

The head of a language model takes most of its memory where the vocabulary is large. Here it sees the
supervised positions, some at a time. What a model does to its logits afterwards, as scaling (Cohere,
Granite) and caps (Gemma), stays its own: its body alone is replaced, by the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

WIDE: Final = (
    8192  # classes from which logits of whole batches are avoided; changes memory, not results
)
CHUNK: Final = 2**22  # most entries rows x classes at once: 16 MiB as float32

Part = Callable[[Tensor, slice], Tensor]
"""Gives the summed loss of some rows from their logits `(rows, classes)`."""


def is_wide(module: nn.Module) -> bool:
    """Whether a language model has so many classes that logits of whole batches are to be avoided.

    That its head can be had apart cannot be told from its class: some tokens go through, once.
    """
    layer = _head(_unwrapped(module))
    if layer is None or _num_classes(module) < WIDE:
        return False
    if module not in _APART:
        _APART[module] = _comes_apart(module)
    return _APART[module]


_APART: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def differs_in_depth(module: nn.Module, other: nn.Module) -> None:
    """Let be known of a model what is known of another one: their heads are alike."""
    if other in _APART:
        _APART[module] = _APART[other]


def hidden_states(module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return what the head of a model sees of a batch, `(batch, seq, width)`."""
    with before_head(module) as seen:
        module(**inputs)
    [hidden] = seen
    return hidden[:, -inputs["input_ids"].shape[1] :]  # virtual tokens stand before the others


def logits_of(module: nn.Module, hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield the logits `(some rows, classes)` of hidden states `(rows, width)`, with their places."""
    for rows in _spans(module, len(hidden)):
        with _from_hidden(_unwrapped(module)) as head:
            logits = head(hidden[rows])
        yield rows, logits  # the model is whole again, whatever is done meanwhile


def summed(module: nn.Module, hidden: Tensor, part: Part) -> Tensor:
    """Return the sum of a loss over rows `(rows, width)`, ready for the backward pass.

    The gradients of some rows are computed as soon as their loss is, so that no logits have to be kept,
    or computed anew, until then (as Liger kernels do it; Hsu et al., 2024, arXiv 2410.10989).
    """
    layer = _head(_unwrapped(module))
    weights = [weight for weight in layer.parameters() if weight.requires_grad]
    found: Tensor = _Summed.apply(module, part, hidden, *weights)  # type: ignore[no-untyped-call]
    return found


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, module: nn.Module, part: Part, hidden: Tensor, *weights: Tensor
    ) -> Tensor:
        needs = [index for index, needed in enumerate(ctx.needs_input_grad[2:]) if needed]
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        # Sums of few bits would lose what later rows add to them.
        sums = [
            torch.zeros_like(w, dtype=torch.promote_types(w.dtype, total.dtype)) for w in weights
        ]
        of_hidden = torch.zeros_like(hidden) if 0 in needs else None
        with torch.enable_grad(), _from_hidden(_unwrapped(module)) as head:
            for rows in _told([*_spans(module, len(hidden))]):
                some = hidden[rows].detach().requires_grad_(0 in needs)
                loss = part(head(some), rows)
                total += loss.detach()
                wanted = [some] * (0 in needs) + [*weights]
                if not needs:
                    continue
                for gradient, place in zip(
                    torch.autograd.grad(loss, wanted),
                    [None] * (0 in needs) + [*range(len(weights))],
                    strict=True,
                ):
                    if place is not None:
                        sums[place] += gradient
                    elif of_hidden is not None:
                        of_hidden[rows] = gradient
        ctx.found = (of_hidden, *(sums.pop(0).to(weight.dtype) for weight in weights))
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        [upstream] = gradients
        found = [None if g is None else g * upstream.to(g.dtype) for g in ctx.found]
        return None, None, *found


def _unwrapped(module: nn.Module) -> Any:
    """Return the Hugging Face model inside a PEFT model (adapters stay active), or the model."""
    model: Any = module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _head(model: Any) -> Any:
    """Return the last layer of a language model, or `None` if it has none."""
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


def num_chunks(module: nn.Module, num_rows: int) -> int:
    """Return in how many chunks logits of so many rows are computed."""
    return len([*_spans(module, num_rows)])


def _spans(module: nn.Module, num_rows: int) -> Iterator[slice]:
    size = max(1, CHUNK // _num_classes(module))
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


@runtime_checkable
class Telling(Protocol):
    """A mode in which there are no values, so that of many chunks a few tell what all others take."""

    def telling(self, spans: Sequence[slice]) -> Iterable[slice]:
        """Yield the places of those to compute; work on the others is counted, and not done."""


def _told(spans: Sequence[slice]) -> Iterable[slice]:
    """Return which chunks to compute: all where there are values."""
    mode = _get_current_dispatch_mode()
    return mode.telling(spans) if isinstance(mode, Telling) else spans


def _num_classes(module: nn.Module) -> int:
    return int(_unwrapped(module).config.get_text_config().vocab_size)


def _name_of(model: Any, layer: nn.Module) -> str:
    name: str = next(name for name, found in model.named_modules() if found is layer)
    return name


@contextmanager
def _replaced(model: Any, name: str, other: nn.Module) -> Iterator[None]:
    owner, _, attribute = name.rpartition(".")
    place, layer = model.get_submodule(owner), model.get_submodule(name)
    place._modules[attribute] = other
    try:
        yield
    finally:
        place._modules[attribute] = layer


@contextmanager
def before_head(module: nn.Module) -> Iterator[list[Tensor]]:
    """Keep what the head is given in place of running it."""
    seen: list[Tensor] = []
    model = _unwrapped(module)
    with _replaced(model, _name_of(model, _head(model)), _Keeps(seen)):
        yield seen


class _Keeps(nn.Module):
    def __init__(self, seen: list[Tensor]) -> None:
        super().__init__()
        self._seen = seen

    def forward(self, hidden: Tensor) -> Tensor:
        self._seen.append(hidden)
        return hidden[..., :1].detach()


@contextmanager
def _from_hidden(model: Any) -> Iterator[Callable[[Tensor], Tensor]]:
    """Give the function from hidden states `(rows, width)` to logits: the model without its body."""
    body = _Given()

    def head(rows: Tensor) -> Tensor:
        body.rows = rows[None]
        logits: Tensor = model(inputs_embeds=body.rows, use_cache=False).logits[0]
        return logits

    with _replaced(model, _name_of(model, model.get_decoder()), body):
        yield head


class _Given(nn.Module):
    rows: Tensor

    def forward(self, *_: object, **__: object) -> Any:
        # Imported here: this module is part of the config tree, which must not wait for the library.
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.rows)


@torch.no_grad()
def _comes_apart(module: nn.Module) -> bool:
    """Whether head and body apart give what the model gives."""
    was_training, device = module.training, next(module.parameters()).device
    # Several tokens: that of padding may be all zeros, which no scale or cap would change.
    inputs = {"input_ids": torch.arange(8, device=device)[None]}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    try:
        whole = module.eval()(**inputs).logits[0, -8:]
        hidden = hidden_states(module, inputs)[0]
        logits = torch.cat([some for _, some in logits_of(module, hidden)])
    except (AttributeError, KeyError, TypeError):
        return False
    finally:
        module.train(was_training)
    if logits.shape != whole.shape:
        return False
    return bool(((logits - whole).abs() <= 1e-3 * (1 + whole.abs())).all())
