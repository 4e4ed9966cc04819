"""Soft labels between the server and clients that speak another dialect; see `trillium.alignment`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from trillium.alignment.labels import Translated, translate_labels
from trillium.alignment.sequence import Alignment, align
from trillium.alignment.vocabulary import Rule, Vocabularies
from trillium.dialects import Dialect
from trillium.fleet import Fleet
from trillium.server import Server
from trillium.side import Metrics
from trillium.soft_labels import SoftLabels, Teacher, Writer
from trillium.tasks import Example

if TYPE_CHECKING:
    from trillium.frameworks.kd_opinions import Opinion

log = logging.getLogger(__name__)


def describe_dialects(server: Server, rule: Rule) -> None:
    """Log what of the vocabularies, and of the public set, can be translated."""
    told: list[Dialect] = []
    for client, dialect in server.dialects.items():
        if any(dialect is other for other in told):
            continue
        told.append(dialect)
        indices = range(len(server.public))
        found = align(
            *_texts(dialect, server.dialect, indices), dialect.pieces, server.dialect.pieces
        )
        log.info(
            "%s and others speak another dialect; of theirs, %s; on the public set, %s",
            client,
            _vocabularies(dialect, server.dialect, rule).map().account,
            found,
        )


def opinion_of(
    server: Server, fleet: Fleet, client: str, opinion: Opinion, rule: Rule
) -> tuple[Opinion, Metrics]:
    """Return what a client says in the server's dialect, and what could not be translated.

    Args:
        server: has the dialects.
        fleet: knows the client's codecs, which what is translated is kept with.
        client: whose opinion it is.
        opinion: in the client's dialect.
        rule: for tokens that the other vocabulary lacks.
    """
    dialect = server.dialects.get(client)
    if dialect is None:
        return opinion, {}
    rows = sum(server.task.num_targets(server.dialect.public[i]) for i in opinion.indices)
    shape = rows, server.dialect.num_classes
    writer = fleet.wire_of(client).writer("teach", "logits/public", server.round, shape, "up")
    found = _translate(opinion.labels, dialect, server.dialect, opinion.indices, writer, rule)
    aligned = float(found.present.double().mean()) if len(found.present) else 0.0
    lost = float(found.lost.double().sum()) / max(int(found.present.sum()), 1)
    return (
        replace(opinion, labels=found.labels, present=found.present),
        {"aligned_rows": aligned, "lost_mass": lost},
    )


def teacher_for(
    server: Server, fleet: Fleet, client: str, indices: Sequence[int], teacher: Teacher, rule: Rule
) -> Teacher:
    """Return a teacher of public examples in a client's dialect.

    Args:
        server: has the dialects.
        fleet: knows the client's codecs.
        client: who is to learn.
        indices: the examples.
        teacher: in the server's dialect, of these examples.
        rule: for tokens that the other vocabulary lacks.
    """
    dialect = server.dialects.get(client)
    if dialect is None:
        return teacher
    rows = sum(server.task.num_targets(dialect.public[i]) for i in indices)
    shape = rows, dialect.num_classes
    writer = fleet.wire_of(client).writer("learn", "logits/teacher", server.round, shape, "down")
    found = _translate(
        teacher.labels, server.dialect, dialect, indices, writer, rule, teacher.places
    )
    return Teacher(found.labels.joined([found.labels.records[found.present]]), found.present)


def _translate(
    labels: SoftLabels,
    source: Dialect,
    target: Dialect,
    indices: Sequence[int],
    writer: Writer,
    rule: Rule,
    places: Tensor | None = None,
) -> Translated:
    """Translate soft labels of public examples.

    Args:
        labels: in the source's dialect.
        source, target: dialects.
        indices: the examples.
        writer: of the target's rows.
        rule: for tokens that the target lacks.
        places: where in the labels each row of the source is, -1 for none; each at its own without.
    """
    found = align(*_texts(source, target, indices), source.pieces, target.pieces)
    if places is not None:
        rows = places[found.rows.clamp(min=0)].where(found.present, -1)
        found = Alignment(rows, found.spaces)
    return translate_labels(labels, found, _vocabularies(source, target, rule), writer)


def _texts(
    source: Dialect, target: Dialect, indices: Sequence[int]
) -> tuple[list[Example], list[Example]]:
    """Return public examples in two dialects."""
    return [source.public[i] for i in indices], [target.public[i] for i in indices]


def _vocabularies(source: Dialect, target: Dialect, rule: Rule) -> Vocabularies:
    return Vocabularies(source.pieces, target.pieces, source.num_classes, target.num_classes, rule)
