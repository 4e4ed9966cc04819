"""Descriptions of places (E2E NLG) by a small decoder: centralised, federated and split, in BLEU.

The development set is what the clients learn from. Each arm then describes the same meanings of the
test set, greedily, and BLEU compares with all references (Novikova et al., 2017, arXiv 1706.09254;
Post, 2018, arXiv 1804.08771). Settings: e2e_nlg.yaml.

    OMP_NUM_THREADS=1 python benchmarks/e2e_nlg.py --seeds 0 1
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import transformers
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest

from e2e_nlg_report import markdown
from frontier_split import warm_up
from trillium.config import Tree, experiment, merge, read_yaml
from trillium.experiment import Experiment, build
from trillium.files import write_atomic
from trillium.report.read import read_run
from trillium.run_folder import RunFolder, environment, new_folder
from trillium.tasks.batches import in_order

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared" / "data"
RECIPE, WARM_UP = HERE / "e2e_nlg.yaml", HERE / "frontier_split.yaml"
OWN_KEYS = ("rows", "max_new_tokens", "arms")  # of the recipe; all others are of a run
BATCH = 16  # prompts at once

Meanings = dict[str, list[str]]
"""References by prompt."""


def meanings(path: Path) -> Meanings:
    """Return the references of each meaning of a file, in its order."""
    found: Meanings = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            pairs = re.findall(r"([^\[\],]+)\[([^\]]*)\]", row["mr"])
            found["; ".join(f"{key.strip()}: {value}" for key, value in pairs) + " ="].append(
                " " + row["ref"]
            )
    return dict(found)


def write_rows(data: Path, folder: Path, sizes: Tree) -> Meanings:
    """Write training and test rows; return what is to be described, with all references."""
    known = meanings(data / "devset.csv")
    rows = [(prompt, text) for prompt, texts in known.items() for text in texts]
    random.Random(0).shuffle(rows)
    asked = meanings(data / "testset_w_refs.csv")
    chosen = random.Random(0).sample(sorted(set(asked) - set(known)), sizes["answered"])
    splits = {
        "train": rows[: sizes["train"]],
        "test": [(prompt, asked[prompt][0]) for prompt in chosen],
    }
    for split, found in splits.items():
        lines = (json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in found)
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return {prompt: asked[prompt] for prompt in chosen}


@torch.inference_mode()
def describe(built: Experiment, prompts: list[str], most: int) -> list[str]:
    """Return what the model that would be shipped writes after each prompt, greedily."""
    model = built.model
    module: Any = model.mount(built.server.state).eval()
    tokenizer = model.tokenizer
    found = []
    for chunk in in_order(prompts, BATCH):  # type: ignore[type-var]
        ids = [[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]] for text in chunk]
        longest = max(map(len, ids))
        padding = [longest - len(own) for own in ids]
        pad_id = tokenizer.pad_token_id
        given = torch.tensor([[pad_id] * n + own for n, own in zip(padding, ids, strict=True)])
        mask = torch.tensor([[0] * n + [1] * (longest - n) for n in padding])
        written = module.generate(
            input_ids=given, attention_mask=mask, max_new_tokens=most, do_sample=False,
            use_cache=True, pad_token_id=pad_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        texts = tokenizer.batch_decode(written[:, longest:], skip_special_tokens=True)
        found += [text.strip() for text in texts]
    return found


def bleu(answers: list[str], references: list[list[str]]) -> float:
    """Return BLEU of the answers, each with as many references as there are."""
    return float(BLEU().corpus_score(answers, streams(references)).score)


def streams(references: list[list[str]]) -> list[list[str | None]]:
    """Return the first references of all answers, the second ones …; None where there is none."""
    most = max(map(len, references))
    return [[own[n].strip() if n < len(own) else None for own in references] for n in range(most)]


def p_values(runs: Tree, arms: list[str], asked: Meanings) -> dict[str, float]:
    """Return how probable differences to the first arm as large as these are, were there none.

    Approximate randomisation (Riezler and Maxwell, 2005) over meanings and the seeds that both have. It
    knows nothing of what the seed of a training does; so the first arm is also held against itself, in
    its place: its first seed against its second.
    """
    seeds_of = {
        arm: sorted(run["seed"] for run in runs.values() if run["arm"] == arm) for arm in arms
    }
    first = seeds_of[arms[0]]
    found = {}
    for arm in arms:
        seeds = [seed for seed in first if seed in seeds_of[arm]]
        seeds, others = (seeds, seeds) if arm != arms[0] else (seeds[:1], seeds[1:2])
        if others:
            references = streams([own for _ in seeds for own in asked.values()])
            both = [
                (str(number), [text for s in chosen for text in runs[f"{name}_s{s}"]["answers"]])
                for number, (name, chosen) in enumerate([(arms[0], seeds), (arm, others)])
            ]
            test = PairedTest(both, {"BLEU": BLEU()}, references, "ar", n_samples=2000)
            found[arm] = float(test()[1]["BLEU"][1].p_value)
    return found


def run(config: Tree, folder: Path, arm: str, asked: Meanings, most: int) -> dict[str, Any]:
    """Make one run, or go on with it, and return its figures."""
    begun = (folder / "status.json").is_file()
    built = build(experiment(config), RunFolder.reopen(folder) if begun else RunFolder(folder, arm))
    last = built.run()[-1]
    answers = describe(built, list(asked), most)
    traffic = read_run(folder).traffic
    total = None if traffic is None else traffic.until()
    return {
        "bleu": bleu(answers, list(asked.values())),
        "loss": last["loss"],
        "token_accuracy": last["token_accuracy"],
        "bytes": (total.bytes_up + total.bytes_down) / config["data"]["num_clients"]
        if total
        else 0,
        "answers": answers,
    }


def main() -> None:
    """Run the benchmark and write its results."""
    recipe = read_yaml(RECIPE)
    parser = argparse.ArgumentParser(description="E2E NLG, centralised, federated and split")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument(
        "--runs", type=Path, help="folder of the runs; what it holds is not repeated"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    runs = options.runs or new_folder(Path("runs"), "e2e_nlg")
    prepared = runs / "prepared"
    prepared.mkdir(parents=True, exist_ok=True)
    asked = write_rows(options.data / "e2e_nlg", prepared, recipe["rows"])
    plan = read_yaml(WARM_UP)["warm_up"]
    warm_up(plan, options.data / "text", plan["steps"], prepared / "gpt2")
    common = {key: value for key, value in recipe.items() if key not in OWN_KEYS}
    source = {split: str(prepared / f"{split}.jsonl") for split in ("train", "test")}
    own = {"data": {"source": source}, "model": {"id": str(prepared / "gpt2")}}
    kept = runs / "results.json"
    content: Tree = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {"runs": {}}
    for seed in options.seeds:
        for arm, how in recipe["arms"].items():
            label = f"{arm}_s{seed}"
            if label in content["runs"]:
                continue
            config = experiment(
                merge(merge(merge(common, how["settings"]), own), {"seed": seed})
            ).tree()
            figures = run(config, runs / label, arm, asked, recipe["max_new_tokens"])
            content["runs"][label] = {"arm": arm, "seed": seed, **figures}
            write_atomic(kept, json.dumps(content) + "\n")
            print(f"{label}: BLEU {figures['bleu']:.1f}, loss {figures['loss']:.3f}", flush=True)
    first = next(iter(asked))
    content["p_values"] = p_values(content["runs"], list(recipe["arms"]), asked)
    content |= {"settings": recipe, "warm_up": plan, "environment": environment("cpu", sys.argv),
                "example": {"prompt": first, "references": asked[first]}}  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "e2e_nlg.json"
    write_atomic(path, json.dumps(content, indent=1) + "\n")
    write_atomic(path.with_suffix(".md"), markdown(content))
    print(markdown(content))


if __name__ == "__main__":
    main()
