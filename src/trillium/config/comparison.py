"""Comparisons: one experiment as several arms, with the seeds, grid and tuning of a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trillium.clock.places import Places
from trillium.config.equal_rows import most_held_back, of_equal_rows
from trillium.config.experiment import ExperimentConfig, Tree, acting, experiment, merge
from trillium.config.sweep import Sweep, expanded, grid
from trillium.errors import UserError, suggest
from trillium.frameworks.effects import NoEffect

Arms = dict[str, Tree]
OWN_KEYS = ("arms", "seeds", "grid", "tuning", "about", "reach")
"""Keys of a recipe that are of the comparison; all others are settings of its runs."""
_BESIDE = (*OWN_KEYS, "plan")  # of a recipe, beside the settings of its runs
VALIDATION = 0.1  # share of the training rows that settings are chosen by, unless a recipe says so


class Tuning(BaseModel):
    """How settings are chosen, by rows that no table reports.

    Attributes:
        seed: of the runs by which they are chosen; no reported run has it.
        grid: values to try, by path; a path that begins with the label of an arm is of that arm.
        settings: what else is different in these runs. They are measured on a tenth of the training
            rows, unless `data.validation_fraction` stands here.
        chosen: what was chosen, by arm.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(ge=0)
    grid: Tree
    settings: Tree = {}
    chosen: Arms = {}


