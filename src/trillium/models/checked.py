"""What was read of a checkpoint is the model that its configuration describes, or it is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from trillium.errors import UserError
from trillium.models.blocks import find_blocks
from trillium.models.heads import head_modules


def check_read(
    model: nn.Module, found: Mapping[str, Any], model_id: str, *, classifies: bool
) -> None:
    """Refuse a checkpoint that lacks what the model needs, has it in other shapes, or is no numbers.

    The task head of a classifier may be missing, and its pooler: both are drawn anew, and saved.

    Args:
        found: what `from_pretrained` says of the loading.

    Raises:
        UserError: with the name of such a tensor.
    """
    heads = tuple(f"{name}." for name in head_modules(model)) if classifies else ()
    prefix, num_blocks = _blocks(model)
    other = sorted(
        (name, tuple(was), tuple(now))
        for name, was, now in found["mismatched_keys"]
        if not name.startswith(heads)
    )
    if other:
        name, was, now = other[0]
        raise _refused(
            model_id,
            f"config.json and weights do not belong together: {name} has the shape {was} there, "
            f"and {now} by the configuration",
        )
    missing = {*found["missing_keys"]} - {name for name, *_ in found["mismatched_keys"]}
    needed = [
        name
        for name in sorted(missing)
        if not (classifies and (name.startswith(heads) or "pooler" in name))
    ]
    if needed:
        of_head = not classifies and needed[0].split(".")[0] in head_modules(model)
        raise _refused(
            model_id,
            f"its weights lack {_some(needed)}"
            + (", with which tokens are predicted: it was saved without the head of a language model"
               if of_head else ", and the model would have random ones there"),
            "Name a checkpoint of the whole language model, or write task=classification"
            if of_head else None,
        )  # fmt: skip
    beyond = [
        name for name in sorted(found["unexpected_keys"]) if _index(name, prefix) >= num_blocks
    ]
    if beyond:
        raise _refused(
            model_id,
            f"its weights have more blocks than the {num_blocks} of config.json, such as {beyond[0]}",
        )
    check_finite(model, model_id)


@torch.no_grad()
def check_finite(model: nn.Module, model_id: str) -> None:
    """Refuse weights that are not numbers; each is looked at once, and nothing is copied."""
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point() or type(parameter.data) is not torch.Tensor:
            continue  # quantised
        if parameter.numel() and not all(
            map(math.isfinite, (x.item() for x in parameter.aminmax()))
        ):
            raise _refused(model_id, f"its weights hold NaN or infinity, in {name}")


def _blocks(model: nn.Module) -> tuple[str, float]:
    try:
        name, blocks = find_blocks(model)
    except UserError:  # there is no one list of them
        return "\0", math.inf
    return f"{name}.", len(blocks)


def _index(name: str, prefix: str) -> int:
    """Return of which block a tensor is; -1 for none. Checkpoints may lack what encloses the blocks."""
    found = re.search(rf"(?:^|\.){re.escape(prefix.split('.', 1)[-1])}(\d+)\.", f".{name}")
    return -1 if found is None else int(found[1])


def _some(names: Iterable[str]) -> str:
    first, *rest = names
    return f"{first} and {len(rest)} more tensors" if rest else first


def _refused(model_id: str, why: str, instead: str | None = None) -> UserError:
    return UserError(
        f"model.id={model_id}",
        why,
        instead or "Copy or save the model anew, with all that belongs to it",
    )
