"""What goes down to a client that distils: what to learn from, and the labels that it lacks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trillium.federation.client import Client
from trillium.federation.fleet import Fleet
from trillium.federation.server import Server
from trillium.frameworks.kd.cache import LabelCache
from trillium.frameworks.kd.dialects import teacher_for
from trillium.frameworks.kd.public import choice, examples_at, read_mask, row_slices, write_mask
from trillium.tasks import Example
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message, received
from trillium.wire.soft_labels import Teacher


def lesson(used: Sequence[int], sent: Sequence[int], teacher: Teacher, count: int) -> Message:
    """Return the message; labels that are used but not sent with it, the client holds."""
    tensors = choice("control/used", used, count)
    if list(sent) != list(used):
        tensors["control/sent"] = write_mask(sent, count)
    rows = teacher.present.nonzero()[:, 0].tolist()
    tensors |= choice("control/rows", rows, len(teacher.present))
    return Message("learn", tensors, encoded={"logits/teacher": teacher.labels})


def send_lessons(
    server: Server, fleet: Fleet, cache: LabelCache | None, used: list[int], teacher: Teacher
) -> None:
    """Send each client those labels that it does not hold, and let it distil."""
    slices = row_slices(server.task, examples_at(server.public, used))
    sent = dict.fromkeys(fleet.cohort, used)
    if cache is not None:
        sent = {client: cache.lacking(client, used) for client in fleet.cohort}
    made: dict[tuple[int, ...], Message] = {}  # what goes to many is made once
    asks = {}
    for client, lacking in sent.items():
        key = id(server.dialects.get(client)), *lacking
        if key not in made:
            own = teacher if lacking == used else teacher.of(slices, lacking)
            own = teacher_for(server, client, lacking, own)
            made[key] = lesson(used, lacking, own, len(server.public))
        asks[client] = made[key]
    done = fleet.tell(asks)
    if cache is not None:
        for client in sorted(done):
            cache.confirm(client, sent[client])
        for client in asks.keys() - done:
            cache.lose(client)


def read_lesson(
    message: Message,
    client: Client,
    public: Sequence[Example],
    cache: LabelCache | None,
    num_classes: int,
) -> tuple[list[int], Teacher]:
    """Return the examples to learn from and their teacher, after an update of the client's cache."""
    used = read_mask(message, "control/used", len(public))
    which = "control/sent" if "control/sent" in message.tensors else "control/used"
    sent = read_mask(message, which, len(public))
    slices = row_slices(client.task, examples_at(public, sent))
    num_rows = max((rows.stop for rows in slices.values()), default=0)
    rows = read_mask(message, "control/rows", num_rows)
    labels = received(message, "logits/teacher", len(rows), num_classes)
    present = torch.zeros(num_rows, dtype=torch.bool)
    present[rows] = True
    teacher = Teacher(labels, present)
    if cache is not None:
        cache.keep(client.round, sent, teacher, slices)
        sent = [index for index in used if cache.is_fresh(index, client.round)]
    if not used or sent != used:
        raise MessageError("the server relies on labels that this client does not hold")
    if cache is not None:
        teacher = cache.teacher(used, client.wire.row_codec("down"), num_classes)
    return used, teacher
