"""Distillation: predictions as soft labels, and the loss that brings a student to a teacher.

Hinton et al. (2015, arXiv 1503.02531).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trillium.frameworks.kd.public import row_slices
from trillium.tasks import Batch, Example, Task
from trillium.tasks.batches import collate, in_order
from trillium.training.loop import Loop, Objective
from trillium.training.meters import resident_tensors
from trillium.wire.soft_labels import SoftLabels, Teacher, Writer, rows_of, summed

PREDICT_BATCH = 32  # examples at once when predictions are computed; changes memory, not results


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


def value_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the squared difference of the numbers that odds of two outcomes say, summed over rows.

    Args:
        student, teacher: as in `distillation_loss`; at the temperature, the teacher's odds say a number
            that is divided by it.
    """
    wide = student if student.dtype == torch.float64 else student.float()
    said = teacher.detach().to(wide).diff(dim=-1) * temperature
    return (wide.diff(dim=-1) - said).square().sum()


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
) -> Objective:
    """Return what a student minimises; predictions that the teacher does not speak of add nothing.

    The teacher is softened by the temperature.
    """
    slices, labels, places = row_slices(task, public), teacher.labels, teacher.places

    def part(student: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        known = places[rows] >= 0
        taught, rows = student[known.to(student.device)], places[rows[known]]
        if task.says_values:
            found = terms.weight * value_loss(taught, labels.take(rows), terms.temperature)
        else:
            found = terms.weight * distillation_loss(
                taught, labels.take(rows), terms.temperature, labels.named(rows), teacher.classes
            )
        if terms.use_labels:
            found = found + task.error(student, targets)
        return found

    def objective(module: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        taught = rows_of(slices, batch.indices)
        rows, targets, head = task.counted(module, batch)
        loss = task.total(
            rows, targets, head, lambda some, meant, at: part(some, meant, taught[at])
        )
        return loss, len(taught)

    return objective


@torch.no_grad()
def predict(loop: Loop, task: Task, public: Sequence[Example], writer: Writer) -> SoftLabels:
    """Return the log-probabilities of the predictions that count, in order.

    Where classes are many, logits exist some rows at a time.
    """
    loop.module.eval()
    for chunk in in_order(loop.known(public), PREDICT_BATCH):
        batch = collate(chunk, loop.pad_id, loop.device)
        resident = lambda: resident_tensors(loop.module)  # noqa: E731

        def one_batch(batch: Batch = batch) -> list[Tensor]:
            found: list[Tensor] = []
            for logits, _ in task.predictions(loop.module, batch):
                found += writer.encode(_log_probs(logits))
            return found

        count = task.num_supervised(batch.labels)
        key, form = (loop.label, batch.layout, count), (count, repr(writer.codec))
        evenly = loop.evenly(loop.label, [(batch.layout, loop.rows(batch))], form[1])
        writer.take(loop.meter.run(key, one_batch, resident, form=form, evenly=evenly))
    return writer.done()


def _log_probs(logits: Tensor) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide.log_softmax(-1)
