"""Before its first round a client shows that its part is that of the server's model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import checkpoint
from tiny import federation, run_rounds
from trillium.experiment.run import Experiment, resident_model
from trillium.federation.failed import RoundFailed

ONE_LESS = ("fleet.min_replies=1", "fleet.on_failure=stop")
WHERE = {
    "model.embed_tokens": "the embeddings",
    "layers.0.self_attn.o_proj": "block 0",
    "layers.1.mlp.up_proj": "block 1",
    "lm_head": "the last part",
}


def split(hub: Path, *words: str, **options: Any) -> Experiment:
    folder = checkpoint(hub, "llama", "CAUSAL_LM")
    own = (f"model.id={folder}", "model.random_weights=false", "framework=split", "framework.cut=2")
    return federation(hub, *own, *words, model="llama", task="causal_lm", **options)


def alter(fed: Experiment, place: str, by: float) -> None:
    """Give the second client a model of its own, of which one tensor is another."""
    client = fed.clients[1]
    ends = fed.config.framework.ends(client.tier)
    client.model = resident_model(fed.config.of(client.name), fed.data.labels, ends)
    [tensor] = [p for n, p in client.model.module.named_parameters()
                if place in n and "lora" not in n]  # fmt: skip
    with torch.no_grad():
        tensor.mul_(1 + by)


@pytest.mark.parametrize("place", WHERE)
def test_who_holds_other_weights_is_told_where_they_differ(
    hub: Path, place: str, uncounted: None
) -> None:
    fed = split(hub, "framework.shape=u", *ONE_LESS)
    alter(fed, place, 1e-3)
    run_rounds(fed, 1)
    assert [*fed.fleet.missing] == ["client-1"]
    reason = fed.fleet.missing["client-1"]
    assert f"what {WHERE[place]} answers differs" in reason
    assert fed.server.store["agreed"] == ["client-0", "client-2"]
    every = split(hub, "framework.shape=u")
    alter(every, place, 1e-3)
    with pytest.raises(RoundFailed, match="not that of the server's model"):
        run_rounds(every, 1)


def test_rounding_is_no_difference_and_each_client_is_asked_once(hub: Path) -> None:
    fed = split(hub, "model.dtype=float32")
    alter(fed, "layers.1.mlp.up_proj", 1e-7)
    run_rounds(fed, 2)
    assert not fed.fleet.missing
    entries = [e for e in fed.fleet.ledger.entries if e.verb == "probe_part"]
    assert {e.purpose for e in entries} == {"once"}
    assert {e.round for e in entries} == {1}
    assert sorted(e.client for e in entries) == sorted(2 * [client.name for client in fed.clients])
