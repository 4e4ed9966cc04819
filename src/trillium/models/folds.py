"""Changes of base weights that an aggregator folds in, as low-rank factors, and how they are saved."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from torch import Tensor, nn

from trillium.models.factors import Factors, LowRank, low_rank_of
from trillium.models.slots import State
from trillium.wire.kinds import MessageError, Tensors
from trillium.wire.message import Message, named

Fold = Mapping[str, LowRank]
"""By the name of a base weight: what it changes by, `left @ right`, `(out, in)`."""


def fold_into(base: Tensors, fold: Fold, factors: Sequence[Factors], weights: Tensors) -> Tensors:
    """Return base weights with a fold added; those that `base` lacks are as in `weights`.

    They are no narrower than float32: in half precision most of a small change would be rounded away,
    in every round again.
    """
    result = dict(base)
    for layer in factors:
        if layer.layer in fold:
            old = base.get(layer.layer, weights[layer.layer])
            change = fold[layer.layer].left.double() @ fold[layer.layer].right.double()
            change = change.T if layer.transposed else change
            result[layer.layer] = (old.double() + change.to(old.device)).to(_wide(old))
    return result


def whole_fold(base: Tensors, factors: Sequence[Factors], weights: Tensors) -> Fold:
    """Return by what base weights differ from those that were loaded, as one fold of full rank."""
    found = {}
    for layer in factors:
        if layer.layer in base:
            change = base[layer.layer].double().cpu() - weights[layer.layer].double().cpu()
            found[layer.layer] = low_rank_of(change.T if layer.transposed else change)
    return found


class BaseWeights:
    """The frozen weights of adapted layers in a module, which `mount` exchanges for others."""

    def __init__(self, module: nn.Module, factors: Sequence[Factors]) -> None:
        self._places: dict[str, tuple[nn.Module, str]] = {}
        for layer in factors:
            owner, _, attribute = layer.layer.rpartition(".")
            self._places[layer.layer] = (module.get_submodule(owner), attribute)
        self._original = {name: module.get_parameter(name) for name in self._places}

    @property
    def original(self) -> Tensors:
        """The weights as they were loaded, by name."""
        return dict(self._original)

    def mount(self, base: Mapping[str, Tensor]) -> None:
        """Put changed weights in place, and the original ones everywhere else."""
        for name, (owner, attribute) in self._places.items():
            original = self._original[name]
            owner._parameters[attribute] = (
                nn.Parameter(base[name].to(original.device, original.dtype), requires_grad=False)
                if name in base
                else original
            )


def widened(state: State, factors: Sequence[Factors], folds: Sequence[Fold]) -> Tensors:
    """Return the factors of LoRA with all folds in them, in place of changed base weights.

    They are `A (r + R, in)` and `B (out, r + R)`, where `scale * B @ A` is the adapter and the
    folds together; R is at most what the layer can hold.
    """
    result: Tensors = {}
    for layer in factors:
        found = [fold[layer.layer] for fold in folds if layer.layer in fold]
        if not found:
            continue
        a, b = state[layer.a].detach().cpu(), state[layer.b].detach().cpu()
        left = torch.cat([b.double(), *(low.left.double() / layer.scale for low in found)], dim=1)
        right = torch.cat([a.double(), *(low.right.double() for low in found)])
        if left.shape[1] > min(len(left), right.shape[1]):
            left, right = _shortened(left, right)
        result[layer.a], result[layer.b] = right.to(a.dtype), left.to(b.dtype)
    return result


def _shortened(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the product of two factors, at no higher rank than it can have."""
    found = low_rank_of(left @ right)
    return found.left, found.right


@contextmanager
def wide_adapter(
    module: nn.Module, state: State, factors: Sequence[Factors], folds: Sequence[Fold]
) -> Iterator[State]:
    """Yield a state that holds the folds, and let PEFT's configuration tell its ranks for the block."""
    wide = widened(state, factors, folds)
    if not wide:
        yield state
        return
    config: Any = module.peft_config["default"]  # type: ignore[index]
    before = copy.deepcopy((config.rank_pattern, config.alpha_pattern))
    for layer in factors:
        if layer.a in wide:
            name = layer.layer.removeprefix("base_model.model.").removesuffix(".base_layer.weight")
            rank = len(wide[layer.a])
            config.rank_pattern[name] = rank
            # PEFT divides by the rank, or by its root.
            config.alpha_pattern[name] = layer.scale * (
                math.sqrt(rank) if config.use_rslora else rank
            )
    try:
        yield {**state, **{name: nn.Parameter(tensor) for name, tensor in wide.items()}}
    finally:
        config.rank_pattern, config.alpha_pattern = before


