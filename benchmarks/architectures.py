"""What Trillium can do with which architecture, each cell by an equality with plain libraries.

    python benchmarks/architectures.py                  all; writes results/architectures.json and .md
    python benchmarks/architectures.py llama mixtral    these, beside what is kept there

Models are made of configurations alone, with random weights (`tiny_models.py`); the equalities stand in
`architecture_cells.py`. A cell is ok where the result is that of plain Transformers and PEFT, refused
where it is answered in three parts, and nothing else may be.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import transformers

from architecture_cells import CELLS, Case
from tiny_models import DECODERS, ENCODERS, write_checkpoint, write_rows
from trillium.errors import UserError
from trillium.files import write_atomic

RESULTS = Path(__file__).resolve().parent / "results" / "architectures.json"


def try_all(
    label: str, model_type: str, task: str, options: dict[str, Any], work: Path
) -> dict[str, Any]:
    """Return each cell of an architecture."""
    found: dict[str, Any] = {}
    folder = work / f"{task}-{label}"
    case = Case(write_checkpoint(folder, model_type, task, **options), task, work)
    for name, cell in CELLS.items():
        if name == "generation" and case.classifies:
            continue
        begun = time.process_time()
        try:
            cell(case)
            found[name] = {"state": "ok"}
        except UserError as error:
            told = {"given": error.given, "why": error.why, "instead": error.instead}
            known = {key: text.replace(str(folder), label) for key, text in told.items()}
            found[name] = {"state": "refused", **known}
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            why = f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
            found[name] = {"state": "failed", "why": why}
        found[name]["seconds"] = round(time.process_time() - begun, 2)
    return found


def table(kept: dict[str, dict[str, Any]]) -> str:
    """Return the matrix as Markdown, and below it why what is refused is refused."""
    lines, notes = list[str](), list[str]()
    for task, title in (("causal_lm", "language modelling"), ("classification", "classification")):
        names = [name for name in CELLS if task == "causal_lm" or name != "generation"]
        lines += ["", f"| {title} | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
        for label, cells in sorted(kept.get(task, {}).items()):
            marks = []
            for name in names:
                cell = cells[name]
                mark = {"ok": "✓", "refused": "–"}.get(cell["state"], "✗")
                if mark != "✓":
                    if cell["why"] not in notes:
                        notes.append(cell["why"])
                    mark += f" {notes.index(cell['why']) + 1}"
                marks.append(mark)
            lines.append(f"| {label} | {' | '.join(marks)} |")
    lines += ["", *(f"{number}. {why}" for number, why in enumerate(notes, start=1))]
    return "\n".join(lines).strip() + "\n"


def main() -> int:
    """Make the matrix; return how many cells are neither ok nor refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="architectures; all without it")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where to keep them")
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    kept = json.loads(asked.results.read_text()) if asked.results.is_file() else {}
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_rows(work)
        for task, rows in (("causal_lm", DECODERS), ("classification", ENCODERS)):
            for label, (model_type, options) in rows.items():
                if asked.only and label not in asked.only:
                    continue
                cells = try_all(label, model_type, task, options, work)
                kept.setdefault(task, {})[label] = cells
                failed += sum(cell["state"] == "failed" for cell in cells.values())
                print(task, label, *(f"{k}:{v['state']}" for k, v in cells.items()), flush=True)
                write_atomic(asked.results, json.dumps(kept, indent=1) + "\n")
                write_atomic(asked.results.with_suffix(".md"), table(kept))
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
