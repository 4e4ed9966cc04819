"""The values of a PEFT adapter that training goes on from, and the classes of its task head."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from peft import load_peft_weights, set_peft_model_state_dict
from torch import nn
from transformers.utils import CONFIG_NAME, cached_file

from trillium.errors import UserError
from trillium.models.heads import head_layer
from trillium.models.hub import MISSING, locate
from trillium.models.stand_ins import StandIn
from trillium.wire.kinds import Tensors


@dataclass(frozen=True)
class Onward:
    """A LoRA adapter in PEFT's format.

    Attributes:
        source: its folder or hub id.
        weights: its values, as they are saved.
        key: of the last layer of its task head in them, without `.weight`; it may have none.
    """

    source: str
    weights: Tensors
    key: str | None = None

    @property
    def num_classes(self) -> int:
        """How many classes its head tells apart."""
        return 0 if self.key is None else len(self.weights[f"{self.key}.weight"])

    def classes(self, of_base: Sequence[str]) -> tuple[tuple[str, ...], bool]:
        """Return the names of these classes in their order, and whether anything names them.

        What Trillium writes beside an adapter names them, or its base, if that was trained to tell as
        many apart.
        """
        named: object = None
        options = {f"_raise_exceptions_for_{what}": False for what in MISSING}
        path = cached_file(locate(self.source), CONFIG_NAME, **options)
        if path is not None:
            try:
                named = json.loads(Path(path).read_text(encoding="utf-8")).get("id2label")
            except (OSError, ValueError, AttributeError):
                named = None
        if isinstance(named, dict) and len(named) == self.num_classes:
            return tuple(str(named[key]) for key in sorted(named, key=int)), True
        if len(of_base) == self.num_classes:
            return tuple(of_base), True
        return tuple(f"LABEL_{index}" for index in range(self.num_classes)), False

    def apply(self, module: nn.Module, order: Sequence[int] | None) -> None:
        """Give a PEFT model these values.

        Args:
            order: which class of the adapter's head each class of the model is; without it the model's
                own last layer stays as it was drawn.

        Raises:
            UserError: they do not fit.
        """
        elsewhere = tuple(
            f"{name.replace('.original_module', '')}."
            for name, part in module.named_modules()
            if isinstance(part, StandIn)
        )
        weights = {n: t for n, t in self.weights.items() if not n.startswith(elsewhere)}
        if self.key is not None and f"{self.key}.weight" in weights:
            for name, own in head_layer(module)[1].named_parameters():
                theirs = weights.get(f"{self.key}.{name}")
                found = own.detach() if order is None or theirs is None else theirs[[*order]]
                weights[f"{self.key}.{name}"] = found.cpu().contiguous()
        try:
            unknown = list(set_peft_model_state_dict(module, weights).unexpected_keys)
        except Exception as error:  # whatever a folder holds
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise UserError(
                f"adapter.from={self.source}",
                f"its values do not fit ({' '.join(lines[:2]) or repr(error)})",
                "Give an adapter of this base model and task, with the same options",
            ) from error
        if unknown:
            raise UserError(
                f"adapter.from={self.source}",
                f"it has values for which there is no place here, such as {unknown[0]}",
                "Give an adapter of this base model and task",
            )


def read_onward(
    source: str, hf_config: object, *, auto_class: str | None, trust_remote_code: bool
) -> Onward:
    """Return the adapter in a folder, or on the hub.

    Args:
        auto_class: the class of Transformers that loads its model, if that has a task head.

    Raises:
        UserError: it cannot be read.
    """
    try:
        weights = load_peft_weights(source, device="cpu")
    except Exception as error:  # whatever a folder holds
        why = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(
            f"adapter.from={source}",
            f"its values cannot be read ({why})",
            "Give the folder of an adapter in PEFT's format, or its id on a hub that can be reached",
        ) from error
    if auto_class is None:
        return Onward(source, weights)
    with torch.device("meta"):
        auto = getattr(transformers, auto_class)
        built = auto.from_config(hf_config, trust_remote_code=trust_remote_code)
        key = f"base_model.model.{head_layer(built)[0]}"
    return Onward(source, weights, key if f"{key}.weight" in weights else None)
