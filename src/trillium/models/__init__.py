"""Models: load any Hugging Face model, choose what trains in it, cut it in two.

Imports `wire`, `tasks` and the ground.
"""

from __future__ import annotations

from trillium.models.imports import import_lightly

import_lightly()
