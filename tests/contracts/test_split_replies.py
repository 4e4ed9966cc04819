"""What a client answers in a split is checked before use: a wrong answer drops the client."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tiny import federation
from trillium.client import Client
from trillium.message import Message, scalar

WRONG = [
    ("begin", "control/num_steps", scalar(1e12), "no number of steps"),
    ("begin", "control/num_steps", scalar(2.5), "no number of steps"),
    ("finish_batch", "control/squared_norm", scalar(-1.0), "below zero"),
    ("finish_batch", "gradients/output", torch.zeros(1, 1, 1).double(), "a gradient of"),
    ("finish_batch", "gradients/output", torch.zeros(3).double(), "gradients/output is"),
    ("backward", "control/squared_norm", scalar(-1.0), "below zero"),
    ("backward", "control/squared_norm", scalar(float("nan")), "NaN"),
    ("forward", "control/count", scalar(1e9), "predictions in"),
    ("finish", "control/weight", scalar(0.0), "not above zero"),
]


@pytest.mark.parametrize(("verb", "name", "tensor", "reason"), WRONG)
def test_a_wrong_answer_drops_the_client_and_not_the_run(
    hub: Path, verb: str, name: str, tensor: torch.Tensor, reason: str
) -> None:
    words = ("framework=split", "framework.shape=u", "fleet.min_replies=2", "rounds=1")
    fed = federation(hub, *words)
    (bad,) = [client for client in fed.clients if client.name == "client-1"]
    honest = bad.verbs[verb]

    def lie(client: Client, message: Message) -> Message:
        reply = honest(client, message)
        assert name in reply.tensors
        return replace(reply, tensors={**reply.tensors, name: tensor})

    bad.verbs = {**bad.verbs, verb: lie}
    line = fed.run()[-1]
    assert set(line["missing"]) == {"client-1"}
    assert reason in line["missing"]["client-1"]
    assert all(bool(torch.isfinite(p).all()) for p in fed.server.state.values())
