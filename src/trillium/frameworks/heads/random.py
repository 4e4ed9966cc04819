"""The head as the model brings it: drawn from the seed of the run, or loaded with the weights."""

from __future__ import annotations

from trillium.frameworks.heads import Head


class Random(Head, name="random"):
    """No phase and no messages: the head starts as it was drawn or loaded."""
