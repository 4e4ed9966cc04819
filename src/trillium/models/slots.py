"""Trainable parameters that live outside the model and are mounted into it.

One frozen model is resident; every client, and every copy on the server, is a `State` of its own.
Mounting replaces the entries in the modules' parameter tables and never writes into a tensor: what one
client leaves behind cannot reach another, and a backward pass that is still pending for one client
stays valid while another one's parameters are mounted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase

from torch import nn

from trillium.wire.kinds import Tensors

State = dict[str, nn.Parameter]

# Parts of the names that Transformers gives to task heads.
_HEADS = {"classifier", "pre_classifier", "score", "logits_proj", "lm_head", "embed_out"}


class Slots:
    """The places of a module's trainable parameters, and their names in the module's order."""

    def __init__(self, module: nn.Module) -> None:
        places: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
        for owner in module.modules():
            for attribute, parameter in owner.named_parameters(recurse=False):
                places[id(parameter)].append((owner, attribute))
        # A tied parameter has one name and several places.
        trainable = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self._places = {name: places[id(parameter)] for name, parameter in trainable}
        self.names = tuple(self._places)

    def mount(self, state: Mapping[str, nn.Parameter]) -> None:
        """Put the parameters of `state` into the module; other names in `state` are ignored."""
        for name, places in self._places.items():
            parameter = state[name]
            for owner, attribute in places:
                owner._parameters[attribute] = parameter


def values(state: Mapping[str, nn.Parameter]) -> Tensors:
    """Return copies of the values of a state, detached."""
    return {name: parameter.detach().clone() for name, parameter in state.items()}


def train_only(state: State, names: Collection[str]) -> State:
    """Freeze all parameters of a state but the named ones, and return it."""
    for name, parameter in state.items():
        parameter.requires_grad_(name in names)
    return state


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a tensor is meant by one of the patterns.

    A pattern is `head`, a part of the name between dots such as `lora_B`, or the whole name with
    `*`.
    """
    parts = name.split(".")
    return any(
        not _HEADS.isdisjoint(parts)
        if pattern == "head"
        else pattern in parts or fnmatchcase(name, pattern)
        for pattern in patterns
    )
