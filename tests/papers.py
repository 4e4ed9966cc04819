"""Runs on paper, held to the ledger of the run message by message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trillium.experiment.run import Experiment
from trillium.plan.bounds import reasons
from trillium.plan.federation import PaperFederation, Shared
from trillium.plan.models import Models
from trillium.plan.result import texts_of
from trillium.wire.ledger import Entry


def on_paper(run: Experiment, models: Models | None = None) -> PaperFederation:
    """Return the federation of a run on paper, after its last round."""
    texts = texts_of(run.config, run.server, run.clients)
    paper = PaperFederation(run.config, texts, Shared(models or Models()))
    paper.start()
    for number in range(1, (run.config.rounds if run.config.framework.trains else 0) + 1):
        paper.round(number, evaluates=True)
    paper.finish()
    return paper


def identity(entry: Entry, flops: bool = True) -> tuple[Any, ...]:
    """Which message it is, its bytes, and what was computed for it; seconds and memory apart."""
    return (
        *(entry.round, entry.client, entry.verb, entry.direction, entry.purpose),
        *(entry.bytes, entry.kinds, entry.bytes_raw, entry.flops if flops else None),
    )


def booked(entries: Sequence[Entry]) -> list[tuple[Any, ...]]:
    """Return whose the messages are, which, and their bytes."""
    return [(e.client, e.verb, e.direction, e.bytes, e.kinds) for e in entries]


def total(entries: Sequence[Entry], direction: str) -> int:
    return sum(e.bytes for e in entries if e.direction == direction and e.purpose != "evaluate")


def hold(run: Experiment, models: Models | None = None, *, peaks: bool = True) -> None:
    """Run on paper and for real, and expect the same of both, or bounds where values decide.

    Args:
        models: makes those of paper.
        peaks: whether peaks of memory are equal; else they are within a fifth.
    """
    paper, why = on_paper(run, models), reasons(run.config)
    run.run()
    expected, found = run.fleet.ledger.entries, paper.course.entries
    if why:
        for direction in ("up", "down"):
            assert total(found, direction) >= total(expected, direction), why
        return
    told = not run.config.privacy.unit  # what clients compute stays with them
    assert [identity(e, told) for e in found] == [identity(e) for e in expected]
    real, planned = run.server.meter.read(), paper.server.meter.read()
    assert planned.flops + paper.texts.written == real.flops
    pairs = [(planned.peak_bytes, real.peak_bytes)]
    pairs += [(a.peak_bytes or 0, b.peak_bytes or 0) for a, b in zip(found, expected, strict=True)]
    for mine, theirs in pairs:
        assert mine == theirs if peaks else mine >= 0.8 * theirs
