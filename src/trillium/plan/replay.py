"""A measured run over links and devices that it did not have: the ledger replayed in time.

What crossed and what was computed is as measured; how long it takes follows from the given links and
devices. The time to an accuracy is then that of the round after which it was evaluated.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from trillium.clock.ledger import measured_time
from trillium.clock.times import RoundTime
from trillium.config.experiment import experiment, read_yaml
from trillium.errors import UserError
from trillium.plan.data import by_tier
from trillium.plan.places import Planning
from trillium.wire.ledger import Entry


@dataclass(frozen=True)
class Replayed:
    """One round of a run on paper links.

    Attributes:
        number: of the round.
        time: its course.
        seconds: from the begin of the run to the end of this round.
        metrics: what was evaluated after it; empty if nothing was.
    """

    number: int
    time: RoundTime
    seconds: float
    metrics: dict[str, float]


def replay(folder: Path, planning: Planning) -> list[Replayed]:
    """Return the rounds of a measured run as they would pass on other devices and links.

    Where the FLOP/s of the clients' device are not given, they compute as long as was measured.

    Raises:
        UserError: the folder holds no ledger, or the speed of a link is missing.
    """
    try:
        text = (folder / "wire.jsonl").read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            str(folder), "there is no ledger in it", "Give the folder of a run"
        ) from error
    entries = [Entry(**json.loads(line)) for line in text.splitlines()]
    config = experiment(read_yaml(folder / "config.yaml"))
    tiers = by_tier(config, {entry.client for entry in entries})
    places = {name: planning.place(config, t) for t, names in tiers.items() for name in names}
    metrics = _metrics(folder)
    by_round: dict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.purpose != "evaluate":
            by_round[entry.round].append(entry)
    seconds, flops, found = 0.0, 0.0, []
    for number in sorted(by_round):
        server = metrics.get(number, {}).get("server_flops", flops)
        spent, flops = max(server - flops, 0.0), max(server, flops)
        time = measured_time(by_round[number], places.__getitem__, planning.server, spent)
        if time is None:
            raise UserError(
                "a replay without the speed of a link or of the server",
                "how long messages and the server's work take follows from them",
                "Write plan.client.link.up=10Mbit plan.client.link.down=50Mbit "
                "plan.server.device.flops=10TFLOPS",
            )
        seconds += time.seconds
        found.append(Replayed(number, time, seconds, metrics.get(number, {})))
    return found


def _metrics(folder: Path) -> dict[int, dict[str, float]]:
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {
        line["round"]: {key: v for key, v in line.items() if isinstance(v, int | float)}
        for line in map(json.loads, lines)
    }
