"""Plans as bars of characters; without matplotlib, which takes half a second to import."""

from __future__ import annotations

from collections.abc import Sequence

from trillium.plan.arms import Arm
from trillium.report.human import duration, prefixed

WIDTH = 40  # of the longest bar, in characters


def values(arm: Arm) -> tuple[float, float]:
    """Return bytes and FLOPs of a round, the most of any tier."""
    return (
        max(tier.round.up.bytes + tier.round.down.bytes for tier in arm.tiers),
        max(tier.round.flops for tier in arm.tiers),
    )


def seconds_of(arm: Arm, part: str) -> float:
    """Return how long the slowest client spends on one part of a round."""
    assert arm.time is not None
    return float(getattr(arm.time.slowest, part))


def terminal_bars(arms: Sequence[Arm]) -> list[str]:
    """Return the bytes of a round as bars of characters, and the time in parts where it is known."""
    planned = [arm for arm in arms if arm.tiers]
    width = max((len(arm.label) for arm in planned), default=0)
    most = max((values(arm)[0] for arm in planned), default=0.0)
    lines = ["Bytes of a round, up and down:"] if most else []
    for arm in planned if most else []:
        value = values(arm)[0]
        bar = "█" * max(round(WIDTH * value / most), 1 if value else 0)
        lines.append(f"  {arm.label:{width}} {bar} {prefixed(value, 'B')}")
    timed = [arm for arm in planned if arm.time is not None]
    longest = max((arm.time.seconds for arm in timed if arm.time), default=0.0)
    if longest:
        lines.append("Time of a round: █ compute, ▒ wire, · waiting")
    for arm in timed if longest else []:
        assert arm.time is not None
        marks = {"compute": "█", "wire": "▒", "waiting": "·"}
        bar = "".join(
            mark * round(WIDTH * max(seconds_of(arm, part), 0.0) / longest)
            for part, mark in marks.items()
        )
        lines.append(f"  {arm.label:{width}} {bar} {duration(arm.time.seconds)}")
    return lines
