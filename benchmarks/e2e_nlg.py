"""Descriptions of places (E2E NLG) by a small decoder: centralised, federated and split, in BLEU.

Each run of e2e_nlg.yaml describes the same meanings of the test set, greedily, and BLEU compares with
all references (Novikova et al., 2017, arXiv 1706.09254; Post, 2018, arXiv 1804.08771). The development
set, from which the clients learn, and the test set have hardly a name of a place in common, and most
kinds of food and places are in the test set alone; models read and write placeholders for these, as the
data set's baseline does for names (Dusek and Jurcicek, 2016, arXiv 1606.05491).

    OMP_NUM_THREADS=1 python benchmarks/e2e_nlg.py runs/20260101-120000_compare_files
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest

from e2e_nlg_report import markdown
from trillium.experiment.environment import environment
from trillium.experiment.trained import Trained, load_trained
from trillium.files import write_atomic
from trillium.quiet import quiet
from trillium.report.costs import bytes_per_client
from trillium.report.read import Run, read_runs
from trillium.tasks.batches import in_order

RESULTS = Path(__file__).resolve().parent / "results"
DATA = RESULTS.parents[2] / "shared" / "data"
BASELINE = "centralised"
NUM_TRAIN, NUM_ANSWERED, MAX_NEW_TOKENS = 1600, 300, 160
BATCH = 16  # prompts at once
PLACEHOLDERS = {"name": "NAME", "near": "NEAR", "food": "FOOD", "eatType": "TYPE"}


@dataclass(frozen=True)
class Meaning:
    """What is to be described.

    Attributes:
        values: by attribute.
        references: how people described it.
    """

    values: Mapping[str, str]
    references: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """What a model is given, with placeholders."""
        shown = {key: PLACEHOLDERS.get(key, value) for key, value in self.values.items()}
        return "; ".join(f"{key}: {value}" for key, value in shown.items()) + " ="

    def with_placeholders(self, text: str) -> str:
        """Return a description with placeholders, as a model learns it."""
        for key, placeholder in PLACEHOLDERS.items():
            if key in self.values:
                text = text.replace(self.values[key], placeholder)
        return " " + text

    def filled(self, text: str) -> str:
        """Return what a model has written with values in the places of placeholders."""
        for key, placeholder in PLACEHOLDERS.items():
            text = text.replace(placeholder, self.values.get(key, ""))
        return text.strip()


Meanings = Mapping[str, Meaning]
"""By what the data set calls them."""


def meanings(path: Path) -> Meanings:
    """Return the meanings of a file, in its order."""
    texts: dict[str, list[str]] = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            texts[row["mr"]].append(row["ref"].strip())
    found = {}
    for name, references in texts.items():
        pairs = re.findall(r"([^\[\],]+)\[([^\]]*)\]", name)
        found[name] = Meaning({key.strip(): value for key, value in pairs}, tuple(references))
    return found


def chosen(data: Path) -> Meanings:
    """Return what is to be described: meanings of the test set that the development set lacks."""
    known, asked = (meanings(data / name) for name in ("devset.csv", "testset_w_refs.csv"))
    names = random.Random(0).sample(sorted({*asked} - {*known}), NUM_ANSWERED)
    return {name: asked[name] for name in names}


def write_rows(data: Path, folder: Path) -> None:
    """Write training rows, and test rows: what is to be described, with its first reference."""
    rows = [
        (own, text) for own in meanings(data / "devset.csv").values() for text in own.references
    ]
    random.Random(0).shuffle(rows)
    test = [(own, own.references[0]) for own in chosen(data).values()]
    for split, found in {"train": rows[:NUM_TRAIN], "test": test}.items():
        pairs = ({"prompt": own.prompt, "completion": own.with_placeholders(t)} for own, t in found)
        lines = (json.dumps(pair) + "\n" for pair in pairs)
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


@torch.inference_mode()
def describe(trained: Trained, asked: Sequence[Meaning]) -> list[str]:
    """Return how the model that a run has trained describes each meaning, greedily."""
    module: Any = trained.model.mount(trained.state).eval()
    tokenizer = trained.model.tokenizer
    found = []
    for chunk in in_order(asked, BATCH):  # type: ignore[type-var]
        ids = [[tokenizer.bos_token_id, *tokenizer(own.prompt)["input_ids"]] for own in chunk]
        longest = max(map(len, ids))
        padding = [longest - len(own) for own in ids]
        pad_id = tokenizer.pad_token_id
        given = torch.tensor([[pad_id] * n + own for n, own in zip(padding, ids, strict=True)])
        mask = torch.tensor([[0] * n + [1] * (longest - n) for n in padding])
        written = module.generate(
            input_ids=given, attention_mask=mask, max_new_tokens=MAX_NEW_TOKENS, do_sample=False,
            use_cache=True, pad_token_id=pad_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        texts = tokenizer.batch_decode(written[:, longest:], skip_special_tokens=True)
        found += [own.filled(text) for own, text in zip(chunk, texts, strict=True)]
    return found


def bleu(answers: list[str], references: Sequence[Sequence[str]]) -> float:
    """Return BLEU of the answers, each with as many references as there are."""
    return float(BLEU().corpus_score(answers, streams(references)).score)


def streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """Return the first references of all answers, the second ones …; None where there is none."""
    most = max(map(len, references))
    return [[own[n] if n < len(own) else None for own in references] for n in range(most)]


def p_values(runs: Mapping[str, Any], arms: list[str], asked: Meanings) -> dict[str, float]:
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
            references = streams([own.references for _ in seeds for own in asked.values()])
            both = [
                (str(number), [text for s in chosen for text in runs[f"{name}_s{s}"]["answers"]])
                for number, (name, chosen) in enumerate([(arms[0], seeds), (arm, others)])
            ]
            test = PairedTest(both, {"BLEU": BLEU()}, references, "ar", n_samples=2000)
            found[arm] = float(test()[1]["BLEU"][1].p_value)
    return found


def figures(run: Run, asked: Meanings) -> dict[str, Any]:
    """Return what is told of a run."""
    answers = describe(load_trained(run.folder), list(asked.values()))
    return {
        "arm": run.arm,
        "seed": run.seed,
        "bleu": bleu(answers, [own.references for own in asked.values()]),
        "loss": run.last("loss"),
        "token_accuracy": run.last("token_accuracy"),
        "bytes": bytes_per_client(run) or 0.0,
        "answers": answers,
    }


def main() -> None:
    """Measure the runs of a comparison and write the results."""
    parser = argparse.ArgumentParser(description="BLEU of the runs of e2e_nlg.yaml")
    parser.add_argument("folder", type=Path, help="of the comparison")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    asked = chosen(options.data / "e2e_nlg")
    finished = [run for run in read_runs(options.folder) if run.state == "finished"]
    runs = {f"{run.arm}_s{run.seed}": figures(run, asked) for run in finished}
    arms = list(dict.fromkeys(run.arm for run in finished))
    first = next(iter(asked))
    content = {
        "runs": runs,
        "p_values": p_values(runs, arms, asked) if arms[0] == BASELINE else {},
        "environment": environment("cpu", sys.argv),
        "example": {"meaning": first, "references": asked[first].references},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "e2e_nlg.json"
    write_atomic(path, json.dumps(content, indent=1) + "\n")
    write_atomic(path.with_suffix(".md"), markdown(content))
    print(markdown(content))


if __name__ == "__main__":
    main()
