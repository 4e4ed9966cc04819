"""How often KD-FedLLM's teacher is right on the public set.

The server never has these labels; a benchmark does, and looks at them without telling anybody.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from trillium.federation.server import Server
from trillium.frameworks.kd import protocol as kd
from trillium.frameworks.kd.opinion import Opinion
from trillium.tasks import Example
from trillium.wire.soft_labels import SoftLabels, Teacher, Writer

FILE = "teacher.jsonl"


@contextmanager
def watched_teachers(server: Server, folder: Path) -> Iterator[None]:
    """Within the block, each teacher of a classification is compared with the public labels.

    Args:
        server: has the public set with its labels.
        folder: gets a line for each round in `teacher.jsonl`.
    """
    module: Any = kd
    make = module.make_teacher

    def watched(
        framework: kd.KD,
        server: Server,
        opinions: Sequence[Opinion],
        examples: Sequence[Example],
        writer: Writer,
    ) -> tuple[list[int], Teacher]:
        made, teacher = make(framework, server, opinions, examples, writer)
        line = {"round": server.round, "teacher": accuracy(server, made, teacher.labels)}
        asked = [example.index for example in examples]
        found = [accuracy(server, asked, opinion.labels) for opinion in opinions]
        line["clients"] = sum(found) / len(found)
        with (folder / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return made, teacher

    module.make_teacher = watched
    try:
        yield
    finally:
        module.make_teacher = make


def accuracy(server: Server, indices: Sequence[int], labels: SoftLabels) -> float:
    """Return how often the most probable class is that of the public example."""
    targets = torch.stack([server.public[index].labels for index in indices])
    found = labels.take(slice(None)).argmax(-1)
    return float((found == targets).double().mean())


def read_teachers(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run, the last one of each round, in their order; none without teachers."""
    path = folder / FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    by_round = {line["round"]: line for line in map(json.loads, lines)}
    return [by_round[number] for number in sorted(by_round)]
