"""A folder with a client's part of a model: what its owner gives away, and nothing more.

It holds the checkpoint's own tensors of that part under their own names, configuration and tokenizer,
so that `model.id` can name it; `part.json` says what part it is, and the digest of the weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from safetensors.torch import save_file
from transformers import AutoConfig
from transformers.utils import SAFE_WEIGHTS_NAME

from trillium.errors import UserError
from trillium.files import write_atomic
from trillium.models.base import ModelConfig
from trillium.models.hub import explained, locate
from trillium.models.inputs import read_inputs
from trillium.models.own import Ends, open_tensors, read_part
from trillium.models.shipped import replacing
from trillium.models.tokenizers import read_tokenizer

PART: Final = "part.json"


def write_part(
    config: ModelConfig, auto_class: str, labels: Sequence[str], ends: Ends, folder: Path
) -> None:
    """Write the part of a model that clients hold, in the dtype of the checkpoint.

    Raises:
        UserError: the model cannot be read in parts.
    """
    location = locate(config.id)
    inputs = read_inputs(config, labels)
    with explained(config.id), open_tensors(location, config.revision) as tensors:
        if tensors is None or config.random_weights or config.quantize != "none":
            raise UserError(
                f"a client's part of model.id={config.id}",
                "its weights are not read as they are from files in the safetensors format",
                "Save the model in that format, and write model.quantize=none and no random_weights",
            )
        model, _ = read_part(config, auto_class, inputs.hf_config, ends, tensors, seed=0)
        with replacing(folder) as staging:
            staging.mkdir(parents=True)
            own = {name: tensor[...] for name, tensor in tensors.items() if tensor.was_read}
            save_file(own, staging / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
            options = {"revision": config.revision}
            AutoConfig.from_pretrained(location, **options).save_pretrained(staging)
            read_tokenizer(config.id, config.revision, trust_remote_code=False).save_pretrained(
                staging
            )
            if model.can_generate():  # type: ignore[operator]
                model.generation_config.save_pretrained(staging)  # type: ignore[union-attr, operator]
            told = {**asdict(ends), "sha256": _digest(staging / SAFE_WEIGHTS_NAME)}
            write_atomic(staging / PART, json.dumps(told, indent=1) + "\n")


def check_part(config: ModelConfig, ends: Ends | None) -> None:
    """Refuse a folder with a part of a model where more is wanted, or another one has been put there.

    Args:
        ends: what is wanted; the whole for `None`.

    Raises:
        UserError: it does not serve.
    """
    folder = Path(config.id)
    if not (folder / PART).is_file():
        return
    try:
        told = json.loads((folder / PART).read_text(encoding="utf-8"))
        digest, has = told.pop("sha256"), Ends(**told)
        is_same = _digest(folder / SAFE_WEIGHTS_NAME) == digest
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        is_same, has = False, Ends(1)
    if not is_same:
        raise UserError(
            f"model.id={config.id}",
            "its weights are not those that were written with it: they are damaged or others",
            "Copy the folder again",
        )
    if ends is None or ends.cut > has.cut or (ends.has_tail and ends != Ends(ends.cut, *_end(has))):
        wanted = "the whole is wanted" if ends is None else f"a cut of {ends.cut} is wanted"
        raise UserError(
            f"model.id={config.id}",
            f"the folder holds the part of a split client alone, with {has.cut} blocks at the "
            f"beginning{' and the end' if has.has_tail else ''}; {wanted} here",
            "Name the folder of the whole model, or write the part anew",
        )


def _end(ends: Ends) -> tuple[bool, int | None]:
    return ends.has_tail, ends.tail


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
