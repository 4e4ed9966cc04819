"""What a round trip through the session costs beside bare gRPC, and beside Flower's messages.

The server sends a message, the client sends the same bytes back when it has all of them. Both ways use
one bidirectional stream with mutual TLS between two processes on the loopback, the same chunks and the
same gRPC options. The bare way has no handshake and no frames, and never puts a message together:
it is what gRPC for Python itself takes. The ways take turns, and which one begins alternates.

Afterwards a SuperLink and a SuperNode are started, with TLS and node authentication, and the app in
`flower_echo/` makes the round trips by Flower messages; both other ways take turns with it once more.

    OMP_NUM_THREADS=1 python benchmarks/transport.py
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console
from rich.table import Table

from trillium.deploy.keys import make_keys
from trillium.deploy.launch import Federation
from trillium.engines.frames import MIB, StreamConfig
from trillium.engines.secure import (
    METHOD,
    SERVICE,
    ClientTLS,
    ServerTLS,
    client_options,
    server_options,
)
from trillium.engines.session import serve_session

RESULTS = Path(__file__).parent / "results"
CONFIG = StreamConfig()
NODE = "node"
SIZES = {"empty": 0, "64 KB": 64 * 1024, "1 MB": MIB, "4 MB": 4 * MIB, "64 MB": 64 * MIB}
REPETITIONS = {"empty": 100, "64 KB": 60, "1 MB": 40, "4 MB": 30, "64 MB": 5}
WARM_UP = 3  # round trips before the first that counts
FLOWER_REPETITIONS = {"empty": 5, "64 KB": 5, "1 MB": 5, "4 MB": 5, "64 MB": 3}  # seconds each
FLOWER_WARM_UP = 1
PREFIX_BYTES = 8  # of the bare way: the length, before the first chunk
Trip = Callable[[bytes], int]  # sends a message and returns how many bytes came back
Way = Callable[[Path], AbstractContextManager[Trip]]


@contextmanager
def session(folder: Path) -> Iterator[Trip]:
    """Start a session with a client process."""
    from trillium.engines.stream import SessionServer  # the client needs none of it

    with SessionServer("127.0.0.1:0", server_tls(folder), CONFIG) as server:
        token = server.invite(NODE)
        with client("session", folder, server.port, token):
            assert server.wait([NODE], 60), "the client did not come"

            def trip(data: bytes) -> int:
                ((_, reply),) = server.carry({NODE: data})
                assert isinstance(reply, bytes), reply
                return len(reply)

            yield trip
            server.close("the end")


@contextmanager
def bare(folder: Path) -> Iterator[Trip]:
    """Start a bare gRPC stream with a client process."""
    asks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    replies: queue.SimpleQueue[int] = queue.SimpleQueue()

    def serve(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for data in iter(asks.get, None):
            view, size = memoryview(data), CONFIG.chunk_bytes
            yield b"".join((len(data).to_bytes(PREFIX_BYTES, "big"), view[:size]))
            for start in range(size, len(data), size):
                yield bytes(view[start : start + size])
            replies.put(sum(map(len, message(requests))) - PREFIX_BYTES)

    server = grpc.server(ThreadPoolExecutor(2), options=server_options(CONFIG))
    handler = grpc.stream_stream_rpc_method_handler(serve)
    generic = grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler})
    server.add_generic_rpc_handlers((generic,))
    port = server.add_secure_port("127.0.0.1:0", server_tls(folder).credentials())
    server.start()
    with client("bare", folder, port, ""):

        def trip(data: bytes) -> int:
            asks.put(data)
            return replies.get()

        yield trip
        asks.put(None)
    server.stop(5).wait()


def message(frames: Iterator[bytes]) -> list[bytes]:
    """Return the chunks of the next message of the bare way; none at the end of the stream."""
    first = next(frames, b"")
    chunks, total = [first], int.from_bytes(first[:PREFIX_BYTES], "big") + PREFIX_BYTES
    while first and sum(map(len, chunks)) < total:
        chunks.append(next(frames))
    return chunks if first else []


@contextmanager
def flower(folder: Path) -> Iterator[Trip]:
    """Start a SuperLink, a SuperNode and a run of the echo app."""
    place = folder.parent / "flower"
    app = shutil.copytree(Path(__file__).parent / "flower_echo", place / "app")
    nodes = {NODE: {"name": NODE}}
    with Federation(app, place / "work", keys=folder, nodes=nodes) as federation:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.settimeout(60)
            listener.bind(str(place / "socket"))
            listener.listen()
            federation.submit({"socket": str(place / "socket")})
            accepted, _ = listener.accept()
        accepted.setblocking(True)
        with Connection(accepted.detach()) as run:

            def trip(data: bytes) -> int:
                run.send_bytes(data)
                return int(run.recv_bytes())

            yield trip


WAYS: dict[str, Way] = {"bare gRPC": bare, "session": session}
FLOWER = "Flower messages"


def server_tls(folder: Path) -> ServerTLS:
    """Return the server's certificate and key."""
    return ServerTLS.read(folder / "ca.crt", folder / "server.crt", folder / "server.key")


