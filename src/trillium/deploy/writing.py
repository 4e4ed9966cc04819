"""Texts of a deployed split model: the operator's half of `trillium generate RUN --node NAME`."""

from __future__ import annotations

import os
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from trillium.deploy.flower import Flwr, environment
from trillium.deploy.prepare import federation
from trillium.engines.writing import Request, read_answer
from trillium.errors import UserError, suggest
from trillium.experiment.generation import Generated, check_prompts
from trillium.experiment.kept import find_model
from trillium.tasks.writing import Writing

POLL_SECONDS: Final = 0.5


def write_at(folder: Path, node: str, prompts: Sequence[str], writing: Writing) -> Generated:
    """Let the model of a deployed run continue prompts, its first blocks at a node.

    The server's process does it, as a run of the deployment's app; a deployment of `trillium up`, whose
    processes have ended, is started again with this node alone.

    Raises:
        UserError: the run is not of a deployment, not of a split language model, or the node does not
            come.
    """
    check_prompts(prompts)
    find_model(folder, None)
    root = _deployment(folder)
    with tempfile.TemporaryDirectory() as scratch:
        asked, answer = Path(scratch) / "request.json", Path(scratch) / "answer.json"
        request = Request(
            folder=folder.resolve(),
            node=node,
            prompts=tuple(prompts),
            answer=answer,
            **vars(writing),
        )
        request.config()  # what is refused, is refused before a process starts
        asked.write_text(request.model_dump_json(), encoding="utf-8")
        with _superlink(root, node) as flwr:
            run = flwr.run(root / "app", {"write": str(asked)})
            while not (status := flwr.status(run)).finished:
                time.sleep(POLL_SECONDS)
        if not status.completed:
            raise UserError(
                f"--node {node}", status.details or status.state, "See the server's log"
            )
        return read_answer(answer)


def _deployment(folder: Path) -> Path:
    """Return the folder of the deployment that a run was made by."""
    for above in folder.resolve().parents:
        if (above / "app" / "trillium_app").is_dir():
            return above
    raise UserError(
        f"{folder} with --node",
        "it does not lie in the folder of a deployment, so there is no node to ask",
        "Name a run in server/runs of a deployment, or leave --node out",
    )


@contextmanager
def _superlink(root: Path, node: str) -> Iterator[Flwr]:
    """Yield how to speak to the SuperLink of a deployment."""
    nodes = root / "work" / "nodes"
    if nodes.is_dir():  # of `trillium up`
        known = sorted(path.name for path in nodes.iterdir())
        if node not in known:
            raise UserError(f"--node {node}", "there is no such node", suggest(node, known))
        own = tomllib.loads((nodes / node / "node.toml").read_text(encoding="utf-8"))
        with federation(root, {node: own}) as running:
            yield running.flwr
        return
    home = Path(os.environ.get("FLWR_HOME", root / "server" / "flower"))
    if not (home / "config.toml").is_file():
        raise UserError(
            f"--node {node}",
            f"{home} has no config.toml, which says where the SuperLink is",
            f"Do as {root / 'README.md'} says in the steps of the operator",
        )
    yield Flwr(environment(home, {}), root)
