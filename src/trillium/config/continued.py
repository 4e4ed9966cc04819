"""A PEFT adapter that training goes on from: its base and its options stand in its own folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from trillium.errors import UserError

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
    owners = [tree, tree.get("server"), *(tiers.values() if isinstance(tiers, Mapping) else ())]
    for own in owners:
        if isinstance(own, dict):
            _place(own)
    return tree


def _place(own: dict[str, Any]) -> None:
    model, adapter = own.get("model"), own.get("adapter")
    name = model.get("id") if isinstance(model, Mapping) else model
    is_adapter = isinstance(name, str) and (Path(name) / ADAPTER_CONFIG).is_file()
    named = adapter.get("from") if isinstance(adapter, Mapping) else None
    folder = name if is_adapter else named
    if not isinstance(folder, str) or not (Path(folder) / ADAPTER_CONFIG).is_file():
        return  # none, or one of the hub, whose options must be written
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
        base = str(found.get("base_model_name_or_path") or "")
        beside = Path(folder) / base
        place = str(beside) if base and not Path(base).exists() and beside.is_dir() else base
        changes = {"id": place, "revision": found.get("revision")}
        own["model"] = {**model, **changes} if isinstance(model, Mapping) else place


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
            f"it is a PEFT adapter of the kind {kind}, and training goes on from LoRA alone",
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