class CompareConfig(BaseModel):
    """One experiment under several frameworks.

    Attributes:
        base: tree of what the arms have in common.
        arms: what each arm changes, by label.
        seeds: those to run where none are named; without any the seed of `base`.
        about: what a report says above its table.
        reach: accuracies, as shares, of which the report says what it took to get there.
        tuning: how settings were chosen, or are to be.
        plan: links and devices that the report tells times for, beside those that all know.
        aside: rows that some arm of the recipe holds back, whether it is run or not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: Tree
    arms: Arms
    seeds: tuple[int, ...] = ()
    about: str = ""
    reach: tuple[float, ...] = ()
    tuning: Tuning | None = None
    plan: Places = Places()
    aside: int = 0

    def experiments(
        self, seeds: Iterable[int] | None = None
    ) -> dict[tuple[str, int], ExperimentConfig]:
        """Return the configuration of each arm and seed; all are checked before the first runs.

        What the arms share need not act in all of them: an arm goes without what acts nowhere in it.

        Raises:
            UserError: a configuration cannot be run, a setting acts in no arm, or settings were chosen
                with one of the seeds.
        """
        wanted = list(seeds or self.seeds or [self.base.get("seed", 0)])
        if self.tuning is not None and self.tuning.seed in wanted:
            raise UserError(
                f"seed {self.tuning.seed}",
                "settings are chosen with this seed (tuning.seed), so its figures would look too good",
                "Report other seeds: --seeds 0,1,2",
            )
        trees = acting_arms(
            {label: merge(self.base, a) for label, a in self.arms.items()}, self.arms
        )
        places = {} if self.plan == Places() else {"plan": self.told()["plan"]}
        return {
            (label, seed): experiment(merge(tree, {"seed": seed, **places}))
            for seed in wanted
            for label, tree in of_equal_rows(trees, self.aside).items()
        }

    def told(self) -> Tree:
        """Return what a report is told beside the figures."""
        found = self.model_dump(mode="json", include={"about", "reach", "tuning"})
        if self.plan == Places():
            return found
        return {**found, "plan": self.plan.model_dump(mode="json", exclude_none=True)}


def acting_arms(
    trees: Mapping[str, Tree], own: Mapping[str, Tree], *, keep_refused: bool = False
) -> dict[str, Tree]:
    """Return the trees of arms, each without what acts nowhere in it but in another one.

    Args:
        own: by arm, what is set for it alone.
        keep_refused: whether the tree of an arm that cannot be run is returned as it is.

    Raises:
        UserError: a configuration cannot be run, or a setting acts in no arm, or not in its own.
    """
    found, idle = dict(trees), list[dict[str, NoEffect]]()
    for label, tree in trees.items():
        try:
            found[label], without = acting(tree, own.get(label, {}))
            idle.append(without)
        except UserError:
            if not keep_refused:
                raise
    for path, error in idle[-1].items() if idle else ():
        if all(path in other for other in idle):
            raise error
    return found


def comparison(
    tree: Mapping[str, Any],
    overrides: Tree,
    only: Iterable[str] = (),
    sweeps: Sequence[Sweep] = (),
) -> CompareConfig:
    """Return a comparison from a recipe with `arms` and overrides for all arms or single ones.

    Args:
        tree: the recipe; keys beside `OWN_KEYS` are common to all.
        overrides: a key that is the label of an arm holds settings of that arm alone. What they set,
            the recipe's grid does not sweep any more.
        only: labels of the arms to keep, with or without what a grid adds to them; all without any.
        sweeps: more of them, in place of those of the grid on the same path.

    Raises:
        UserError: the recipe has no arms, or a label is unknown.
    """
    base, arms = _laid(tree, overrides)
    named = {path for path, _ in sweeps}
    axes = [axis for axis in grid(_mapping(tree, "grid")) if axis[0] not in named]
    made = expanded(arms, [*_left(axes, arms, overrides), *sweeps])
    words = list(only)
    for word in words:
        if not any(word == label or word in found for label, found in made.items()):
            raise UserError(f"--only {word}", "the recipe has no such arm", suggest(word, arms))
    kept = {
        name: arm
        for label, found in made.items()
        for name, arm in found.items()
        if not words or label in words or name in words
    }
    every = [arm for found in made.values() for arm in found.values()]
    aside = most_held_back(base, every) if len(kept) < len(every) else 0
    told = merge(_mapping(tree, "plan"), _mapping(overrides, "plan"))
    places = without_data(told)
    return _checked({**tree, "base": base, "arms": kept, "aside": aside, "plan": places})


def without_data(told: Mapping[str, Any]) -> Tree:
    """Return of what a plan is told the links and devices, which are those of the runs, too."""
    return {key: value for key, value in told.items() if key != "data"}


def tuning_of(tree: Mapping[str, Any], overrides: Tree, only: Iterable[str] = ()) -> CompareConfig:
    """Return the comparison by which settings are chosen: the arms that the tuning grid is of.

    Raises:
        UserError: the recipe has no tuning, or a label is unknown.
    """
    if "tuning" not in tree:
        raise UserError(
            "--tune",
            "the recipe does not say which settings to choose among",
            "Add tuning: {seed: 100, grid: {training.optimizer.lr: [0.001, 0.003]}}",
        )
    base, arms = _laid(tree, overrides)
    tuning = _checked({**tree, "base": {}, "arms": arms, "plan": {}}).tuning
    assert tuning is not None
    shared = {k: value for k, value in overrides.items() if k not in arms and k != "plan"}
    own = merge(tuning.settings, shared)
    everywhere = merge({"data": {"validation_fraction": VALIDATION}}, own)
    recipe = {k: value for k, value in tree.items() if k not in OWN_KEYS}
    recipe["plan"] = merge(_mapping(tree, "plan"), _mapping(overrides, "plan"))
    recipe["arms"] = {
        label: merge(merge(arms[label], own), overrides.get(label, {})) for label in _tuned(tree)
    }
    found = comparison(recipe, merge(everywhere, {"seed": tuning.seed}), only, grid(tuning.grid))
    # As many rows as in the runs that are reported, where an arm that is not tuned holds some back.
    aside = most_held_back(merge(base, own), arms.values())
    return found.model_copy(update={"aside": max(found.aside, aside)})


def choices(tree: Mapping[str, Any]) -> dict[str, Arms]:
    """Return the settings that each point of the tuning grid stands for, by arm and label."""
    arms: Arms = {label: {} for label in _tuned(tree)}
    return expanded(arms, grid(_mapping(tree["tuning"], "grid")))


def with_choices(tree: Mapping[str, Any], overrides: Tree, chosen: Arms) -> Tree:
    """Return a recipe with overrides, and with what was chosen for its arms."""
    base, arms = _laid(tree, overrides)
    axes = {k: v for k, v in _mapping(tree, "grid").items() if not _has(overrides, k)}
    own = {key: tree[key] for key in ("about", "reach", "seeds", "plan") if key in tree}
    return {
        **own,
        **base,
        **({"grid": axes} if axes else {}),
        "tuning": {**tree["tuning"], "chosen": chosen},
        "arms": {label: merge(arm, chosen.get(label, {})) for label, arm in arms.items()},
    }


def _laid(tree: Mapping[str, Any], overrides: Tree) -> tuple[Tree, Arms]:
    """Return what the arms of a recipe have in common, and what each of them changes."""
    arms = _mapping(tree, "arms")
    if not arms:
        raise UserError(
            "a recipe without arms",
            "there is nothing to compare",
            "Add arms, or use `trillium run`",
        )
    base = {key: value for key, value in tree.items() if key not in _BESIDE}
    shared = {k: value for k, value in overrides.items() if k not in arms and k != "plan"}
    own = {
        label: merge(_settings(label, arm), _settings(label, overrides.get(label)))
        for label, arm in arms.items()
    }
    return merge(base, shared), own


def _settings(label: str, given: object) -> Tree:
    """Return the settings of an arm.

    Raises:
        UserError: they are none.
    """
    if given is not None and not isinstance(given, Mapping):
        raise UserError(
            f"{label}={given!r}",
            f"{label!r} is an arm of the recipe, and an arm has settings",
            f"Write {label}.KEY=VALUE, such as {label}.adapter.r=4",
        )
    return dict(given or {})


def _tuned(tree: Mapping[str, Any]) -> list[str]:
    """Return the labels of the arms that the tuning grid is of: all, unless each path names one."""
    arms = _mapping(tree, "arms")
    heads = {path.split(".")[0] for path in _mapping(tree["tuning"], "grid")}
    return [label for label in arms if label in heads or not heads <= arms.keys()]


def _mapping(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a key of a recipe that holds a mapping; an empty one where it is not there.

    Raises:
        UserError: it holds something else.
    """
    found = tree.get(key) or {}
    if not isinstance(found, Mapping):
        raise UserError(f"{key}={found!r}", "it is not a mapping", f"Write {key}: {{name: …}}")
    return found


