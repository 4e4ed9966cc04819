"""The verbs of the command line for machines of their own: deploy, up, wheels."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from trillium.config.experiment import ExperimentConfig

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML recipe of one experiment.")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings such as training.batch_size=8."),
]
Nodes = Annotated[list[str], typer.Option("--node", help="Name of a node; repeat it for each.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for verb in (deploy, up, wheels):
        app.command()(verb)


def deploy(
    recipe: Recipe,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder to write; it must not exist.")
    ],
    node: Nodes,
    settings: Settings = None,
    host: Annotated[
        str, typer.Option(help="Name or address by which nodes reach the server.")
    ] = "localhost",
    session_port: Annotated[int, typer.Option(help="Port of Trillium's sessions.")] = 9443,
    part: Annotated[
        bool, typer.Option("--part", help="Write a folder with the clients' part of a split model.")
    ] = False,
) -> None:
    """Write a recipe as an app for several machines, with instructions.

    The recipe's data is what the server itself holds: test rows and the public set. The nodes have
    their own.
    """
    check_installed()
    from trillium.deploy.folder import check_absent, check_names
    from trillium.deploy.prepare import deploy as write

    config = _config(recipe, settings)
    check_absent(folder)
    check_names(node)
    _check(config, len(node))
    address = {"session-address": f"{host}:{session_port}"}
    data = write(config, folder, node, address, with_part=part)
    classes = f"{len(data.labels)} classes" if data.labels else "the classes that they will tell"
    classes = "" if config.task.peft_task == "CAUSAL_LM" else f" and {classes}"
    print(f"{folder} written, for {', '.join(node)}{classes}.")
    if part:
        print(
            f"{folder / 'part'} is all that a node needs of the model. Give it to each owner, who names"
        )
        print("the folder as `model` in node.toml.")
    print(f"{folder / 'README.md'} has the next steps.")


def up(
    recipe: Recipe,
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="Folder in which the run folder is made.")] = Path(
        "runs"
    ),
) -> None:
    """Deploy a recipe on this machine: real processes, TLS, node authentication.

    For a first try: the clients of the recipe become nodes, each with its own data file, keys and
    process. It takes about half a minute longer than `trillium run`.
    """
    check_installed()
    from trillium.cli.show import show
    from trillium.deploy.prepare import up as run_here
    from trillium.experiment.folder import new_folder

    config = _config(recipe, settings)
    _check(config, config.data.num_clients)
    target = new_folder(out, f"up_{config.framework.name}_{config.data.source.name}")
    print(f"{target}: starting {config.data.num_clients} nodes", flush=True)
    status, folder = run_here(config, target, lambda line: print(line, flush=True))
    if not status.completed or folder is None:
        raise SystemExit(f"{status.state}: {status.details}\nLogs: {target / 'work' / 'logs'}")
    show(folder, as_json=False)


def wheels(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of wheels.")],
) -> None:
    """Write requirements.txt with a hash for each wheel of a folder, to install them offline."""
    from trillium.deploy.wheels import write_requirements

    path = write_requirements(folder)
    print(f"{path} written. Install with: pip install --no-index --find-links {folder} \\")
    print(f"  --require-hashes -r {path}")


def check_installed() -> None:
    """Refuse what a deployment needs and is not installed."""
    """Refuse a deployment whose packages are missing."""
    from trillium.errors import UserError
    from trillium.extras import install

    missing = [
        name
        for name in ("flwr", "grpc", "cryptography", "prometheus_client")
        if find_spec(name) is None
    ]
    if missing:
        raise UserError(
            "a deployment",
            f"it needs packages that are not installed ({', '.join(missing)})",
            install("deploy"),
        )


def _config(recipe: Path, settings: list[str] | None) -> ExperimentConfig:
    from trillium.config.experiment import (
        experiment,
        found_recipe,
        merge,
        parse_overrides,
        read_yaml,
    )
    from trillium.errors import UserError

    tree = read_yaml(found_recipe(str(recipe)))
    if "arms" in tree:
        raise UserError(
            str(recipe),
            "it has arms, so it is a comparison; a deployment is one experiment",
            "Take one arm's config.yaml from the folder of a comparison, or write a recipe for it",
        )
    return experiment(merge(tree, parse_overrides(settings or [])))


def _check(config: ExperimentConfig, num_nodes: int) -> None:
    """Check what a deployment can run, and with so many nodes."""
    from trillium.errors import UserError

    if config.framework.name == "centralised":
        raise UserError(
            "framework=centralised",
            "it trains on all data in one place, and nodes keep theirs",
            "Choose fedllm, kd or split; for the ceiling, write: trillium run framework=centralised",
        )
    for key in ("clients_per_round", "take", "min_replies"):
        wanted = getattr(config.fleet, key)
        if (wanted or 0) > num_nodes:
            raise UserError(
                f"fleet.{key}={wanted}",
                f"there are {num_nodes} nodes",
                f"Write at most {num_nodes}, or name more nodes",
            )
