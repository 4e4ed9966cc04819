"""Clients follow their own gradients."""

from __future__ import annotations

from trillium.drifts import Drift


class NoDrift(Drift, name="none"):
    """No correction."""
