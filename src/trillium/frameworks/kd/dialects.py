"""Soft labels between the server and clients that speak another dialect; see `alignment`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from trillium.federation.fleet import Fleet
from trillium.federation.server import Server
from trillium.federation.side import Metrics
from trillium.frameworks.kd.alignment.labels import translate_labels
from trillium.frameworks.kd.alignment.sequence import Alignment, align
from trillium.frameworks.kd.alignment.vocabulary import Vocabularies
from trillium.frameworks.kd.dialect import Dialect, spoken
from trillium.frameworks.kd.opinion import Opinion
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message, scalar
from trillium.wire.soft_labels import Teacher

CLASSES: Final = "public/classes"
NUM_CLASSES: Final = "control/num_classes"
MAX_CLASSES: Final = 2**24  # of a vocabulary; more can only be an error

log = logging.getLogger(__name__)


def describe_dialects(server: Server) -> None:
    """Log what of the vocabularies, and of the public set, can be translated."""
    told: list[Dialect] = []
    for client, dialect in server.dialects.items():
        if any(dialect is other for other in told):
            continue
        told.append(dialect)
        found = _align(dialect, spoken(server), range(len(server.public)))
        log.info(
            "%s and others have another tokenizer: %s; on the public set, %s",
            client,
            _vocabularies(dialect, spoken(server)).map().account,
            found,
        )


def opinion_of(
    server: Server, fleet: Fleet, client: str, opinion: Opinion, wanted: Sequence[int]
) -> tuple[Opinion, Metrics]:
    """Return what a client says in the server's dialect, and what could not be translated."""
    dialect = server.dialects.get(client)
    if dialect is None:
        return opinion, {}
    rows = sum(server.task.num_targets(spoken(server).public[i]) for i in wanted)
    shape = rows, spoken(server).num_classes
    writer = fleet.wire_of(client).writer("teach", "logits/public", server.round, shape, "up")
    vocabularies = _vocabularies(dialect, spoken(server))
    aligned_rows = _align(dialect, spoken(server), wanted)
    found = translate_labels(opinion.labels, aligned_rows, vocabularies, writer)
    aligned = float(found.present.double().mean()) if len(found.present) else 0.0
    lost = float(found.lost.double().sum()) / max(int(found.present.sum()), 1)
    return (
        replace(opinion, labels=found.labels, present=found.present),
        {"aligned_rows": aligned, "lost_mass": lost},
    )


def teacher_for(server: Server, client: str, indices: Sequence[int], teacher: Teacher) -> Teacher:
    """Return what a teacher of public examples says where a client of another dialect has predictions.

    Its labels stay in the server's tokens. Where these are coarser than the client's, they do not say
    which of the client's tokens is next, and in its tokens they would teach it to write short ones.
    """
    dialect = server.dialects.get(client)
    if dialect is None:
        return teacher
    found = _align(spoken(server), dialect, indices)
    # The classes are those of tokens with the same beginning; only the first row can have another.
    rows = teacher.places[found.rows.clamp(min=0)].where(found.present & (found.spaces == 0), -1)
    return Teacher(teacher.labels.joined([teacher.labels.records[rows[rows >= 0]]]), rows >= 0)


def with_classes(message: Message, server: Server, client: str) -> Message:
    """Return a message that also tells a client of another dialect how to read the server's labels."""
    dialect = server.dialects.get(client)
    if dialect is None:
        return message
    index = _vocabularies(dialect, spoken(server)).map().index
    own = {CLASSES: index.int(), NUM_CLASSES: scalar(spoken(server).num_classes)}
    return replace(message, tensors={**message.tensors, **own})


def read_classes(message: Message, num_logits: int) -> tuple[Tensor | None, int]:
    """Return the class of each of a client's tokens in the labels to come, and how many classes."""
    if CLASSES not in message.tensors:
        return None, num_logits
    found = message.tensor(CLASSES, torch.int32, (num_logits,)).long()
    count = message.positive(NUM_CLASSES)
    if not count.is_integer() or count > MAX_CLASSES:
        raise MessageError(f"{message.verb}: {count} is no number of classes")
    if int(found.min()) < -1 or not 0 <= int(found.max()) < count:
        raise MessageError(f"{message.verb}: {CLASSES} has classes outside 0 … {int(count) - 1}")
    return found, int(count)


def _align(source: Dialect, target: Dialect, indices: Sequence[int]) -> Alignment:
    one, other = ([dialect.public[i] for i in indices] for dialect in (source, target))
    return align(one, other, source.pieces, target.pieces)


def _vocabularies(source: Dialect, target: Dialect) -> Vocabularies:
    return Vocabularies(source.pieces, target.pieces, source.num_classes, target.num_classes)
