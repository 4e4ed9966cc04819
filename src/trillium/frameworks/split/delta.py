"""Delta coding at the cut: of a sample that was there before, only the change of it crosses.

AQ-SGD (Wang et al., 2022, arXiv 2206.01299): client and server hold the same copy of each sample's
activations; the client sends the coded difference to it, and both sides add what the codec lets
through. As training settles, differences shrink, and so does what a codec of few bits gets wrong.
SplitCom (2026, arXiv 2602.10564) sends nothing for a sample that has hardly changed.

Gradients on the way down may be coded, too: what the codec takes from the gradient of a sample is
added to that sample's next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from trillium.wire.feedback import Feedback
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message
from trillium.wire.wire import Wire

HIDDEN: Final = "activations/hidden"
GRADIENT: Final = "gradients/hidden"
SAMPLES: Final = "control/samples"  # of a batch: the client's own numbers, int32 `(rows,)`
FORMS: Final = "control/forms"  # of each row, uint8 `(rows,)`: one of the following
SKIPPED, CHANGED, FRESH = 0, 1, 2


class Delta(BaseModel):
    """How activations are sent as changes.

    Attributes:
        skip: a sample is not sent if its activations differ from the copy by less than this share
            of their norm; 0 sends all. In a round after one whose loss did not fall, all are sent.
        max_skips: how often in a row a sample may be left out.
        feedback: how much of what the codecs took from a sample's gradient is added to its next one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    skip: float = Field(default=0.0, ge=0, lt=1)
    max_skips: int = Field(default=4, ge=1)
    feedback: float = Field(default=1.0, ge=0, le=1)

    def threshold(self, losses: Sequence[float]) -> float:
        """Return the share below which this round's samples are not sent."""
        rising = len(losses) > 1 and not losses[-1] < losses[-2]
        return 0.0 if rising else self.skip


class Copies:
    """One side's copies of activations; both sides' are equal to the last bit.

    The copies of a client and of the server could part where a reply is lost, so both count the batches
    that went into them, and begin anew where the counts differ.

    Args:
        store: what is kept between rounds; written to.
    """

    def __init__(self, store: dict[str, Any]) -> None:
        self._store = store
        store.setdefault("count", 0)
        self._rows: dict[int, Tensor] = store.setdefault("rows", {})
        self._skips: dict[int, int] = store.setdefault("skips", {})

    @property
    def count(self) -> int:
        """Batches that went into the copies."""
        return int(self._store["count"])

    def agree(self, count: int) -> None:
        """Forget everything, unless the other side counts as many batches."""
        if count != self.count:
            self._rows.clear()
            self._skips.clear()
            self._store["count"] = count

    def write(
        self,
        rows: Sequence[Tensor],
        samples: Sequence[int],
        wire: Wire,
        number: int,
        delta: Delta,
        threshold: float,
    ) -> Message:
        """Return what tells the server the activations of a batch, and bring the copies up to date.

        Args:
            rows: activations `(tokens, width)` of each sample.
            threshold: shares of change below which a sample is not sent.
        """
        forms, changes = [], []
        for sample, row in zip(samples, rows, strict=True):
            copy = self._rows.get(sample)
            if copy is None:
                forms.append(FRESH)
                changes.append(row)
            elif self._may_skip(sample, row, copy, delta, threshold):
                forms.append(SKIPPED)
            else:
                forms.append(CHANGED)
                changes.append(row - copy.to(row))
        tensors = {
            SAMPLES: torch.tensor(samples, dtype=torch.int32),
            FORMS: torch.tensor(forms, dtype=torch.uint8),
            HIDDEN: torch.cat(changes) if changes else rows[0][:0],
        }
        previewed = wire.preview(Message("forward", tensors, {"round": number}), "up")
        self._add(samples, forms, [len(row) for row in rows], previewed.seen.tensors[HIDDEN])
        return previewed.message

    def read(self, message: Message, lengths: Sequence[int], width: int) -> Tensor:
        """Return the activations `(tokens, width)` of a batch, and bring the copies up to date.

        Raises:
            MessageError: the message does not fit the lengths or the copies.
        """
        samples = message.tensor(SAMPLES, torch.int32, (len(lengths),)).tolist()
        forms = message.tensor(FORMS, torch.uint8, (len(lengths),)).tolist()
        for sample, form, length in zip(samples, forms, lengths, strict=True):
            has = sample in self._rows and len(self._rows[sample]) == length
            if form not in (SKIPPED, CHANGED, FRESH) or (form != FRESH and not has):
                raise MessageError(f"{message.verb}: sample {sample} in form {form}")
        if len(set(samples)) < len(samples):
            raise MessageError(f"{message.verb}: a sample is twice in a batch")
        sent = sum(n for n, form in zip(lengths, forms, strict=True) if form != SKIPPED)
        self._add(samples, forms, lengths, message.floats(HIDDEN, (sent, width)))
        return torch.cat([self._rows[sample] for sample in samples])

    def _may_skip(
        self, sample: int, row: Tensor, copy: Tensor, delta: Delta, threshold: float
    ) -> bool:
        if threshold <= 0 or self._skips.get(sample, 0) >= delta.max_skips:
            return False
        return float((row - copy.to(row)).norm()) < threshold * float(row.norm())

    def _add(
        self, samples: Sequence[int], forms: Sequence[int], lengths: Sequence[int], seen: Tensor
    ) -> None:
        """Add the changes `(tokens, width)` as the server reads them."""
        start = 0
        for sample, form, length in zip(samples, forms, lengths, strict=True):
            self._skips[sample] = self._skips.get(sample, 0) + 1 if form == SKIPPED else 0
            if form == SKIPPED:
                continue
            change = seen[start : start + length].cpu()
            self._rows[sample] = self._rows[sample] + change if form == CHANGED else change.clone()
            start += length
        self._store["count"] += 1


def compensated(
    store: dict[str, Any],
    share: float,
    gradient: Tensor,
    samples: Sequence[int],
    lengths: Sequence[int],
    wire: Wire,
    number: int,
) -> Message:
    """Return the gradient to send, with what was lost of earlier ones, and remember what will be lost.

    Args:
        store: what was lost of one client's samples; written to.
        gradient: of a batch's activations, `(tokens, width)`.
    """
    if not share or wire.is_lossless("gradients", "down"):
        return Message("backward", {GRADIENT: gradient})
    feedback = Feedback(store, share)
    names = [str(sample) for sample in samples]
    rows = torch.split(gradient, list(lengths))
    wanted = feedback.add(dict(zip(names, rows, strict=True)))
    sent = torch.cat([wanted[key] for key in names])
    previewed = wire.preview(Message("backward", {GRADIENT: sent}, {"round": number}), "down")
    seen = torch.split(previewed.seen.tensors[GRADIENT].to(sent), list(lengths))
    feedback.keep(wanted, dict(zip(names, seen, strict=True)))
    return previewed.message
