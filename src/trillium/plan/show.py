"""Plans for people: one table, and the advice in words."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from trillium.frameworks.private import foreseen
from trillium.plan.advice import Advice
from trillium.plan.arms import Arm, TierPlan
from trillium.plan.data import Texts
from trillium.plan.measured import measured_cells, measured_lines
from trillium.plan.memory import Memory
from trillium.plan.sums import Sums
from trillium.report.human import NONE, duration, prefixed

LINES = (
    "Trained parameters",
    "Up in a round",
    "Down in a round",
    "Up in all rounds",
    "Down in all rounds",
    "Once, model included",
    "FLOPs of a round",
    "Server FLOPs of a round",
    "Peak memory",
    "Time of a round",
    "Energy of a round",
    "Measured, of the way",
    "… and where",
    "Runs on the device",
)
"""What the table says of one client, a round being one after the first."""


USELESS = 2  # times what a round can add, and more, where nothing useful was seen to be left


def plan_table(arms: Sequence[Arm]) -> Table:
    """Return the table of some plans: a column for each setting and tier."""
    titles, found = columns(arms)
    table = Table("One client", *(label for label, _ in found), box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for title, *cells in zip(titles, *(cells for _, cells in found), strict=True):
        table.add_row(title, *cells)
    return table


def columns(arms: Sequence[Arm]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the titles of the lines in which something is known, and each column by its label."""
    found = [column for arm in arms for column in _columns(arm)]
    known = [place for place in range(len(LINES)) if {cells[place] for _, cells in found} != {NONE}]
    cells_of = [(label, [cells[place] for place in known]) for label, cells in found]
    return [LINES[place] for place in known], cells_of


def _columns(arm: Arm) -> list[tuple[str, list[str]]]:
    """Return the label and the cells of each tier of a plan."""
    if arm.prediction is None:
        return [(arm.label, [*[NONE] * (len(LINES) - 1), "not planned"])]
    single = len(arm.tiers) == 1
    return [
        (arm.label if single else f"{arm.label} {tier.label}", _cells(arm, tier))
        for tier in arm.tiers
    ]


def _cells(arm: Arm, tier: TierPlan) -> list[str]:
    found = arm.prediction
    assert found is not None
    base = sum(found.once_bytes.values())
    server = found.server_flops / max(found.config.rounds, 1)
    return [
        f"{found.num_trained:,}",
        _bytes(tier.round.up.bytes),
        _bytes(tier.round.down.bytes),
        _bytes(tier.run.up.bytes),
        _bytes(tier.run.down.bytes),
        _bytes(base + tier.run.once.bytes),
        prefixed(tier.round.flops, "").strip(),
        prefixed(server, "").strip(),
        _bytes(tier.run.peak_bytes),
        NONE if tier.seconds is None else duration(tier.seconds),
        NONE if tier.joules is None else prefixed(tier.joules, "J"),
        *measured_cells(arm.measured),
        _runs(arm, tier),
    ]


def _runs(arm: Arm, tier: TierPlan) -> str:
    if tier.misfit or arm.refused:
        return "no"
    return NONE if tier.place.device.memory is None else "yes"


def data_lines(arms: Sequence[Arm]) -> list[str]:
    """Return what the data of the plans are: read, or assumed, and why."""
    found: dict[str, list[str]] = {}
    for arm in arms:
        if arm.prediction is not None:
            found.setdefault(_data(arm, arm.prediction.texts), []).append(arm.label)
    if len(found) == 1:
        return [*found]
    return [f"{', '.join(labels)}: {text}" for text, labels in found.items()]


def _data(arm: Arm, texts: Texts) -> str:
    sizes = sorted(len(examples) for examples in texts.clients.values())
    distinct = {id(own): own for own in texts.clients.values()}.values()  # assumed, all are one
    longest = max((e.num_tokens for own in distinct for e in own), default=0)
    many = f"{sizes[0]:,}" if sizes[0] == sizes[-1] else f"{sizes[0]:,} to {sizes[-1]:,}"
    size = f"{len(sizes):,} client{'s' * (len(sizes) > 1)} with {many} examples"
    classes = f", {texts.num_classes} classes" if texts.num_classes else ""
    if texts.assumed:
        return (
            f"Assumed, as {arm.unread or 'no data are named'}: {size} of {longest} tokens{classes}. "
            "Set plan.data.examples, .tokens and .classes, or name data.source."
        )
    return f"Of the data as they are: {size} of at most {longest} tokens{classes}."


