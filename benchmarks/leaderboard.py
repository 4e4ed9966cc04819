"""Planned bytes and memory of the settings of FlowerTune's LLM leaderboard, beside the reported bytes.

No weight is loaded and nothing is trained: a plan is made from the name of a model and the settings of
a submission. What was reported is of the board for general NLP (flower.ai/benchmarks/llm-leaderboard),
the rules and the baseline's settings are those of `examples/flowertune-llm-general-nlp` in Flower's
repository (commit fdef7af): 20 clients, of which 2 train in a round, 10 steps of 16 texts of up to 512
tokens, LoRA, and tensors in float32 both ways. The board counts in units of 1024 bytes.

    OMP_NUM_THREADS=1 python benchmarks/leaderboard.py
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import trillium as tr
from measured import write_found
from trillium.quiet import quiet_models
from trillium.report.markdown import table

RESULTS = Path(__file__).parent / "results" / "leaderboard.json"
GIB = 2.0**30


@dataclass(frozen=True)
class Submission:
    """A line of the board.

    Attributes:
        reported: GiB of all clients in all rounds, both ways.
        deduced: rank and rounds are those that give the reported bytes; the submission does not tell.
        options: of the adapter, beside the rank.
    """

    model: str
    name: str
    reported: float
    r: int
    rounds: int
    deduced: bool = False
    options: str = "target_modules: [q_proj, v_proj]"


FUSED = "dora: true, target_modules: [qkv_proj, o_proj, gate_up_proj, down_proj]"
BOARD = (
    Submission("mistral-7b-v0.3", "Mistral-7B-v0.3, the baseline", 40.7, 32, 200),
    Submission("llama-3.2-3b", "Llama-3.2-3B, the baseline", 27.4, 32, 200),
    Submission("llama-3.1-8b", "Llama-3.1-8B-Instruct", 2.0, 32, 10, True),
    Submission("qwen2.5-7b", "Qwen2.5-7B-Instruct", 1.5, 32, 10, True),
    Submission("gemma-2-9b", "Gemma-2-9B-Instruct", 0.7, 8, 10),
    Submission("qwen2.5-1.5b", "Qwen2.5-1.5B-Instruct", 0.7, 32, 10, True),
    Submission("llama-3.2-1b", "Llama-3.2-1B-Instruct", 0.5, 32, 10, True),
    Submission("smollm2-360m", "SmolLM2-360M-Instruct", 1.3, 16, 50, True),
    Submission("smollm2-135m", "SmolLM2-135M-Instruct", 0.7, 16, 50, True),
    Submission("phi-4", "Phi-4 (14B), DoRA", 44.7, 8, 100, True, FUSED),
)
RULES = (
    *("task=causal_lm", "model.dtype=bfloat16", "data.num_clients=20", "fleet.clients_per_round=2"),
    *("training.local_steps=10", "training.batch_size=16", "plan.data.examples=2600"),
    *("plan.data.tokens=512", "plan.data.response=256"),
)
ARMS: dict[str, Sequence[str]] = {
    "as submitted": ("framework=fedllm", "training.gradient_checkpointing=true"),
    "int4": ("framework={name: fedllm, download: change}", "wire={up: [int4], down: [int4]}"),
    "signs": ("framework={name: fedllm, download: change}", "wire={up: [sign], down: [sign]}"),
    "split": (
        "framework={name: split, cut: 1}",
        "wire={up: [{name: int4, kinds: [activations]}], down: [{name: int4, kinds: [gradients]}]}",
    ),
}


def planned(one: Submission, words: Sequence[str]) -> dict[str, float]:
    """Return the bytes of all clients in all rounds, and the peak and FLOPs of a client."""
    attention = ["model.attention=eager"] if one.model.startswith("gemma-2") else []
    adapter = f"adapter={{name: lora, r: {one.r}, {one.options}}}"
    rounds = f"rounds={one.rounds}"
    plan = tr.plan(one.model, *RULES, rounds, adapter, *attention, *words)
    [arm] = plan.to_dict()["arms"]
    total = arm["total"]
    return {
        "bytes": total["up"]["bytes"] + total["down"]["bytes"],
        "peak_bytes": total["peak_bytes"],
        "flops": total["flops"],
    }


def markdown(content: dict[str, Any]) -> str:
    """Return the table of what was planned."""
    titles = ["Model", "r", "Rounds", "Reported", "Planned", "int4 both ways", "Signs both ways"]
    titles += ["Peak, FedLLM", "Peak, Split", "Bytes, Split"]
    lines = []
    for found in content["found"]:
        arms, star = found["arms"], "*" if found["deduced"] else ""
        gib = {arm: f"{values['bytes'] / GIB:.2f} GiB" for arm, values in arms.items()}
        peaks = {arm: f"{values['peak_bytes'] / 1e9:.1f} GB" for arm, values in arms.items()}
        first = [found["name"], f"{found['r']}{star}", f"{found['rounds']}{star}"]
        bytes_ = [f"{found['reported']} GiB", gib["as submitted"], gib["int4"], gib["signs"]]
        lines.append([*first, *bytes_, peaks["as submitted"], peaks["split"], gib["split"]])
    text = (
        "Planned from names alone; [docs/llm.md](../../docs/llm.md#what-larger-ones-cost) says how."
    )
    return "\n".join(
        ["# Settings of a public leaderboard", "", text, "", *table(titles, lines), ""]
    )


def main() -> None:
    """Plan every line of the board, and write what was found."""
    load = os.getloadavg()[0]
    quiet_models()
    logging.getLogger("trillium").setLevel(logging.ERROR)  # that a mean of DoRA's tensors is none
    found = [
        {**asdict(one), "arms": {arm: planned(one, words) for arm, words in ARMS.items()}}
        for one in BOARD
    ]
    write_found(RESULTS, load, found, rules=RULES, planned=ARMS)
    text = markdown(json.loads(RESULTS.read_text(encoding="utf-8")))
    RESULTS.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
