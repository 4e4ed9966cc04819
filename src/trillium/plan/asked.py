"""`trillium.plan`: what a run will cost, before anything is spent; for Python and the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from trillium.config.comparison import OWN_KEYS, acting_arms, without_data
from trillium.config.equal_rows import of_equal_rows
from trillium.config.experiment import Tree, experiment, merge, recipes
from trillium.config.given import Recipe, Settings, asked
from trillium.config.sweep import Sweep, grid, swept
from trillium.errors import UserError
from trillium.plan.advice import Advice, advise, constraints
from trillium.plan.arms import (
    Arm,
    arm_to_dict,
    arms_of,
    check_models,
    plan_arms,
    with_measured,
)
from trillium.plan.collector import collector_paused
from trillium.plan.compared import as_comparison, compare_command
from trillium.plan.cut_choice import Proposal, with_cuts
from trillium.plan.evidence import shipped
from trillium.plan.gather import evidence_of
from trillium.plan.models import Models
from trillium.plan.planning import planning_of
from trillium.plan.show import (
    advice_lines,
    columns,
    data_lines,
    evidence_lines,
    memory_lines,
    privacy_lines,
    warning_lines,
)
from trillium.plan.terminal import terminal_bars
from trillium.quiet import quiet_models

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Question:
    """What is to be planned.

    Attributes:
        tree: the settings of runs, with `arms` where there are some.
        told: what a plan alone is told.
        sweeps: settings with several values.
        command: would compare it.
    """

    tree: Tree
    told: Mapping[str, Any]
    sweeps: tuple[Sweep, ...]
    command: str


@dataclass(frozen=True, repr=False)
class Plan:
    """What some settings will cost.

    Attributes:
        arms: the plans.
        trees: the settings that they are of, by label.
        cuts: cuts that were looked for.
        advice: which of them to take, and why.
        sweep: the one setting with several values, if there is one.
        skipped: runs that were named as evidence and give none, with the reason.
    """

    arms: tuple[Arm, ...]
    trees: Mapping[str, Tree]
    cuts: tuple[Proposal, ...]
    advice: Advice
    sweep: Sweep | None = None
    skipped: tuple[str, ...] = ()

    def table(self) -> DataFrame:
        """Return the costs of one client as numbers: a row for each arm and tier.

        Bytes, FLOPs and seconds are of one round after the first, or of the whole `run`.
        """
        import pandas as pd

        lines = [
            {
                "arm": arm.label,
                "tier": tier.label,
                "num_trained": arm.prediction.num_trained,
                "bytes_up_per_round": tier.round.up.bytes,
                "bytes_down_per_round": tier.round.down.bytes,
                "bytes_up_per_run": tier.run.up.bytes,
                "bytes_down_per_run": tier.run.down.bytes,
                "flops_per_round": tier.round.flops,
                "peak_bytes": tier.run.peak_bytes,
                "seconds_per_round": tier.seconds,
                "misfit": tier.misfit,
            }
            for arm in self.arms
            if arm.prediction is not None
            for tier in arm.tiers
        ]
        return pd.DataFrame(lines).set_index(["arm", "tier"])

    def lines(self) -> list[str]:
        """Return what is said below the table: memory, cuts, bars and advice."""
        blocks = (
            warning_lines(self.arms),
            memory_lines(self.arms),
            privacy_lines(self.arms),
            list(map(str, self.cuts)),
            terminal_bars(self.arms),
            evidence_lines(self.arms, self.skipped),
            advice_lines(self.advice),
        )
        return [line for block in blocks if block for line in ("", *block)]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as values that JSON can hold."""
        return {
            "arms": [arm_to_dict(arm) for arm in self.arms],
            "cuts": [vars(proposal) for proposal in self.cuts],
            "advice": vars(self.advice),
            "skipped": self.skipped,
        }

    def recipe(self) -> Tree | None:
        """Return the settings to take; a comparison of the cheapest where accuracy would decide.

        There is none where nothing fits.
        """
        labels = self.advice.cheapest if self.advice.chosen is None else (self.advice.chosen,)
        found = {label: self.trees[label] for label in labels}
        return as_comparison(found) if len(found) > 1 else next(iter(found.values()), None)

    def save(self, folder: str | Path) -> list[Path]:
        """Write plots and a page into a folder, and return the paths."""
        from trillium.plan.plots import write_plots

        notes = [
            *data_lines(self.arms),
            *warning_lines(self.arms),
            *map(str, self.cuts),
            *evidence_lines(self.arms, self.skipped),
        ]
        return write_plots(Path(folder), self.arms, self.sweep, self.advice, notes)

    def __repr__(self) -> str:
        """Return table and advice as the terminal shows them."""
        return "\n".join([*data_lines(self.arms), self._shown().to_string(), *self.lines()])

    def _repr_html_(self) -> str:
        said = "".join(
            f"<li>{escape(line.removeprefix('- '))}" for line in advice_lines(self.advice)
        )
        return f"{self._shown().to_html()}<ul>{said}</ul>"

    def _shown(self) -> DataFrame:
        import pandas as pd

        titles, found = columns(self.arms)
        return pd.DataFrame(dict(found), index=pd.Index(titles, name="One client"))


