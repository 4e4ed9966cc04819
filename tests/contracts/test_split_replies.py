"""What a client answers in a split is checked before use: a wrong answer drops the client."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tiny import federation
from trillium.federation.client import Client
from trillium.wire.message import Message, scalar

pytestmark = pytest.mark.usefixtures("uncounted")

WRONG = [
    ("begin", "control/num_steps", scalar(1e12), "at most 2 are agreed"),
    ("begin", "control/num_steps", scalar(1.5), "no number of steps"),
    ("finish_batch", "control/squared_norm", scalar(-1.0), "below zero"),
    ("finish_batch", "gradients/output", torch.zeros(1, 1).double(), "gradients/output is"),
    ("finish_batch", "gradients/output", torch.zeros(3).double(), "gradients/output is"),
    ("backward", "control/squared_norm", scalar(-1.0), "below zero"),
    ("backward", "control/squared_norm", scalar(float("nan")), "NaN"),
    ("forward", "control/count", scalar(1e9), "predictions, where"),
    ("forward", "control/lengths", torch.full((1,), 10**6).int(), "rows of"),
    ("forward", "control/lengths", torch.full((10**4,), 4).int(), "10000 rows"),
    ("forward", "control/lengths", torch.zeros(2).int(), "rows of 0"),
    ("forward", "activations/hidden", torch.zeros(7, 5).double(), "activations/hidden is"),
    ("finish", "control/weight", scalar(0.0), "not above zero"),
]
WRONG_ONCE = [
    ("list_samples", "control/digests", torch.zeros(3, 4, dtype=torch.uint8), "control/digests is"),
    ("list_samples", "control/digests", torch.zeros(2, 16), "control/digests is"),
    ("send_activations", "control/lengths", torch.ones(3).int(), "3 samples, asked for"),
    ("send_activations", "activations/rows", torch.zeros(7, 12).double(), "activations/rows is"),
    ("send_activations", "labels/labels", torch.zeros(2).int(), "labels/labels is"),
]
WRONG_KEPT = [
    (
        "send_activations",
        "control/counts",
        torch.full((200,), 99).int(),
        "control/counts does not fit",
    ),
    ("send_activations", "control/counts", "above", "more predictions than there can be"),
    ("send_activations", "control/counts", "below", "more predictions than there can be"),
    ("begin", "control/num_steps", scalar(1.0), "1 steps with samples that make"),
]


@pytest.mark.parametrize(("verb", "name", "tensor", "reason"), WRONG)
def test_a_wrong_answer_drops_the_client_and_not_the_run(
    hub: Path, verb: str, name: str, tensor: torch.Tensor, reason: str
) -> None:
    lied(hub, verb, name, tensor, reason, "framework.shape=u")


@pytest.mark.parametrize(("verb", "name", "tensor", "reason"), WRONG_ONCE)
def test_so_does_a_wrong_upload(
    hub: Path, verb: str, name: str, tensor: torch.Tensor, reason: str
) -> None:
    lied(hub, verb, name, tensor, reason, "framework.train=server")


@pytest.mark.parametrize(("verb", "name", "tensor", "reason"), WRONG_KEPT)
def test_and_a_wrong_upload_without_labels(
    hub: Path, verb: str, name: str, tensor: torch.Tensor | str, reason: str
) -> None:
    lied(hub, verb, name, tensor, reason, "framework.train=server", "framework.shape=u")


def lied(
    hub: Path, verb: str, name: str, tensor: torch.Tensor | str, reason: str, *words: str
) -> None:
    fed = federation(hub, "framework=split", "fleet.min_replies=2", "rounds=1", *words)
    (bad,) = [client for client in fed.clients if client.name == "client-1"]
    honest = bad.verbs[verb]

    def lie(client: Client, message: Message) -> Message:
        reply = honest(client, message)
        assert name in reply.tensors
        wrong = {"above": reply.tensors[name] + 99, "below": -reply.tensors[name]}
        false = wrong[tensor] if isinstance(tensor, str) else tensor
        return replace(reply, tensors={**reply.tensors, name: false})

    bad.verbs = {**bad.verbs, verb: lie}
    line = fed.run()[-1]
    assert set(line["missing"]) == {"client-1"}
    assert reason in line["missing"]["client-1"]
    assert all(bool(torch.isfinite(p).all()) for p in fed.server.state.values())
