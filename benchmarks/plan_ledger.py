"""Plans held to ledgers: a few hundred tiny federations of all kinds, planned, run and compared.

Frameworks, adapters, codecs, shapes, modes, tasks and architectures are drawn at random from
`plan_matrix.py`, the same ones for the same seed. What the configuration refuses is left out and
counted. Each federation runs two rounds; then bytes, FLOPs and peak memory must be as planned: bytes
within 2 % or the range that the plan states beside them, FLOPs within 5 %, peaks within 20 %. Where the
plan says that a run may take less, nothing may take more. The script fails where a limit is broken.

    OMP_NUM_THREADS=1 python benchmarks/plan_ledger.py
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from measured import write_found
from plan_matrix import Case, draw_cases, write_hub
from trillium.config.experiment import experiment
from trillium.errors import UserError
from trillium.experiment.run import build
from trillium.federation.fleet import RoundFailed
from trillium.files import write_atomic
from trillium.plan.held import Held
from trillium.plan.models import Models
from trillium.plan.predict import Prediction, predict
from trillium.plan.result import texts_of
from trillium.plan.sums import Traffic
from trillium.quiet import quiet
from trillium.wire.wire import Direction

RESULTS = Path(__file__).parent / "results"
RANGED = "bytes, in a range"
LIMITS = {"bytes": 0.02, RANGED: 0.02, "FLOPs": 0.05, "peak memory": 0.20}
WORST = 5  # cases that the tables name for each measure


@dataclass(frozen=True)
class Line:
    """One figure of a plan beside the ledger's.

    Attributes:
        measure: of `LIMITS`.
        what: whose, and in which direction.
        predicted, measured: in bytes or FLOPs.
        low, high: the range that the plan states.
        may_be_less: whether the run may take less than is planned.
    """

    measure: str
    what: str
    predicted: float
    measured: float
    low: float
    high: float
    may_be_less: bool = False

    @property
    def deviation(self) -> float:
        """By which share the prediction is above the measurement."""
        if self.predicted == self.measured:
            return 0.0
        return self.predicted / self.measured - 1 if self.measured else float("inf")

    @property
    def is_broken(self) -> bool:
        """Whether it is outside of the limit."""
        if self.low <= self.measured <= self.high:
            return False
        if self.may_be_less and self.deviation > 0:
            return False
        return abs(self.deviation) > LIMITS[self.measure]


@dataclass
class Outcome:
    """What became of a case.

    Attributes:
        case: its settings.
        status: `compared`, or why it was not.
        why: in words.
        lines: figures beside each other.
    """

    case: Case
    status: str
    why: str = ""
    lines: list[Line] = field(default_factory=list)

    @property
    def broken(self) -> list[Line]:
        """What is outside of the limits."""
        return [line for line in self.lines if line.is_broken]


def compare(held: Held) -> Iterator[Line]:
    """Yield the figures of a plan beside those of its run."""
    plan, total = held.plan, held.plan.total
    less = plan.upper_bound
    both: tuple[tuple[Direction, Traffic], ...] = (("up", total.up), ("down", total.down))
    for direction, found in both:
        sent = held.bytes(direction)
        measure = "bytes" if found.low == found.high else RANGED
        yield Line(measure, direction, found.bytes, sent, found.low, found.high, less)
    once = held.bytes("up", "once") + held.bytes("down", "once")
    yield Line("bytes", "once", total.once.bytes, once, total.once.low, total.once.high)
    server = held.run.server.meter.read()
    for name, sums in plan.clients.items():
        measured = held.flops(name)
        yield Line("FLOPs", name, sums.flops, measured, sums.flops, sums.flops, less)
        if measured:
            peak = sums.peak_bytes
            yield Line("peak memory", name, peak, held.peak(name), peak, peak, less)
    flops, peak = plan.server_flops, plan.server_peak_bytes
    yield Line("FLOPs", "server", flops, server.flops, flops, flops, less)
    if server.flops:
        yield Line("peak memory", "server", peak, server.peak_bytes, peak, peak, less)


def try_case(case: Case, hub: Path, papers: Models) -> Outcome:
    """Plan, run and compare one federation; plans share the models that they are made with."""
    try:
        run = build(experiment(case.tree(hub)))
    except UserError as error:
        return Outcome(case, "refused", str(error))
    refused: UserError | None = None
    plan: Prediction | None = None
    try:
        plan = predict(run.config, texts_of(run.config, run.server, run.clients), papers)
    except UserError as error:
        refused = error
    except Exception as error:
        return Outcome(case, "plan failed", f"{type(error).__name__}: {error}")
    try:
        run.run()
    except (UserError, RoundFailed) as error:
        return Outcome(case, "refused", str(error))
    except Exception as error:
        return Outcome(case, "run failed", f"{type(error).__name__}: {error}")
    if plan is None:
        return Outcome(case, "not planned", str(refused))
    return Outcome(case, "compared", lines=[*compare(Held(plan, run))])


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return how many cases there were, and by how much plans were off, as plain values."""
    compared = [outcome for outcome in outcomes if outcome.status == "compared"]
    pairs = [(line, outcome.case.label) for outcome in compared for line in outcome.lines]
    measures = {}
    for measure, limit in LIMITS.items():
        own = [pair for pair in pairs if pair[0].measure == measure]
        exact = sum(line.deviation == 0 for line, _ in own)
        sure = [pair for pair in own if not pair[0].may_be_less]
        worst = sorted(sure, key=lambda pair: abs(pair[0].deviation), reverse=True)
        measures[measure] = {
            "limit": limit,
            "figures": len(own),
            "exact": exact,
            "broken": sum(line.is_broken for line, _ in own),
            "largest": [
                {"deviation": line.deviation, "of": line.what, "case": label}
                for line, label in worst[:WORST]
                if line.deviation
            ],
        }
    return {
        "drawn": len(outcomes),
        "status": dict(Counter(outcome.status for outcome in outcomes)),
        "frameworks": dict(Counter(o.case.words[0].partition("=")[2] for o in compared)),
        "upper_bounds": sum(any(line.may_be_less for line in o.lines) for o in compared),
        "measures": measures,
        "broken": [
            {
                "case": outcome.case.label,
                "lines": [f"{line.measure} {line.what}: {line.deviation:+.2%}" for line in lines],
            }
            for outcome in compared
            if (lines := outcome.broken)
        ],
        "not_planned": dict(Counter(o.why for o in outcomes if o.status == "not planned")),
        "failed": {o.case.label: o.why for o in outcomes if o.status.endswith("failed")},
        "cases": [outcome.case.label for outcome in compared],
    }


