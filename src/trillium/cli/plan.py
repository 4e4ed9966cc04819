"""`trillium plan`: what a run will cost, before anything is spent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trillium.plan.collector import collector_paused

if TYPE_CHECKING:
    from trillium.config.experiment import Tree
    from trillium.config.sweep import Sweep

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODEL | RECIPE] [KEY=VALUE]...",
        help="A built-in model shape such as gpt2, or a recipe; and settings such as adapter.r=4.",
    ),
]


@collector_paused(for_good=True)
def plan(
    words: Words = None,
    model: Annotated[
        str | None,
        typer.Option(help="A built-in shape such as llama-3-8b, a hub id or a folder."),
    ] = None,
    constraint: Annotated[
        list[str] | None,
        typer.Option(help="Upper limit of a measure: client_memory=8GB, up=1GB, round=60s."),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Write the recommended settings to this file.")
    ] = None,
    shapes: Annotated[
        bool, typer.Option("--shapes", help="List the built-in model shapes.")
    ] = False,
    plots: Annotated[
        Path | None, typer.Option(help="Write plots and a page of the plan to this folder.")
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(help="Replay the run in this folder on the given devices and links."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")
    ] = False,
) -> None:
    """Predict bytes, compute, memory and time of a run, without its weights.

    Without a framework or arms it plans FedLLM with the adapter, FedLLM with all parameters,
    KD-FedLLM and Split-FedLLM. What only a plan needs to know stands under `plan.`:
    plan.data.examples=1000 plan.client.device.memory=8GB plan.client.link.up=10Mbit.
    """
    if shapes:
        from trillium.plan.shapes import shapes as known

        for name, shape in known().items():
            print(f"{name:26} {shape.source}")
        return
    from trillium.quiet import quiet_models

    quiet_models()
    tree, told, sweeps = _parse(words or [], model)
    if replay is not None:
        _replay(replay, told, as_json)
        return
    from rich.console import Console

    from trillium.config.comparison import acting_arms
    from trillium.config.experiment import experiment
    from trillium.config.sweep import swept
    from trillium.plan.advice import advise, constraints
    from trillium.plan.arms import arm_to_dict, arms_of, check_models, plan_arms
    from trillium.plan.cut_choice import with_cuts
    from trillium.plan.models import Models
    from trillium.plan.planning import planning_of
    from trillium.plan.show import advice_lines, memory_lines, plan_table
    from trillium.plan.terminal import terminal_bars

    if recipe is not None:
        _make_folder("--recipe", recipe, recipe.parent)
    if plots is not None:
        _make_folder("--plots", plots, plots)
    planning, limits = planning_of(told), constraints(constraint or [])
    trees = swept(arms_of(tree), sweeps)
    if len(trees) > 1:
        trees = acting_arms(trees, {}, keep_refused=True)
    check_models(trees)
    models = Models()
    trees, cuts = with_cuts(trees, planning, limits, models)
    arms = plan_arms(trees, planning, models)
    if all(arm.config is None for arm in arms):
        experiment(next(iter(trees.values())))  # says what is wrong with the settings
    advice = advise(arms, trees, planning, limits)
    if recipe is not None and advice.chosen is not None:
        _write(recipe, trees[advice.chosen], advice_lines(advice))
    if as_json:
        found = {
            "arms": [arm_to_dict(arm) for arm in arms],
            "cuts": [vars(proposal) for proposal in cuts],
            "advice": vars(advice),
        }
        print(json.dumps(found, indent=1))
        return
    console = Console(record=plots is not None)
    console.print(plan_table(arms))
    blocks = (memory_lines(arms), list(map(str, cuts)), terminal_bars(arms), advice_lines(advice))
    lines = [line for block in blocks if block for line in ("", *block)]
    print(*lines, sep="\n")
    if plots is not None:
        from trillium.plan.plots import write_plots

        text = "\n".join([console.export_text(), *lines])
        sweep = sweeps[0] if len(sweeps) == 1 else None
        for path in write_plots(plots, arms, sweep, text):
            print(f"{path} written.")
    if recipe is not None and advice.chosen is not None:
        print(f"\n{recipe} written. Run it with: trillium run {recipe}")


def _parse(words: list[str], model: str | None) -> tuple[Tree, dict[str, Any], list[Sweep]]:
    """Divide words and recipe into the settings of runs, what a plan alone is told, and sweeps."""
    from trillium.config.comparison import OWN_KEYS
    from trillium.config.experiment import found_recipe, merge, parse_overrides, read_yaml
    from trillium.config.experiment import recipes as known_recipes
    from trillium.config.sweep import divide, grid
    from trillium.errors import UserError

    named = [word for word in words if "=" not in word]
    shipped = known_recipes()
    recipes = [w for w in named if Path(w).suffix in (".yaml", ".yml") or w in shipped]
    models = [word for word in (*named, model or "") if word and word not in recipes]
    if len(models) > 1:
        raise UserError(
            " ".join(models),
            "at most one model can be named like this",
            "Write model.id=one,another",
        )
    if len(recipes) > 1:
        raise UserError(
            " ".join(recipes), "at most one recipe can be planned", "Write settings as key=value"
        )
    recipe: Tree = read_yaml(found_recipe(recipes[0])) if recipes else {}
    of_recipe = grid(recipe.get("grid") or {})
    tree = {key: value for key, value in recipe.items() if key == "arms" or key not in OWN_KEYS}
    if models:
        tree = merge(tree, {"model": {"id": models[0]}})
    plain, sweeps = divide(word for word in words if "=" in word)
    named = [path for path, _ in sweeps]
    sweeps = [*((path, values) for path, values in of_recipe if path not in named), *sweeps]
    tree = merge(tree, parse_overrides(plain))
    told = tree.pop("plan", {})
    return tree, told, sweeps


def _replay(folder: Path, told: dict[str, Any], as_json: bool) -> None:
    """Show when each round of a measured run would end."""
    from dataclasses import asdict

    from trillium.plan.planning import planning_of
    from trillium.plan.replay import replay
    from trillium.report.human import duration

    rounds = replay(folder, planning_of(told))
    if as_json:
        print(json.dumps([asdict(found) for found in rounds], indent=1))
        return
    for found in rounds:
        share = found.time.slowest
        accuracy = found.metrics.get("accuracy")
        shown = "" if accuracy is None else f"   accuracy {100 * accuracy:.1f} %"
        print(
            f"round {found.number:3}   ends after {duration(found.seconds)}   compute "
            f"{duration(share.compute)}, wire {duration(share.wire)}, "
            f"waiting {duration(max(share.waiting, 0.0))}{shown}"
        )


def _make_folder(option: str, given: Path, folder: Path) -> None:
    """Make a folder for what a plan will write, before anything is planned."""
    from trillium.errors import UserError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"{folder} cannot be made ({error.strerror})"
        raise UserError(f"{option} {given}", why, "Name another folder") from error
    if folder != given and given.is_dir():
        raise UserError(f"{option} {given}", "it is a folder", f"Name a file, {given}/plan.yaml")


def _write(path: Path, tree: Tree, reasons: list[str]) -> None:
    from trillium.experiment.folder import to_yaml
    from trillium.files import write_atomic
    from trillium.plan.shapes import with_sources

    comment = "".join(f"# {line}\n" for line in reasons)
    write_atomic(path, comment + to_yaml(with_sources(tree)))


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(plan)
