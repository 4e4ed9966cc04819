"""What it is to resume: a run that is killed in each of its rounds equals the one that was not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trillium.config.experiment import ExperimentConfig
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import Experiment, build
from trillium.federation.side import Metrics


class Killed(BaseException):
    """What a process that is killed would never get to handle."""


def dying_at(number: int) -> Callable[[Metrics], None]:
    """What is told of evaluations, and dies with that of a round."""

    def dying(line: Metrics) -> None:
        if line["round"] == number:
            raise Killed

    return dying


def dies_in(cut: Experiment, owner: type, name: str) -> None:
    """Run, and die when a method is called."""

    def killed(*_: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(Killed):
            cut.run()


def trained(fed: Experiment) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in fed.server.state.items()}


def lines(folder: Path, name: str, *drop: str) -> list[dict[str, object]]:
    found = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in drop} for line in found]


def killed_in(fed: Experiment, number: int) -> None:
    """Run, and die in the middle of a round, after some messages have crossed."""
    engine = fed.fleet.engine
    carry, crossed = engine.carry, list[object]()

    def dying(requests):  # type: ignore[no-untyped-def]
        for reply in carry(requests):
            if fed.server.round == number and (crossed or len(requests) == 1):
                raise Killed  # a round may take no answer after the first
            crossed.extend([reply] if fed.server.round == number else [])
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


def assert_resumes(config: ExperimentConfig, folder: Path, *, peaks: float = 0.01) -> None:
    """Kill a run in each of its rounds, resume it, and hold it bit for bit to one that was let be."""
    whole = build(config, RunFolder(folder / "whole", "whole"))
    history = whole.run()

    again = build(config, RunFolder(folder / "cut", "cut"))
    for number in range(1, config.rounds + 1):
        killed_in(again, number)
        again = build(config, RunFolder.reopen(folder / "cut"))
        assert again.server.round == number - 1
    resumed = again.run()

    assert [line["round"] for line in resumed] == [line["round"] for line in history]
    for name, tensor in trained(whole).items():
        assert torch.equal(tensor, trained(again)[name]), name
    for client, other in zip(whole.clients, again.clients, strict=True):
        assert same(client.store, other.store), client.name
    for name in ("wire.jsonl", "metrics.jsonl"):
        wanted = lines(folder / "whole", name, "seconds")
        # Which client's batch of a shape is measured depends on where it goes on.
        for line in wanted:
            if peak := line.get("peak_bytes"):
                line["peak_bytes"] = pytest.approx(peak, rel=peaks)
        assert lines(folder / "cut", name, "seconds") == wanted
    assert not (folder / "cut" / "checkpoints").exists()
    assert json.loads((folder / "cut" / "status.json").read_text())["resumed"] == config.rounds


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
