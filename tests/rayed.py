"""What the Ray engine is held to: the run folder of the local one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deployed import lines_of, metrics


def crossed(folder: Path) -> list[dict[str, object]]:
    """Return the ledger, in its order.

    Clients that share a process share what is measured of batches of one shape, whatever part of their
    texts is to be learnt, so peaks are a little off.
    """
    found = lines_of(folder / "wire.jsonl")
    for entry in found:
        del entry["seconds"]
        if entry.get("peak_bytes"):
            entry["peak_bytes"] = pytest.approx(entry["peak_bytes"], rel=0.01)
    return found


def assert_equal(mine: Path, local: Path) -> None:
    files = [sorted(str(p.relative_to(at)) for p in at.rglob("*")) for at in (mine, local)]
    assert files[0] == files[1]
    assert crossed(mine) == crossed(local)
    assert metrics(mine) == metrics(local)
    for name in files[0]:
        if name.endswith((".safetensors", "config.yaml", "data.json", "once.json", "answers.json")):
            assert (mine / name).read_bytes() == (local / name).read_bytes(), name
    assert json.loads((mine / "status.json").read_text())["state"] == "finished"
