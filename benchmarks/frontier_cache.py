"""Compute of a BERT classifier only what a run with adapters in the last blocks cannot do without.

The blocks before the adapters give the same hidden states in every step of every run: `PrefixCache`
computes them once for each distinct text and keeps them in a file that processes map into memory. Of
the last block the classifier reads the first token alone, so its other rows are left out.
`cached_prefix` puts both in place; the logits stay the same, which `check_cached` checks.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from trillium.models.load import LanguageModel
from trillium.tasks import Example
from trillium.tasks.batches import by_length, collate
from trillium.wire.kinds import Tensors

BATCH = 64  # texts at once
TOLERANCE = 1e-4  # of logits, between looked-up and computed


class _PassThrough(nn.Module):
    """Stands for a block whose work the look-up has done."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the hidden states as they came."""
        return hidden_states


class _Lookup(nn.Module):
    """Stands for the embeddings; gives the hidden states after the last frozen block.

    Args:
        hidden: states of all texts, one after another, and one row of zeros in the end
            `(tokens + 1, hidden)`.
        places: by token ids, where a text's states begin.
        pad_id: token id of padding.
    """

    def __init__(self, hidden: Tensor, places: Mapping[bytes, int], pad_id: int) -> None:
        super().__init__()
        self._hidden, self._places, self._pad_id = [hidden], places, pad_id  # no state of a module

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Tensor:
        """Return hidden states `(batch, seq, hidden)`; zeros at padding, which the mask hides."""
        hidden = self._hidden[0]
        index = torch.full_like(input_ids, len(hidden) - 1)
        lengths = (input_ids != self._pad_id).sum(1).tolist()
        for row, length in enumerate(lengths):
            start = self._places[key(input_ids[row, :length])]
            index[row, :length] = torch.arange(start, start + length)
        return hidden[index]


def key(token_ids: Tensor) -> bytes:
    """Return what a text is known by."""
    return token_ids.to(torch.int32).numpy().tobytes()


class PrefixCache:
    """Hidden states after the first blocks, by token ids.

    Args:
        hidden: `(tokens + 1, hidden)`, see `_Lookup`.
        token_ids: `(tokens,)`.
        lengths: tokens of each text.
        depth: how many blocks are looked up.
    """

    def __init__(self, hidden: Tensor, token_ids: Tensor, lengths: Tensor, depth: int) -> None:
        self.depth, self._hidden = depth, hidden
        self._places: dict[bytes, int] = {}
        start = 0
        for length in lengths.tolist():
            self._places[key(token_ids[start : start + length])] = start
            start += length

    @classmethod
    def of(
        cls, model: LanguageModel, depth: int, examples: Iterable[Example], folder: Path
    ) -> PrefixCache:
        """Return the cache of these texts, from a file of this content or computed and written.

        Args:
            model: a BERT classifier, frozen up to block `depth`.
            depth: how many blocks to look up.
            examples: the texts.
            folder: of the file.
        """
        distinct = {key(example.input_ids): example for example in examples}
        texts = [distinct[known] for known in sorted(distinct)]  # whoever has them
        digest = hashlib.blake2b(b"".join(sorted(distinct)), digest_size=8)
        for name, tensor in _prefix_weights(model, depth).items():
            digest.update(f"{name} {tuple(tensor.shape)} {float(tensor.double().sum())!r}".encode())
        path = folder / f"prefix_{depth}_{digest.hexdigest()}.safetensors"
        if not path.is_file():
            found = _compute(model, depth, texts)
            folder.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(f".{os.getpid()}")  # another process may write it, too
            save_file(found, unfinished)
            unfinished.rename(path)
        found = load_file(path)
        return cls(found["hidden"], found["token_ids"], found["lengths"], depth)

    def lookup(self, pad_id: int) -> nn.Module:
        """Return what stands for the embeddings."""
        return _Lookup(self._hidden, self._places, pad_id)


