"""What the server of a split could recover, measured with its own model on held-out texts."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from trillium.federation.fleet import Fleet
from trillium.federation.server import Server
from trillium.frameworks.split.leakage import measure, observe
from trillium.frameworks.split.leakage.labels import norm_auc
from trillium.frameworks.split.settings import SplitSettings
from trillium.models.parts import Parts
from trillium.tasks.batches import by_tokens, collate
from trillium.wire.message import Message

TEXTS: Final = 500  # most that are attacked, and most that the attacker trains on


def leakage(
    split: SplitSettings, server: Server, fleet: Fleet, batch_tokens: int
) -> dict[str, float]:
    """Return what is recovered of held-out texts, which stand for those of the clients.

    The attacker trains on the public set. Activations pass the defence and the codecs of the run.
    """
    parts = split.parts(server.model, server.test)
    parts.head.mount(server.state)
    verb = "send_activations" if split.caches(parts) else "forward"

    def channel(rows: Tensor) -> Tensor:
        sent = split.defence.apply(rows, server.secret)
        message = Message(verb, {"activations/rows": sent}, {"round": server.round})
        return fleet.wire.preview(message, "up").seen.tensors["activations/rows"]

    tokenizer = server.model.tokenizer
    private, public = (
        observe(parts, examples[:TEXTS], tokenizer.pad_token_id, batch_tokens, channel)
        for examples in (server.test, server.public)
    )
    words = parts.split.head.embeddings()
    found = measure(private, public, words, tokenizer.all_special_ids, server.seed)
    if split.shape == "u" and server.task.data_form == "classification":
        norms, labels = _gradient_norms(server, parts, batch_tokens)
        found["label_norm_auc"] = norm_auc(norms, labels)
    return found


def _gradient_norms(server: Server, parts: Parts, batch_tokens: int) -> tuple[Tensor, Tensor]:
    """Return the norm of the gradient that each held-out text would send up, and the labels."""
    split = parts.split
    assert split.tail is not None, "only in the U shape labels stay with the client"
    for slots in (parts.head, parts.body, parts.tail):
        slots.mount(server.state)
    norms, labels = [], []
    for chunk in by_tokens(server.test[:TEXTS], batch_tokens):
        batch = collate(chunk, server.model.tokenizer.pad_token_id, server.model.device)
        with torch.no_grad():
            hidden = split.head.eval()(None, **batch.inputs)
            output = split.body.eval()(hidden, attention_mask=batch.attention_mask)
        output.requires_grad_()
        loss, _ = server.task.loss(split.tail.eval()(output, **batch.inputs), batch.labels)
        [gradient] = torch.autograd.grad(loss, [output])
        squares = gradient.double().square().flatten(1).sum(1)
        norms.append(squares.sqrt().cpu())
        labels.append(batch.labels.cpu())
    return torch.cat(norms), torch.cat(labels)
