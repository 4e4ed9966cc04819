"""Distillation: predictions as soft labels, and the loss that brings a student to a teacher.

Hinton et al. (2015, arXiv 1503.02531).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from trillium.frameworks.kd.last_layer import before_vocabulary, ends_in_vocabulary
from trillium.frameworks.kd.public import row_slices
from trillium.tasks import IGNORE, Batch, Example, Task
from trillium.tasks.batches import collate, in_order
from trillium.training.loop import Loop, Objective
from trillium.training.meters import resident_tensors
from trillium.wire.soft_labels import SoftLabels, Teacher, Writer, chunks, rows_of, summed

PREDICT_BATCH = 32  # examples at once when predictions are computed; changes memory, not results
WIDE = 8192  # classes from which logits of whole batches are avoided; changes memory, not results


@dataclass(frozen=True)
class Loss:
    """What the loss is: `weight * distillation_loss`, and cross-entropy on labels if asked for."""

    temperature: float
    weight: float = 1.0
    use_labels: bool = False


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    named: Tensor | None = None,
    classes: Tensor | None = None,
) -> Tensor:
    """Return `T^2 * KL(teacher || softmax(student / T))`, summed over rows.

    Args:
        student: logits `(rows, classes)`.
        teacher: log-probabilities `(rows, classes)` at the temperature; no gradient flows into them.
        temperature: T; the factor T^2 keeps the gradient's size when T changes (Hinton et al., 2015).
        named: which classes the teacher tells apart, bool `(rows, classes)`; the others count as one,
            on both sides, which can only lower the divergence.
        classes: the teacher's class of each class of the student, -1 for none, int64 `(student's
            classes,)`; both sides are compared given that one of the classes is meant that both have.
    """
    wide = student if student.dtype == torch.float64 else student.float()
    log_student = functional.log_softmax(wide / temperature, dim=-1)
    log_teacher = teacher.detach().to(wide)
    if classes is not None:
        log_student, shared = _regrouped(log_student, classes.to(wide.device))
        log_teacher = log_teacher[:, shared].log_softmax(-1)
        named = None if named is None else named.to(wide.device)[:, shared]
    if named is not None:
        named = named.to(wide.device)
        log_student, log_teacher = _merged(log_student, named), _merged(log_teacher, named)
    divergence = functional.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    return divergence * temperature**2


def _regrouped(log_probs: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return a student's distributions over the teacher's classes that it has, and which these are."""
    has = classes >= 0
    shared, places = torch.unique(classes[has], return_inverse=True)
    return summed(log_probs[:, has], places, len(shared)).log_softmax(-1), shared


def _merged(log_probs: Tensor, named: Tensor) -> Tensor:
    """Return the named classes, the others with no mass, and one more class for all of those."""
    rest = log_probs.masked_fill(named, -torch.inf).logsumexp(-1, keepdim=True)
    # exp(-200) is no mass, and equal on both sides, so that nothing is added to a divergence.
    return torch.cat([log_probs.masked_fill(~named, -200.0), rest.clamp(min=-200.0)], dim=-1)


def distillation_objective(
    task: Task,
    public: Sequence[Example],
    teacher: Teacher,
    terms: Loss,
    *,
    apart: bool = False,
) -> Objective:
    """Return what a student minimises; predictions that the teacher does not speak of add nothing.

    The teacher is softened by the temperature. If the last layer is to be `apart`, it is applied
    some rows at a time, and again in the backward pass, so that no more logits exist at once than
    of these.
    """
    slices, labels, places = row_slices(task, public), teacher.labels, teacher.places

    def part(student: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        known = places[rows] >= 0
        taught, rows = student[known.to(student.device)], places[rows[known]]
        found = terms.weight * distillation_loss(
            taught, labels.take(rows), terms.temperature, labels.named(rows), teacher.classes
        )
        if terms.use_labels:
            found = found + functional.cross_entropy(
                student, targets, reduction="sum", ignore_index=IGNORE
            )
        return found

    def whole(module: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        student, targets = task.select(module(**batch.inputs).logits, batch.labels)
        return part(student, targets, rows_of(slices, batch.indices)), len(student)

    def by_rows(module: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        with before_vocabulary(module) as layer:
            hidden, targets = task.select(module(**batch.inputs).logits, batch.labels)
        rows = rows_of(slices, batch.indices)

        def of_some(some: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
            return part(layer(some), targets, rows)

        total = hidden.new_zeros(()).float()
        for some in chunks(len(rows), max(labels.num_classes, teacher.num_logits)):
            found = checkpoint(
                of_some, hidden[some], targets[some], rows[some], use_reentrant=False
            )
            assert isinstance(found, Tensor)
            total = total + found
        return total, len(rows)

    return by_rows if apart else whole


def distillation(
    loop: Loop, task: Task, public: Sequence[Example], teacher: Teacher, terms: Loss
) -> tuple[Loop, Objective]:
    """Return the loop and the objective of a student, with logits in parts where there are many."""
    apart = is_wide(loop, task, teacher.num_logits)
    objective = distillation_objective(task, public, teacher, terms, apart=apart)
    return replace(loop, extra=lambda batch: rows_key(apart, task, batch)), objective


def is_wide(loop: Loop, task: Task, num_classes: int) -> bool:
    """Whether logits of whole batches are to be avoided, and can be."""
    is_lm = task.peft_task == "CAUSAL_LM"
    return is_lm and num_classes >= WIDE and ends_in_vocabulary(loop.module)


@torch.no_grad()
def predict(loop: Loop, task: Task, public: Sequence[Example], writer: Writer) -> SoftLabels:
    """Return the log-probabilities of the predictions that count, in order.

    Where classes are many, logits exist some rows at a time.
    """
    loop.module.eval()
    apart = is_wide(loop, task, writer.num_classes)
    for chunk in in_order(public, PREDICT_BATCH):
        batch = collate(chunk, loop.pad_id, loop.device)
        resident = lambda: resident_tensors(loop.module)  # noqa: E731

        def one_batch(batch: Batch = batch) -> list[Tensor]:
            if not apart:
                logits, _ = task.select(loop.module(**batch.inputs).logits, batch.labels)
                return writer.encode(_log_probs(logits))
            with before_vocabulary(loop.module) as layer:
                hidden, _ = task.select(loop.module(**batch.inputs).logits, batch.labels)
            found: list[Tensor] = []
            for some in chunks(len(hidden), writer.num_classes):
                found += writer.encode(_log_probs(layer(hidden[some])))
            return found

        key = (loop.label, batch.layout, rows_key(apart, task, batch))
        form = rows_key(True, task, batch), repr(writer.codec)
        writer.take(loop.meter.run(key, one_batch, resident, form=form))
    return writer.done()


def rows_key(by_row: bool, task: Task, batch: Batch) -> int:
    """Return on what costs depend beside the layout of a batch: the rows that count, if on these."""
    return task.num_supervised(batch.labels) if by_row else 0


def _log_probs(logits: Tensor) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide.log_softmax(-1)