def _left(axes: Sequence[Sweep], arms: Arms, overrides: Tree) -> list[Sweep]:
    """Return the sweeps that overrides leave: what they set of an arm is not swept for it."""
    found = []
    for path, values in axes:
        head = path.split(".")[0]
        if head in arms:
            found += [] if _has(overrides, path) else [(path, values)]
        elif not _has(overrides, path):
            own = [label for label in arms if not _has(overrides, f"{label}.{path}")]
            found += [(f"{label}.{path}", values) for label in own]
    return found


def _has(tree: Mapping[str, Any], path: str) -> bool:
    """Whether a tree sets what stands at a path."""
    node: Any = tree
    for key in path.split("."):
        if not isinstance(node, Mapping) or key not in node:
            return False
        node = node[key]
    return True


def _checked(tree: Mapping[str, Any]) -> CompareConfig:
    """Return the comparison of a recipe whose arms are laid out.

    Raises:
        UserError: one of `OWN_KEYS` holds what it cannot.
    """
    known = CompareConfig.model_fields
    try:
        return CompareConfig.model_validate({k: v for k, v in tree.items() if k in known})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raised = first.get("ctx", {}).get("error")
        if isinstance(raised, UserError):
            raise UserError(f"{where}={raised.given}", raised.why, raised.instead) from error
        raise UserError(
            f"{where}={first['input']!r}",
            first["msg"][0].lower() + first["msg"][1:],
            "docs/compare.md says what may be written there",
        ) from error
