"""The command line: parses first, and imports torch inside the verb."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final

import click
import typer
from rich.console import Console

from trillium.cli import compare as cli_compare
from trillium.cli import deploy as cli_deploy
from trillium.cli import doctor as cli_doctor
from trillium.cli import epsilon as cli_epsilon
from trillium.cli import generate as cli_generate
from trillium.cli import keys as cli_keys
from trillium.cli import node as cli_node
from trillium.cli import plan as cli_plan
from trillium.cli import runs as cli_runs
from trillium.cli import trained as cli_trained
from trillium.cli.monitor import monitor
from trillium.cli.nodes import nodes
from trillium.cli.show import run_single, show, show_runs
from trillium.cli.verbs import Log, Verbs, working
from trillium.cli.words import (
    AsJson,
    Data,
    Engine,
    Folder,
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
from trillium.errors import UserError
from trillium.files import make_folder

# What a system says of a place that cannot be used: no fault of the program.
OF_A_PLACE: Final = frozenset(
    getattr(errno, name)
    for name in (
        "EACCES",
        "EPERM",
        "EROFS",
        "ENOSPC",
        "EDQUOT",
        "ENOTDIR",
        "EISDIR",
        "ENAMETOOLONG",
    )
    if hasattr(errno, name)
)

app = typer.Typer(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune language models on data that may not be moved: three frameworks, one ruler.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
cli_compare.register(app)


@app.command()
def run(
    words: Words = None,
    model: Model = None,
    data: Data = None,
    seeds: Seeds = None,
    workers: Workers = 1,
    engine: Engine = "local",
    out: Out = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Run one experiment.

    Settings are given as KEY=VALUE: trillium run framework=split framework.cut=2 rounds=3.
    """
    with working("Loading libraries and settings"):
        from trillium.api.start import begin_run, begin_seeds
        from trillium.config.experiment import experiment, merge

        tree = ask(words, model, data).single()
        wanted = seeds_of(seeds) or [experiment(tree).seed]
        where = engine_of(engine)
    if len(wanted) == 1:
        config = experiment(merge(tree, {"seed": wanted[0]}))
        run_single(config, begin_run(config, out), as_json, workers, where, is_new=True)
        return
    begun = begin_seeds(tree, wanted, out)
    if show_runs(begun.left, begun.folder, as_json, workers, where, is_new=True):
        raise typer.Exit(1)


@app.command()
def resume(
    folder: Folder,
    workers: Workers = 1,
    engine: Engine = "local",
    as_json: AsJson = False,
) -> None:
    """Continue a stopped run or comparison from its last complete round.

    It ends as it would have without the stop.
    """
    from trillium.experiment.compare import stopped
    from trillium.experiment.folder import RunFolder

    experiments, where = stopped(folder), engine_of(engine)
    if (folder / "compare.yaml").is_file():
        if show_runs(experiments, folder, as_json, workers, where):
            raise typer.Exit(1)
    else:
        [config] = experiments.values()
        run_single(config, RunFolder.reopen(folder), as_json, workers, where)


@app.command()
def report(folder: Folder, reach: Reach = None, as_json: AsJson = False) -> None:
    """Write the tables, plots and page of a run or comparison again."""
    show(folder, as_json, shares(reach))


cli_runs.register(app)
cli_epsilon.register(app)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the recipe.")] = "compare",
    to: Annotated[Path | None, typer.Option(help="File to write; NAME.yaml by default.")] = None,
    show: Annotated[
        bool, typer.Option("--list", help="List the recipes, and what each is for.")
    ] = False,
) -> None:
    """Write a commented recipe to start from."""
    from trillium.config.experiment import recipe_path, recipes
    from trillium.config.schema import HINT, SHIPPED

    if show:
        listed = click.HelpFormatter(width=None if sys.stdout.isatty() else 200)
        listed.write_dl(list(recipes().items()))
        print(listed.getvalue(), end="")
        return
    source = recipe_path(name)
    target = to if to is not None else Path(f"{name}.yaml")
    if target.exists():
        raise UserError(str(target), "it exists already", "Choose another name with --to")
    make_folder(target.parent, str(target))
    text = source.read_text(encoding="utf-8")
    target.write_text(HINT + str(SHIPPED) + "\n" + text.partition("\n")[2], encoding="utf-8")
    verb = "compare" if "\narms:" in text else "run"
    print(f"{target} written. Run it with: trillium {verb} {target}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, by which editors complete and check them."""
    from trillium.config.schema import as_text, recipe_schema

    print(as_text(recipe_schema()), end="")


cli_trained.register(app)
cli_generate.register(app)
cli_plan.register(app)
cli_deploy.register(app)
app.command()(nodes)
app.command()(monitor)
app.add_typer(cli_node.app, name="node")
app.add_typer(cli_keys.app, name="keys")
cli_doctor.register(app)


def main() -> None:
    """Run the command line; errors of the user are printed in three parts, without a traceback."""
    # Forked workers are never used, and hubs need not hear of a run.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        Log().apply()
        app(prog_name="trillium")
    except UserError as error:
        _print_error(error)
        sys.exit(2)
    except OSError as error:
        if error.errno not in OF_A_PLACE or error.filename is None:
            raise
        _print_error(
            UserError(
                str(error.filename),
                f"it cannot be read or written ({error.strerror})",
                "Name another place, or change the permissions of this one",
            )
        )
        sys.exit(2)


def program() -> None:
    """Be the program `trillium`; after a plan, end without taking apart what was imported for it.

    That is a fifth of a second's work, and a plan leaves nothing behind that has to be put in order.
    """
    is_plan = sys.argv[1:2] == ["plan"]
    if is_plan:  # it computes nothing, and threads that wait for work take a core each
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        main()
    except SystemExit as end:
        if is_plan and not end.code:
            with suppress(BrokenPipeError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(0)
        raise


def _print_error(error: UserError) -> None:
    console = Console(stderr=True)
    parts: list[tuple[str, Any]] = [
        ("Given:  ", error.given), ("Problem:", error.why), ("Instead:", error.instead)
    ]  # fmt: skip
    for word, text in parts:
        console.print(f"[bold]{word}[/bold] ", end="")
        console.print(str(text), markup=False, highlight=False, soft_wrap=True)
