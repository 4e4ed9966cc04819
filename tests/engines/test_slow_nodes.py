"""Nodes that are slow, over real sessions: who is first makes the round, and no answer is lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

from distributed_help import asked
from test_hung import LONG, SHORT, quick, reason, two, until

from deployed import ledger, lines_of, metrics, run_in_threads
from tiny import experiment_config
from trillium.engines.patience import OWES, Patience
from trillium.engines.settings import Settings
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import build
from trillium.federation.parts import Lost

quick = quick  # of all tests here
ASK = b"ask"


def test_who_is_left_out_is_asked_again_when_it_has_answered(keys: Path) -> None:
    with two(keys, Patience(0.0, LONG)) as (made, work, here):
        replies = made.carry(dict.fromkeys("ab", ASK))
        assert next(replies) == ("a", ASK)
        del replies  # the round has what it needs
        assert made.gather(1).present == {"a"}
        assert asked(made, "b")["b"] == Lost(OWES, sent=False)
        assert made.save(1).held == {"a": 1}
        assert made.late() == []
        work.go.set()
        until(lambda: not made._sessions.owing)
        assert made.late() == [("b", len(ASK))]
        assert made.gather(2).present == {"a", "b"}
        assert here.told == [["settle", 0]]  # its state is that of its last answer


def test_who_is_at_work_is_so_while_rounds_go_by(keys: Path) -> None:
    with two(keys, Patience(0.0, LONG)) as (made, work, here):
        made.launch(dict.fromkeys("ab", ASK))
        assert next(made.arrivals()) == ("a", ASK)
        assert made.save(1).held == {"a": 1}
        for number in (2, 3):
            assert made.gather(1).present == {"a"}
            assert asked(made, "b")["b"] == Lost(OWES, sent=False)  # as when all are to measure
            made.launch({"a": ASK})
            assert next(made.arrivals()) == ("a", ASK)
            assert made.save(number).held == {"a": number}
        assert here.told == [["settle", 0]]  # nobody interrupts it
        work.go.set()
        assert [*made.arrivals()] == [("b", ASK)]
        assert made.gather(2).present == {"a", "b"}
        assert made.late() == []
        assert work.asks == 1


def test_who_takes_too_long_over_rounds_is_late(keys: Path) -> None:
    with two(keys, Patience(0.0, SHORT)) as (made, work, _):
        made.launch(dict.fromkeys("ab", ASK))
        found = dict(made.arrivals())
        assert found["a"] == ASK
        assert reason(found["b"]) == f"no reply within {SHORT:g} s"
        made.launch({"b": ASK})
        assert [*made.arrivals()] == [("b", Lost(OWES, sent=False))]
        work.go.set()
        until(lambda: not made._sessions.owing)
        assert made.late() == [("b", len(ASK))]


def test_a_round_that_does_not_count_gives_up_what_is_under_way(keys: Path) -> None:
    with two(keys, Patience(0.0, LONG)) as (made, work, here):
        made.launch({"b": ASK})
        made.restore(0, {})
        assert [*made.arrivals()] == []
        work.go.set()
        until(lambda: not made._sessions.owing)
        assert made.gather(2).present == {"a", "b"}
        assert here.told[-1] == ["restore", 0]
        made.launch({"b": ASK})
        assert [*made.arrivals()] == [("b", ASK)]


def test_a_buffer_of_all_nodes_is_a_synchronous_round(
    hub: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(experiment_config(hub), RunFolder(tmp_path / "local", "local")).run()
    config = experiment_config(hub, "framework.asynchronous.buffer=3")
    run_in_threads(config, keys, RunFolder(tmp_path / "nodes", "nodes"), monkeypatch)
    crossed = [_bytes(ledger(tmp_path / name)) for name in ("nodes", "local")]
    assert crossed[0] == crossed[1]
    weights = (tmp_path / name / "adapter/adapter_model.safetensors" for name in ("nodes", "local"))
    assert len({path.read_bytes() for path in weights}) == 1


def _bytes(crossed: dict[str, list[dict[str, Any]]]) -> dict[str, list[tuple[Any, ...]]]:
    return {
        name: [(e["round"], e["direction"], e["bytes"], e["flops"]) for e in entries]
        for name, entries in crossed.items()
    }


def test_answers_make_later_rounds_where_they_are_late(
    hub: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = experiment_config(hub, "framework.asynchronous.buffer=2", "rounds=5")
    run = run_in_threads(config, keys, RunFolder(tmp_path / "nodes", "nodes"), monkeypatch)
    entries = lines_of(tmp_path / "nodes" / "wire.jsonl")
    sent, came = (
        Counter(e["client"] for e in entries if e["direction"] == w) for w in ("down", "up")
    )
    assert sent == came + Counter([*run.fleet.under_way])
    assert came.total() == 2 * 5
    lines = metrics(tmp_path / "nodes")[1:]
    assert [line["replied"] for line in lines] == [2] * 5
    assert lines[0]["staleness"] == 0
    assert max(line["staleness"] for line in lines) > 0


def test_a_deadline_of_the_run_is_kept_in_a_deployment(hub: Path) -> None:
    given: dict[str, Any] = {field: "x" for field in Settings.model_fields}
    given |= {"deadline_seconds": 60.0, "grace_seconds": 5.0, "wait_seconds": 1.0}
    settings = Settings.model_construct(**{**given, "round_seconds": 600.0})
    config = experiment_config(hub, "fleet={deadline_seconds: 7, min_replies: 2}")
    found = settings.patience(config)
    assert found.deadline_seconds == 7.0
    assert found.grace is not None
    buffered = experiment_config(hub, "framework.asynchronous.buffer=2", "fleet.min_replies=2")
    assert settings.patience(buffered).grace is None
    assert settings.patience(buffered).deadline_seconds == 60.0
