"""`trillium monitor`: what a monitoring system asks of a deployment or a node."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trillium.cli.deploy import check_installed
from trillium.errors import UserError


def monitor(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="The folder of a deployment, or of a node.")
    ] = Path(),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of 127.0.0.1.")] = 9100,
    watch: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:PORT", help="A process that must take connections; repeat it."),
    ] = None,
) -> None:
    """Answer `/health` and `/metrics` (Prometheus) on 127.0.0.1, also between runs."""
    check_installed()
    from trillium.engines.monitor import HOST, Watched, listen

    if not folder.is_dir():
        raise UserError(str(folder), "it is no folder", "Name that of a deployment, or of a node")
    for address in watch or ():
        port_of = address.rpartition(":")[2]
        if not (port_of.isascii() and port_of.isdecimal() and 0 < int(port_of) < 2**16):
            raise UserError(f"--watch {address}", "it is not host:port", "Write 127.0.0.1:8000")
    with listen(Watched(folder, watch or ()), port) as server:
        print(f"http://{HOST}:{port}/health and /metrics; Ctrl-C ends it", flush=True)
        server.serve_forever()
