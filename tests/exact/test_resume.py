"""A run that was killed after any round and resumed equals the one that was not, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tiny import experiment_config
from trillium.experiment.folder import RunFolder, is_finished
from trillium.experiment.run import Experiment, build

ROUNDS = 3
WORDS = {
    "fedllm": ("framework=fedllm", "framework.server_optimizer={name: adam, lr: 0.1}"),
    "fedllm coded": ("framework=fedllm", "framework.download=change", "fleet.clients_per_round=2",
                     "wire.up=[sign]", "wire.down=[int4]"),
    "fedllm scaffold": ("framework=fedllm", "framework.drift=scaffold"),
    "fedllm folding": ("framework=fedllm", "framework.aggregator=fedex"),
    "fedllm restarting": ("framework=fedllm", "framework.aggregator=stack"),
    "fedllm local": ("framework=fedllm", "framework.local=[lora_B, head]"),
    "fedllm gradient": ("framework=fedllm", "framework.upload=gradient"),
    "kd": ("framework=kd", "framework.direction=both"),
    "kd partial": ("framework=kd", "fleet.clients_per_round=2"),
    "kd cached": ("framework=kd", "framework.cache_rounds=2", "framework.public_per_round=8",
                  "wire.down=[{name: top_classes, k: 2}]", "fleet.clients_per_round=2"),
    "split relay": ("framework=split", "framework.mode=relay"),
    "split v1": ("framework=split", "framework.mode=splitfed_v1", "framework.shape=u"),
    "split v2": ("framework=split", "framework.mode=splitfed_v2"),
    "split coalesced": ("framework=split", "framework.mode=coalesced"),
    "split cached": ("framework=split", "framework.train=server", "model.dropout=0",
                     "wire.up=[int4]", "model.dtype=float32", "fleet.clients_per_round=2"),
    "split kept": ("framework=split", "framework.train=server", "framework.shape=u",
                   "framework.mode=splitfed_v2", "model.dropout=0", "wire.up=[int4]",
                   "model.dtype=float32", "fleet.clients_per_round=2"),
    "split delta": ("framework=split", "framework.delta={skip: 0.3}", "model.dropout=0",
                    "wire.up=[int4]", "wire.down=[int8]", "model.dtype=float32"),
    "split local first": ("framework=split", "framework.train=server", "model.dropout=0",
                          "framework.local_rounds=1", "model.dtype=float32", "wire.up=[int8]"),
    "fedkseed": ("framework=fedkseed", "training.local_steps=3"),
    "ridge partial": ("framework=local_only", "head=ridge", "fleet.clients_per_round=2"),
    "local_only": ("framework=local_only",),
    "centralised": ("framework=centralised",),
}  # fmt: skip
DROPOUT = ("model.dropout=0.2", f"rounds={ROUNDS}")  # what comes later may switch it off


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


@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS.keys())
def test_killed_in_a_round_and_resumed(
    hub: Path, tmp_path: Path, words: tuple[str, ...], number: int
) -> None:
    config = experiment_config(hub, *DROPOUT, *words)
    whole = build(config, RunFolder(tmp_path / "whole", "whole"))
    history = whole.run()

    killed_in(build(config, RunFolder(tmp_path / "cut", "cut")), number)
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
    assert json.loads((tmp_path / "cut" / "status.json").read_text())["resumed"] == 1


def test_killed_at_the_very_end_and_resumed(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is written and the run not yet called finished."""
    config = experiment_config(hub, *WORDS["fedllm"], *DROPOUT)
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
    config = experiment_config(hub, *WORDS["centralised"], *DROPOUT)
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
