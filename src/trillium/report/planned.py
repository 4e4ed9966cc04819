"""Predicted against measured: the plan of a run beside its ledger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trillium.report.human import show_bytes, show_flops
from trillium.report.read import Run


@dataclass(frozen=True)
class Held:
    """One figure of a plan, held to what was measured.

    Attributes:
        predicted, measured: in bytes or FLOPs.
    """

    title: str
    predicted: float
    measured: float
    show: Callable[[float], str]

    @property
    def difference(self) -> str:
        """By how much the prediction is above the measurement."""
        if self.predicted == self.measured:
            return "exact"
        if not self.measured:
            return "–"
        return f"{100 * (self.predicted / self.measured - 1):+.2f} %"


def held(run: Run) -> list[Held]:
    """Return the figures of a run's plan beside what the ledger says; none without either.

    Nor is there anything to hold of a run that has ended before the rounds that were planned.
    """
    plan, traffic = run.plan, run.traffic
    if "total" not in plan or traffic is None or run.ended_early:
        return []
    total, until = plan["total"], traffic.until()
    server = run.last("server_flops")
    lines: list[tuple[str, Any, Any, Callable[[float], str]]] = [
        ("Bytes up, all clients", total["up"]["bytes"], until.bytes_up, show_bytes),
        ("Bytes down, all clients", total["down"]["bytes"], until.bytes_down, show_bytes),
        ("Bytes once", total["once"]["bytes"], traffic.bytes_once, show_bytes),
        ("Client FLOPs, all clients", total["flops"], until.flops, show_flops),
        ("Server FLOPs", plan["server"]["flops"], server, show_flops),
        ("Peak memory of a client", total["peak_bytes"], traffic.peak_bytes, show_bytes),
    ]
    return [
        Held(title, float(predicted), float(measured), show)
        for title, predicted, measured, show in lines
        if measured is not None and (predicted or measured)
    ]
