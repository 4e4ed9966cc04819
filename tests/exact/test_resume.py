"""A run that was killed after any round and resumed equals the one that was not, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from resumed import Killed, assert_resumes, killed_in, trained
from tiny import experiment_config
from trillium.config.experiment import ExperimentConfig
from trillium.experiment.folder import RunFolder, is_finished
from trillium.experiment.run import build
from variants import VARIANTS, Variant, cases

ROUNDS = 3
# One for each thing that is kept from one round to the next.
FAST = ("fedllm server adam", "fedllm change, cohort", "fedllm scaffold", "fedllm fedex",
        "fedllm stack", "fedllm local", "kd", "kd cached, cohort", "split u", "split relay",
        "split cache of a cohort", "split kept u, v2 of a cohort", "split delta, skips",
        "split local rounds", "fedkseed", "fedllm buffered",
        "local_only ridge of a cohort", "centralised")  # fmt: skip
each = pytest.mark.parametrize(
    "variant", cases(FAST, lambda v: v.framework != "zero_shot" and v.repeats, every=6)
)


def config_of(hub: Path, variant: Variant) -> ExperimentConfig:
    words = (*variant.dropout, *variant.words, f"rounds={ROUNDS}")
    return experiment_config(hub, *words, model=variant.model, task=variant.task)


@each
def test_killed_in_every_round_and_resumed(hub: Path, tmp_path: Path, variant: Variant) -> None:
    assert_resumes(config_of(hub, variant), tmp_path)


def test_killed_at_the_very_end_and_resumed(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is written and the run not yet called finished."""
    config = config_of(hub, VARIANTS["fedllm server adam"])
    cut = build(config, RunFolder(tmp_path / "cut", "cut"))
    say = RunFolder.status

    def dying(folder: RunFolder, state: str, error: str | None = None) -> None:
        if state == "finished":
            raise Killed
        say(folder, state, error)

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "status", dying)
        with pytest.raises(Killed):
            cut.run()
    adapter = tmp_path / "cut" / "adapter" / "adapter_model.safetensors"
    written = adapter.read_bytes()
    assert len(build(config, RunFolder.reopen(tmp_path / "cut")).run()) == ROUNDS + 1
    assert adapter.read_bytes() == written
    assert is_finished(tmp_path / "cut")


def test_without_the_checkpoint_it_would_differ(hub: Path, tmp_path: Path) -> None:
    """The control: the optimiser's moments are needed for equality."""
    config = config_of(hub, VARIANTS["centralised"])
    whole = build(config)
    whole.run()
    killed_in(build(config, RunFolder(tmp_path / "cut", "cut")), 2)
    again = build(config, RunFolder.reopen(tmp_path / "cut"))
    again.server.store.clear()
    again.run()
    assert not all(torch.equal(t, trained(again)[n]) for n, t in trained(whole).items())
