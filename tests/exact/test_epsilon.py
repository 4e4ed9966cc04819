"""What is spent: held to figures of two independent accountants, calibrated, composed over runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from report_fixture import tiny_messages, tiny_metrics, write_run
from trillium.cli.app import app
from trillium.errors import UserError
from trillium.experiment.spent import reported, together
from trillium.privacy.account import FILE, Account, Release, epsilon, noise_for, read_account

pytest.importorskip("dp_accounting")

# ε at rate, noise, count, delta: by dp-accounting's losses at a step of 1e-4, and by the estimates of
# prv_accountant, which agree to 6e-3.
GOLDEN = [
    (0.01, 1.1, 1000, 1e-5, 1.5154),
    (0.05, 1.0, 100, 1e-5, 3.5021),
    (0.01, 0.7, 500, 1e-5, 3.5969),
    (0.1, 1.0, 50, 1e-3, 3.3139),
    (0.1, 0.8, 100, 1e-4, 9.3293),
    (0.2, 1.5, 20, 1e-3, 2.1810),
    (1.0, 1.0, 1, 1e-5, 4.3772),
    (1.0, 4.0, 20, 1e-5, 4.9833),
]


@pytest.mark.parametrize(("rate", "noise", "count", "delta", "wanted"), GOLDEN)
def test_it_is_that_of_others(
    rate: float, noise: float, count: int, delta: float, wanted: float
) -> None:
    found = epsilon([Release(noise, rate, count)], delta)
    assert wanted - 1e-4 <= found <= wanted + 0.01
    one_by_one = epsilon([Release(noise, rate)] * count, delta)
    assert one_by_one == found


def test_a_single_release_is_the_analytic_gaussian() -> None:
    """Balle and Wang (2018, arXiv 1805.06530): delta as a function of epsilon, in closed form."""
    found = epsilon([Release(1.3)], 1e-6)

    def normal(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    delta = normal(1 / 2.6 - 1.3 * found) - math.exp(found) * normal(-1 / 2.6 - 1.3 * found)
    assert delta == pytest.approx(1e-6, rel=0.01)


def test_a_head_and_rounds_are_composed() -> None:
    found = epsilon([Release(0.9), Release(0.735, 0.1, 30)], 1e-4)
    assert found == pytest.approx(7.9978, abs=0.001)


def test_without_noise_nothing_is_guaranteed() -> None:
    assert epsilon([Release(1.0), Release(0.0)], 1e-5) == math.inf
    assert 1e11 < epsilon([Release(1e-6)], 1e-5) < 1e13
    assert epsilon([], 1e-5) == 0


@pytest.mark.parametrize(
    ("target", "releases", "delta", "wanted"),
    [
        (8.0, [Release(1.0, 0.1, 50)], 1e-4, 0.7369),
        (3.0, [Release(1.0, 0.01, 1000)], 1e-5, 0.8138),
        (1.0, [Release(1.0, 0.05, 100)], 1e-5, 2.1448),
        (8.0, [Release(1.25), Release(1.0, 0.1, 30)], 1e-4, None),
        (50.0, [Release(1.0)], 1e-5, None),
        (1e-4, [Release(1.0, 1.0, 4)], 1e-3, None),  # a little more noise spends nothing at all
        (0.5, [Release(1.0, 1.0, 4)], 0.9, None),
    ],
)
def test_noise_is_found_that_spends_what_may_be_spent(
    target: float, releases: list[Release], delta: float, wanted: float | None
) -> None:
    noise = noise_for(target, releases, delta)
    scaled = [Release(r.noise * noise, r.rate, r.count) for r in releases]
    assert target * 0.998 <= epsilon(scaled, delta) <= target
    if wanted is not None:
        assert noise == pytest.approx(wanted, rel=2e-3)


def _run(folder: Path, privacy: str, *releases: Release) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(f"privacy: {privacy}\n")
    (folder / "metrics.jsonl").touch()
    account = Account(folder / FILE)
    for number, release in enumerate(releases):
        account.note(number, "round", release)
    return folder


CLIENT = "{name: client, delta: 1.0e-5}"


def test_runs_on_the_same_clients_add_up(tmp_path: Path) -> None:
    one = _run(tmp_path / "one", CLIENT, *[Release(4.0)] * 12)
    other = _run(tmp_path / "other", CLIENT, *[Release(4.0)] * 8)
    printed = CliRunner().invoke(app, ["epsilon", str(one), str(other), "--json"])
    found = json.loads(printed.output)
    assert found["epsilon"] == pytest.approx(4.9833, abs=0.01)
    assert found["runs"][str(one)]["epsilon"] == epsilon([Release(4.0, 1.0, 12)], 1e-5)
    assert together([tmp_path])["epsilon"] == found["epsilon"]
    said = CliRunner().invoke(app, ["epsilon", str(tmp_path)]).output
    spent = "together: ε = 4.983 at δ = 1e-05 for one client more or less"
    assert spent in said


def test_a_report_of_several_runs_says_what_they_have_spent_together(tmp_path: Path) -> None:
    """On the page and in the Markdown as on the terminal; of one run, its own is told already."""
    for seed, count in enumerate((12, 8)):
        privacy = {"name": "client", "delta": 1e-5}
        folder = write_run(
            tmp_path / f"fedllm_s{seed}",
            "fedllm",
            seed,
            tiny_metrics(0.5, 0.75),
            tiny_messages(),
            config={"framework": {"name": "fedllm"}, "rounds": 2, "privacy": privacy},
        )
        for number in range(count):
            Account(folder / FILE).note(number, "round", Release(4.0))
    (tmp_path / "compare.yaml").write_text("arms: {fedllm: {}}\n")
    spent = "All 2 runs together: ε = 4.983 at δ = 1e-05 for one client more or less."
    made = reported(tmp_path)
    for file in (made.page, tmp_path / "table.md"):
        assert spent in file.read_text(encoding="utf-8")
    printed = CliRunner().invoke(app, ["report", str(tmp_path)]).output
    assert spent in " ".join(printed.split())
    assert "together" not in reported(folder).page.read_text(encoding="utf-8")


def test_a_run_without_privacy_takes_all_of_it_away(tmp_path: Path) -> None:
    _run(tmp_path / "one", CLIENT, Release(4.0))
    _run(tmp_path / "open", "{name: none}")
    found = together([tmp_path])
    assert (found["epsilon"], found["uncovered"]) == (None, "a run without privacy is among them")
    with pytest.raises(UserError, match="do not add up"):
        together([tmp_path, _run(tmp_path / "other", "{name: example, delta: 1.0e-5}")])


def test_an_account_that_was_cut_off_announced_nothing_in_its_last_line(tmp_path: Path) -> None:
    account = Account(tmp_path / FILE)
    account.note(1, "round", Release(1.0, 0.5))
    with (tmp_path / FILE).open("a") as file:
        file.write('{"round": 2, "wh')
    assert read_account(tmp_path / FILE) == account.lines == Account(tmp_path / FILE).lines
