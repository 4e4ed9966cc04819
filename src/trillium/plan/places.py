"""Where a federation is to run, and what is assumed of its data."""

from __future__ import annotations

from trillium.clock.places import Place, Places
from trillium.config.experiment import ExperimentConfig
from trillium.plan.data import Assumptions


class Planning(Places):
    """What a plan is told beside the settings of the run, under `plan.` in words and recipes.

    Attributes:
        data: what is assumed of the data.
    """

    data: Assumptions = Assumptions()

    def place(self, config: ExperimentConfig, tier: str) -> Place:
        """Return where the clients of a tier run; a link that the run knows counts here, too."""
        if tier not in config.tiers:
            return self.of(tier, None, None)
        known = config.tiers[tier].link
        return self.of(tier, known.up, known.down)
