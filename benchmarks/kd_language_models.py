"""KD-FedLLM between small language models: bits per byte of the runs of kd_language_models.yaml.

python benchmarks/kd_language_models.py runs/20260101-120000_compare_files
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer

from kd_language_models_report import BEFORE, markdown
from trillium.config.experiment import ExperimentConfig, experiment
from trillium.data.load import load_data
from trillium.experiment.environment import environment
from trillium.experiment.run import build
from trillium.files import write_atomic
from trillium.frameworks.kd.alignment.vocabulary import Vocabularies
from trillium.frameworks.kd.dialect import spoken
from trillium.frameworks.kd.protocol import KD
from trillium.quiet import quiet
from trillium.report.read import Run, read_runs
from trillium.tasks.causal_lm import CausalLM

RESULTS = Path(__file__).resolve().parent / "results"
WARMED = Path("runs/prepared/kd_language_models/warm_up.json")
LOST = ("aligned_rows", "lost_mass", "distil_loss", "train_loss")
Scores = dict[str, Any]


def bits_per_byte(loss: float, rows: Dataset, tokenizer: Any, max_length: int) -> float:
    """Return a loss per token as bits per byte of response, which do not depend on the tokens."""
    task = CausalLM()
    examples = task.tokenize(rows, tokenizer, max_length)
    num_tokens = sum(task.num_targets(example) for example in examples)
    num_bytes = sum(len(text.encode()) for text in rows["completion"])
    return loss * num_tokens / num_bytes / math.log(2)


def scores(config: ExperimentConfig, client: str | None, metrics: Mapping[str, float]) -> Scores:
    """Return what is reported of one model on the test rows."""
    kept = {name: metrics[name] for name in ("loss", "perplexity", "token_accuracy")}
    folder, rows = Path(config.of(client).model.id), load_data(config.data, "causal_lm", 0).test
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bits = bits_per_byte(kept["loss"], rows, tokenizer, config.training.limit)
    return {"model": folder.name, **kept, "bits_per_byte": bits}


def vocabularies(config: ExperimentConfig) -> dict[str, dict[str, int]]:
    """Return how many tokens are mapped to the server's, of each client that has others."""
    if not isinstance(config.framework, KD) or not config.tiers:
        return {}
    server = build(config).server
    own, found = spoken(server), {}
    for client, other in server.dialects.items():
        pair = Vocabularies(other.pieces, own.pieces, other.num_classes, own.num_classes)
        found[client] = pair.map().account.to_json()
    return found


def figures(run: Run) -> Scores:
    """Return what is told of one arm."""
    config, last = experiment(run.config), run.evaluations[-1]
    clients = last.get("clients") or {}
    models = {name: scores(config, name, own) for name, own in clients.items()}
    if isinstance(config.framework, KD):
        models["server"] = scores(config, None, last)
    assert run.traffic is not None
    total = run.traffic.until()
    return {
        "models": models,
        "rounds": [{k: line[k] for k in LOST if k in line} for line in run.evaluations[1:]],
        "bytes_up": total.bytes_up,
        "bytes_down": total.bytes_down,
        "bytes_once": run.traffic.bytes_once,
        "kinds": {f"{way} {kind}": size for (way, kind), size in run.traffic.kinds.items()},
        "vocabularies": vocabularies(config),
    }


def collect(folder: Path) -> dict[str, Any]:
    """Return the figures of all finished runs of a comparison."""
    runs = {run.arm: run for run in read_runs(folder) if run.state == "finished"}
    first = [run for arm, run in runs.items() if arm.startswith(BEFORE)]
    begun = (scores(experiment(run.config), None, run.evaluations[0]) for run in first)
    arms = {arm: figures(run) for arm, run in runs.items() if not arm.startswith(BEFORE)}
    return {"before": {found["model"]: found for found in begun}, "arms": arms}


def main() -> None:
    """Measure the runs of a comparison and write the results."""
    parser = argparse.ArgumentParser(description="Bits per byte of kd_language_models.yaml")
    parser.add_argument("folder", type=Path, help="of the comparison")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    quiet()
    warmed = json.loads(WARMED.read_text(encoding="utf-8"))
    content = {"warm_up": warmed, **collect(options.folder)}
    content["environment"] = environment("cpu", sys.argv)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "kd_language_models.json"
    write_atomic(path, json.dumps(content, indent=1) + "\n")
    write_atomic(path.with_suffix(".md"), markdown(content))
    print(markdown(content))


if __name__ == "__main__":
    main()
