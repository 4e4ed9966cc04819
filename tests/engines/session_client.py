"""The client of the stream's tests, as a process: settings on stdin, the summary on stdout."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import time
from pathlib import Path

from trillium.engines.frames import StreamConfig
from trillium.engines.secure import ClientTLS
from trillium.engines.session import SessionRefused, serve_session


def slow(data: bytes) -> bytes:
    time.sleep(float(data))
    return data


def fail(data: bytes) -> bytes:
    raise ValueError("no such\nbatch")


HANDLERS = {
    "message": lambda data: data,
    "count": lambda data: str(len(data)).encode(),
    "large": lambda data: bytes(int(data)),
    "slow": slow,
    "fail": fail,
}


def main() -> None:
    settings = json.load(sys.stdin)
    folder, name = Path(settings["folder"]), settings["name"]
    node = folder / "nodes" / name
    tls = ClientTLS.read(folder / "ca.crt", node / "client.crt", node / "client.key")
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    try:
        summary = serve_session(
            settings["address"],
            tls,
            name,
            settings["token"],
            HANDLERS,
            StreamConfig(**settings["config"]),
        )
    except SessionRefused as refused:
        print(json.dumps({"refused": refused.reason}))
    else:
        print(json.dumps(dataclasses.asdict(summary)))


if __name__ == "__main__":
    main()