def markdown(found: dict[str, Any]) -> str:
    """Return the summary for people."""
    status = ", ".join(f"{count} {name}" for name, count in found["status"].items())
    shares = ", ".join(f"{count} of `{name}`" for name, count in found["frameworks"].items())
    lines = [
        "# Plans held to ledgers",
        "",
        f"{found['drawn']} tiny federations drawn: {status}. Compared: {shares}. In "
        f"{found['upper_bounds']} of them the plan is the most that a run takes, and there it is not "
        "counted as a deviation that the run took less.",
        "",
        "| measure | limit | figures | equal | beyond the limit | largest deviation |",
        "|---|---|---|---|---|---|",
    ]
    for name, measure in found["measures"].items():
        largest = measure["largest"][0]["deviation"] if measure["largest"] else 0.0
        lines.append(
            f"| {name} | {measure['limit']:.0%} | {measure['figures']} | {measure['exact']} "
            f"| {measure['broken']} | {largest:+.2%} |"
        )
    lines += [
        "",
        "Where codecs depend on values, a plan states a range beside its bytes: what is within it, or "
        "within the limit, is kept. The messages are tiny here, and such codecs vary most on those.",
    ]
    for name, measure in found["measures"].items():
        lines += ["", f"Largest deviations of {name}:", ""]
        lines += [f"* {e['deviation']:+.2%}, {e['of']}: `{e['case']}`" for e in measure["largest"]]
    return "\n".join(lines) + "\n"


def main(words: Sequence[str] | None = None) -> int:
    """Draw, compare and write; return 1 where a limit is broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=320, help="federations to compare")
    parser.add_argument("--minutes", type=float, default=15, help="of the processor, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(words)
    quiet()
    torch.set_num_threads(1)
    load, console = os.getloadavg()[0], Console(highlight=False, markup=False)
    outcomes: list[Outcome] = []
    num_compared = 0
    with tempfile.TemporaryDirectory() as folder:
        hub = write_hub(Path(folder))
        papers = Models()
        for case in draw_cases(options.seed):
            outcomes.append(try_case(case, hub, papers))
            num_compared += outcomes[-1].status == "compared"
            if outcomes[-1].status.endswith("failed"):
                console.print(
                    f"{outcomes[-1].status}: {outcomes[-1].why}: {case.label}", soft_wrap=True
                )
            for line in outcomes[-1].broken:
                what = f"{line.measure} {line.what}: {line.predicted:.0f} for {line.measured:.0f}"
                console.print(f"{line.deviation:+.2%} {what}: {case.label}", soft_wrap=True)
            if num_compared == options.count or time.process_time() > 60 * options.minutes:
                break
            if not len(outcomes) % 20:
                console.print(f"{len(outcomes)} drawn, {num_compared} compared")
    found = summary(outcomes)
    write_found(options.results / "plan_ledger.json", load, found, seed=options.seed)
    write_atomic(options.results / "plan_ledger.md", markdown(found))
    console.print(json.dumps({key: found[key] for key in ("status", "not_planned")}, indent=1))
    console.print(markdown(found))
    return 1 if found["broken"] or found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
