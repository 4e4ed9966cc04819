"""Flower's commands: where they are, in which environment they run, and what they answer."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trillium.errors import UserError
from trillium.extras import install

Value = str | bool | int | float
"""What Flower's run and node configurations hold."""

CONNECTION: Final = "trillium"
_SECONDS: Final = 120.0


@dataclass(frozen=True)
class RunStatus:
    """How far a run is, and why it failed, in Flower's words, if it did.

    The state is `pending`, `starting`, `running`, `finished:completed`, `:failed` or `:stopped`.
    """

    state: str
    details: str = ""

    @property
    def finished(self) -> bool:
        """Whether the run has ended, in whichever way."""
        return self.state.startswith("finished")

    @property
    def completed(self) -> bool:
        """Whether the run has ended well."""
        return self.state == "finished:completed"


def command(name: str) -> str:
    """Return the path of one of Flower's commands, if Flower is installed."""
    found = shutil.which(name, path=_search_path())
    if found is None:
        raise UserError(
            name,
            "there is no such command: Flower is not installed beside Trillium",
            install("deploy"),
        )
    return found


def environment(home: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a Flower process.

    `home` is for what Flower keeps for itself (configuration, unpacked apps), instead of `~/.flwr`.
    """
    own = ("127.0.0.1", "localhost", "::1")
    bypass = [entry for entry in os.environ.get("NO_PROXY", "").split(",") if entry]
    no_proxy = ",".join([*bypass, *own])
    return {
        **os.environ,
        # Flower starts its helpers by name.
        "PATH": _search_path(),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Log lines appear when they are written, not when a buffer is full.
        "PYTHONUNBUFFERED": "1",
        # Flower's HTTP client heeds proxies, also for this machine's own addresses.
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
        **extra,
    }


def write_connection(home: Path, address: str, authority: Path) -> None:
    """Write Flower's configuration, so that `flwr … trillium` finds the SuperLink."""
    home.mkdir(parents=True, exist_ok=True)
    lines = [
        "[superlink]",
        f"default = {toml_value(CONNECTION)}",
        "",
        f"[superlink.{CONNECTION}]",
        f"address = {toml_value(address)}",
        f"root-certificates = {toml_value(str(authority.resolve()))}",
    ]
    (home / "config.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


class Flwr:
    """The verbs of `flwr`, said to the SuperLink of the home that `write_connection` wrote to."""

    def __init__(self, variables: Mapping[str, str], folder: Path) -> None:
        self._variables, self._folder = variables, folder

    def register(self, public_key: Path, name: str) -> int:
        """Make a node known, and return its id."""
        answer = self._ask("supernode", "register", str(public_key), CONNECTION, "--name", name)
        return int(answer["node-id"])

    def online(self) -> list[int]:
        """Return the ids of the nodes that are online; one that died counts for up to 60 s."""
        nodes = self._ask("supernode", "list", CONNECTION)["nodes"]
        return [int(node["node-id"]) for node in nodes if node["status"] == "online"]

    def run(self, app: Path, settings: Mapping[str, Value]) -> int:
        """Start a run of an app with changed settings, and return its id."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "settings.toml"
            file.write_text(toml(settings), encoding="utf-8")
            words = ["--run-config", str(file)] if settings else []
            return int(self._ask("run", str(app), CONNECTION, *words)["run-id"])

    def status(self, run: int) -> RunStatus:
        """Return how far a run is."""
        answer = self._ask("list", CONNECTION, "--run-id", str(run))["runs"][0]
        details = answer["status-details"]
        return RunStatus(answer["status"], "" if details == "N/A" else details)

    def stop(self, run: int) -> None:
        """Stop a run; its ServerApp ends within about 25 s, when it misses its next heartbeat."""
        self._ask("stop", str(run), CONNECTION)

    def _ask(self, *words: str) -> dict[str, Any]:
        given = " ".join(["flwr", *words])
        try:
            done = subprocess.run(
                [command("flwr"), *words, "--format", "json"],
                env=self._variables,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                check=False,
                start_new_session=True,  # Ctrl-C is for us; we end the rest in order
            )
        except subprocess.TimeoutExpired as error:
            why = f"there was no answer within {_SECONDS:.0f} s"
            raise UserError(given, why, "See the SuperLink's log") from error
        try:
            # Flower says "success": false with an exit status of 0.
            answer: dict[str, Any] = json.loads(done.stdout)
        except json.JSONDecodeError:
            answer = {"error-message": (done.stdout + done.stderr).strip()}
        if not answer.get("success"):
            why = " ".join(str(answer.get("error-message", "no reason given")).split())
            raise UserError(given, f"Flower refused it ({why})", "See the SuperLink's log")
        return answer


def answers(address: str, authority: Path) -> bool:
    """Return whether a SuperLink answers at host:port; its certificate must be of the authority."""
    context = ssl.create_default_context(cafile=authority)
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        with opener.open(f"https://{address}/health", timeout=5):
            return True
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            host = address.rpartition(":")[0]
            raise UserError(
                str(authority.with_name("server.crt")),
                f"it does not name the host {host} ({error.reason.verify_message})",
                f"Make keys for the host {host}",
            ) from error
        return False


def toml_value(value: Value) -> str:
    """Return a value as TOML, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A JSON string is a TOML string, but for one control character that JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def toml(values: Mapping[str, Value]) -> str:
    """Return flat settings as a TOML document."""
    return "".join(f"{name} = {toml_value(value)}\n" for name, value in values.items())


def _search_path() -> str:
    """Return PATH, with the commands that were installed beside this Python first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
