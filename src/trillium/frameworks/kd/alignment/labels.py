"""Soft labels of one vocabulary and tokenisation in terms of another."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trillium.frameworks.kd.alignment.sequence import Alignment
from trillium.frameworks.kd.alignment.vocabulary import Vocabularies, VocabularyMap
from trillium.wire.codecs.rows import LEAST
from trillium.wire.soft_labels import SoftLabels, Writer, chunks, summed


def translate(log_probs: Tensor, vocabulary: VocabularyMap) -> tuple[Tensor, Tensor]:
    """Return distributions over the target's tokens, `(rows, target classes)`, none below `LEAST`.

    A token of the target has the mass of all tokens that are mapped to it. So much of what a
    distribution says is kept as the two vocabularies share: where the source would say " tokenization"
    at once and the target " token" first, the mass goes where the map says, and nowhere else. The mass
    of tokens without counterpart is spread evenly over `vocabulary.free`, and returned, `(rows,)`.
    """
    log_probs = log_probs.clamp(min=LEAST)
    index = vocabulary.index.to(log_probs.device)
    mapped = index >= 0
    lost = log_probs[:, ~mapped].logsumexp(-1)  # minus infinity of nothing
    own, places = log_probs[:, mapped], index[mapped]
    found = summed(own, places, vocabulary.num_targets)
    if not bool(mapped.all()):
        free = vocabulary.free.to(found.device)
        share = (lost - math.log(len(free)))[:, None]
        found[:, free] = torch.logaddexp(found[:, free], share)
    return found, lost.exp()


@dataclass(frozen=True, eq=False)
class Translated:
    """Soft labels in the target's tokens.

    Attributes:
        labels: one row for each of the target's; uniform where nothing is present.
        present: whether the source has such a row, bool `(target rows,)`.
        lost: the probability that the source gives to tokens without counterpart, float32
            `(target rows,)`; 0 where nothing is present.
    """

    labels: SoftLabels
    present: Tensor
    lost: Tensor

    def __str__(self) -> str:
        """Say what could not be translated, in a line for logs."""
        count = int(self.present.sum())
        lost = float(self.lost.sum()) / max(count, 1)
        return (
            f"{count} of {len(self.present)} predictions aligned; "
            f"{lost:.2%} of their mass on tokens without counterpart"
        )


def translate_labels(
    labels: SoftLabels,
    alignment: Alignment,
    vocabularies: Vocabularies,
    writer: Writer,
) -> Translated:
    """Translate the source's soft labels, some rows at a time; the writer is of the target's form."""
    rows = alignment.rows
    maps = {spaces: vocabularies.map(spaces) for spaces in set(alignment.spaces.tolist())}
    lost = labels.records.new_zeros(len(rows), dtype=torch.float32)
    num_targets = vocabularies.num_targets
    # Decoded rows and theirs in the making, then the same for the target.
    for part in chunks(len(rows), labels.num_classes + num_targets, copies=3):
        shape = part.stop - part.start, num_targets
        found = lost.new_full(shape, -math.log(num_targets))
        here = alignment.spaces[part].where(alignment.present[part], 2)
        for spaces, vocabulary in maps.items():
            own = (here == spaces).nonzero()[:, 0]
            if len(own):
                source = labels.take(rows[part][own])
                found[own], missing = translate(source, vocabulary)
                lost[part][own] = missing
        writer.add(found)
    return Translated(writer.done(), alignment.present, lost)