@contextmanager
def client(way: str, folder: Path, port: int, token: str) -> Iterator[None]:
    """Run the other side of a way in a process of its own."""
    command = [sys.executable, __file__, "--client", way, str(folder), f"127.0.0.1:{port}"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write(token)  # not an argument: those are seen by everybody
    process.stdin.close()
    try:
        yield
        if process.wait(30):
            raise SystemExit(f"the client of {way} failed")
    finally:
        process.kill()
        process.wait()


def echo(way: str, folder: Path, address: str) -> None:
    """Be the client of one way until the server ends it."""
    node = folder / "nodes" / NODE
    tls = ClientTLS.read(folder / "ca.crt", node / "client.crt", node / "client.key")
    if way == "session":
        token = sys.stdin.read()
        serve_session(address, tls, NODE, token, {"message": lambda data: data}, CONFIG)
        return
    replies: queue.SimpleQueue[list[bytes] | None] = queue.SimpleQueue()
    with grpc.secure_channel(address, tls.credentials(), client_options(CONFIG)) as channel:
        outgoing = chain.from_iterable(iter(replies.get, None))
        incoming = channel.stream_stream(f"/{SERVICE}/{METHOD}")(outgoing)
        for chunks in iter(lambda: message(incoming), []):
            replies.put(chunks)
        replies.put(None)


def measure(scale: float, *, with_flower: bool) -> dict[str, Any]:
    """Make round trips by turns and return their seconds."""
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary) / "keys"
        make_keys(folder, ["127.0.0.1"], [NODE])
        trips = {name: stack.enter_context(way(folder)) for name, way in WAYS.items()}
        found: dict[str, Any] = {}
        for size, num_bytes in SIZES.items():
            repetitions = max(3, round(REPETITIONS[size] * scale))
            ways = compared(trips, num_bytes, WARM_UP, repetitions)
            found[size] = {"bytes": num_bytes, "ways": ways}
        if with_flower:
            # Only now: its processes poll, and would be felt by round trips of a millisecond.
            trips[FLOWER] = stack.enter_context(flower(folder))
            for size, num_bytes in SIZES.items():
                repetitions = max(3, round(FLOWER_REPETITIONS[size] * scale))
                ways = compared(trips, num_bytes, FLOWER_WARM_UP, repetitions)
                found[size]["ways"][FLOWER] = ways[FLOWER]
                found[size]["beside_flower"] = {name: ways[name] for name in WAYS}
        return found


def compared(
    trips: dict[str, Trip], num_bytes: int, warm_up: int, repetitions: int
) -> dict[str, dict[str, Any]]:
    """Return what one size takes each way."""
    seconds: dict[str, list[float]] = {name: [] for name in trips}
    for number in range(warm_up + repetitions):
        data = os.urandom(num_bytes)  # Flower would not send the same twice
        for name in list(trips) if number % 2 else reversed(trips):
            start = time.perf_counter()
            came_back = trips[name](data)
            taken = time.perf_counter() - start
            assert came_back == num_bytes, name
            if number >= warm_up:
                seconds[name].append(taken)
    base = seconds["bare gRPC"]
    return {
        name: {
            "median_seconds": statistics.median(found),
            "min_seconds": min(found),
            "max_seconds": max(found),
            # Neighbours in time see the same machine.
            "ratio": statistics.median(a / b for a, b in zip(found, base, strict=True)),
            "seconds": found,
        }
        for name, found in seconds.items()
    }


def show(found: dict[str, Any]) -> None:
    """Print the table."""
    table = Table(
        title="Round trips in milliseconds, both ways the same bytes",
        caption="median (lowest to highest); ratio: median of the pairs",
    )
    table.add_column("Message")
    names = [name for name in (*WAYS, FLOWER) if name in found["empty"]["ways"]]
    for title in (*names, "Ratio of the session"):
        table.add_column(title, justify="right")
    for size, line in found.items():
        ways = line["ways"]
        cells = [
            " ".join(
                (
                    f"{ways[name]['median_seconds'] * 1e3:.2f}",
                    f"({ways[name]['min_seconds'] * 1e3:.2f} to"
                    f" {ways[name]['max_seconds'] * 1e3:.2f})",
                )
            )
            for name in names
        ]
        table.add_row(size, *cells, f"{ways['session']['ratio']:.2f}")
    Console(width=110).print(table)


def main() -> None:
    """Measure, print and write `results/transport.json`."""
    parser = argparse.ArgumentParser(description="A round trip through the session and bare gRPC")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of round trips")
    parser.add_argument("--no-flower", action="store_true", help="leave out Flower's messages")
    parser.add_argument("--out", type=Path, default=RESULTS / "transport.json")
    parser.add_argument("--client", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        way, folder, address = options.client
        echo(way, Path(folder), address)
        return
    from trillium.experiment.environment import environment
    from trillium.files import write_atomic

    found = measure(options.scale, with_flower=not options.no_flower)
    show(found)
    content: dict[str, Any] = {
        "chunk_bytes": CONFIG.chunk_bytes,
        "window_bytes": CONFIG.window_bytes,
        "grpc": grpc.__version__,
        "sizes": found,
        "environment": environment("cpu", sys.argv),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