def plan(
    recipe: Recipe | None = None,
    *settings: Settings,
    constraint: Sequence[str] = (),
    evidence: str | Path | Sequence[str | Path] = (),
    **overrides: Any,
) -> Plan:
    """Predict bytes, compute, memory and time of a run without its weights, as `trillium plan` does.

    Without a framework or arms: FedLLM with the adapter and in full, KD-FedLLM and Split-FedLLM.

    Args:
        recipe: a recipe, as `trillium.run` takes it; or a model, such as "gpt2".
        settings: laid over it: words such as "adapter.r=4,8", or mappings. What a plan is told beside
            the settings of a run stands under `plan`: "plan.client.link.up=10Mbit".
        constraint: the most that a measure may be: ["client_memory=8GB", "round=60s"].
        evidence: folders of runs and comparisons, to know accuracy by.
        overrides: settings as keywords, `plan__data__examples=1000`.

    Raises:
        UserError: something cannot be run or planned.
    """
    quiet_models()
    folders = [evidence] if isinstance(evidence, str | Path) else evidence
    return planned(question(recipe, settings, overrides), constraint, folders)


def question(
    recipe: Recipe | None, settings: Sequence[Settings], named: Mapping[str, Any]
) -> Question:
    """Divide what was asked into the settings of runs, what a plan alone is told, and sweeps.

    Raises:
        UserError: two models or two recipes are named, or something is no setting.
    """
    if is_model(recipe):
        if named.get("model") is not None:
            raise UserError(
                f"{recipe} {named['model']}",
                "one model at most can be named so",
                "Write model.id=one,another",
            )
        recipe, named = None, {**named, "model": str(recipe)}
    found = asked(recipe, settings, named, sweeps=True)
    content = found.recipe or {}
    base = {key: value for key, value in content.items() if key == "arms" or key not in OWN_KEYS}
    tree: Tree = merge(base, found.tree)
    paths = [path for path, _ in found.sweeps]
    of_recipe = [axis for axis in grid(content.get("grid") or {}) if axis[0] not in paths]
    told = tree.pop("plan", {})
    if isinstance(told, Mapping) and (places := without_data(told)):
        tree["plan"] = places
    return Question(tree, told, (*of_recipe, *found.sweeps), compare_command(found))


def is_model(recipe: Recipe | None) -> bool:
    """Whether a name is none of a recipe."""
    if recipe is None or isinstance(recipe, Mapping | BaseModel) or "=" in str(recipe):
        return False
    return Path(recipe).suffix not in (".yaml", ".yml") and str(recipe) not in recipes()


@collector_paused()
def planned(asks: Question, most: Sequence[str] = (), evidence: Sequence[str | Path] = ()) -> Plan:
    """Return the plans of what was asked, and advice.

    Args:
        most: constraints, as in `plan`.
        evidence: folders, as in `plan`.
    """
    own = evidence_of(map(Path, evidence), own=True)
    planning, limits = planning_of(asks.told), constraints(most)
    trees = swept(arms_of(asks.tree), asks.sweeps)
    if len(trees) > 1:
        trees = acting_arms(trees, {}, keep_refused=True)
        trees |= of_equal_rows({label: tree for label, tree in trees.items() if _reads(tree)})
    check_models(trees)
    models = Models()
    trees, cuts = with_cuts(trees, planning, limits, models)
    lines = (*own.lines, *shipped())
    arms = [with_measured(arm, lines) for arm in plan_arms(trees, planning, models)]
    if all(arm.config is None for arm in arms):
        experiment(next(iter(trees.values())))  # says what is wrong with the settings
    advice = advise(arms, trees, planning, limits, asks.command)
    sweep = asks.sweeps[0] if len(asks.sweeps) == 1 else None
    return Plan(tuple(arms), trees, tuple(cuts), advice, sweep, own.skipped)


def _reads(tree: Tree) -> bool:
    """Whether settings can be run, and name the data that they are run on."""
    try:
        experiment(tree)
    except UserError:
        return False
    data = tree.get("data")
    return isinstance(data, Mapping) and "source" in data
