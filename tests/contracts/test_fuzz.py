"""A few dozen configurations drawn at random: each is refused in time, or keeps its promises.

`benchmarks/fuzz_settings.py` draws as many as one likes; a finding of it is repeated by its seed.
"""

from __future__ import annotations

import importlib
import random
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DRAWS = 24


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr("trillium.experiment.run.new_secret", lambda: bytes(32).hex())
    return importlib.import_module("fuzz_settings")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(DRAWS))
def test_what_is_drawn_is_refused_or_keeps_its_promises(
    fuzz: ModuleType, hub: Path, tmp_path: Path, seed: int
) -> None:
    base, tree = fuzz.drawn(hub, random.Random(seed))
    verdict = fuzz.judge(tree, tmp_path)
    assert not verdict.startswith("finding"), f"{verdict}\n{fuzz.differences(base, tree)}"


def test_a_run_that_does_not_repeat_is_a_finding(
    fuzz: ModuleType, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = iter(range(10))
    monkeypatch.setattr(fuzz, "print_of", lambda _: next(numbers))
    base, _ = fuzz.drawn(hub, random.Random(0))
    assert fuzz.judge(base, tmp_path).startswith("finding: ")
