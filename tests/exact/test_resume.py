"""A run that was killed after any round and resumed equals the one that was not, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tiny import experiment_config
from trillium.config.experiment import ExperimentConfig
from trillium.experiment.folder import RunFolder, is_finished
from trillium.experiment.run import Experiment, build
from variants import VARIANTS, Variant, cases

ROUNDS = 3
# One for each thing that is kept from one round to the next.
FAST = ("fedllm server adam", "fedllm change, cohort", "fedllm scaffold", "fedllm fedex",
        "fedllm stack", "fedllm local", "kd", "kd cached, cohort", "split u", "split relay",
        "split cache of a cohort", "split kept u, v2 of a cohort", "split delta, skips",
        "split local rounds", "fedkseed", "local_only ridge of a cohort", "centralised")  # fmt: skip
each = pytest.mark.parametrize("variant", cases(FAST, lambda v: v.framework != "zero_shot"))


def config_of(hub: Path, variant: Variant) -> ExperimentConfig:
    words = (*variant.dropout, *variant.words, f"rounds={ROUNDS}")
    return experiment_config(hub, *words, model=variant.model, task=variant.task)


class Killed(BaseException):
    """What a process that is killed would never get to handle."""


def trained(fed: Experiment) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in fed.server.state.items()}


def lines(folder: Path, name: str, *drop: str) -> list[dict[str, object]]:
    found = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in drop} for line in found]


def killed_in(fed: Experiment, number: int) -> None:
    """Run, and die in the middle of a round, after some messages have crossed."""
    engine = fed.fleet.engine
    carry = engine.carry

    def dying(requests):  # type: ignore[no-untyped-def]
        for count, reply in enumerate(carry(requests)):
            if fed.server.round == number and count == 1:
                raise Killed
            yield reply
        if fed.server.round == number:
            raise Killed

    engine.carry = dying  # type: ignore[method-assign]
    if fed.config.framework.name == "centralised":  # which asks nobody
        fit = type(fed.server).loop

        def loop(side, label, state):  # type: ignore[no-untyped-def]
            if side.round == number:
                raise Killed
            return fit(side, label, state)

        fed.server.loop = loop.__get__(fed.server)  # type: ignore[method-assign]
    with pytest.raises(Killed):
        fed.run()


@each
def test_killed_in_every_round_and_resumed(hub: Path, tmp_path: Path, variant: Variant) -> None:
    config = config_of(hub, variant)
    whole = build(config, RunFolder(tmp_path / "whole", "whole"))
    history = whole.run()

    again = build(config, RunFolder(tmp_path / "cut", "cut"))
    for number in range(1, ROUNDS + 1):
        killed_in(again, number)
        again = build(config, RunFolder.reopen(tmp_path / "cut"))
        assert again.server.round == number - 1
    resumed = again.run()

    assert [line["round"] for line in resumed] == [line["round"] for line in history]
    for name, tensor in trained(whole).items():
        assert torch.equal(tensor, trained(again)[name]), name
    for client, other in zip(whole.clients, again.clients, strict=True):
        assert same(client.store, other.store), client.name
    for name in ("wire.jsonl", "metrics.jsonl"):
        wanted = lines(tmp_path / "whole", name, "seconds")
        assert lines(tmp_path / "cut", name, "seconds") == wanted
    assert not (tmp_path / "cut" / "checkpoints").exists()
    assert json.loads((tmp_path / "cut" / "status.json").read_text())["resumed"] == ROUNDS


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


def same(one: object, two: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and torch.equal(one, two)
    if isinstance(one, dict):
        return (
            isinstance(two, dict)
            and one.keys() == two.keys()
            and all(same(one[key], two[key]) for key in one)
        )
    if isinstance(one, list | tuple):
        return isinstance(two, list | tuple) and all(
            same(first, second) for first, second in zip(one, two, strict=True)
        )
    return one == two
