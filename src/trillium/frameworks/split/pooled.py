"""The batches of clients as the server of a cut model sees them: one by one, and pooled into one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from trillium.frameworks.split.ragged import mask_of, read_lengths, spread, strip
from trillium.tasks import IGNORE, Task
from trillium.training.settings import Training
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message

REFERENCE = "activations/reference"  # those without the adapter


@dataclass(frozen=True)
class Forwarded:
    """One client's batch as the server sees it.

    Attributes:
        hidden: activations at the cut `(batch, seq, hidden)`.
        mask: `(batch, seq)` int64, 0 where padded.
        labels: as in `Batch`; `None` where they stay with the client.
        samples: the client's numbers of the rows, where it tells them.
        reference: activations without the adapter, where these are others.
    """

    hidden: Tensor
    mask: Tensor
    labels: Tensor | None
    count: int
    samples: tuple[int, ...] = ()
    reference: Tensor | None = None

    @classmethod
    def read(
        cls,
        reply: Message,
        task: Task,
        training: Training,
        *,
        width: int,
        num_classes: int,
        with_labels: bool,
        with_reference: bool = False,
        changes: Callable[[Message, list[int]], Tensor] | None = None,
    ) -> Forwarded:
        """Check what a client sends from the cut.

        Args:
            reply: activations without padding, lengths, and labels or their number.
            task: says of which shape labels are, and which of them count.
            changes: reads activations `(tokens, width)` that are sent as changes, given the lengths.

        Raises:
            MessageError: something is missing, larger than agreed, or out of range.
        """
        lengths = read_lengths(reply, training.batch_size * task.num_texts, training.limit)
        if len(lengths) % task.num_texts:
            raise MessageError(f"{reply.verb}: {len(lengths)} rows, which are no pairs")
        mask, tokens = mask_of(lengths), int(lengths.sum())
        samples: tuple[int, ...] = ()
        if changes is None:
            flat = reply.floats("activations/hidden", (tokens, width))
        else:
            flat = changes(reply, lengths.tolist())
            samples = tuple(reply.tensors["control/samples"].tolist())
        hidden, reference = spread(flat, mask), None
        if with_reference:
            reference = spread(reply.floats(REFERENCE, (tokens, width)), mask)
        if not with_labels:
            count = int(reply.scalar("control/count"))
            each = task.most_targets(training.limit, num_classes)
            most = tokens if task.per_token else len(lengths) * each
            if not 0 <= count <= most:
                raise MessageError(f"{count} predictions, where {most} can be")
            return cls(hidden, mask, None, count, samples, reference)
        numbers = read_labels(reply, task, len(lengths), tokens, num_classes)
        labels = in_batch(task, task.from_numbers(numbers, num_classes), mask)
        return cls(hidden, mask, labels, task.num_supervised(labels), samples, reference)

    def to(self, device: torch.device, dtype: torch.dtype) -> Forwarded:
        """Return it where the server computes."""
        labels = None if self.labels is None else self.labels.to(device)
        hidden, mask = self.hidden.to(device, dtype), self.mask.to(device)
        reference = None if self.reference is None else self.reference.to(device, dtype)
        return replace(self, hidden=hidden, mask=mask, labels=labels, reference=reference)


def read_labels(
    message: Message, task: Task, num_rows: int, num_tokens: int, num_classes: int
) -> Tensor:
    """Return the labels that a client sends, as the numbers that cross, int32, one after the other.

    Raises:
        MessageError: they are missing, of another number, or of no class that there is.
    """
    each = task.most_targets(1, num_classes)
    count = num_tokens if task.per_token else num_rows * each
    numbers = message.tensor("labels/labels", torch.int32, (count,))
    try:
        task.from_numbers(numbers, num_classes)
    except ValueError as error:
        raise MessageError(str(error)) from error
    return numbers


def in_batch(task: Task, labels: Tensor, mask: Tensor) -> Tensor:
    """Return labels that stand one after the other as those of a batch, as in `Batch`."""
    if task.per_token:
        return spread(labels, mask, IGNORE)
    return labels if len(labels) == len(mask) else labels.view(len(mask), 1, -1)


@dataclass
class Pooled:
    """The batches of some clients as one, padded on the right to one length.

    Attributes:
        members: by client, in the order of the rows.
        hidden: `(rows, seq, hidden)`, a leaf; its `grad` goes back to the clients.
        output_gradient: gradient of the output, filled by the clients in the U shape.
        reference: what the loss is against: the output without adapters, or what follows from it.
        client_squared_norm: squared l2 norm of the gradients of the clients' parameters, each of the
            mean loss of the client's own batch, weighted by its share of the predictions.
    """

    members: dict[str, Forwarded]
    hidden: Tensor = field(init=False)
    mask: Tensor = field(init=False)
    output: Tensor = field(init=False)
    output_gradient: Tensor = field(init=False)
    reference: Tensor | None = None
    loss: float = 0.0
    client_squared_norm: float = 0.0

    def __post_init__(self) -> None:
        self.hidden = self._padded([member.hidden for member in self.members.values()])
        self.mask = self._padded([member.mask for member in self.members.values()])

    @property
    def reference_hidden(self) -> Tensor:
        """The activations without adapters `(rows, seq, hidden)`."""
        members = self.members.values()
        return self._padded([m.hidden if m.reference is None else m.reference for m in members])

    def _padded(self, tensors: list[Tensor]) -> Tensor:
        length = max(tensor.shape[1] for tensor in tensors)
        deep = [(0, 0)] * (tensors[0].dim() - 2)
        return torch.cat(
            [functional.pad(t, (*sum(deep, ()), 0, length - t.shape[1])) for t in tensors]
        )

    @property
    def count(self) -> int:
        """Supervised predictions in all."""
        return max(sum(member.count for member in self.members.values()), 1)

    @property
    def labels(self) -> Tensor:
        """The labels of all rows, padded like the hidden states."""
        length = self.mask.shape[1]
        found = []
        for member in self.members.values():
            assert member.labels is not None
            per_token = member.labels.dim() == 2
            extra = length - member.mask.shape[1] if per_token else 0
            found.append(functional.pad(member.labels, (0, extra), value=IGNORE))
        return torch.cat(found)

    def share(self, client: str) -> float:
        """The client's share of the supervised predictions; above zero also where it has none."""
        return max(self.members[client].count, 1) / self.count

    def rows(self, client: str, tensor: Tensor) -> Tensor:
        """Return the client's rows of a tensor `(rows, seq, …)`, cut to the client's length."""
        start = 0
        for name, member in self.members.items():
            if name == client:
                break
            start += len(member.mask)
        member = self.members[client]
        return tensor[start : start + len(member.mask), : member.mask.shape[1]]

    def told(self, client: str) -> dict[str, Tensor]:
        """Return the client's rows of what its loss is against, if there is that."""
        return {} if self.reference is None else {REFERENCE: self.tokens(client, self.reference)}

    def tokens(self, client: str, tensor: Tensor) -> Tensor:
        """Return the client's entries `(tokens, …)` of a tensor `(rows, seq, …)`, without padding."""
        return strip(self.rows(client, tensor), self.members[client].mask)
