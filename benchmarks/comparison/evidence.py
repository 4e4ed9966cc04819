"""Make the table that `trillium plan` knows accuracy by, from the folders of comparisons.

python benchmarks/comparison/evidence.py runs/comparison/* > src/trillium/plan/evidence.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from trillium.plan.evidence import to_json
from trillium.plan.gather import evidence_of


def main() -> None:
    """Print the table, and what could not be used."""
    found = evidence_of(map(Path, sys.argv[1:]))
    print(*found.skipped, sep="\n", file=sys.stderr)
    sys.stdout.write(to_json(found.lines))


if __name__ == "__main__":
    main()
