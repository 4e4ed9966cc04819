"""Advice: what is worth choosing from, and which setting to take and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from trillium.clock.places import quantity
from trillium.config.experiment import Tree
from trillium.errors import UserError, suggest
from trillium.frameworks.baselines import Centralised, LocalOnly, ZeroShot
from trillium.plan.arms import Arm
from trillium.plan.measured import seeds, share
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
        chosen: the label of the arm to take: the only one that fits, or the most accurate of several
            whose accuracy is known, as it was measured near enough; else `None`.
        cheapest: of each framework the one that moves the fewest bytes.
        reasons: why.
    """

    fits: tuple[str, ...]
    broken: Mapping[str, str]
    pareto: tuple[str, ...]
    tips: tuple[str, ...]
    chosen: str | None
    cheapest: tuple[str, ...]
    reasons: tuple[str, ...]


def advise(
    arms: Sequence[Arm],
    trees: Mapping[str, Tree],
    planning: Planning,
    limits: Sequence[Constraint],
    command: str,
) -> Advice:
    """Return advice on some plans.

    Args:
        arms: the plans.
        trees: the settings that they are of, by label.
        planning: data, devices and links.
        limits: what may not be exceeded.
        command: would measure what is not known.
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
    chosen, cheapest = _choice(rivals), _cheapest(rivals)
    return Advice(
        fits=tuple(arm.label for arm in fits),
        broken=broken,
        pareto=tuple(arm.label for arm in best),
        tips=tuple(tips(arms, trees, planning)),
        chosen=None if chosen is None else chosen.label,
        cheapest=tuple(arm.label for arm in cheapest),
        reasons=(*out, *_reasons(chosen, rivals, cheapest, command)),
    )


def pareto(arms: Sequence[Arm]) -> list[Arm]:
    """Return the arms that no other equals or beats in bytes, FLOPs and memory of a client."""
    return [arm for arm in arms if not any(_beats(_values(other), _values(arm)) for other in arms)]


def _is_baseline(arm: Arm) -> bool:
    found = arm.config is not None and arm.config.framework
    return isinstance(found, ZeroShot | LocalOnly | Centralised)


def _values(arm: Arm) -> list[float]:
    return [MEASURES[name][2](arm) or 0.0 for name in _COMPARED]


def _beats(left: Sequence[float], right: Sequence[float]) -> bool:
    pairs = list(zip(left, right, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def _bytes(arm: Arm) -> float:
    return arm.bytes_up + arm.bytes_down


def _choice(rivals: Sequence[Arm]) -> Arm | None:
    """Return the only arm, or the most accurate of several of which that is known."""
    if len(rivals) == 1:
        return rivals[0]
    known = [(arm.known.mean, -_bytes(arm), arm) for arm in rivals if arm.known is not None]
    return max(known, key=lambda each: each[:2])[2] if len(known) > 1 else None


def _cheapest(rivals: Sequence[Arm]) -> list[Arm]:
    """Return of each framework the arm that moves the fewest bytes."""
    found: dict[str, Arm] = {}
    for arm in sorted(rivals, key=_bytes, reverse=True):
        found["" if arm.config is None else arm.config.framework.name] = arm
    return sorted(found.values(), key=_bytes)


def _reasons(
    chosen: Arm | None, rivals: Sequence[Arm], cheapest: Sequence[Arm], command: str
) -> list[str]:
    if not rivals:
        return ["there is nothing to recommend"]
    unknown = [arm.label for arm in rivals if arm.known is None]
    reasons = []
    if chosen is not None and len(rivals) == 1:
        reasons.append(f"{chosen.label} is the only one that fits")
    elif chosen is not None:
        reasons += _by_accuracy(chosen, rivals)
    else:
        named = ", ".join(f"{arm.label} ({prefixed(_bytes(arm), 'B')})" for arm in cheapest)
        reasons.append(f"the fewest bytes of each framework: {named}")
    if unknown:
        reasons += [
            f"nothing near enough was measured to know the accuracy of {', '.join(unknown)}",
            f"this would tell, on your data: {command}",
        ]
    return reasons


def _by_accuracy(chosen: Arm, rivals: Sequence[Arm]) -> list[str]:
    """Return why the most accurate arm is taken, what is not told apart from it, what costs less."""
    assert chosen.known is not None
    way = chosen.known
    floor = way.mean if way.low is None else way.low
    reasons = [
        f"of what was measured near enough, {chosen.label} gets furthest from local only to "
        f"centralised: {share(way)} of the way, {seeds(way.num_seeds)}"
    ]
    if way.num_seeds == 1:
        reasons.append("another seed may order them otherwise")
    for arm in rivals:
        if arm.known is not None and arm.known.mean >= floor and _bytes(arm) < _bytes(chosen):
            reasons.append(
                f"{arm.label} ({share(arm.known)}) is within its interval, for "
                f"{prefixed(_bytes(arm), 'B')} against {prefixed(_bytes(chosen), 'B')}"
            )
    for name in _COMPARED:
        words, unit, of = MEASURES[name]
        least = min(rivals, key=lambda arm: of(arm) or 0.0)
        if least.label != chosen.label:
            reasons.append(
                f"{least.label} has the least {words}: {prefixed(of(least) or 0.0, unit)}, "
                f"against {prefixed(of(chosen) or 0.0, unit)}"
            )
    return reasons
