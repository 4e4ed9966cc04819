"""What runs on the same clients have spent together: all of them release something of the same data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trillium.config.experiment import read_yaml
from trillium.errors import UserError
from trillium.privacy.account import FILE, epsilon, read_account, releases_in
from trillium.report.write import Report, make_report


def together(folders: Sequence[Path], delta: float | None = None) -> dict[str, Any]:
    """Return the epsilon of each run in some folders, and of all, as plain values.

    Args:
        delta: of the guarantee; the least that one of the runs names by default.

    Raises:
        UserError: there is no run, or they hide different units.
    """
    paths = [path for folder in folders for path in _runs(folder)]
    told = {path: _told(path) for path in dict.fromkeys(paths)}
    units = sorted({unit for unit, _, _ in told.values() if unit})
    if len(units) > 1:
        raise UserError(
            f"runs that hide one {' and runs that hide one '.join(units)}",
            "their guarantees are about different things, and do not add up",
            "Give the runs of one privacy at a time",
        )
    if delta is None:
        delta = min((found for _, found, _ in told.values() if found), default=1e-5)
    unit, lines = (units or [""])[0], {path: found for path, (_, _, found) in told.items()}
    each = {str(path): _spent([found], delta, unit) for path, found in lines.items()}
    return {**_spent(lines.values(), delta, unit), "runs": each}


def reported(folder: Path, reach: Sequence[float] = ()) -> Report:
    """Write the report of a folder, as `make_report` does, with what its runs have spent together."""
    return make_report(folder, reach, _said_of(folder))


def _said_of(folder: Path) -> str:
    """Return what the runs of a comparison have spent together; empty where none is private."""
    accounts = {path.parent for path in folder.glob(f"*/{FILE}")}
    return (
        f"All {len(_runs(folder))} runs together: {said(together([folder]))}." if accounts else ""
    )


def said(found: Mapping[str, Any]) -> str:
    """Return what was spent, in words."""
    if found["epsilon"] is None:
        return f"no ε, as {found['uncovered']}"
    return (
        f"ε = {found['epsilon']:.4g} at δ = {found['delta']:g} for one {found['unit']} more or less"
    )


def _runs(folder: Path) -> list[Path]:
    """Return the runs in a folder, which may be one itself."""
    found = sorted(path.parent for path in folder.rglob("metrics.jsonl"))
    if not found:
        raise UserError(str(folder), "there is no run in it", "Give the folder of a run")
    return found


def _told(path: Path) -> tuple[str, float | None, list[Mapping[str, Any]] | None]:
    """Return what a run hides, its delta and its releases; `None` where it hides nothing."""
    privacy = read_yaml(path / "config.yaml").get("privacy") or {}
    name = privacy.get("name", "none") if isinstance(privacy, Mapping) else privacy
    if name == "none":
        return "", None, None
    account = path / FILE
    return name, privacy.get("delta"), [*read_account(account)] if account.exists() else []


def _spent(
    accounts: Iterable[list[Mapping[str, Any]] | None], delta: float, unit: str
) -> dict[str, Any]:
    accounts = [*accounts]
    found: dict[str, Any] = {"epsilon": None, "delta": delta, "unit": unit, "uncovered": ""}
    if None in accounts:
        return {**found, "uncovered": "a run without privacy is among them"}
    releases = [r for account in accounts if account is not None for r in releases_in(account)]
    spent = epsilon(releases, delta)
    if not math.isfinite(spent):
        return {**found, "uncovered": "something was released without noise"}
    return {**found, "epsilon": spent}
