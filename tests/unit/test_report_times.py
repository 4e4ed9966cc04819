"""Accuracy against time: a ledger of a run under the clock of plans, against sums done by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from report_fixture import tiny_compare, tiny_messages, tiny_metrics, write_run
from trillium.clock.places import PaperLink
from trillium.config.comparison import comparison, tuning_of
from trillium.errors import UserError
from trillium.report.curves import plotted_measures
from trillium.report.page.charts import charts
from trillium.report.page.results import results, timed
from trillium.report.read import read_runs
from trillium.report.style import quiet_style
from trillium.report.summary import summarise
from trillium.report.times import OWN, clock_of, places_of, plot_times
from trillium.report.write import write_report

SLOW = {
    "client": {"device": {"flops": "1000"}, "link": {"up": "80", "down": "80"}},
    "server": {"device": {"flops": "100"}},
}


def test_each_round_ends_when_its_slowest_client_has_answered(tmp_path: Path) -> None:
    metrics = tiny_metrics(0.5, 0.6, 0.8)
    metrics[0]["server_flops"], metrics[2]["server_flops"] = 0.0, 700.0
    folder = write_run(tmp_path / "a", "fedllm", 1, metrics, tiny_messages())
    rows = summarise(read_runs(folder))
    clock = clock_of(rows, SLOW)
    (run,) = rows[0].counted
    spent = [clock.spent(OWN)(run, index) for index in (0, 1, 2)]
    # Once, 400 bytes take 40 s. Then 5 + 1 + 10 and 5 + 2 + 12; then 5 + 3 + 11, and the server's 7.
    assert spent == pytest.approx([40, 40 + 19, 40 + 19 + 19 + 7])
    assert clock.total(rows[0], OWN) == pytest.approx(85)
    assert list(clock.places) == [OWN, "office", "home", "phone"]
    ends = [clock.total(rows[0], place) or 0 for place in ("office", "home", "phone")]
    assert ends == sorted(ends), "a phone is slower than an office"
    assert ends[0] == pytest.approx(5 * 0.005, rel=0.01), "five messages, each with its latency"


def test_what_nobody_knows_is_measured_or_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", "fedllm", 1, tiny_metrics(0.5, 0.6, 0.8), tiny_messages())
    rows = summarise(read_runs(folder))
    link = {"up": "80", "down": "80"}
    measured = clock_of(rows, {"client": {"link": link}})
    # Without the speed of a device, clients compute as long as they did: 1, 2 and 3 s.
    assert measured.total(rows[0], OWN) == pytest.approx(40 + 19 + 19, rel=1e-6)
    assert OWN not in clock_of(rows, {"client": {"device": {"flops": 1}}}).places
    by_tier = {"tiers": {"slow": {"device": {"flops": 1000}}}, **SLOW}
    config = {
        "framework": {"name": "fedllm"},
        "tiers": {"slow": {"clients": ["client-*"], "link": {"up": 80, "down": 80}}},
    }
    tiered = write_run(
        tmp_path / "b", "fedllm", 1, tiny_metrics(0.5, 0.6, 0.8), tiny_messages(), config=config
    )
    rows = summarise(read_runs(tiered))
    assert clock_of(rows, by_tier).total(rows[0], OWN) == pytest.approx(78)


def test_where_clients_do_not_tell_what_they_compute_there_are_no_times(tmp_path: Path) -> None:
    """As in a private run: those of the messages alone would be taken for the whole."""
    lines = [{**line, "flops": None, "seconds": None} for line in tiny_messages()]
    folder = write_run(tmp_path / "a", "fedllm", 1, tiny_metrics(0.5, 0.6, 0.8), lines)
    assert not clock_of(summarise(read_runs(folder)), SLOW).places


@pytest.mark.parametrize(
    "late",
    [
        {"fleet": {"take": 2}},
        {"fleet": {"over_sample": 1.5}},
        {"framework": {"name": "fedllm", "asynchronous": {"buffer": 2}}},
    ],
)
def test_where_clients_may_be_late_a_run_says_itself_when_its_rounds_end(
    tmp_path: Path, late: dict[str, Any]
) -> None:
    """Elsewhere others would be late; nobody knows who."""
    metrics = tiny_metrics(0.5, 0.6, 0.8)
    for line, at in zip(metrics, (0.0, 7.0, 9.5), strict=True):
        line["simulated_seconds"] = at
    config = {"framework": {"name": "fedllm"}, **late, "plan": SLOW}
    folder = write_run(tmp_path / "a", "fedllm", 1, metrics, tiny_messages(), config=config)
    rows = summarise(read_runs(folder))
    clock = clock_of(rows, places_of(rows))
    assert [*clock.places] == [OWN]
    assert [clock.spent(OWN)(rows[0].counted[0], index) for index in (0, 1, 2)] == [0.0, 7.0, 9.5]
    assert not clock_of(rows).places
    assert rows[0].values["simulated_seconds"].mean == 9.5


def test_page_and_picture_show_the_times(tmp_path: Path) -> None:
    folder = tiny_compare(tmp_path / "c")
    (folder / "about.yaml").write_text(yaml.safe_dump({"plan": SLOW}))
    page = write_report(folder).read_text(encoding="utf-8")
    for place in (OWN, "office", "home", "phone"):
        assert f'value="time {place}"' in page
    assert (folder / "plots" / "time.png").is_file()
    rows = summarise(read_runs(folder))
    clock = clock_of(rows, SLOW)
    found = charts(rows, {place: clock.spent(place) for place in clock.places})
    moving, level = found["curves"][f"time {OWN}"]["accuracy"]
    assert moving["x"] == pytest.approx([40, 59, 78])
    assert level["level"] == 0.5, "what sends nothing has no place along the axis"
    columns, lines = results(rows, (), timed(rows, clock))
    at = [column.title for column in columns].index(f"Time, {OWN}")
    assert [line.cells[at].text for line in lines] == ["78.0 s", "–"]
    with quiet_style():
        figure = plot_times(rows, clock)
    assert figure is not None
    title = plotted_measures(rows)[0].title
    assert [axes.get_title("left") for axes in figure.axes] == [
        f"{title}, {place}" for place in clock.places
    ]


def test_a_recipe_names_its_places() -> None:
    arms = {"arms": {"fedllm": {"framework": "fedllm"}}}
    plan = {"client": {"link": {"up": "1Mbit"}}, "data": {"examples": 3}}
    words = {"plan": {"client": {"link": {"down": "2Mbit"}}}}
    found = comparison({**arms, "plan": plan}, words)
    assert found.told()["plan"]["client"]["link"] == {"up": 1e6, "down": 2e6, "latency": 0.0}
    assert "plan" not in found.base, "it is no setting of an arm"
    (config,) = found.experiments().values()
    assert config.plan.client.link == PaperLink(up=1e6, down=2e6), "runs take their clock from it"
    tuned = {**arms, "plan": plan, "tuning": {"seed": 9, "grid": {"training.batch_size": [8, 4]}}}
    (trial, _) = tuning_of(tuned, words).experiments().values()
    assert trial.plan == config.plan
    assert "plan" not in comparison(arms, {}).told()
    for wrong, why in (
        ({"clinet": {}}, "clinet"),
        ({"client": {"link": {"up": "much"}}}, "quantity"),
    ):
        with pytest.raises(UserError, match=why):
            comparison({**arms, "plan": wrong}, {})
