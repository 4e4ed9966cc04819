"""Where models come from, the hub, a folder or a package, and what can go wrong on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch

from trillium.errors import UserError
from trillium.extras import install
from trillium.models.packaged import HUB_IDS, find_packaged, from_gguf

# What `cached_file` need not raise where a file may be lacking.
MISSING: Final = ("gated_repo", "missing_entries", "connection_errors")


def locate(model_id: str) -> str:
    """Return the hub id of a model, or the whole path of its folder; a GGUF file becomes one."""
    if model_id in HUB_IDS:
        return str(find_packaged(model_id))
    if Path(model_id).suffix.lower() == ".gguf" and Path(model_id).is_file():
        return str(from_gguf(model_id))
    return str(Path(model_id).absolute()) if Path(model_id).is_dir() else model_id


@contextmanager
def explained(model_id: str) -> Iterator[None]:
    """Explain the errors that users meet when a model is loaded, as `UserError`."""
    try:
        yield
    except (UserError, AssertionError):
        raise
    except Exception as error:  # whatever a folder holds, its reader may fail at
        if "scaled_dot_product_attention" in str(error):
            raise UserError(
                f"model.id={model_id} with model.attention=sdpa",
                "Transformers has only eager attention for this architecture",
                "Write model.attention=eager",
            ) from error
        if "Unrecognized configuration class" in str(error):
            form = str(error).partition("AutoModel: ")[2].partition(".")[0] or "such a form"
            raise UserError(
                f"model.id={model_id}",
                f"Transformers has no {form} for this architecture",
                "To write, choose a decoder such as HuggingFaceTB/SmolLM2-135M-Instruct; to classify, "
                "an encoder such as roberta-base",
            ) from error
        if isinstance(error, ImportError):
            raise UserError(
                f"model.id={model_id}",
                f"it needs a package that is not installed ({_first_line(error)})",
                f"{install('quantization')}, if its weights are quantised, or install that package",
            ) from error
        if "trust_remote_code" in str(error):
            raise UserError(
                f"model.id={model_id}",
                "its architecture is not part of Transformers: it comes with code of its own, which "
                "would run on every machine of the federation",
                "Choose another model, or read that code and write model.trust_remote_code=true",
            ) from error
        path = Path(model_id)
        if not path.exists() and (path.is_absolute() or model_id.startswith((".", "~"))):
            why = "there is no such folder or file"
        else:
            kind = "a folder" if path.is_dir() else "a file" if path.is_file() else "a hub model"
            why = f"it cannot be loaded as {kind} ({_first_line(error)})"
        raise UserError(
            f"model.id={model_id}",
            why,
            "Write a hub id such as distilbert-base-uncased that this machine can reach or has "
            "cached, or the path of a folder with config.json, weights and tokenizer",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0].strip()[:300]


def set_dropout(hf_config: Any, rate: float, auto_class: str = "") -> None:
    """Set every dropout rate in a Hugging Face configuration, and in those that it holds.

    Args:
        auto_class: what builds a model of it; heads on tokens have a rate that need not stand there.

    Raises:
        UserError: one of them takes whole numbers alone.
    """
    if "TokenClassification" in auto_class:
        hf_config.classifier_dropout = rate
    for key, value in hf_config.to_dict().items():
        is_rate = "drop" in key and "layerdrop" not in key and not isinstance(value, bool)
        if is_rate and isinstance(value, int | float):
            is_whole = isinstance(value, int) and rate == int(rate)
            try:
                setattr(hf_config, key, int(rate) if is_whole else rate)
            except Exception as error:  # a rate that must be a whole number: MPT's of attention
                raise UserError(
                    f"model.dropout={rate}",
                    f"{key} of {type(hf_config).__name__} takes no such number ({_first_line(error)})",
                    "Write model.dropout=0.0, or leave it out",
                ) from error
    for key in hf_config.sub_configs:
        if (inner := getattr(hf_config, key, None)) is not None:
            set_dropout(inner, rate)


def find_device(name: str) -> torch.device:
    """Return the device of that name, if PyTorch can use it; `auto` takes a GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"model.device={name}", f"PyTorch cannot use it ({error})", "Write auto, cpu or cuda:0"
        ) from error
    return device
