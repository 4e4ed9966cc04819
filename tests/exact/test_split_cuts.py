"""Clients with fewer blocks than others: the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import EXACT, distance, federation, perturb, run_rounds
from trillium.errors import UserError
from trillium.experiment.run import Experiment

CASES = [("gpt2", "classification"), ("bert", "classification"), ("llama", "causal_lm")]
THIN = "tiers={thin: {clients: [client-1], cut: 1}}"


def split(hub: Path, *words: str, **options: Any) -> Experiment:
    own = ("framework=split", "framework.cut=2", "framework.train=server")
    return perturb(federation(hub, *own, *words, **options))


def flops(fed: Experiment) -> dict[str, float]:
    entries = [e for e in fed.fleet.ledger.entries if e.verb == "send_activations"]
    return {c.name: sum(e.flops or 0.0 for e in entries if e.client == c.name) for c in fed.clients}


@pytest.mark.parametrize(("model", "task"), CASES)
def test_the_server_runs_the_blocks_that_a_thin_client_lacks(
    hub: Path, model: str, task: str
) -> None:
    alike, mixed = (split(hub, *words, model=model, task=task) for words in ((), (THIN,)))
    losses = [[f["train_loss"] for f in run_rounds(fed, 2)] for fed in (alike, mixed)]
    assert distance(alike.server.state, mixed.server.state) < EXACT[model]
    assert losses[0] == pytest.approx(losses[1], abs=EXACT[model])
    moved = {n for n, p in mixed.server.state.items() if not torch.equal(p, mixed.model.initial[n])}
    assert not any(block in name for name in moved for block in (".0.", ".1.attn", "layers.1."))
    # The control: what the thin client sent is not what the others would have.
    ours, theirs = (fed.server.scratch["cache"] for fed in (alike, mixed))
    pools = zip(ours.pool(), theirs.pool(), strict=True)
    same = [torch.equal(ours.rows([one]), theirs.rows([two])) for one, two in pools]
    number = len(mixed.clients[0].examples)
    thin = range(number, number + len(mixed.clients[1].examples))
    assert [place not in thin for place in range(len(same))] == same
    before, after = flops(alike), flops(mixed)
    assert after["client-1"] < 0.6 * before["client-1"]
    assert after["client-0"] == before["client-0"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("framework.train=both",), "where these are frozen"),
        (("framework.cache=false",), "where these are frozen"),
        (("framework.cut=1", "tiers.thin.cut=2"), "at most 1"),
        (("framework.local_rounds=1",), "at all clients"),
        (("framework=kd",), "only split divides"),
    ],
)
def test_what_cannot_differ_is_refused(hub: Path, words: tuple[str, ...], why: str) -> None:
    with pytest.raises(UserError, match=why):
        split(hub, THIN, *words)


def test_dropout_is_refused(hub: Path) -> None:
    with pytest.raises(UserError, match="different each time"):
        run_rounds(split(hub, THIN, "model.dropout=0.1"), 1)
