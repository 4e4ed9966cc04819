"""What stands on the screen while runs go on: how far they are, within a round too, at any width."""

import io

import pytest
from rich.console import Console

from trillium.api.screen import Screen
from trillium.wire.ledger import Entry

KEY = ("fedllm", 0)


def message() -> Entry:
    return Entry(1, "client-0", "train", "up", "train", 1000, 1000, {"update": 1000})


def line(number: int, **measures: float) -> dict[str, object]:
    return {"round": number, "missing": {}, "asked": 2, "seconds": 1.0, "loss": 2.0, **measures}


def drawn(screen: Screen, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    screen._console = console
    with console.capture() as captured:
        console.print(screen._render())
    return captured.get().splitlines()


@pytest.fixture
def screen() -> Screen:
    made = Screen(Console(quiet=True), {KEY: 4})
    made.begin(*KEY)
    return made


def test_a_run_is_being_loaded_until_something_is_measured(screen: Screen) -> None:
    assert "loading" in drawn(screen, 100)[-1]
    screen.observe(KEY, line(0, accuracy=0.1))
    assert "loading" not in drawn(screen, 100)[-1]


def test_the_bar_moves_within_a_round(screen: Screen) -> None:
    screen.observe(KEY, line(0, accuracy=0.1))
    for _ in range(4):
        screen.watch(KEY, message())
    screen.observe(KEY, line(1, accuracy=0.2))
    shares = [screen._done()]
    for _ in range(6):
        screen.watch(KEY, message())
        shares.append(screen._done())
    assert shares == [(1, 1.0), (1, 1.25), (1, 1.5), (1, 1.75), (1, 2.0), (1, 2.0), (1, 2.0)]
    assert "1/4 rounds" in drawn(screen, 100)[-1]
    assert "left" in drawn(screen, 100)[-1]


def test_rounds_that_are_not_evaluated_count(screen: Screen) -> None:
    screen.observe(KEY, line(2, accuracy=0.2))
    screen.observe(KEY, line(4, accuracy=0.2))
    assert screen._done() == (4, 4)
    assert "left" not in drawn(screen, 100)[-1]


def test_a_run_that_is_gone_on_with_has_not_taken_the_time_of_its_first_rounds(
    screen: Screen,
) -> None:
    screen.observe(KEY, line(3, accuracy=0.2))
    assert "left" not in drawn(screen, 100)[-1]


@pytest.mark.parametrize("width", [50, 60, 80, 120])
def test_nothing_is_cut_at_any_width(screen: Screen, width: int) -> None:
    screen.observe(KEY, line(4, accuracy=0.25, train_loss=1.5))
    shown = drawn(screen, width)
    assert all(len(text) <= width for text in shown)
    assert not any("…" in text for text in shown)
    assert any("25.0 %" in text and "4/4" in text for text in shown)


def test_the_measure_is_named_as_it_is(screen: Screen) -> None:
    screen.observe(KEY, line(1, token_accuracy=0.5))
    assert "token accuracy" in drawn(screen, 120)[0]
