"""How much privacy is spent: releases, and what they come to by the library dp-accounting.

Privacy loss distributions (Sommer et al., 2019; Doroshenko et al., 2022, arXiv 2207.04380), composed
over all that is released, for one unit more or less. They are rounded up, so no figure is too small.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

from trillium.errors import UserError
from trillium.extras import install

FILE: Final = "privacy.jsonl"
STEP: Final = 1e-3  # of losses; with 1e-4 figures are lower by less than 1e-3
ORDERS: Final = (*range(2, 64), 128, 256, 512)  # of Renyi's divergence; whole ones are quick
ROUGH: Final = 0.02  # noise with which losses are in the thousands, and a list of them has no end
NEAR: Final = 1e-3  # of an epsilon that noise is looked for, at most below it


@dataclass(frozen=True)
class Release:
    """Gaussian noise on a sum to which each unit adds a vector of bounded length.

    Attributes:
        noise: standard deviation over the bound.
        rate: with what probability, drawn in secret, a unit is in the sum.
        count: how many there are of it.
        discrete: the noise is the sum of discrete Gaussians, which only Renyi's divergence bounds.
        every: of so many rounds in a row a unit is in one at most, as everybody may know.
    """

    noise: float
    rate: float = 1.0
    count: int = 1
    discrete: bool = False
    every: int = 1

    def over(self, rounds: int) -> Release:
        """Return what so many rounds in a row release of one unit at most."""
        return replace(self, count=self.count * -(-rounds // self.every), every=1)


def epsilon(releases: Iterable[Release], delta: float) -> float:
    """Return the epsilon of all of them together; infinite where one has no noise.

    Raises:
        UserError: the accountant is not installed.
    """
    counts, found = Counter[tuple[float, float]](), [*releases]
    for release in found:
        counts[release.noise, release.rate] += release.count
    rough = any(release.discrete or release.noise < ROUGH for release in found)
    spent = _by_renyi if rough else _by_losses
    return spent(tuple(sorted(counts.items())), delta)


def noise_for(target: float, releases: Sequence[Release], delta: float) -> float:
    """Return by what the noise of all releases is to be multiplied so that they spend an epsilon.

    Raises:
        UserError: no noise does that, or the accountant is not installed.
    """
    return _noise_for(target, tuple(releases), delta)


@cache
def _noise_for(target: float, releases: tuple[Release, ...], delta: float) -> float:
    def spent(factor: float, *, quick: bool = False) -> float:
        scaled = [replace(release, noise=release.noise * factor) for release in releases]
        if quick:
            return _by_renyi(tuple(((r.noise, r.rate), r.count) for r in scaled), delta)
        return epsilon(scaled, delta)

    # Renyi's accountant is fast and says a tenth to a fifth too much, so its answer is an upper bound.
    high = 1.0
    while spent(high, quick=True) > target:
        high *= 2
        if high > 1e6:
            raise UserError(
                f"privacy.epsilon={target:g} at delta={delta:g}",
                "no noise brings the run below it",
                "Write a larger epsilon, or a larger delta",
            )
    low = high / 2
    for _ in range(6):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if spent(middle, quick=True) <= target else (middle, high)

    def over(factor: float) -> float:  # 0 at the target; so much noise may spend nothing at all
        return math.log(max(spent(factor) / target, 1e-2))

    below = over(high)
    while (above := over(low := 0.8 * high)) <= 0:
        high, below = low, above
    # Between two noises, one with too little privacy and one with enough; the second is the answer.
    while below < -NEAR and high > 1.0001 * low:  # what is spent may leap
        share = min(max((above + NEAR / 2) / (above - below), 0.05), 0.95)
        middle = low * (high / low) ** share
        found = over(middle)
        low, above, high, below = (
            (middle, found, high, below) if found > 0 else (low, above, middle, found)
        )
    return high


_Counts = tuple[tuple[tuple[float, float], int], ...]


@cache
def _by_losses(counts: _Counts, delta: float) -> float:
    return _composed(_dp().pld.PLDAccountant(value_discretization_interval=STEP), counts, delta)


@cache
def _by_renyi(counts: _Counts, delta: float) -> float:
    return _composed(_dp().rdp.RdpAccountant(ORDERS), counts, delta)


def _composed(accountant: Any, counts: _Counts, delta: float) -> float:
    for (noise, rate), count in counts:
        accountant.compose(_event(noise, rate), count)
    return float(accountant.get_epsilon(delta))


def _event(noise: float, rate: float) -> Any:
    event = _dp().GaussianDpEvent(noise)
    return event if rate == 1 else _dp().PoissonSampledDpEvent(rate, event)


def _dp() -> Any:
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError as error:
        raise UserError(
            "privacy", "the package dp-accounting is not installed", install("privacy")
        ) from error
    return dp_accounting


@dataclass
class Account:
    """What a run has released: a file that is written before anything is, and is never cut.

    Attributes:
        path: of the file, if there is one.
        lines: by release: its round, what it is, and the release.
    """

    path: Path | None = None
    lines: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.path is not None and self.path.exists():
            self.lines = read_account(self.path)
            whole = self.path.read_bytes().rfind(b"\n") + 1
            os.truncate(
                self.path, whole
            )  # a line that was cut off, or the next would go on from it

    def note(self, number: int, what: str, release: Release) -> None:
        """Write down what is about to be released in a round."""
        line = {"round": number, "what": what, **asdict(release)}
        self.lines.append(line)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def spent(self, delta: float) -> float:
        """Return the epsilon of all that was released."""
        return epsilon(releases_in(self.lines), delta)


def read_account(path: Path) -> list[dict[str, Any]]:
    """Return the lines of an account; one that was cut off by a crash announced nothing.

    It was not written whole, so what it was to announce was not released.
    """
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def releases_in(lines: Iterable[Mapping[str, Any]]) -> list[Release]:
    """Return the releases of an account of one run.

    A round that was run again is a release of its own, to all whom its first one told something of.
    """
    names = [entry.name for entry in fields(Release)]
    found, turns = list[Release](), defaultdict[Release, dict[int, int]](dict)
    for line in lines:
        release = Release(**{name: line[name] for name in names if name in line})
        if release.every == 1 or line["round"] in turns[release]:
            found.append(replace(release, every=1))
        else:
            turns[release][line["round"]] = line["round"] % release.every
    for release, by_round in turns.items():
        most = max(Counter(by_round.values()).values())
        found.append(replace(release, count=release.count * most, every=1))
    return found
