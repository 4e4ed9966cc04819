"""Are round trips through the session as fast as on another commit?

    OMP_NUM_THREADS=1 python benchmarks/transport_commits.py 61f644c

Both sides have a server and a client process of their own, on the same keys, with `transport.py` and
the sources of their commit, and the libraries that are installed here. They take turns, and which one
begins alternates. `ratio` is the other commit's seconds over these, the median of the pairs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
WARM_UP = 3


def side(tree: Path, keys: Path) -> None:
    """Make round trips of so many bytes as each line says, and write how many seconds each took."""
    sys.path.insert(0, str(tree / "benchmarks"))
    import transport

    with transport.session(keys) as trip:
        for line in sys.stdin:
            data = os.urandom(int(line))
            start = time.perf_counter()
            assert trip(data) == len(data)
            print(time.perf_counter() - start, flush=True)


class Side:
    """A server, with its client, on one commit."""

    def __init__(self, tree: Path, keys: Path) -> None:
        words = [sys.executable, __file__, str(tree), "--keys", str(keys)]
        environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def trip(self, num_bytes: int) -> float:
        """Return the seconds of one round trip."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{num_bytes}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        """Let it end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def measure(base: Path, keys: Path, scale: float) -> None:
    """Print what round trips of each size take on both sides."""
    from transport import REPETITIONS, SIZES

    with ExitStack() as stack:
        sides = {"base": Side(base, keys), "this": Side(REPO, keys)}
        for one in sides.values():
            stack.callback(one.close)
        for size, num_bytes in SIZES.items():
            seconds: dict[str, list[float]] = {name: [] for name in sides}
            for number in range(WARM_UP + max(3, round(REPETITIONS[size] * scale))):
                for name in list(sides) if number % 2 else reversed(sides):
                    taken = sides[name].trip(num_bytes)
                    if number >= WARM_UP:
                        seconds[name].append(taken)
            pairs = zip(seconds["base"], seconds["this"], strict=True)
            ratio = statistics.median(before / now for before, now in pairs)
            medians = {name: statistics.median(taken) for name, taken in seconds.items()}
            shown = ", ".join(f"{name} {taken * 1e3:.2f} ms" for name, taken in medians.items())
            print(f"{size}: {ratio:.3f} ({shown}, {len(seconds['this'])} pairs)", flush=True)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", help="the commit to hold the working tree to")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of round trips")
    parser.add_argument("--keys", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.keys:
        side(Path(asked.base), asked.keys)
        return
    from transport import NODE
    from trillium.deploy.keys import make_keys

    with tempfile.TemporaryDirectory() as name:
        base, keys = Path(name) / "base", Path(name) / "keys"
        make_keys(keys, ["127.0.0.1"], [NODE])
        git = ["git", "-C", str(REPO), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(base), asked.base], check=True)
        try:
            measure(base, keys, asked.scale)
        finally:
            subprocess.run([*git, "remove", "--force", str(base)], check=True)


if __name__ == "__main__":
    main()