def warning_lines(arms: Sequence[Arm]) -> list[str]:
    """Return which settings are far from what the task wants."""
    found: dict[str, list[str]] = {}
    for arm in arms:
        for said in arm.remarks:
            found.setdefault(said, []).append(arm.label)
    return [f"Warning: {', '.join(labels)}: {said}." for said, labels in found.items()]


def memory_lines(arms: Sequence[Arm]) -> list[str]:
    """Return what the memory of a client is made of, and how it spends a round."""
    lines = []
    for arm in arms:
        for tier in arm.tiers:
            label = arm.label if len(arm.tiers) == 1 else f"{arm.label} {tier.label}"
            lines.append(f"{label}: {_memory(tier.memory)}{_course(arm, tier)}{_range(tier.run)}")
        if arm.prediction is not None and arm.prediction.estimate:
            lines.append(f"{arm.label}: {arm.prediction.estimate}")
    return lines


def evidence_lines(arms: Sequence[Arm], skipped: Sequence[str]) -> list[str]:
    """Return what was measured nearest to each plan."""
    found = [(arm.label, arm.measured) for arm in arms if arm.measured is not None]
    return measured_lines(found, skipped)


def privacy_lines(arms: Sequence[Arm]) -> list[str]:
    """Return what private runs would guarantee, and whether anything can come of them."""
    lines = []
    for arm in arms:
        if arm.prediction is None:
            continue
        found = foreseen(arm.prediction.config, arm.prediction.num_added)
        if not found:
            continue
        spent = "no ε" if found["epsilon"] is None else f"ε = {found['epsilon']:.3g}"
        ratio = found["noise_over_sum"]
        lines.append(
            f"{arm.label}: {spent} at δ = {found['delta']:g} for one {found['unit']} more or less; "
            f"noise {found['noise_over_clip']:.3g} times the bound, {ratio:.2g} times what a round adds"
        )
        if ratio > USELESS:
            lines.append(
                f"Warning: {arm.label}: hardly anything can come of it: draw more {found['unit']}s in "
                "a round, train fewer parameters, or allow a larger ε."
            )
    return lines


def _memory(memory: Memory) -> str:
    parts = {name: value for name, value in vars(memory).items() if value}
    return ", ".join(f"{name} {_bytes(value)}" for name, value in parts.items()) or "no memory"


def _course(arm: Arm, tier: TierPlan) -> str:
    if arm.time is None or tier.seconds is None:
        return ""
    slowest = arm.time.slowest
    found = (
        f"; a round: compute {duration(slowest.compute)}, wire {duration(slowest.wire)}, "
        f"waiting {duration(max(slowest.waiting, 0.0))}"
    )
    return found if tier.joules is None else f"{found}, {prefixed(tier.joules, 'J')}"


def _range(sums: Sums) -> str:
    if sums.up.low == sums.up.high:
        return ""
    return f"; bytes up depend on values: {_bytes(sums.up.low)} to {_bytes(sums.up.high)} in all"


def advice_lines(advice: Advice) -> list[str]:
    """Return advice in lines."""
    lines = []
    if advice.chosen is not None and len(advice.fits) + len(advice.broken) > 1:
        lines.append(f"Take {advice.chosen}.")
    lines += [f"- {reason}" for reason in advice.reasons]
    if len(advice.pareto) > 1:
        worth = ", ".join(advice.pareto)
        lines.append(f"- in bytes, compute and memory, none of these beats another: {worth}")
    lines += [f"- {tip}" for tip in advice.tips]
    return lines


def _bytes(value: float) -> str:
    return prefixed(value, "B") if value else "0"
