"""A plan and the run that it was made for: what tests and benchmarks hold against each other."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from trillium.experiment.run import Experiment
from trillium.plan.models import Models
from trillium.plan.predict import Prediction, predict
from trillium.plan.result import texts_of
from trillium.wire.ledger import Purpose
from trillium.wire.wire import Direction


@dataclass(frozen=True)
class Held:
    """A run, and the plan that was made of it before.

    Attributes:
        plan: of the run.
        run: after its last round.
    """

    plan: Prediction
    run: Experiment

    def bytes(self, direction: Direction, purpose: Purpose = "train") -> int:
        """Return what crossed in a direction."""
        return self.run.fleet.ledger.bytes_total(direction, purpose)

    def kinds(self, direction: Direction) -> dict[str, int]:
        """Return what crossed in training, by kind of tensor."""
        found: Counter[str] = Counter()
        for entry in self.run.fleet.ledger.entries:
            if entry.direction == direction and entry.purpose == "train":
                found.update(entry.kinds)
        return dict(found)

    def flops(self, client: str) -> float:
        """Return what a client computed, evaluation apart."""
        return sum(
            entry.flops or 0
            for entry in self.run.fleet.ledger.entries
            if entry.client == client and entry.purpose != "evaluate"
        )

    def peak(self, client: str) -> int:
        """Return the most memory that a client took, in bytes; evaluation apart."""
        return max(
            (
                entry.peak_bytes or 0
                for entry in self.run.fleet.ledger.entries
                if entry.client == client and entry.purpose != "evaluate"
            ),
            default=0,
        )


def hold(run: Experiment, models: Models | None = None) -> Held:
    """Plan a federation, then run it.

    Args:
        run: as it was built.
        models: makes the models of the plan.

    Raises:
        UserError: there is no plan for it.
    """
    plan = predict(run.config, texts_of(run.config, run.server, run.clients), models)
    run.run()
    return Held(plan, run)
