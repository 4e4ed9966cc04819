"""Every measure that a report shows: its name, its unit, what it means, and how a run gives it.

The tables that are put together here are the only places where a measure is defined; tables, CSV, plots
and the page follow them.
"""

from __future__ import annotations

from typing import Final

from trillium.report.costs import COST
from trillium.report.leakage import LEAKAGE
from trillium.report.privacy import EPSILON
from trillium.report.quality import QUALITY

MEASURES: Final = (*QUALITY, *COST, EPSILON, *LEAKAGE)
BY_NAME: Final = {measure.name: measure for measure in MEASURES}
