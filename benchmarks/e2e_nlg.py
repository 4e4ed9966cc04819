"""Descriptions of places (E2E NLG) by a small decoder: centralised, federated and split, in BLEU.

The development set is what the clients learn from. Each arm then describes the same meanings of the
test set, greedily, and BLEU compares with all references (Novikova et al., 2017, arXiv 1706.09254;
Post, 2018, arXiv 1804.08771). The two sets have hardly a name of a place in common, and most kinds of
food and places are in the test set alone; models read and write placeholders for these, as the data
set's baseline does for names (Dusek and Jurcicek, 2016, arXiv 1606.05491). The decoder is Karpathy's
stories260K. Settings: e2e_nlg.yaml.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest
from transformers import AutoTokenizer

from e2e_nlg_report import markdown
from llama2c import convert
from trillium.config.experiment import Tree, experiment, merge, read_yaml
from trillium.experiment.folder import RunFolder, environment, new_folder
from trillium.experiment.run import Experiment, build
from trillium.files import write_atomic
from trillium.report.read import read_run
from trillium.tasks.batches import in_order

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared" / "data"
RECIPE = HERE / "e2e_nlg.yaml"
OWN_KEYS = ("rows", "max_new_tokens", "arms")  # of the recipe; all others are of a run
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


def write_rows(data: Path, folder: Path, sizes: Tree) -> Meanings:
    """Write training and test rows; return what is to be described."""
    known, asked = (meanings(data / name) for name in ("devset.csv", "testset_w_refs.csv"))
    rows = [(own, text) for own in known.values() for text in own.references]
    random.Random(0).shuffle(rows)
    chosen = random.Random(0).sample(sorted({*asked} - {*known}), sizes["answered"])
    splits = {
        "train": rows[: sizes["train"]],
        "test": [(asked[name], asked[name].references[0]) for name in chosen],
    }
    for split, found in splits.items():
        pairs = ({"prompt": own.prompt, "completion": own.with_placeholders(t)} for own, t in found)
        lines = (json.dumps(pair) + "\n" for pair in pairs)
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return {name: asked[name] for name in chosen}


def prepare_model(origin: Path, folder: Path) -> None:
    """Write the decoder; a text ends with the token that has parted texts in its training."""
    convert(origin / "stories260K.bin", origin / "tok512.bin", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = tokenizer.bos_token
    tokenizer.save_pretrained(folder)


@torch.inference_mode()
def describe(built: Experiment, asked: Sequence[Meaning], most: int) -> list[str]:
    """Return how the model that would be shipped describes each meaning, greedily."""
    model = built.model
    module: Any = model.mount(built.server.state).eval()
    tokenizer = model.tokenizer
    found = []
    for chunk in in_order(asked, BATCH):  # type: ignore[type-var]
        ids = [[tokenizer.bos_token_id, *tokenizer(own.prompt)["input_ids"]] for own in chunk]
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
        found += [own.filled(text) for own, text in zip(chunk, texts, strict=True)]
    return found


def bleu(answers: list[str], references: Sequence[Sequence[str]]) -> float:
    """Return BLEU of the answers, each with as many references as there are."""
    return float(BLEU().corpus_score(answers, streams(references)).score)


def streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """Return the first references of all answers, the second ones …; None where there is none."""
    most = max(map(len, references))
    return [[own[n] if n < len(own) else None for own in references] for n in range(most)]


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
            references = streams([own.references for _ in seeds for own in asked.values()])
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
    answers = describe(built, list(asked.values()), most)
    traffic = read_run(folder).traffic
    total = None if traffic is None else traffic.until()
    return {
        "bleu": bleu(answers, [own.references for own in asked.values()]),
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
    prepare_model(options.data / "stories260k", prepared / "stories")
    common = {key: value for key, value in recipe.items() if key not in OWN_KEYS}
    source = {split: str(prepared / f"{split}.jsonl") for split in ("train", "test")}
    own = {"data": {"source": source}, "model": {"id": str(prepared / "stories")}}
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
    content |= {"settings": recipe, "environment": environment("cpu", sys.argv),
                "example": {"meaning": first, "references": asked[first].references}}  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "e2e_nlg.json"
    write_atomic(path, json.dumps(content, indent=1) + "\n")
    write_atomic(path.with_suffix(".md"), markdown(content))
    print(markdown(content))


if __name__ == "__main__":
    main()
