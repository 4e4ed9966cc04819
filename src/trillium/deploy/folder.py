"""The folder of a deployment: a Flower app, and what operator and data owners need around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

import jinja2

from trillium.deploy.flower import Value, toml_value
from trillium.deploy.names import check_host, check_node
from trillium.errors import UserError, suggest

FLOWER: Final = "1.41.0"
SUPERLINK_PORT: Final = 8000
FLEET_PORT: Final = 8443
BIND_PORT: Final = 9444  # of sessions, behind the proxy
_SERVICES: Final = ("superlink", "superexec", "proxy")  # in compose.yaml, beside the nodes

SETTINGS: Final[Mapping[str, tuple[Value, str]]] = {
    "recipe": ("recipe.yaml", "The experiment: a file in trillium_app/."),
    "server-data": (
        "server/data",
        "Folder on the server's machine for what the server itself reads: its test set, the public\n"
        "set.",
    ),
    "run-folder": ("server/runs", "Where the server puts the folders of its runs."),
    "session-address": (
        "localhost:9443",
        "Where nodes reach Trillium's sessions, host:port; the host stands in the server's\n"
        "certificate.",
    ),
    "session-bind": (
        f"127.0.0.1:{BIND_PORT}",
        "Where the server listens for sessions, host:port: behind the proxy, which is reached at\n"
        "session-address.",
    ),
    "session-authority": ("keys/ca.crt", "The authority that vouches for the nodes."),
    "session-certificate": ("keys/server.crt", "The server's certificate."),
    "session-key": ("keys/server.key", "The key of the server's certificate."),
    "session-revoked": (
        "keys/revoked.txt",
        "Keys that are good no more: `trillium keys revoke` writes it, and it counts at once.",
    ),
    "min-nodes": (1, "The run begins when so many nodes are online."),
    "max-clients": (
        256,
        "How many nodes may have a session at a time; each takes two threads and a descriptor.",
    ),
    "wait-seconds": (
        600.0,
        "How long it waits for them before it gives up, and before each round for as many nodes as\n"
        "the recipe's fleet.min_replies asks for.",
    ),
    "deadline-seconds": (
        600.0,
        "How long a node may take for one ask before its work of the round is lost.",
    ),
    "round-seconds": (
        86400.0,
        "How long a round may take, all its asks together; who has not answered then has lost its\n"
        "work of the round.",
    ),
    "grace-seconds": (
        86400.0,
        "How long the others are waited for once as many nodes have answered an ask as the recipe's\n"
        "fleet.min_replies asks for.",
    ),
    "repeats": (
        3,
        "How often a round is repeated by itself, from the last complete one, if nodes are lost in it\n"
        "and come back; after that, the recipe's fleet.on_failure says what follows.",
    ),
    "log-format": ("text", "text, or json: a line an object."),
    "transport": (
        "session",
        "session: the model stays in memory, one stream per node. messages: one Flower message per\n"
        "ask, no second port, seconds slower each; not for split.",
    ),
    "resume": (
        True,
        "Go on with the newest unfinished run of this recipe in run-folder, if there is one; false\n"
        "begins another.",
    ),
    "write": ("", "Prompts for a trained model, in place of a run: `trillium generate --node`."),
}
"""Run-config settings: their defaults, and what the generated pyproject.toml says of them."""


def write_app(
    target: Path,
    *,
    recipe_text: str,
    settings: Mapping[str, Value],
    names: Sequence[str],
) -> list[Path]:
    """Write a Flower app, and what operator and data owners need around it; return the files.

    The recipe is shipped to the nodes with the app. `settings` are what differs from `SETTINGS`;
    `min-nodes` is the number of names without one.
    """
    check_absent(target)
    check_names(names)
    values: dict[str, Value] = {name: default for name, (default, _) in SETTINGS.items()}
    values["min-nodes"] = len(names)
    for name, value in settings.items():
        values[name] = _checked(name, value)
    host, session_port = _split(str(values["session-address"]))
    _check_port(session_port)
    context: dict[str, object] = {
        "names": list(names),
        "host": host,
        "session_port": session_port,
        "session_bind": values["session-bind"],
        "fleet_port": FLEET_PORT,
        "superlink_port": SUPERLINK_PORT,
        "flower": FLOWER,
        "settings": [
            {"name": name, "value": toml_value(values[name]), "comment": comment.split("\n")}
            for name, (_, comment) in SETTINGS.items()
        ],
    }
    templates = files("trillium.deploy") / "templates"
    context["common"] = (templates / "systemd" / "common.txt").read_text("utf-8")
    made = {
        f"app/trillium_app/{values['recipe']}": recipe_text,
        **_render(templates, context),
    }
    for name, text in made.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return sorted(Path(name) for name in made)


def check_absent(target: Path) -> None:
    """Check that a folder may be written: it is missing or empty."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(str(target), "it exists already, and is not empty", "Name a new folder")


def check_names(names: Sequence[str]) -> None:
    """Check that nodes can be called so: in certificates, as folders and as services."""
    if not names:
        raise UserError("no node", "a federation has at least one", "Name the nodes")
    for name in names:
        check_node(name)
        if name in _SERVICES or name.removesuffix("-superexec") in {*names} - {name}:
            raise UserError(f"node {name!r}", "a service has this name", "Choose another")
        if names.count(name) > 1:
            raise UserError(
                f"node {name!r}, {names.count(name)} times",
                "two nodes with one name could not be told apart",
                "Give each node a name of its own",
            )


def _checked(name: str, value: Value) -> Value:
    if name not in SETTINGS:
        raise UserError(f"setting {name!r}", "there is no such setting", suggest(name, SETTINGS))
    default = SETTINGS[name][0]
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        raise UserError(
            f"{name}={value!r}",
            f"the setting is a {type(default).__name__}",
            f"Write for example {name}={toml_value(default)}",
        )
    return value


def _split(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        raise UserError(
            f"session-address={address}",
            "it is not host:port",
            "Write for example session-address=fl.example.org:9443",
        )
    check_host(host.strip("[]"))
    return host.strip("[]"), int(port)


def _check_port(port: int) -> None:
    others = {
        FLEET_PORT: "the proxy",
        SUPERLINK_PORT: "the SuperLink",
        BIND_PORT: "the server, behind the proxy,",
    }
    if port in others:
        raise UserError(
            f"session port {port}",
            f"{others[port]} listens on it, on the same machine",
            "Write another one, such as 9443",
        )


def _render(folder: Traversable, context: Mapping[str, object]) -> dict[str, str]:
    """Return the texts made from a folder of templates, by path; `.j2` and dotless names go."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    made: dict[str, str] = {}
    for entry in folder.iterdir():
        if entry.is_dir():
            inner = _render(entry, context)
            made |= {f"{entry.name}/{name}": text for name, text in inner.items()}
        elif entry.name.endswith(".j2"):
            name = entry.name.removesuffix(".j2")
            name = f".{name}" if name in ("gitignore", "dockerignore") else name
            made[name] = environment.from_string(entry.read_text("utf-8")).render(context)
    return made
