"""A session server as a process, to be killed: its folder as an argument, port and token on stdout."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from session_help import server_tls

from trillium.engines.stream import SessionServer


def main() -> None:
    with SessionServer("127.0.0.1:0", server_tls(Path(sys.argv[1]))) as server:
        print(server.port, server.invite("a"), flush=True)
        server.wait(["a"], 60)
        (answer,) = server.carry({"a": b"hello"})
        print(answer, flush=True)
        time.sleep(600)


if __name__ == "__main__":
    main()