@contextmanager
def cached_prefix(model: LanguageModel, cache: PrefixCache) -> Iterator[None]:
    """Within the block, the model looks up its first blocks, and ends with the first token.

    The blocks keep their places, so that names of parameters stay as they are.
    """
    encoder = _encoder(model)
    embeddings, blocks = encoder.embeddings, list(encoder.encoder.layer)
    encoder.embeddings = cache.lookup(model.tokenizer.pad_token_id)
    for index in range(cache.depth):
        encoder.encoder.layer[index] = _PassThrough()
    blocks[-1].forward = partial(_first_token, blocks[-1])
    try:
        yield
    finally:
        del blocks[-1].forward
        encoder.embeddings = embeddings
        for index, block in enumerate(blocks):
            encoder.encoder.layer[index] = block


def _first_token(
    block: Any, hidden_states: Tensor, attention_mask: Tensor | None, *args: Any, **kwargs: Any
) -> Tensor:
    """Return what a BERT block says of the first token, `(batch, 1, hidden)`."""
    attention, first = block.attention.self, hidden_states[:, :1]

    def heads(rows: Tensor) -> Tensor:
        split = rows.reshape(*rows.shape[:2], -1, attention.attention_head_size)
        return split.transpose(1, 2)

    context = functional.scaled_dot_product_attention(
        heads(attention.query(first)),
        heads(attention.key(hidden_states)),
        heads(attention.value(hidden_states)),
        attn_mask=None if attention_mask is None else attention_mask[:, :, :1],
    )
    found = block.attention.output(context.transpose(1, 2).flatten(2), first)
    result: Tensor = block.output(block.intermediate(found), found)
    return result


def check_cached(model: LanguageModel, cache: PrefixCache, examples: Sequence[Example]) -> float:
    """Return the largest difference of logits between looked-up and computed prefix.

    Adapters are filled with random numbers first: at their start they change nothing.

    Raises:
        SystemExit: the difference is above 1e-4.
    """
    draw = torch.Generator().manual_seed(0)
    state = {n: t + 0.02 * torch.randn(t.shape, generator=draw) for n, t in model.initial.items()}
    module = model.mount(model.state(state)).eval()
    inputs = collate(examples, model.tokenizer.pad_token_id, model.device).inputs
    with torch.inference_mode():
        expected = module(**inputs).logits
        with cached_prefix(model, cache):
            found = module(**inputs).logits
    model.mount(model.state())
    difference = float((expected - found).abs().max())
    if not difference <= TOLERANCE:
        raise SystemExit(f"the cached prefix changes logits by {difference:.1e}")
    return difference


def _encoder(model: LanguageModel) -> Any:
    """Return the `BertModel` inside."""
    found = next((m for n, m in model.module.named_modules() if n.endswith(".bert")), None)
    assert found is not None, "the look-up is made for BERT"
    return found


def _prefix_weights(model: LanguageModel, depth: int) -> Tensors:
    encoder = _encoder(model)
    parts = nn.ModuleList([encoder.embeddings, *encoder.encoder.layer[:depth]])
    assert not any(p.requires_grad for p in parts.parameters()), "a block of the prefix trains"
    return dict(parts.named_parameters())


@torch.inference_mode()
def _compute(model: LanguageModel, depth: int, texts: Sequence[Example]) -> Tensors:
    """Return hidden states, token ids and lengths of all texts, in their order."""
    encoder, pad_id = _encoder(model), model.tokenizer.pad_token_id
    model.module.eval()
    caught: list[Tensor] = []
    hook = encoder.encoder.layer[depth].register_forward_pre_hook(
        lambda module, inputs: caught.append(inputs[0])
    )
    rows: dict[int, Tensor] = {}
    try:
        numbered = [Example(i, e.input_ids, e.labels) for i, e in enumerate(texts)]
        for chunk in by_length(numbered, BATCH):
            caught.clear()
            encoder(**collate(chunk, pad_id, model.device).inputs)
            for example, states in zip(chunk, caught[0], strict=True):
                rows[example.index] = states[: len(example.input_ids)].cpu()
    finally:
        hook.remove()
    return {
        "hidden": torch.cat(
            [*(rows[i] for i in range(len(texts))), rows[0].new_zeros(1, rows[0].shape[1])]
        ),
        "token_ids": torch.cat([e.input_ids.to(torch.int32) for e in texts]),
        "lengths": torch.tensor([len(e.input_ids) for e in texts], dtype=torch.int32),
    }