def room_for_wide(folder: Path, factors: Sequence[Factors], device: torch.device) -> State:
    """Return empty factors in the ranks of a saved adapter, which `wide_adapter` may have raised."""
    file = folder / SAFETENSORS_WEIGHTS_NAME
    if not factors or not file.is_file():
        return {}
    state: State = {}
    with safe_open(file, "pt") as saved:
        for name in (name for layer in factors for name in (layer.a, layer.b)):
            key = name.replace(".default", "")  # of the factors of embeddings it is the end
            if key in saved.keys():  # noqa: SIM118 - it is not a mapping
                found = saved.get_tensor(key)
                state[name] = nn.Parameter(torch.empty_like(found, device=device))
    return state


Plain = dict[str, tuple[Tensor, Tensor]]
"""A fold in plain values, as checkpoints hold it: left and right factor by layer."""


def plain(fold: Fold, weights: Mapping[str, Tensor]) -> Plain:
    """Return a fold in plain values, no narrower than float32, as server and clients both add it."""
    return {
        layer: (low.left.to(_wide(weights[layer])), low.right.to(_wide(weights[layer])))
        for layer, low in fold.items()
    }


def _wide(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


def as_fold(content: Plain) -> Fold:
    """Return the fold that `plain` has written."""
    return {layer: LowRank(left, right) for layer, (left, right) in content.items()}


def weigh(fold: Plain) -> int:
    """Return the bytes of a fold."""
    return sum(left.nbytes + right.nbytes for left, right in fold.values())


def pack_folds(folds: Sequence[Plain], first: int) -> Message:
    """Return the message that brings a client folds, the `first` and those after it, without loss."""
    tensors, ranks = {}, []
    for index, fold in enumerate(folds):
        ranks.append({layer: left.shape[1] for layer, (left, _) in fold.items()})
        for layer, (left, right) in fold.items():
            tensors[f"{index}.{layer}.left"] = left
            tensors[f"{index}.{layer}.right"] = right
    return Message("fold", named("snapshot", tensors), {"first": first, "ranks": ranks})


def unpack_folds(
    message: Message, factors: Sequence[Factors], weights: Mapping[str, Tensor]
) -> tuple[int, list[Fold]]:
    """Return the first fold's number, and the folds; `MessageError` if they do not fit."""
    first, ranks = message.meta.get("first"), message.meta.get("ranks")
    known = {layer.layer: layer for layer in factors}
    if type(first) is not int or first < 0 or not isinstance(ranks, list):
        raise MessageError("folds without their number and ranks")
    like: Tensors = {}
    for index, found in enumerate(ranks):
        if not isinstance(found, dict) or not found.keys() <= known.keys():
            raise MessageError("a fold of layers that have no adapter here")
        for layer, rank in found.items():
            shape = weights[layer].shape
            rows, columns = reversed(shape) if known[layer].transposed else shape
            if type(rank) is not int or not 0 < rank <= 2**20:
                raise MessageError(f"a fold of rank {rank!r}")
            form: dict[str, Any] = {"device": "meta", "dtype": _wide(weights[layer])}
            like[f"{index}.{layer}.left"] = torch.empty(rows, rank, **form)
            like[f"{index}.{layer}.right"] = torch.empty(rank, columns, **form)
    tensors = message.expect("snapshot", like)
    return first, [
        {
            layer: LowRank(tensors[f"{index}.{layer}.left"], tensors[f"{index}.{layer}.right"])
            for layer in found
        }
        for index, found in enumerate(ranks)
    ]


def pack_weights(base: Tensors, number: int) -> Message:
    """Return the message that brings a client the base weights as so many folds have made them."""
    return Message("fold", named("snapshot", base), {"number": number, "layers": sorted(base)})


def unpack_weights(
    message: Message, factors: Sequence[Factors], weights: Mapping[str, Tensor]
) -> tuple[Tensors, int]:
    """Return the base weights, and of how many folds; `MessageError` if they do not fit."""
    number, names = message.meta.get("number"), message.meta.get("layers")
    known = {layer.layer for layer in factors}
    if type(number) is not int or number < 1 or not isinstance(names, list):
        raise MessageError("base weights without the number of their folds and their layers")
    if not all(isinstance(name, str) and name in known for name in names):
        raise MessageError("base weights of layers that have no adapter here")
    like = {
        name: torch.empty(weights[name].shape, dtype=_wide(weights[name]), device="meta")
        for name in names
    }
    found = message.expect("snapshot", like)
    return {name: tensor.to(weights[name].device) for name, tensor in found.items()}, number
