"""What crosses in a run, by direction and kind, and what is said of it beforehand."""

from __future__ import annotations

from trillium.config.experiment import ExperimentConfig
from trillium.experiment.run import Experiment


def crossed(run: Experiment) -> set[tuple[str, str]]:
    """Directions and kinds in the ledger of a run that is over, but for control."""
    entries = [e for e in run.fleet.ledger.entries if e.purpose != "evaluate"]
    kinds = ((e.direction, kind) for e in entries for kind, size in e.kinds.items() if size)
    return {(str(way), kind) for way, kind in kinds if kind != "control"}


def said(config: ExperimentConfig) -> set[tuple[str, str]]:
    """The same, as framework and head say it."""
    found = {*(config.framework.all_crossings(config) or ())}
    if config.head.name != "random" and not config.sums.hides:
        found |= {*config.head.crossings(config)}
    return {(str(way), str(kind)) for way, kind in found}
