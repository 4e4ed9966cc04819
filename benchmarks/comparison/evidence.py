"""Make the table that `trillium plan` knows accuracy by, from the folders of the study's comparisons.

    python benchmarks/comparison/evidence.py runs/comparison/*/*_compare_* > evidence.json
    mv evidence.json src/trillium/plan

Points without baselines of their own take those of the default point: name all folders at once.
"""

from __future__ import annotations

import sys
from pathlib import Path

from trillium.plan.evidence import Line, to_json
from trillium.plan.gather import evidence_of

DATA = "Banking77"  # of which each file of the study holds some rows


def named(line: Line) -> Line:
    """Return a line that names the data, and not a file of them."""
    return line.model_copy(update={"facts": {**line.facts, "data": DATA}})


def main() -> None:
    """Print the table, and what could not be used."""
    found = evidence_of(map(Path, sys.argv[1:]))
    print(*found.skipped, sep="\n", file=sys.stderr)
    sys.stdout.write(to_json([*map(named, found.lines)]))


if __name__ == "__main__":
    main()
