"""The server's half of KD-FedLLM that is no protocol: many opinions become one teacher, by rows."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trillium.federation.client import Client
from trillium.federation.server import Server
from trillium.federation.side import Side
from trillium.frameworks.kd.ensembles import Opinions
from trillium.frameworks.kd.opinion import Opinion
from trillium.frameworks.kd.public import row_slices
from trillium.frameworks.kd.settings import KDSettings
from trillium.frameworks.kd.sharpenings import Sharpening
from trillium.tasks import IGNORE, Example, Task
from trillium.wire.kinds import has_values
from trillium.wire.soft_labels import Teacher, Writer, chunks

log = logging.getLogger(__name__)


def class_counts(client: Client) -> Tensor:
    """Return how many examples of each class a client has, `(classes,)` float64."""
    labels = torch.cat([example.labels.reshape(-1) for example in client.examples])
    return torch.bincount(labels[labels >= 0], minlength=client.model.num_classes).double()


def warn_of_flattening(sharpening: Sharpening, num_classes: int) -> None:
    """Warn where a sharpening makes what is certain less so."""
    highest = sharpening.highest(num_classes)
    if highest < 0.9:
        log.warning(
            "framework.sharpening=%s gives no class more than %.3f of the probability, with %d "
            "classes: write power instead",
            sharpening.name,
            highest,
            num_classes,
        )


def predictions(side: Side, examples: Sequence[Example]) -> tuple[int, int]:
    """Return how many rows the predictions of examples have, and of how many outcomes each."""
    rows = sum(side.task.num_targets(example) for example in examples)
    return rows, side.task.num_outcomes(side.model.num_classes)


def make_teacher(
    framework: KDSettings,
    server: Server,
    said: Sequence[Opinion] | Tensor,
    examples: Sequence[Example],
    writer: Writer,
) -> tuple[list[int], Teacher]:
    """Return the examples that have a teacher, and what it says of them.

    An example of which nobody speaks is left out. Only a few of the rows that the writer encodes
    exist as floats at the same time.

    Args:
        said: by the clients, one after the other; or the mean over them, as the ensemble wants it.
    """
    slices = row_slices(server.task, examples)
    if isinstance(said, Tensor):
        present = torch.ones(len(said), dtype=torch.bool)
        mean = framework.ensemble.settled(said.double(), framework.average)
        writer.add(framework.sharpening.sharpen(mean))
    else:
        present = _combine(framework, server, said, examples, writer)
    kept = [e.index for e in examples if bool(present[slices[e.index]].any())]
    labels = writer.done()
    return kept, Teacher(labels.joined([labels.records[present]]), present).of(slices, kept)


def _combine(
    framework: KDSettings,
    server: Server,
    opinions: Sequence[Opinion],
    examples: Sequence[Example],
    writer: Writer,
) -> Tensor:
    """Write what opinions become, and return of which rows anybody has said something."""
    num_rows, num_classes = predictions(server, examples)
    places = torch.stack([_places(opinion, num_rows) for opinion in opinions])
    targets = _targets(server.task, examples)
    copies = 4 * len(opinions)  # float64, and one in the making
    in_parts = chunks(num_rows, num_classes, copies)
    if not has_values(opinions[0].labels.records):
        in_parts = iter([slice(0, num_rows)])
    for rows in in_parts:
        asked = _opinions(opinions, places[:, rows], targets[rows], num_classes)
        asked = replace(asked, secret=lambda: server.secret("teacher"))
        mean = framework.ensemble.combine(asked, framework.temperature, framework.average)
        writer.add(framework.sharpening.sharpen(mean))
    return (places >= 0).any(0)


def apart(opinions: Mapping[str, Opinion], num_rows: int, num_classes: int) -> dict[str, float]:
    """Return how far each client is from the median log-probabilities, on average, in nats.

    Of fewer than three nobody is in the middle.
    """
    if len(opinions) < 3:
        return {}
    everyone = list(opinions.values())
    places = torch.stack([_places(opinion, num_rows) for opinion in everyone])
    sums = torch.zeros(len(everyone), dtype=torch.float64)
    for rows in chunks(num_rows, num_classes, 4 * len(everyone)):
        said = _opinions(everyone, places[:, rows], torch.empty(0), num_classes).log_probs
        sums += (said - said.median(0).values).abs().mean(-1).sum(-1)
    return dict(zip(opinions, (sums / max(num_rows, 1)).tolist(), strict=True))


def _opinions(
    opinions: Sequence[Opinion], places: Tensor, targets: Tensor, num_classes: int
) -> Opinions:
    """Return what clients say of some rows; of those that nobody speaks of, all say nothing much."""
    shape = (len(opinions), places.shape[1], num_classes)
    like = opinions[0].labels.records
    log_probs = like.new_full(shape, -math.log(num_classes), dtype=torch.float64)
    present = places >= 0
    for own, opinion, place in zip(log_probs, opinions, places, strict=True):
        own[place >= 0] = opinion.labels.take(place[place >= 0]).double()
    counts = [opinion.counts for opinion in opinions if opinion.counts is not None]
    return Opinions(
        log_probs=log_probs,
        present=present | ~present.any(0),
        sizes=torch.tensor([opinion.weight for opinion in opinions], dtype=torch.float64),
        counts=torch.stack(counts) if counts else None,
        targets=targets,
    )


def _places(opinion: Opinion, num_rows: int) -> Tensor:
    """Return where in a client's rows each row is, -1 where it said nothing."""
    places = torch.arange(num_rows)
    return places if opinion.present is None else places.where(opinion.present, -1)


def _targets(task: Task, examples: Sequence[Example]) -> Tensor:
    """Return the label of each row, `IGNORE` where there is none."""
    found = []
    for example in examples:
        labels = example.labels[None]
        rows = torch.zeros(*(labels.shape if labels.dim() > 1 else (1,)), 1)
        found.append(task.select(rows, labels)[1])
    return torch.cat(found) if found else torch.full((0,), IGNORE)
