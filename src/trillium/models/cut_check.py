"""Whether the parts of a cut model compute what the whole does."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from trillium.errors import UserError
from trillium.models.blocks import base_model, evaluating, find_blocks, hidden_of
from trillium.models.cut import SplitModel, in_parts
from trillium.wire.kinds import has_values


def check_split(
    model: nn.Module, split: SplitModel, batch: Mapping[str, Tensor], tolerance: float | None = None
) -> float:
    """Hold a split model against the unsplit one, logits and gradients, and refuse if they differ.

    Both run in evaluation mode. Compared are the logits, the gradients of all trainable parameters
    and the gradients that cross each cut, for a loss that weighs every logit differently. Padding does
    not cross a cut, so a model to which it says something is refused, too.

    Args:
        batch: `input_ids` and `attention_mask`, both `(batch, seq)`; best with some padding.
        tolerance: largest difference allowed, relative to the largest entry of the compared tensor;
            by default 64 units of the logits' precision, but no more than 0.02.

    Returns:
        The largest relative difference; 0.0 is usual on a CPU, and where there are no values.
    """
    if not all(map(has_values, model.parameters())):
        return 0.0
    given = f"{type(base_model(model)).__name__} cut at {split.cut}"
    instead = "Use the framework fedllm or kd for this model"
    with evaluating(model, *split.parts), torch.enable_grad():
        expected = _gradients(*_run_whole(model, split, batch), batch)
        with in_parts(type(base_model(model)).__name__, split.cut):
            found = _gradients(*_run_parts(split, batch), batch)
    if tolerance is None:
        tolerance = min(64 * torch.finfo(expected["logits"].dtype).eps, 0.02)
    if expected.keys() != found.keys():
        names = ", ".join(sorted(expected.keys() ^ found.keys()))
        raise UserError(given, f"the parts do not hold what the model holds: {names}", instead)
    largest = max((_size(g) for name, g in expected.items() if name != "logits"), default=0.0)
    worst = 0.0
    for name, tensor in expected.items():
        # A gradient that is zero but for rounding (a key's bias) is held to the others' size.
        size = max(_size(tensor), 1e-3 * largest if name != "logits" else 0.0, 1e-30)
        difference = _size(found[name] - tensor) / size
        if not difference <= tolerance:  # so written, NaN is refused
            why = f"{name} differs by {difference:.1e} of its size, allowed is {tolerance:.1e}"
            raise UserError(given, f"the parts do not compute what the model does ({why})", instead)
        worst = max(worst, difference)
    if not (moved := _moved_by_padding(model, batch)) <= tolerance:
        why = f"padding, which does not cross a cut, moves a text's states by {moved:.1e} of their size"
        raise UserError(given, why, instead)
    return worst


@torch.no_grad()
def _moved_by_padding(model: nn.Module, batch: Mapping[str, Tensor]) -> float:
    """Return by how much it moves the last block's answer to a text what stands in its padding."""
    ids, mask = batch["input_ids"][:1].clone(), torch.zeros_like(batch["attention_mask"][:1])
    length = max(1, ids.shape[1] // 2)
    mask[:, :length] = 1
    found: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: object) -> None:
        found.append(hidden_of(output))

    with evaluating(model), find_blocks(model)[1][-1].register_forward_hook(keep):
        for token in (int(ids.min()), int(ids.max())):
            ids[:, length:] = token
            base_model(model)(input_ids=ids, attention_mask=mask, use_cache=False)
    one, other = found
    if one.shape[:2] != ids.shape:  # such a model is not one for a cut: `Parts` refuses it
        return 0.0
    return _size((other - one)[:, :length]) / max(_size(one), 1e-30)


def _run_whole(
    model: nn.Module, split: SplitModel, batch: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the unsplit model's logits, and by name the tensors whose gradients are compared."""
    _, blocks = find_blocks(model)
    crossing: dict[str, Tensor] = {}

    def keep(module: nn.Module, args: object, output: object) -> None:
        # Asked for, because nothing in front of the cut may be trained.
        crossing[f"hidden states at cut {len(crossing)}"] = hidden_of(output).requires_grad_()

    with ExitStack() as stack:
        for part in split.parts[:-1]:
            stack.enter_context(blocks[part.blocks[-1]].register_forward_hook(keep))
        logits = base_model(model)(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        )[0]
    return logits, _trainable(model) | crossing


def _run_parts(split: SplitModel, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the same as `_run_whole`, from the parts: only the head is shown token ids."""
    mask = batch["attention_mask"]
    hidden = split.head(None, input_ids=batch["input_ids"], attention_mask=mask)
    sources = _trainable(split.head)
    for index, part in enumerate(split.parts[1:]):
        sources |= _trainable(part) | {f"hidden states at cut {index}": hidden.requires_grad_()}
        hidden = part(hidden, attention_mask=mask)
    return hidden, sources


def _gradients(
    logits: Tensor, sources: dict[str, Tensor], batch: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the logits and the gradient of each source, for a loss that tells logits apart."""
    mask = batch["attention_mask"]
    if logits.shape[:2] == mask.shape and logits.dim() == 3:
        logits = logits.masked_fill(mask[..., None] == 0, 0.0)  # what padding answers is undefined
    weights = torch.arange(logits.numel(), device=logits.device).cos().view_as(logits)
    loss = (logits * weights.to(logits.dtype)).mean()
    grads = torch.autograd.grad(loss, [*sources.values()], materialize_grads=True)
    return {"logits": logits.detach(), **dict(zip(sources, grads, strict=True))}


def _trainable(module: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _size(tensor: Tensor) -> float:
    return tensor.detach().abs().max().item()
