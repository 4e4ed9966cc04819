"""Writes synthetic run folders whose sums are small enough to be done by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

ENV = {
    "git_sha": "0123abcd",
    "versions": {"trillium": "0.1.0", "torch": "2.13.0"},
    "device": "cpu",
    "python": "3.11.2",
    "argv": ["trillium", "compare", "my config.yaml"],
}


def wire(
    round: int,
    client: str,
    direction: str,
    kinds: Mapping[str, int],
    purpose: str = "train",
    raw: int | None = None,
    flops: int | None = None,
    seconds: float | None = None,
    peak: int | None = None,
) -> dict[str, Any]:
    """One line of wire.jsonl."""
    total = sum(kinds.values())
    return {
        "round": round,
        "client": client,
        "verb": "train",
        "direction": direction,
        "purpose": purpose,
        "bytes": total,
        "bytes_raw": total if raw is None else raw,
        "kinds": dict(kinds),
        "seconds": seconds,
        "flops": flops,
        "peak_bytes": peak,
    }


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write JSONL."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_run(
    folder: Path,
    arm: str,
    seed: int,
    metrics: Iterable[Mapping[str, Any]],
    messages: Iterable[Mapping[str, Any]] = (),
    state: str = "finished",
    error: str | None = None,
    started: str = "2026-01-01T00:00:00+00:00",
    config: Mapping[str, Any] | None = None,
    clients: Mapping[str, Mapping[str, int]] | None = None,
    once: Mapping[str, int] | None = None,
) -> Path:
    """Write all files of one run folder."""
    folder.mkdir(parents=True)
    default = {"framework": {"name": arm}, "rounds": 2}
    resolved = {"seed": seed, **(default if config is None else config)}
    (folder / "config.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False))
    (folder / "env.json").write_text(json.dumps(ENV))
    status = {"state": state, "arm": arm, "error": error, "seconds": 99.0, "started": started}
    (folder / "status.json").write_text(json.dumps(status))
    held = {"client-0": {"no": 3, "yes": 1}, "client-1": {"no": 2}} if clients is None else clients
    data = {
        "clients": {
            name: {"num_examples": sum(labels.values()), "labels": dict(labels)}
            for name, labels in held.items()
        },
        "public": {"num_examples": 7},
        "test": {"num_examples": 8},
        "labels": sorted({label for labels in held.values() for label in labels}),
    }
    (folder / "data.json").write_text(json.dumps(data))
    (folder / "once.json").write_text(json.dumps({"base_model": 1000} if once is None else once))
    write_lines(folder / "metrics.jsonl", metrics)
    write_lines(folder / "wire.jsonl", messages)
    return folder


def tiny_messages() -> list[dict[str, Any]]:
    """Two clients and two rounds, of which client-1 misses the second.

    Up: 100 + 120 in round 1 and 110 in round 2, 330 in all, over 3 turns: 110 each.
    Down: 50 + 50 + 50 = 150, 50 each. Per client (of 2): 480 / 2 = 240; after round 1: 160.
    FLOPs 1000 + 2000 + 3000 = 6000: 3000 per client. Seconds 1 + 2 + 3 = 6: 3. Peak 700.
    Raw 200 + 240 + 220 + 150 = 810 over 480 sent. Once: 400 on the wire, 200 per client.
    """
    return [
        wire(0, "client-0", "down", {"parameters": 400}, purpose="once"),
        wire(0, "client-0", "up", {"control": 9999}, purpose="evaluate", flops=10**9, peak=10**9),
        wire(1, "client-0", "down", {"parameters": 45, "control": 5}),
        wire(1, "client-1", "down", {"parameters": 45, "control": 5}),
        wire(1, "client-0", "up", {"parameters": 90, "control": 10}, raw=200, flops=1000,
             seconds=1.0, peak=500),
        wire(1, "client-1", "up", {"parameters": 110, "control": 10}, raw=240, flops=2000,
             seconds=2.0, peak=700),
        wire(2, "client-0", "down", {"parameters": 45, "control": 5}),
        wire(2, "client-0", "up", {"parameters": 100, "control": 10}, raw=220, flops=3000,
             seconds=3.0, peak=600),
    ]  # fmt: skip


def tiny_metrics(*accuracies: float) -> list[dict[str, Any]]:
    """One evaluation a round, from round 0; 10 seconds a round."""
    return [
        {
            "round": index,
            "accuracy": value,
            "loss": 1.0 - value,
            "seconds": 10.0 * index,
            "asked": 2 if index else 0,
            "replied": 2 if index else 0,
            "missing": {},
            "shipped": "server model",
        }
        for index, value in enumerate(accuracies)
    ]


def tiny_compare(folder: Path) -> Path:
    """Write a comparison of fedllm (seeds 1 and 2, a failed seed 3) with zero-shot."""
    folder.mkdir(parents=True)
    (folder / "compare.yaml").write_text("arms: [fedllm, zero-shot]\n")
    for seed, final in ((1, 0.8), (2, 0.9)):
        write_run(
            folder / f"fedllm_s{seed}",
            "fedllm",
            seed,
            tiny_metrics(0.5, 0.6, final),
            tiny_messages(),
            started=f"2026-01-01T00:0{seed}:00+00:00",
        )
    write_run(
        folder / "fedllm_s3",
        "fedllm",
        3,
        tiny_metrics(0.5, 0.1),
        tiny_messages()[:5],
        state="failed",
        error="client-1 ran out of memory",
        started="2026-01-01T00:03:00+00:00",
    )
    write_run(
        folder / "zero-shot_s1",
        "zero-shot",
        1,
        tiny_metrics(0.5),
        started="2026-01-01T00:04:00+00:00",
        once={"base_model": 1000, "public_set": 24},
    )
    return folder
