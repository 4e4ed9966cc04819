"""The models that a run leaves, the server's or each client's own; read back before it has ended."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from trillium.errors import UserError
from trillium.experiment.folder import is_finished
from trillium.federation.client import Client
from trillium.federation.server import Server
from trillium.federation.side import Side
from trillium.frameworks import SERVER_MODEL, Framework
from trillium.frameworks.finetuning import OWN
from trillium.models.slots import State

ADAPTER: Final = "adapter"
CLIENTS: Final = "clients"


def place_of(folder: Path, client: str | None) -> Path:
    """Return where a run keeps the model of the server, or of one client."""
    return folder / ADAPTER if client is None else folder / CLIENTS / client / ADAPTER


def keep_models(
    framework: Framework, server: Server, clients: Iterable[Client], folder: Path
) -> None:
    """Write what the run has trained, and look at it once more.

    Where the clients' own models are what it is about, these are written, of those clients that have
    trained; the tokenizer, which may be larger than all else, then stays where the model came from.

    Raises:
        UserError: what was written cannot be read, or is another model.
    """
    if framework.ships == SERVER_MODEL:
        _keep(server, server.state, place_of(folder, None))
        for client in clients:
            if OWN in client.store:
                state = client.model.state(client.store[OWN])
                _keep(client, state, place_of(folder, client.name))
        return
    for client in clients:
        if "tensors" in client.store:
            state = client.model.state(client.store["tensors"])
            _keep(client, state, place_of(folder, client.name))


def _keep(side: Side, state: State, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    side.model.save(state, path, side.folds, with_tokenizer=side.name == "server")
    try:
        side.model.check_saved(path, state, side.base)
    except UserError:
        shutil.rmtree(path, ignore_errors=True)
        raise


def find_model(folder: Path, client: str | None) -> Path:
    """Return the folder of the trained parameters of the server, or of one client.

    Raises:
        UserError: the run, or the client, has none.
    """
    path = place_of(folder, client)
    if path.is_dir():
        return path
    owners = sorted(found.parent.name for found in folder.glob(f"{CLIENTS}/*/{ADAPTER}"))
    names = f"{', '.join(owners[:8])}{' …' * (len(owners) > 8)}"
    if client is not None and owners:
        raise UserError(
            f"--client {client}", "the run has no model of such a client", f"Give one of: {names}"
        )
    if client is not None and place_of(folder, None).is_dir():
        raise UserError(
            f"--client {client}",
            "this run keeps the server's model, and none of the clients'",
            "Leave --client out",
        )
    if owners:
        raise UserError(
            str(folder),
            "each client has its own model, and there is no common one",
            f"Write --client with one of: {names}",
        )
    raise UserError(str(folder), *_why_not(folder))


def _why_not(folder: Path) -> tuple[str, str]:
    """Say why a folder holds no model, and what to do instead."""
    arms = sorted(
        {str(found.parent) for found in folder.glob(f"*/{ADAPTER}")}
        | {str(found.parents[2]) for found in folder.glob(f"*/{CLIENTS}/*/{ADAPTER}")}
    )
    why = "it holds no trained model"
    if arms:
        return why, f"Give one of: {', '.join(arms[:6])}"
    if not (folder / "status.json").is_file():
        return f"{why}, for it is no folder of a run", "Give the folder of a finished run"
    if not is_finished(folder):
        return f"{why}, for the run has not finished", f"Write: trillium resume {folder}"
    return f"{why}: its clients, who have them, are elsewhere", "Give the folder of another run"
