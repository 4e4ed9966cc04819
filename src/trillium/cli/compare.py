"""`trillium compare`: one experiment as several arms, with a table, plots and a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from trillium.cli.show import show_runs
from trillium.cli.verbs import working
from trillium.cli.words import (
    AsJson,
    Data,
    Engine,
    Model,
    Out,
    Reach,
    Seeds,
    Words,
    Workers,
    ask,
    engine_of,
    seeds_of,
    shares,
)

if TYPE_CHECKING:
    from trillium.config.comparison import CompareConfig
    from trillium.config.experiment import Tree
    from trillium.engines.simulation import Simulation


def compare(
    words: Words = None,
    model: Model = None,
    data: Data = None,
    seeds: Seeds = None,
    only: Annotated[
        str | None,
        typer.Option(help="Labels of the arms to run, separated by commas; all by default."),
    ] = None,
    workers: Workers = 1,
    engine: Engine = "local",
    reach: Reach = None,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="Try the settings in the recipe's `tuning`, and write a recipe with the best.",
        ),
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Run everything again; reuse no finished run.")
    ] = False,
    out: Out = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Run several frameworks on one task, and report them side by side.

    Without arguments it runs all frameworks, plain and frugal, and baselines on the built-in task and
    model: with --workers 2 on two cores in four to six minutes. With task=causal_lm it takes the
    recipe compare-llm. A key that begins with the label of an arm changes that arm alone:
    fedllm.adapter.r=4. Several values make several arms: fedllm.adapter.r=1,4,8,32. A run that has
    finished below --out with the same settings is reused.
    """
    with working("Loading libraries and settings"):
        from trillium.config.comparison import comparison, tuning_of
        from trillium.config.given import default_comparison
        from trillium.errors import UserError

        asked = ask(words, model, data, sweeps=True)
        tree, sweeps, levels = asked.tree, asked.sweeps, shares(reach)
        where = engine_of(engine)
        found = default_comparison(tree) if asked.recipe is None else asked.recipe
    named = only.split(",") if only else ()
    if not tune:
        comparing = comparison(found, tree, named, sweeps)
        _, failed = _run(
            comparing, seeds_of(seeds), "compare", workers, where, levels, fresh, out, as_json
        )
        if failed:
            raise typer.Exit(1)
        return
    if sweeps or seeds is not None:
        raise UserError(
            f"--tune with {'--seeds' if seeds is not None else sweeps[0][0]}",
            "the recipe's tuning has the seed and the values to choose among",
            "Leave it out",
        )
    folder, _ = _run(
        tuning_of(found, tree, named), None, "tune", workers, where, levels, fresh, out, as_json
    )
    _write_chosen(found, tree, folder, as_json)


def _run(
    comparing: CompareConfig,
    seeds: list[int] | None,
    verb: str,
    workers: int,
    engine: Simulation,
    reach: list[float],
    fresh: bool,
    out: Path,
    as_json: bool,
) -> tuple[Path, bool]:
    """Run a comparison into a new folder; return the folder, and whether an arm has failed."""
    from trillium.api.start import begin_comparison

    begun = begin_comparison(comparing, seeds, out, verb=verb, reach=reach, fresh=fresh)
    if begun.num_taken and not as_json:
        num_all = begun.num_taken + len(begun.left)
        text = f"{begun.num_taken} of {num_all} runs had finished before, and are not made again."
        Console().print(f"{text} --fresh makes them.", highlight=False, soft_wrap=True)
    failed = show_runs(begun.left, begun.folder, as_json, workers, engine, is_new=begun.is_new)
    return begun.folder, failed


def _write_chosen(recipe: Tree, overrides: Tree, folder: Path, as_json: bool) -> None:
    """Write the recipe with the best settings beside the runs that they were chosen by."""
    from trillium.config.comparison import with_choices
    from trillium.experiment.folder import to_yaml
    from trillium.experiment.tuning import choose
    from trillium.files import write_atomic
    from trillium.report.human import as_words

    chosen = choose(recipe, folder)
    path = folder / "chosen.yaml"
    trees = {arm: found.settings for arm, found in chosen.items()}
    write_atomic(path, to_yaml(with_choices(recipe, overrides, trees)))
    console = Console(stderr=as_json)
    for arm, found in chosen.items():
        text = f"{arm}: {' '.join(as_words(found.settings))} ({found.figure})"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    text = f"{path} written. Report other seeds with: trillium compare {path}"
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(compare)
