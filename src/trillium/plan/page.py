"""Plans as one HTML page, in the style of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from trillium.plan.advice import Advice
from trillium.plan.arms import Arm
from trillium.plan.show import columns, memory_lines, privacy_lines
from trillium.report.page.html import image, render
from trillium.report.style import arm_colours

_TITLES = {"costs": "Bytes and compute of a round", "time": "How long a round takes"}
# Lines of the table of which less is better, and the figures behind them.
_LEAST = {
    "Up in all rounds": lambda tier: tier.run.up.bytes,
    "Down in all rounds": lambda tier: tier.run.down.bytes,
    "FLOPs of a round": lambda tier: tier.round.flops,
    "Peak memory": lambda tier: tier.run.peak_bytes,
    "Time of a round": lambda tier: tier.seconds,
}


@dataclass(frozen=True)
class Column:
    """A setting, or a tier of it: its cells, and in which of them no other has less."""

    label: str
    place: int
    cells: list[str]
    best: list[bool]


@dataclass(frozen=True)
class Picture:
    """A plot of the page."""

    title: str
    address: str


def framework_of(arm: Arm) -> str:
    """Return the framework of a plan, by which it is coloured."""
    return "" if arm.config is None else arm.config.framework.name


def plan_page(
    arms: Sequence[Arm],
    advice: Advice,
    pictures: Mapping[str, bytes],
    notes: Sequence[str] = (),
) -> str:
    """Return the page of some plans.

    Args:
        pictures: plots as PNG, by name.
        notes: what else is to be said.
    """
    titles, found = columns(arms)
    colours = arm_colours({arm.label: framework_of(arm) for arm in arms})
    chosen = advice.chosen
    return render(
        "plan.html.j2",
        scripts=[],
        styles=["templates/page.css"],
        title=_title(arms),
        facts=_facts(arms),
        outcome=f"Take {chosen}." if chosen and len(arms) > 1 else _alone(arms, advice),
        reasons=[*advice.reasons, *_worth(advice), *advice.tips],
        colours=list(colours.values()),
        titles=titles,
        columns=_columns(arms, titles, found),
        pictures=[Picture(_TITLES.get(name, name), image(png)) for name, png in pictures.items()],
        notes=[*notes, *memory_lines(arms), *privacy_lines(arms)],
    )


def _title(arms: Sequence[Arm]) -> str:
    names = {PurePath(arm.config.model.id).name for arm in arms if arm.config is not None}
    return f"What a run will cost with {names.pop()}" if len(names) == 1 else "What a run will cost"


def _facts(arms: Sequence[Arm]) -> str:
    found = next((arm.prediction for arm in arms if arm.prediction is not None), None)
    if found is None:
        return "Nothing could be planned."
    config, texts = found.config, found.texts
    clients, rounds = len(found.clients), config.rounds
    where = "assumed data" if texts.assumed else "the data of the run"
    return (
        f"{len(arms)} setting{'s' if len(arms) != 1 else ''} · {clients} client"
        f"{'s' if clients != 1 else ''} · {rounds} round{'s' if rounds != 1 else ''} · of {where}"
    )


def _alone(arms: Sequence[Arm], advice: Advice) -> str:
    if not advice.fits:
        return "Nothing fits: " + "; ".join(f"{arm} {why}" for arm, why in advice.broken.items())
    return f"{advice.fits[0]} fits." if len(arms) == 1 else "Which is most accurate is not known."


def _worth(advice: Advice) -> list[str]:
    if len(advice.pareto) < 2:
        return []
    return [
        f"in bytes, compute and memory, none of these beats another: {', '.join(advice.pareto)}"
    ]


def _columns(
    arms: Sequence[Arm], titles: Sequence[str], found: Sequence[tuple[str, list[str]]]
) -> list[Column]:
    """Return the columns, in which the least of several is marked."""
    places = [place for place, arm in enumerate(arms) for _ in (arm.tiers or (None,))]
    tiers = [tier for arm in arms for tier in (arm.tiers or (None,))]
    best: list[list[bool]] = [[False] * len(titles) for _ in found]
    for line, title in enumerate(titles):
        of = _LEAST.get(title)
        values = [None if tier is None or of is None else of(tier) for tier in tiers]
        known = [value for value in values if value is not None]
        if len(known) > 1 and len({*known}) > 1:
            for column, value in enumerate(values):
                best[column][line] = value == min(known)
    return [
        Column(label, places[place], cells, best[place])
        for place, (label, cells) in enumerate(found)
    ]
