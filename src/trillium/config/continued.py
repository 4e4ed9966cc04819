"""A PEFT adapter that training goes on from: its base and its options stand in its own folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from trillium.errors import UserError
from trillium.models.adapters.lora import Lora

ADAPTER_CONFIG: Final = "adapter_config.json"
# As PEFT calls them, and as the options of `adapter: lora` do.
OPTIONS: Final = {
    "r": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "target_modules",
    "layers_to_transform": "layers",
    "use_rslora": "rslora",
    "use_dora": "dora",
}
UNKNOWN: Final = ("rank_pattern", "alpha_pattern", "trainable_token_indices", "megatron_config")


def with_adapters(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a tree in which an adapter named as a model stands for its base, and for its options.

    Raises:
        UserError: it is of a kind that training cannot go on from, or its options were named otherwise.
    """
    tiers = tree.get("tiers")
    _place(tree)
    for own in (tree.get("server"), *(tiers.values() if isinstance(tiers, Mapping) else ())):
        if isinstance(own, dict):
            _inherit(own, tree)
            _place(own)
    return tree


def _inherit(own: dict[str, Any], tree: Mapping[str, Any]) -> None:
    """Say for a tier or the server whether it goes on from the adapter of the run.

    It does beside the same base. Beside another one neither values nor options of that adapter fit.
    """
    common, adapter = tree.get("adapter"), own.get("adapter")
    if not isinstance(common, Mapping) or not common.get("from"):
        return
    given = {"name": adapter} if isinstance(adapter, str) else dict(adapter or {})
    if given.get("name", "lora") != "lora" or "from" in given:
        return
    base = _model_id(own.get("model"))
    if base is not None and base != _model_id(tree.get("model")):
        if not _is_adapter(base):
            own["adapter"] = {**Lora().to_config(), **given}
    elif given:
        own["adapter"] = {**given, "name": "lora", "from": common["from"]}


def _model_id(model: Any) -> str | None:
    name = model.get("id") if isinstance(model, Mapping) else model
    return name if isinstance(name, str) else None


def _is_adapter(name: str) -> bool:
    return (Path(name) / ADAPTER_CONFIG).is_file()


def _place(own: dict[str, Any]) -> None:
    model, adapter = own.get("model"), own.get("adapter")
    name = _model_id(model)
    is_adapter = name is not None and _is_adapter(name)
    named = adapter.get("from") if isinstance(adapter, Mapping) else None
    folder = name if is_adapter else named
    if not isinstance(folder, str) or not _is_adapter(folder):
        if isinstance(folder, str) and Path(folder).is_dir():
            raise UserError(
                f"adapter.from={folder}",
                f"there is no {ADAPTER_CONFIG} in that folder",
                "Give the folder of an adapter in PEFT's format",
            )
        return  # none, or one of the hub, whose options must be written
    if isinstance(model, Mapping) and model.get("random_weights"):
        raise UserError(
            f"model.random_weights=true with the adapter in {folder}",
            "it is a change of the weights of its base",
            "Leave model.random_weights out",
        )
    found = _read(Path(folder))
    wanted = {ours: found[theirs] for theirs, ours in OPTIONS.items() if theirs in found}
    if isinstance(wanted.get("target_modules"), list):
        wanted["target_modules"] = sorted(wanted["target_modules"])
    given = {"name": adapter} if isinstance(adapter, str) else dict(adapter or {})
    for key, value in given.items():
        other = sorted(value) if key == "target_modules" and not isinstance(value, str) else value
        known = {"name": "lora", "from": folder, **wanted}.get(key, value)
        if other != known:
            raise UserError(
                f"adapter.{key}={value} with the adapter in {folder}",
                f"training goes on from it, and it has {key}={known}",
                f"Leave adapter.{key} out",
            )
    own["adapter"] = {**given, "name": "lora", **wanted, "from": folder}
    if is_adapter:
        place = _base(Path(folder), str(found.get("base_model_name_or_path") or ""))
        changes = {"id": place, "revision": found.get("revision")}
        own["model"] = {**model, **changes} if isinstance(model, Mapping) else place


def _base(folder: Path, base: str) -> str:
    """Return where the base of an adapter is: a folder, also beside the adapter, or a hub id."""
    if base and not Path(base).exists() and (folder / base).is_dir():
        return str(folder / base)
    if not base or (not Path(base).is_dir() and (Path(base).is_absolute() or base[0] == ".")):
        raise UserError(
            f"model.id={folder}",
            f"it is an adapter, and its base model is not at {base}"
            if base
            else "it is an adapter that does not name its base model",
            f"Write model.id=BASE, the place where the base is now, with adapter.from={folder}",
        )
    return base


def _read(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        kind = str(found["peft_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            str(folder / ADAPTER_CONFIG), f"it cannot be read ({error})", "Save the adapter anew"
        ) from error
    if kind != "LORA":
        raise UserError(
            str(folder),
            f"it is a PEFT adapter of the kind {kind}, and training goes on from LoRA only",
            "Merge it into its base, and name that as the model",
        )
    more = [name for name in UNKNOWN if found.get(name)]
    more += [f"bias={found['bias']}"] if found.get("bias", "none") != "none" else []
    if more:
        raise UserError(
            str(folder),
            f"its {', '.join(more)} has no counterpart here",
            "Merge it into its base, and name that as the model",
        )
    return dict(found)
