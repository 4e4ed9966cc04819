"""The tables of benchmarks/kd_language_models.py."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from trillium.report import human

SIDES = ("client-0", "client-1", "client-2", "server")
BEFORE = "before_"  # with it begin the labels of the models as the federation finds them
TITLES = {
    "alone": "Clients alone, one model",
    "kd": "KD, one tokenizer, top-16",
    "kd_sampled": "KD, one tokenizer, 16 draws",
    "alone_two": "Clients alone, two models",
    "kd_two": "KD, two tokenizers, top-16",
    "kd_two_sampled": "KD, two tokenizers, 16 draws",
    "kd_two_labels": "KD, two tokenizers, top-16, with the public rows' own tokens",
    "labels_two": "The public rows' own tokens alone, two tokenizers",
    "kd_server": "KD into the server alone, the clients' model",
    "kd_large": "KD into the server alone, a larger model",
}


def markdown(content: Mapping[str, Any]) -> str:
    """Return them."""
    return "\n".join(
        [
            "# KD-FedLLM between small language models",
            "",
            *_preface(content),
            "",
            "## Models on the test rows",
            "",
            *_models(content),
            "",
            "## What crossed",
            "",
            *_bytes(content["arms"]),
            "",
            "## What was translated",
            "",
            *_translated(content["arms"]),
            "",
            *_environment(content["environment"]),
            "",
        ]
    )


def _preface(content: Mapping[str, Any]) -> list[str]:
    warmed = content["warm_up"]
    models = "; ".join(
        f"`{name}` {human.duration(found['cpu_seconds'])} (loss {found['loss']:.2f})"
        for name, found in warmed.items()
    )
    return [
        "E2E NLG, attributes to description: three clients with 120 rows of one kind of place each, "
        "48 public rows, 150 test rows of all kinds with other attributes; 3 rounds, seed 0, one run "
        "of each arm. "
        "`stories` is Karpathy's stories260K as it is. The others learnt before from dialogues, in "
        f"processor time: {models}.",
        "",
        "Bits per byte of text compare models of different tokenizers; loss, perplexity and accuracy "
        "are per token. All of it on response tokens alone.",
    ]


def _models(content: Mapping[str, Any]) -> list[str]:
    lines = [
        "| arm | model | loss | perplexity | token accuracy | bits per byte | before |",
        "|---|---|---|---|---|---|---|",
    ]
    begin = content["before"]
    for name, found in begin.items():
        lines.append(f"| before | `{name}` | {_scores(found)} | |")
    for arm, figures in content["arms"].items():
        for side in SIDES:
            if side in figures["models"]:
                found = figures["models"][side]
                first = begin[found["model"]]["bits_per_byte"]
                title = f"{TITLES[arm]} | {side}, `{found['model']}`"
                lines.append(f"| {title} | {_scores(found)} | {first:.3f} |")
        clients = [figures["models"][side] for side in SIDES[:3]]
        mean = statistics.fmean(found["bits_per_byte"] for found in clients)
        lines.append(f"| | **mean of the clients** | | | | **{mean:.3f}** | |")
    return lines


def _scores(found: Mapping[str, float]) -> str:
    accuracy = human.percent(found["token_accuracy"])
    numbers = f"{found['loss']:.3f} | {found['perplexity']:.2f} | {accuracy}"
    return f"{numbers} | {found['bits_per_byte']:.3f}"


def _bytes(arms: Mapping[str, Any]) -> list[str]:
    kinds = sorted({kind for figures in arms.values() for kind in figures["kinds"]})
    head = ["arm", "up", "down", *kinds, "once"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for arm, figures in arms.items():
        sizes = [figures["bytes_up"], figures["bytes_down"]]
        sizes += [figures["kinds"].get(kind, 0) for kind in kinds]
        cells = [human.prefixed(size, "B") for size in (*sizes, figures["bytes_once"])]
        lines.append(f"| {TITLES[arm]} | {' | '.join(cells)} |")
    return [*lines, "", "Bytes of all rounds and clients together; the public set crosses once."]


def _translated(arms: Mapping[str, Any]) -> list[str]:
    lines = [
        "| arm | tokens of | the same | by role | similar | without counterpart "
        "| predictions aligned | mass on tokens without counterpart |",
        "|---" * 8 + "|",
    ]
    for arm, figures in arms.items():
        for client, account in figures["vocabularies"].items():
            aligned = [human.percent(line["aligned_rows"]) for line in figures["rounds"]]
            lost = [f"{100 * line['lost_mass']:.2f} %" for line in figures["rounds"]]
            counts = " | ".join(str(count) for count in account.values())
            cells = f"{', '.join(aligned)} | {', '.join(lost)}"
            lines.append(f"| {TITLES[arm]} | {client} | {counts} | {cells} |")
    return [*lines, "", "Aligned, and mass: of the server's rows, in each round."]


def _environment(found: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    source = f"commit {found['git_sha']}" if found["git_sha"] else "a copy of the package"
    return [
        f"Made by `{' '.join(found['argv'])}` of {source}, on {found['device']}, with {versions}."
    ]
