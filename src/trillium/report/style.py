"""How plots look: colours that colour-blind readers can tell apart, and ticks with units."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import Any
from warnings import catch_warnings, filterwarnings

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    MultipleLocator,
    NullFormatter,
    NullLocator,
)

from trillium.report import human

# Okabe & Ito's palette without its yellow, which is too pale on white: a hue for each framework.
_HUES = {"fedllm": "#0072B2", "kd": "#D55E00", "split": "#009E73", "fedkseed": "#CC79A7"}
_OTHER_HUES = ("#E69F00", "#56B4E9", "#8C6BB1", "#A6761D")
_BASELINE_HUE = "#7F7F7F"
# How much white (or, below 0, black) the arms of one framework take, on a light and a dark ground.
_SHADES = ((0.0, 0.2), (-0.45, 0.6), (0.35, -0.1), (-0.7, 0.8))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# Paul Tol's "muted" palette, so that a kind of tensor is never taken for an arm.
_KINDS = {
    "parameters": "#332288",
    "logits": "#88CCEE",
    "activations": "#44AA99",
    "gradients": "#CC6677",
    "labels": "#DDCC77",
    "snapshot": "#AA4499",
    "statistics": "#117733",
    "public": "#882255",
    "control": "#BBBBBB",
}
_OTHER_KINDS = ("#999933", "#661100", "#6699CC")

# Steps between ticks that are whole in seconds, minutes, hours or days.
_TIME_STEPS = tuple(
    step * unit
    for unit, steps in ((1, (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30)),
                        (60, (1, 2, 5, 10, 20, 30)), (3600, (1, 2, 4, 6, 12, 24, 48, 120)))
    for step in steps
)  # fmt: skip

_RC = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "text.parse_math": False,  # a label such as "$5 to $10" is text
}


def arm_styles(frameworks: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return colour, marker and line of every arm, the same in all plots.

    A framework has a hue of its own, its arms have shades of it, the fifth of them is dashed.

    Args:
        frameworks: the framework of each arm; arms of no known one, as baselines are, have greys.
    """
    colours = arm_colours(frameworks)
    seen: Counter[str] = Counter()
    found = {}
    for index, (arm, framework) in enumerate(frameworks.items()):
        found[arm] = {
            "color": colours[arm][0],
            "marker": _MARKERS[index % len(_MARKERS)],
            "linestyle": ("-", "--", "-.", ":")[seen[framework] // len(_SHADES) % 4],
        }
        seen[framework] += 1
    return found


def arm_colours(frameworks: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return the colours of every arm, on a light ground and on a dark one.

    Args:
        frameworks: the framework of each arm; an empty name is that of a baseline.
    """
    others = [name for name in dict.fromkeys(frameworks.values()) if name and name not in _HUES]
    hues = {name: _OTHER_HUES[i % len(_OTHER_HUES)] for i, name in enumerate(others)} | _HUES
    seen: Counter[str] = Counter()
    found = {}
    for arm, framework in frameworks.items():
        hue = hues.get(framework, _BASELINE_HUE)
        light, dark = _SHADES[seen[framework] % len(_SHADES)]
        found[arm] = (_shade(hue, light), _shade(hue, dark))
        seen[framework] += 1
    return found


def _shade(colour: str, amount: float) -> str:
    """Return a colour with so much white in it; below 0 with so much black."""
    end = 255 if amount > 0 else 0
    parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(part + (end - part) * abs(amount)):02X}" for part in parts)


def kind_colours(kinds: Iterable[str]) -> dict[str, str]:
    """Return the colour of every kind of tensor, known kinds first."""
    found = set(kinds)
    unknown = sorted(found - set(_KINDS))
    colours = {kind: colour for kind, colour in _KINDS.items() if kind in found}
    return colours | {
        kind: _OTHER_KINDS[index % len(_OTHER_KINDS)] for index, kind in enumerate(unknown)
    }


@contextmanager
def quiet_style() -> Iterator[None]:
    """Draw in the style of the report; a label in a script that the font lacks is no warning."""
    with matplotlib.rc_context(_RC), catch_warnings():
        filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


def png(figure: Figure) -> bytes:
    """Return a figure as PNG; the same figure gives the same bytes."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()


def short(label: str, width: int = 24, lines: int = 2) -> str:
    """Return a label folded, and cut where it is longer than so many lines."""
    clean = " ".join(label.split()) or "(no name)"
    folded = textwrap.wrap(clean, width, break_long_words=True, break_on_hyphens=False)
    if len(folded) > lines:
        folded = [*folded[: lines - 1], folded[lines - 1][: width - 1] + "…"]
    return "\n".join(folded)


def scale_axis(axis: Any, values: Iterable[float], unit: str, log: bool) -> None:
    """Give an axis (`axes.xaxis`) ticks such as 10 kB or 2.5 TFLOPs, logarithmic or from zero."""
    known = [value for value in values if math.isfinite(value) and value > 0]
    which = axis.axis_name
    if log and known:
        low, high = min(known), max(known)
        getattr(axis.axes, f"set_{which}scale")("log")
        # Room on both sides, so that one point alone has an axis too.
        margin = max((high / low) ** 0.06, 1.25)
        getattr(axis.axes, f"set_{which}lim")(low / margin, high * margin)
        decades = math.log10(high / low * margin**2)
        # A label such as "100 kB" takes most of an inch.
        inches = axis.axes.get_window_extent().width / axis.axes.figure.dpi
        if decades >= 2.5:
            num_ticks = max(3, int(inches / 0.7)) if which == "x" else 12
            axis.set_major_locator(LogLocator(10, numticks=num_ticks))
        else:  # so short an axis holds few powers of ten, or none
            is_tight = which == "x" and 3 * decades * 0.9 > inches
            factors = (1.0, 2.0, 5.0) if not is_tight else (1.0, 3.0) if decades < 1.5 else (1.0,)
            subs = LogLocator(10, subs=factors, numticks=12)
            axis.set_major_locator(subs if decades >= 0.8 else MaxNLocator(3 if is_tight else 4))
            axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    elif unit == "s":
        most = max(known, default=1.0)
        step = next((step for step in _TIME_STEPS if most / step <= 3), most / 3)
        axis.set_major_locator(MultipleLocator(step))
    else:
        axis.set_major_locator(MaxNLocator(3))
    axis.set_major_formatter(FuncFormatter(_tick(unit)))


def _tick(unit: str) -> Callable[[float, int], str]:
    if unit == "s":
        return _time_tick

    def text(value: float, _: int) -> str:
        amount, rest = human.prefixed(value, unit).split(" ", 1)
        if "." in amount:
            amount = amount.rstrip("0").rstrip(".")
        return f"{amount} {rest}" if value else "0"

    return text


def _time_tick(value: float, _: int) -> str:
    if value < 120:
        return f"{value:.3g} s"
    return f"{value / 60:.3g} min" if value < 3600 else f"{value / 3600:.3g} h"
