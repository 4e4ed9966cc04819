"""Advice: what is worth choosing from, and which setting to take and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from trillium.clock.places import quantity
from trillium.config.experiment import Tree
from trillium.errors import UserError, suggest
from trillium.frameworks.baselines import Centralised, LocalOnly, ZeroShot
from trillium.plan.arms import Arm
from trillium.plan.places import Planning
from trillium.plan.tips import tips
from trillium.report.human import prefixed

MEASURES: Mapping[str, tuple[str, str, Callable[[Arm], float | None]]] = {
    "client_memory": ("peak memory of a client", "B", lambda arm: arm.peak_bytes),
    "up": ("bytes up of a client", "B", lambda arm: arm.bytes_up),
    "down": ("bytes down of a client", "B", lambda arm: arm.bytes_down),
    "bytes": ("bytes of a client", "B", lambda arm: arm.bytes_up + arm.bytes_down),
    "client_flops": ("FLOPs of a client", "FLOPs", lambda arm: arm.flops),
    "round": ("seconds of a round", "s", lambda arm: arm.time.seconds if arm.time else None),
}
"""What can be constrained: its words, its unit, and how an arm gives it; all but the memory and the
round over the whole run."""

_COMPARED = ("bytes", "client_flops", "client_memory")


@dataclass(frozen=True)
class Constraint:
    """The most that a measure may be."""

    measure: str
    most: float

    def broken_by(self, arm: Arm) -> str:
        """Return by how much an arm breaks it; empty where it does not."""
        words, unit, of = MEASURES[self.measure]
        value = of(arm)
        if value is None:
            return f"{words} is not known without the speeds of devices and links"
        if value <= self.most:
            return ""
        return f"{words}: {prefixed(value, unit)}, above {prefixed(self.most, unit)}"


def constraints(words: Sequence[str]) -> list[Constraint]:
    """Return the constraints in words such as `client_memory=8GB`.

    Raises:
        UserError: a measure is unknown, or the most is no quantity.
    """
    found = []
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or name not in MEASURES:
            raise UserError(
                f"--constraint {word}",
                "a constraint is a measure and its upper limit",
                suggest(name, MEASURES) + ", as in client_memory=8GB",
            )
        found.append(Constraint(name, float(quantity(text))))
    return found


@dataclass(frozen=True)
class Advice:
    """What a user does with some plans.

    Attributes:
        fits: labels of the arms that run, within all constraints.
        broken: why the others do not, by label.
        pareto: of those that fit, the ones that no other beats in bytes, compute and memory; baselines
            count only where there is nothing else.
        tips: where the balance tips, in words.
        chosen: the label of the arm to take; `None` where none fits.
        reasons: why.
    """

    fits: tuple[str, ...]
    broken: Mapping[str, str]
    pareto: tuple[str, ...]
    tips: tuple[str, ...]
    chosen: str | None
    reasons: tuple[str, ...]


def advise(
    arms: Sequence[Arm],
    trees: Mapping[str, Tree],
    planning: Planning,
    limits: Sequence[Constraint],
) -> Advice:
    """Return advice on some plans.

    Args:
        arms: the plans.
        trees: the settings that they are of, by label.
        planning: data, devices and links.
        limits: what may not be exceeded.
    """
    broken, out = {}, []
    for arm in arms:
        why = [arm.misfit] if arm.misfit else [limit.broken_by(arm) for limit in limits]
        if any(why):
            broken[arm.label] = "; ".join(text for text in why if text)
            what = "is not planned" if arm.prediction is None else "is out"
            out.append(f"{arm.label} {what}: {broken[arm.label]}")
    fits = [arm for arm in arms if arm.label not in broken]
    # Baselines are there to compare with: who sends nothing learns from nobody.
    rivals = [arm for arm in fits if not _is_baseline(arm)] or fits
    best = pareto(rivals)
    chosen = _choice(best)
    return Advice(
        fits=tuple(arm.label for arm in fits),
        broken=broken,
        pareto=tuple(arm.label for arm in best),
        tips=tuple(tips(arms, trees, planning)),
        chosen=None if chosen is None else chosen.label,
        reasons=(*out, *_reasons(chosen, rivals)),
    )


def pareto(arms: Sequence[Arm]) -> list[Arm]:
    """Return the arms that no other equals or beats in everything that is compared.

    Compared are the bytes, FLOPs and memory of a client; and the accuracy, where all have one.
    """
    return [
        arm
        for arm in arms
        if not any(_beats(_values(other, arms), _values(arm, arms)) for other in arms)
    ]


def _is_baseline(arm: Arm) -> bool:
    found = arm.config is not None and arm.config.framework
    return isinstance(found, ZeroShot | LocalOnly | Centralised)


def _values(arm: Arm, arms: Sequence[Arm]) -> list[float]:
    values = [MEASURES[name][2](arm) or 0.0 for name in _COMPARED]
    if all(other.accuracy is not None for other in arms):
        values.append(-(arm.accuracy or 0.0))
    return values


def _beats(left: Sequence[float], right: Sequence[float]) -> bool:
    pairs = list(zip(left, right, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def _choice(arms: Sequence[Arm]) -> Arm | None:
    """Return the most accurate arm where all were measured, else the one with the fewest bytes."""
    if not arms:
        return None
    if all(arm.accuracy is not None for arm in arms):
        return max(arms, key=lambda arm: arm.accuracy or 0.0)
    return min(arms, key=lambda arm: arm.bytes_up + arm.bytes_down)


def _reasons(chosen: Arm | None, fits: Sequence[Arm]) -> list[str]:
    if chosen is None:
        return ["there is nothing to recommend"]
    if len(fits) == 1:
        return [f"{chosen.label} is the only one that fits"]
    by_accuracy = all(arm.accuracy is not None for arm in fits)
    what = (
        "is the most accurate in the runs that were named"
        if by_accuracy
        else ("moves the fewest bytes; how accurate it is, only a measured run can tell")
    )
    reasons = [f"of what fits, {chosen.label} {what}"]
    for name in _COMPARED:
        words, unit, of = MEASURES[name]
        least = min(fits, key=lambda arm: of(arm) or 0.0)
        if least.label != chosen.label:
            reasons.append(
                f"{least.label} has the least {words}: {prefixed(of(least) or 0.0, unit)}, "
                f"against {prefixed(of(chosen) or 0.0, unit)}"
            )
    return reasons
