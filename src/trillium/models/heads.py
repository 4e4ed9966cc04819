"""The task head of a classifier: which layers it has, which of them train, and what it sees.

Some models classify through one linear layer, others through several: RoBERTa through a square layer
that outweighs all of LoRA. With `model.head=linear` only the last layer trains and is exchanged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from trillium.errors import UserError
from trillium.models.blocks import base_model
from trillium.models.draws import draw


def head_modules(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that a Hugging Face classifier has beside its backbone."""
    backbone = getattr(model, "base_model", model)
    return tuple(
        name
        for name, module in model.named_children()
        if module is not backbone and any(True for _ in module.parameters())
    )


def head_layer(module: nn.Module) -> tuple[str, nn.Linear]:
    """Return the last linear layer of the task head, and its name in the module.

    Of what PEFT trains in a copy, the copy counts. The parameters are `<name>.weight (classes,
    width)` and, if it has one, `<name>.bias (classes,)`. A model without such a layer is refused.
    """
    model = base_model(module)
    prefix = next(name for name, found in module.named_modules() if found is model)
    num_labels = getattr(model.config, "num_labels", None)
    found: list[tuple[str, nn.Linear]] = []
    for head in head_modules(model):
        path = f"{prefix}.{head}" if prefix else head
        for name, layer in module.get_submodule(path).named_modules(prefix=path):
            if isinstance(layer, nn.Linear) and layer.out_features == num_labels:
                found += [(name, layer)] if ".original_module" not in name else []
    if not found:
        raise UserError(
            f"the head of {type(model).__name__}",
            f"it has no linear layer that ends in {num_labels} classes",
            "Choose a model for sequence classification, or write model.head=own",
        )
    return found[-1]


def keep_classes(model: nn.Module, order: Sequence[int], labels: Sequence[str]) -> None:
    """Leave in the head of a checkpoint the classes of that order, under these names."""
    name, layer = head_layer(model)
    if [*order] != [*range(layer.out_features)]:
        kept = nn.Linear(layer.in_features, len(order), layer.bias is not None)
        kept.to(layer.weight).requires_grad_(layer.weight.requires_grad)
        with torch.no_grad():
            kept.weight.copy_(layer.weight[[*order]])
            if layer.bias is not None:
                kept.bias.copy_(layer.bias[[*order]])
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, kept)
    name_classes(model, labels)


def name_classes(model: nn.Module, labels: Sequence[str]) -> None:
    """Name the classes of a model, and say how many there are."""
    if hasattr(model, "num_labels"):
        model.num_labels = len(labels)  # type: ignore[assignment]
    config: Any = model.config
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}


def draw_head(model: nn.Module, seed: int) -> set[str]:
    """Draw the last layer of the head anew, and return the names of its parameters."""
    name, layer = head_layer(model)
    std = getattr(model.config, "initializer_range", None) or 0.02
    draw(model, {f"{name}.weight": partial(nn.init.normal_, std=std)}, seed)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return {f"{name}.{own}" for own, _ in layer.named_parameters()}


def straighten(model: nn.Module, drawn: Collection[str]) -> None:
    """Make square layers before the last one the identity, where their weights are `drawn`, not learnt.

    They are to stay frozen, and a frozen layer of small random numbers only blurs what the backbone
    knows; nor could another draw of them serve a head that was trained on this one.
    """
    last, _ = head_layer(model)
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear) or layer.in_features != layer.out_features:
            continue
        if name != last and f"{name}.weight" in drawn:
            nn.init.eye_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def train_last_only(module: nn.Module) -> None:
    """Freeze all layers of a PEFT model's task head but the last linear one."""
    model, (_, last) = base_model(module), head_layer(module)
    for name in head_modules(model):
        model.get_submodule(name).requires_grad_(False)
    last.requires_grad_(True)


def drawn_modules(model: nn.Module, drawn: Collection[str]) -> tuple[str, ...]:
    """Return the names of modules outside the task head that own a parameter drawn at random."""
    heads = head_modules(model)
    owners = {name.rpartition(".")[0] for name, _ in model.named_parameters() if name in drawn}
    return tuple(sorted(name for name in owners if name.split(".")[0] not in heads))


@contextmanager
def features(module: nn.Module) -> Iterator[nn.Module]:
    """Make a classifier return what its last linear layer would see, instead of logits; yield it.

    Within the block, `module(**inputs).logits` are features `(batch, width)`, pooled by the model's
    own code: where that applies the head to every token and then picks one, it now picks that
    token's features. No parameter is touched.
    """
    name, _ = head_layer(module)
    with without_layer(module, name):
        yield module


@contextmanager
def without_layer(module: nn.Module, name: str) -> Iterator[None]:
    """Let what the named layer is given pass in place of what it answers."""
    owner, _, attribute = name.rpartition(".")
    place, layer = module.get_submodule(owner), module.get_submodule(name)
    place._modules[attribute] = nn.Identity()
    try:
        yield
    finally:
        place._modules[attribute] = layer
