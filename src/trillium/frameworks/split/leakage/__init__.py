"""What activations at a cut give away, measured with attacks that anybody could run.

They are lower bounds: somebody with more text and time recovers more (BiSR, Chen et al., 2024, arXiv
2409.00960). The attacker is the server: it knows the client's blocks and has text of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trillium.frameworks.split.leakage.correlation import distance_correlation
from trillium.frameworks.split.leakage.tokens import Inverter, nearest_tokens, rouge_l
from trillium.frameworks.split.ragged import strip
from trillium.models.parts import Parts
from trillium.tasks import Example
from trillium.tasks.batches import by_tokens, collate

Channel = Callable[[Tensor], Tensor]
"""Gives what the server reads of activations `(tokens, width)`: after defences and codecs."""


@dataclass(frozen=True)
class Seen:
    """Activations as the server reads them, and what they were made of.

    Attributes:
        rows: `(tokens, width)`, one text after the other.
        tokens: their ids `(tokens,)`.
    """

    rows: Tensor
    tokens: Tensor
    lengths: tuple[int, ...]


@torch.no_grad()
def observe(
    parts: Parts, examples: Sequence[Example], pad_id: int, batch_tokens: int, channel: Channel
) -> Seen:
    """Return what the server reads of some texts."""
    head = parts.split.head.eval()
    device = next(head.parameters()).device
    rows, tokens, lengths = [], [], []
    for chunk in by_tokens(examples, batch_tokens):
        batch = collate(chunk, pad_id, device)
        hidden = head(None, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        rows.append(channel(strip(hidden, batch.attention_mask)).float().to(device))
        tokens.append(strip(batch.input_ids, batch.attention_mask))
        lengths += [example.num_tokens for example in chunk]
    return Seen(torch.cat(rows), torch.cat(tokens), tuple(lengths))


def measure(
    private: Seen, public: Seen, words: Tensor, trivial: Sequence[int], seed: int
) -> dict[str, float]:
    """Return what is recovered of private texts.

    Args:
        words: the word embeddings `(vocabulary, width)`.
        trivial: ids of tokens that stand in every text, which do not count.

    Returns:
        `nearest_accuracy`: tokens whose embedding is the nearest to the activation; `inverter_accuracy`
        and `inverter_rouge_l`: of a layer trained on the public texts; `distance_correlation` of
        activations and embeddings. All from 0 to 1.
    """
    words = words.detach().float()
    counts = ~torch.isin(private.tokens, torch.tensor(list(trivial)).to(private.tokens))
    inverter = Inverter(public.rows, public.tokens, words, seed)
    nearest, inverted = nearest_tokens(private.rows, words), inverter.tokens(private.rows)
    texts = [
        rouge_l(found[kept].tolist(), wanted[kept].tolist())
        for found, wanted, kept in zip(
            torch.split(inverted, list(private.lengths)),
            torch.split(private.tokens, list(private.lengths)),
            torch.split(counts, list(private.lengths)),
            strict=True,
        )
        if bool(kept.any())
    ]
    return {
        "nearest_accuracy": _share(nearest == private.tokens, counts),
        "inverter_accuracy": _share(inverted == private.tokens, counts),
        "inverter_rouge_l": sum(texts) / max(len(texts), 1),
        "distance_correlation": distance_correlation(private.rows, words[private.tokens], seed),
    }


def _share(hits: Tensor, counts: Tensor) -> float:
    return float((hits & counts).sum() / counts.sum().clamp(min=1))
