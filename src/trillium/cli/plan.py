"""`trillium plan`: what a run will cost, before anything is spent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trillium.cli.verbs import working
from trillium.cli.words import Data
from trillium.plan.collector import collector_paused

if TYPE_CHECKING:
    from trillium.config.experiment import Tree
    from trillium.plan.asked import Question

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
    data: Data = None,
    constraint: Annotated[
        list[str] | None,
        typer.Option(help="Upper limit of a measure: client_memory=8GB, up=1GB, round=60s."),
    ] = None,
    evidence: Annotated[
        list[Path] | None,
        typer.Option(help="Know accuracy by the finished runs in this run or comparison folder."),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="Write the recommended settings to this file; a comparison where accuracy decides."
        ),
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
    with working("Loading libraries and settings"):
        from trillium.quiet import quiet_models

        quiet_models()
        asks = _asked(words or [], model, data)
    if replay is not None:
        _replay(replay, asks.told, as_json)
        return
    from rich.console import Console

    from trillium.plan.asked import planned
    from trillium.plan.show import advice_lines, data_lines, plan_table

    if recipe is not None:
        _make_folder("--recipe", recipe, recipe.parent)
    if plots is not None:
        _make_folder("--plots", plots, plots)
    with working("Planning"):
        made = planned(asks, constraint or [], evidence or [])
    written = made.recipe() if recipe is not None else None
    if recipe is not None and written is not None:
        _write(recipe, written, advice_lines(made.advice))
    if as_json:
        print(json.dumps(made.to_dict(), indent=1))
        return
    Console().print(*data_lines(made.arms), sep="\n", highlight=False)
    Console().print(plan_table(made.arms))
    print(*made.lines(), sep="\n")
    if plots is not None:
        for path in made.save(plots):
            print(f"{path} written.")
    if written is not None:
        verb = "compare" if "arms" in written else "run"
        print(f"\n{recipe} written. Run it with: trillium {verb} {recipe}")


def _asked(words: list[str], model: str | None, data: str | None = None) -> Question:
    """Divide the words into a recipe, a model and settings.

    Raises:
        UserError: there are several of one.
    """
    from trillium.config.given import source_of
    from trillium.errors import UserError
    from trillium.plan.asked import is_model, question

    names = [word for word in words if "=" not in word]
    recipes = [name for name in names if not is_model(name)]
    models = [name for name in (*names, model or "") if name and name not in recipes]
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
    named = {"model": models[0]} if models else {}
    if data is not None:
        named["data"] = data
        # A recipe may name files of another machine; a file that is typed here is meant to be here.
        if source_of(data)["name"] == "files" and not Path(data).exists():
            raise UserError(f"--data {data}", "there is no such file", "Name one that is here")
    settings = [word for word in words if "=" in word]
    return question(recipes[0] if recipes else None, settings, named)


def _replay(folder: Path, told: Mapping[str, Any], as_json: bool) -> None:
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
