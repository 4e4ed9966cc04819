"""How a round ends that does not count."""

from __future__ import annotations


class RoundFailed(RuntimeError):  # noqa: N818 - it is what happened, and is caught by name
    """Fewer clients than `min_replies` stayed in the round."""


class RoundUndone(RoundFailed):
    """What came of the round is not to be used: it would come of it again."""
