"""Comparisons that would tell what a plan cannot: as one command, and as a recipe."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from trillium.config.comparison import OWN_KEYS, without_data
from trillium.config.experiment import Tree, merge, recipes
from trillium.config.given import Asked, default_comparison
from trillium.config.sweep import Sweep
from trillium.plan.arms import USUAL
from trillium.plan.shapes import with_sources
from trillium.report.human import as_word, as_words

_BASELINES: Final = ("local_only", "centralised")
_OF_FRAMEWORKS: Final = ("framework", "head", "wire", "fleet", "sums", "privacy")
"""Sections that baselines may have no use for."""


def compare_command(asked: Asked) -> str:
    """Return the command that compares what was asked for, on the user's own data.

    Without a recipe that has arms, it is of the default comparison with what was set: the arms of
    the frameworks that were asked for, and the baselines.
    """
    recipe, words = asked.recipe or {}, ["trillium", "compare"]
    if "arms" in recipe:
        is_file = Path(asked.name).suffix in (".yaml", ".yml") or asked.name in recipes()
        words.append(asked.name if is_file else "RECIPE.yaml")
        words += [*_settings(asked.tree), *_sweeps(asked.sweeps, {})]
    else:
        tree = merge({key: v for key, v in recipe.items() if key not in OWN_KEYS}, asked.tree)
        data, named = tree.get("data"), tree.pop("framework", {})
        if not (isinstance(data, Mapping) and "source" in data):
            words += ["--data", "YOUR_FILE"]
        framework = dict(named) if isinstance(named, Mapping) else {"name": named}
        name, known = framework.pop("name", None), default_comparison(tree)["arms"]
        arms = [arm for arm in ([name] if name else USUAL) if arm in known]
        for arm in {*USUAL} - {*arms}:
            tree.pop(arm, None)
        if framework and name in arms:
            tree[name] = merge({"framework": framework}, tree.get(name) or {})
        words += [*_settings(tree), *_sweeps(asked.sweeps, arms)]
        words += ["--only", ",".join([*arms, *_BASELINES])] if arms else []
    return shlex.join(words if "seeds" in recipe else [*words, "--seeds", "3"])


def _settings(tree: Tree) -> list[str]:
    """Return settings of runs as words; a cut that a plan looks for is not one."""
    told = tree.get("plan")
    places = without_data(told) if isinstance(told, Mapping) else {}
    found = with_sources({**tree, "plan": places})
    words = as_words({key: own for key, own in found.items() if own != {}})
    return [word for word in words if not word.endswith("cut=auto")]


def _sweeps(sweeps: Sequence[Sweep], arms: Collection[str]) -> list[str]:
    """Return sweeps as words, of arms alone where baselines may not have the setting."""
    words = []
    for path, values in sweeps:
        head = path.split(".")[0]
        if path in ("framework", "seed") or (head in USUAL and head not in arms):
            continue
        owners = [f"{arm}." for arm in arms] if head in _OF_FRAMEWORKS else [""]
        text = ",".join(map(as_word, values))
        words += [f"{owner}{path}={text}" for owner in owners]
    return words


def as_comparison(trees: Mapping[str, Tree]) -> Tree:
    """Return the recipe of a comparison of some runs, with the baselines that accuracy is told by."""
    shared = _shared(list(trees.values()))
    arms = {label: _rest(tree, shared) for label, tree in trees.items()}
    return {"seeds": [0, 1, 2], **shared, "arms": arms | {n: {"framework": n} for n in _BASELINES}}


def _shared(trees: Sequence[Mapping[str, Any]]) -> Tree:
    """Return what trees have in common; of components of different names nothing."""
    first, *others = trees
    found: Tree = {}
    for key, value in first.items():
        values = [value, *(other.get(key) for other in others)]
        if all(one == value for one in values):
            found[key] = value
        elif all(
            isinstance(one, Mapping) and one.get("name") == value.get("name") for one in values
        ):
            found[key] = _shared(values)
    return found


def _rest(tree: Mapping[str, Any], shared: Mapping[str, Any]) -> Tree:
    """Return what a tree has beside what is shared."""
    return {
        key: _rest(own, shared[key]) if isinstance(own, Mapping) and key in shared else own
        for key, own in tree.items()
        if key not in shared or own != shared[key]
    }
