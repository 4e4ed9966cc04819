"""Are ledgers, measures and weights of the shipped recipes equal, bit by bit, on two commits?

    python benchmarks/equal_commits.py d427693                   all recipes, against the working tree
    python benchmarks/equal_commits.py d427693 min-bytes compare   some of them

Each recipe runs on both sides in processes of their own, with few rows. Seconds and the plan are left
out of what is compared. Both sides run with the libraries that are installed here; an
older commit may need some more (d427693: rapidfuzz).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
RECIPES = Path("src/trillium/config/recipes")
FEW = ["data.source.num_train=160", "data.source.num_test=40", "data.public_size=40", "rounds=2"]


def main() -> int:
    """Run recipes on both commits; return how many differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", help="the commit to hold the working tree to")
    parser.add_argument("recipes", nargs="*", help="names without .yaml; all without it")
    asked = parser.parse_args()
    recipes = asked.recipes or sorted(path.stem for path in (REPO / RECIPES).glob("*.yaml"))
    with tempfile.TemporaryDirectory() as name:
        folder, base = Path(name), Path(name) / "base"
        git = ["git", "-C", str(REPO), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(base), asked.base], check=True)
        try:
            different = sum(not _equal(recipe, base, folder) for recipe in recipes)
        finally:
            subprocess.run([*git, "remove", "--force", str(base)], check=True)
    print(f"{len(recipes) - different} of {len(recipes)} recipes are equal on both commits")
    return different


def _equal(recipe: str, base: Path, folder: Path) -> bool:
    sides = [_run(recipe, tree, folder / f"{recipe}_{tree is base}") for tree in (base, REPO)]
    names = sorted(sides[0].keys() | sides[1].keys())
    bad = [name for name in names if sides[0].get(name) != sides[1].get(name)]
    entries = sum(len(found) for name, found in sides[1].items() if name.endswith("wire.jsonl"))
    print(f"{recipe}: {f'differs in {bad}' if bad else f'equal, {entries} messages'}", flush=True)
    return not bad and entries > 0


def _run(recipe: str, tree: Path, out: Path) -> dict[str, Any]:
    """Return what a recipe leaves by file: rows without seconds, and the bytes of weights."""
    scripts = tomllib.loads((tree / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["trillium"].partition(":")
    verb = "compare" if recipe == "compare" else "run"
    words = [verb, str(REPO / RECIPES / f"{recipe}.yaml"), *FEW, "--out", str(out), "--json"]
    if recipe == "kd-llm-server":  # from the hub: tiny models and rows stand in for its own
        words += _stand_ins(out.parent / "hub")
    code = f"import sys, {module} as program; sys.argv[0] = 'trillium'; program.{function}()"
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{recipe} on {tree}:\n{done.stderr}")
    return dict(_left(out))


def _left(out: Path) -> Iterator[tuple[str, Any]]:
    (top,) = (path for path in out.iterdir() if path.is_dir())
    for path in sorted(top.rglob("*")):
        if path.name in ("wire.jsonl", "metrics.jsonl"):
            yield (
                str(path.relative_to(top)),
                [_timeless(json.loads(line)) for line in path.read_text().splitlines()],
            )
        elif path.suffix == ".safetensors":
            yield str(path.relative_to(top)), hashlib.sha256(path.read_bytes()).hexdigest()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if "seconds" not in key}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _stand_ins(hub: Path) -> list[str]:
    if not hub.exists():
        sys.path.insert(0, str(REPO / "tests"))
        import tiny

        tiny.write_hub(hub)
    source = f"{{name: files, train: {hub / 'causal_lm.jsonl'}}}"
    return [
        f"model={{id: {hub / 'llama'}, random_weights: true}}",
        f"server.model.id={hub / 'gpt2'}",
        f"data={{source: {source}, num_clients: 2, public_size: 8, test_fraction: 0.2}}",
    ]


if __name__ == "__main__":
    sys.exit(main())
