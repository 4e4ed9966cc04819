"""The benchmark that holds plans to ledgers: a few of its cases, and it notices a wrong plan."""

from __future__ import annotations

import importlib
import itertools
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("plan_ledger")


def test_a_few_cases_keep_the_limits(benchmark: ModuleType, tmp_path: Path) -> None:
    assert benchmark.main(["--count", "3", "--seed", "1", "--results", str(tmp_path)]) == 0
    assert "| bytes | 2% |" in (tmp_path / "plan_ledger.md").read_text(encoding="utf-8")


def test_the_same_seed_draws_the_same_cases(benchmark: ModuleType) -> None:
    first, again, other = (
        [*itertools.islice(benchmark.draw_cases(seed), 40)] for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other
    assert len({case.label for case in first}) == 40


def test_a_plan_that_is_off_breaks_a_limit(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = benchmark.predict

    def wrong(*words: Any) -> Any:
        plan = predict(*words)
        return replace(plan, server_flops=1.2 * plan.server_flops + 1.0)

    monkeypatch.setattr(benchmark, "predict", wrong)
    assert benchmark.main(["--count", "1", "--seed", "1", "--results", str(tmp_path)]) == 1


def test_what_a_run_may_leave_out_is_no_deviation(benchmark: ModuleType) -> None:
    line = benchmark.Line("bytes", "up", 120.0, 100.0, 120.0, 120.0)
    assert line.is_broken
    assert not replace(line, may_be_less=True).is_broken
    assert replace(line, may_be_less=True, measured=130.0).is_broken
    assert not replace(line, low=90.0).is_broken
