"""Recover tokens from activations: by the nearest embedding, or by one layer that is trained for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from trillium.rng import generator

_CHUNK = 256  # rows that are held against the whole vocabulary at once


def nearest_tokens(rows: Tensor, words: Tensor) -> Tensor:
    """Return the ids `(tokens,)` of the embeddings nearest to activations, by cosine.

    Args:
        rows: activations `(tokens, width)`.
        words: embeddings `(vocabulary, width)`.
    """
    if rows.shape[1] != words.shape[1]:  # embeddings narrower than the blocks: nothing to compare
        return torch.full((len(rows),), -1, device=rows.device)
    units = functional.normalize(words, dim=-1)
    found = [(chunk @ units.T).argmax(-1) for chunk in torch.split(rows, _CHUNK)]
    return torch.cat(found)


class Inverter:
    """One linear layer from activations into the space of embeddings, trained on texts one has.

    Least squares give the start, and AdamW on the cross-entropy of the tokens goes on from it; since
    the layer ends in embeddings, it can name tokens that its texts lack.

    Args:
        rows: activations `(tokens, width)` of the attacker's texts.
        words: embeddings `(vocabulary, width)`.
    """

    def __init__(
        self, rows: Tensor, tokens: Tensor, words: Tensor, seed: int, num_steps: int = 200
    ) -> None:
        self._words = functional.normalize(words, dim=-1)
        self._mean, self._deviation = rows.mean(0), rows.std(0).clamp(min=1e-6)
        inputs, targets = self._inputs(rows), self._words[tokens]
        gram = inputs.T @ inputs + 1e-2 * len(rows) * torch.eye(inputs.shape[1]).to(rows)
        weight = nn.Parameter(torch.linalg.solve(gram, inputs.T @ targets))
        scale = nn.Parameter(torch.tensor(10.0, device=rows.device))
        optimizer = torch.optim.AdamW([weight, scale], lr=1e-2, weight_decay=0.0)
        draw = generator(seed, "inverter")
        for _ in range(num_steps):
            batch = torch.randint(len(rows), (min(_CHUNK, len(rows)),), generator=draw).to(tokens)
            logits = scale * (inputs[batch] @ weight) @ self._words.T
            optimizer.zero_grad()
            functional.cross_entropy(logits, tokens[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        self._weight = weight.detach()

    def tokens(self, rows: Tensor) -> Tensor:
        """Return the ids that the activations are most probably of."""
        found = [
            (self._inputs(chunk) @ self._weight @ self._words.T).argmax(-1)
            for chunk in torch.split(rows, _CHUNK)
        ]
        return torch.cat(found)

    def _inputs(self, rows: Tensor) -> Tensor:
        """Return standardised rows with a one behind each."""
        return functional.pad((rows - self._mean) / self._deviation, (0, 1), value=1.0)


def rouge_l(found: Sequence[int], wanted: Sequence[int]) -> float:
    """Return the F1 of the longest common subsequence (ROUGE-L, Lin, 2004)."""
    if not found or not wanted:
        return 0.0
    lengths = [0] * (len(wanted) + 1)
    for token in found:
        before = 0
        for place, other in enumerate(wanted, start=1):
            above = lengths[place]
            lengths[place] = before + 1 if token == other else max(above, lengths[place - 1])
            before = above
    return 2 * lengths[-1] / (len(found) + len(wanted))
