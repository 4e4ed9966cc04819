"""Numbers and settings as people read them: 1.23 MB, 3.4 TFLOPs, 3 min 05 s, 88.1 ± 0.4 %.

Prefixes are decimal: 1 MB is 1,000,000 bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

NONE = "–"
_PREFIXES = ("", "k", "M", "G", "T", "P", "E")
# Unit, its length in seconds, and from how many seconds it is taken.
_SPANS = (
    ("h", 3600.0, 7200.0),
    ("min", 60.0, 120.0),
    ("s", 1.0, 0.0995),
    ("ms", 1e-3, 0.9995e-3),
    ("µs", 1e-6, 0.9995e-6),
    ("ns", 1e-9, 0.0),
)


def significant(value: float, digits: int = 3) -> str:
    """Return a number with so many significant digits and no exponent: 0.0123, 1,235."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    # Rounding first: 9.996 has one digit before the point, its rounded form has two.
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def prefixed(value: float, unit: str, sd: float | None = None) -> str:
    """Return a number with its decimal prefix and unit; a standard deviation shares the prefix."""
    if not math.isfinite(value):
        return f"{value} {unit}"
    power = 0
    # 999.5 would be shown as 1000: it belongs to the next prefix.
    while abs(value) / 1000**power >= 999.5 and power < len(_PREFIXES) - 1:
        power += 1
    scaled = value / 1000**power
    exact = power == 0 and float(value).is_integer()
    shown = f"{scaled:.0f}" if exact else significant(scaled)
    spread = "" if not sd else f" ± {_like(shown, sd / 1000**power)}"
    return f"{shown}{spread} {_PREFIXES[power]}{unit}"


def duration(seconds: float, sd: float | None = None) -> str:
    """Return a time span: 7.27 µs, 0.42 s, 3 min 05 s, 2 h 04 min; with a deviation, in one unit."""
    if not math.isfinite(seconds):
        return f"{seconds} s"
    unit, size = next((pair for pair in _SPANS if seconds >= pair[2]), _SPANS[-1])[:2]
    if sd:
        shown = significant(seconds / size)
        return f"{shown} ± {_like(shown, sd / size)} {unit}"
    whole = round(seconds)
    if whole < 120:
        return f"{significant(seconds / size)} {unit}" if seconds else "0 s"
    if whole < 7200:
        return f"{whole // 60} min" + (f" {whole % 60:02d} s" if whole % 60 else "")
    minutes = round(seconds / 60)
    return f"{minutes // 60} h" + (f" {minutes % 60:02d} min" if minutes % 60 else "")


def percent(fraction: float, sd: float | None = None) -> str:
    """Return a fraction in per cent with one decimal."""
    spread = "" if sd is None else f" ± {100 * sd:.1f}"
    return f"{100 * fraction:.1f}{spread} %"


def plain(value: float, sd: float | None = None) -> str:
    """Return a number without a unit, with as many decimals as its deviation needs to be seen."""
    shown = significant(value)
    if not sd:
        return shown
    if not math.isfinite(value + sd):
        return f"{shown} ± {sd}"
    decimals = max(len(text.partition(".")[2]) for text in (shown, significant(sd, 1)))
    return f"{value:,.{decimals}f} ± {sd:,.{decimals}f}"


def _like(shown: str, value: float) -> str:
    """Return a number with as many decimals as another one has."""
    return f"{value:,.{len(shown.partition('.')[2])}f}"


def as_word(value: Any) -> str:
    """Return a value as the command line has it."""
    return value if isinstance(value, str) else json.dumps(value)


def as_words(tree: Mapping[str, Any], path: str = "") -> list[str]:
    """Return settings as the command line has them: `training.batch_size=8`."""
    found = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found += as_words(value, f"{path}{key}.")
        else:
            found.append(f"{path}{key}={as_word(value)}")
    return found


def show_bytes(value: float, sd: float | None = None) -> str:
    """Return bytes for people."""
    return prefixed(value, "B", sd)


def show_flops(value: float, sd: float | None = None) -> str:
    """Return a number of floating-point operations for people."""
    return prefixed(value, "FLOPs", sd)
