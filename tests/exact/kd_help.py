"""What the tests of KD-FedLLM share: predictions and distillation, written out in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tiny import plain_batch, plain_steps, trained
from trillium.tasks import IGNORE, Example
from trillium.tasks.batches import epoch

T = 3.0  # temperature


def wanted_rows(module: nn.Module, examples: list[Example]) -> Tensor:
    """Logits that speak about a response, example after example, as float32: what is sent."""
    found = []
    for example in examples:
        inputs, labels = plain_batch([example])
        with torch.no_grad():
            answer = module.eval()(**inputs).logits
        if labels.dim() == 2:
            answer = answer[0, :-1][labels[0, 1:] != IGNORE]
        found.append(answer.float())
    return torch.cat(found)


def distil(
    module: nn.Module, public: list[Example], teacher: Tensor, draw: torch.Generator, size: int
) -> None:
    """One epoch of distillation, written out."""
    counts = [int((e.labels[1:] != IGNORE).sum()) if e.labels.dim() else 1 for e in public]
    ends = torch.tensor(counts).cumsum(0).tolist()
    rows = {e.index: teacher[end - n : end] for e, n, end in zip(public, counts, ends, strict=True)}

    def loss(model: nn.Module, chunk: list[Example]) -> Tensor:
        inputs, labels = plain_batch(chunk)
        answer = model(**inputs).logits
        if labels.dim() == 2:
            answer = answer[:, :-1][labels[:, 1:] != IGNORE]
        p = torch.cat([rows[e.index] for e in chunk]).double()
        log_q = (answer / T).log_softmax(-1)
        found: Tensor = T**2 * (p * (p.log() - log_q)).sum() / len(p)
        return found

    chunks: Iterator[list[Example]] = epoch(public, size, draw)
    optimizer = torch.optim.AdamW(trained(module).values(), lr=0.01, weight_decay=0.0)
    plain_steps(module.train(), chunks, optimizer, 0.5, loss)
