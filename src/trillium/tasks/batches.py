"""Padding and batching: the one place where examples become tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from trillium.tasks import IGNORE, Batch, Example

MULTIPLE = 8  # lengths are rounded up, so that few distinct shapes occur and costs can be cached
WINDOW = 50  # batches; wide enough to group lengths, narrow enough to mix the data


class Sized(Protocol):
    """What can be grouped by length."""

    @property
    def num_tokens(self) -> int:
        """How long it is."""


T = TypeVar("T", bound=Sized)


def padded(length: int) -> int:
    """Return the length that a batch with a longest example of `length` tokens is padded to."""
    return -(-length // MULTIPLE) * MULTIPLE


def padding(chunks: Iterable[Sequence[Example]]) -> float:
    """Return the share of padding among the tokens of batches."""
    taken, made = 0, 0
    for chunk in chunks:
        lengths = [len(text.input_ids) for example in chunk for text in example.texts]
        taken, made = taken + sum(lengths), made + padded(max(lengths)) * len(lengths)
    return 1 - taken / max(made, 1)


def collate(
    examples: Sequence[Example], pad_id: int, device: torch.device, *, exact: bool = False
) -> Batch:
    """Pad examples on the right to the next multiple of eight, or the longest if it is to be exact."""
    texts = [text for example in examples for text in example.texts]
    lengths = [len(text.input_ids) for text in texts]
    length = max(lengths) if exact else padded(max(lengths))
    is_text = torch.arange(length) < torch.tensor(lengths)[:, None]

    def in_rows(tokens: list[Tensor], fill: int) -> Tensor:
        found = tokens[0].new_full((*is_text.shape, *tokens[0].shape[1:]), fill)
        found[is_text] = torch.cat(tokens)
        return found

    input_ids = in_rows([text.input_ids for text in texts], pad_id)
    labels = [text.labels for text in texts]
    targets = in_rows(labels, IGNORE) if labels[0].dim() == 1 else torch.stack(labels)
    indices = tuple(example.index for example in examples)
    rows = [text.known() for text in texts if text.known is not None]
    known = in_rows(rows, 0).to(device) if len(rows) == len(texts) else None
    return Batch(
        input_ids.to(device), is_text.long().to(device), targets.to(device), indices, known
    )


def of_texts(
    texts: Iterable[str], labels: Iterable[Tensor], tokenizer: Any, max_length: int | None
) -> list[Example]:
    """Return whole texts with their labels as examples."""
    if not (known := list(texts)):
        return []
    options = {"truncation": max_length is not None, "max_length": max_length}
    encoded = tokenizer(known, **options, verbose=False)["input_ids"]
    return [
        Example(index, torch.tensor(tokens), label)
        for index, (tokens, label) in enumerate(zip(encoded, labels, strict=True))
    ]


def outputs(
    module: nn.Module, examples: Sequence[Example], pad_id: int, batch_tokens: int
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield batches of examples with the logits that a model gives them."""
    device = next(module.parameters()).device
    for chunk in by_tokens(examples, batch_tokens):
        batch = collate(chunk, pad_id, device)
        yield batch, module(**batch.inputs).logits


def epoch(examples: Sequence[T], batch_size: int, generator: torch.Generator) -> Iterator[list[T]]:
    """Yield the examples once in random batches.

    Examples of similar length share a batch, so that little is spent on padding: the shuffled
    examples are sorted by length within windows of fifty batches, and the batches shuffled again.
    """
    whole, rest = divmod(len(examples), batch_size)
    yield from of_sizes(examples, [batch_size] * whole + [rest] * (rest > 0), generator)


def of_sizes(
    examples: Sequence[T], sizes: Sequence[int], generator: torch.Generator
) -> Iterator[list[T]]:
    """Yield random batches of these sizes as `epoch` does; no example comes again before all have."""
    drawn: list[int] = []
    first = 0
    while first < len(sizes):
        last, total = first, 0  # the batches of about one epoch
        while last < len(sizes) and total < len(examples):
            last, total = last + 1, total + sizes[last]
        while len(drawn) < total:
            drawn += torch.randperm(len(examples), generator=generator).tolist()
        chunks: list[list[T]] = []
        for start in range(first, last, WINDOW):
            window = sizes[start : min(start + WINDOW, last)]
            inside = [examples[index] for index in drawn[: sum(window)]]
            ordered = iter(sorted(inside, key=lambda example: example.num_tokens))
            chunks += [list(islice(ordered, size)) for size in window]
            drawn = drawn[sum(window) :]
        for index in torch.randperm(len(chunks), generator=generator).tolist():
            yield chunks[index]
        first = last


def in_order(examples: Sequence[T], batch_size: int) -> Iterator[list[T]]:
    """Yield the examples once in batches, in their order."""
    for start in range(0, len(examples), batch_size):
        yield list(examples[start : start + batch_size])


def by_length(examples: Sequence[Example], batch_size: int) -> Iterator[list[Example]]:
    """Yield the examples once in batches of similar length, for inference."""
    ordered = sorted(examples, key=lambda example: (len(example.input_ids), example.index))
    yield from in_order(ordered, batch_size)


def by_tokens(examples: Sequence[Example], most: int) -> Iterator[list[Example]]:
    """Yield the examples once in batches of similar length and of at most so many tokens."""
    ordered = sorted(examples, key=lambda example: (example.num_tokens, example.index))
    most //= len(ordered[0].texts) if ordered else 1
    for place in spans([example.num_tokens for example in ordered], most):
        yield ordered[place]


def spans(lengths: Sequence[int], most: int) -> Iterator[slice]:
    """Yield texts in their order as batches of at most so many tokens, padding among them.

    A text that has more is a batch of its own.
    """
    start, longest = 0, 0
    for place, length in enumerate(lengths):
        longest = max(longest, padded(length))
        if place > start and (place + 1 - start) * longest > most:
            yield slice(start, place)
            start, longest = place, padded(length)
    if lengths:
        yield slice(start, len(lengths))


def of_similar_length(examples: Sequence[T], batch_size: int) -> Iterator[list[T]]:
    """Yield the examples once in batches of which at most a fifth is padding, short ones first."""
    chunk: list[T] = []
    for example in sorted(examples, key=lambda example: example.num_tokens):
        if chunk and (len(chunk) == batch_size or 4 * example.num_tokens > 5 * chunk[0].num_tokens):
            yield chunk
            chunk = []
        chunk.append(example)
    if chunk:
        yield chunk


def of_one_length(examples: Sequence[Example], batch_size: int) -> Iterator[list[Example]]:
    """Yield the examples once in batches that need no padding: those of one have the same length."""
    ordered = sorted(examples, key=lambda example: (len(example.input_ids), example.index))
    for _, same in groupby(ordered, key=lambda example: len(example.input_ids)):
        yield from in_order(list(same), batch_size)
