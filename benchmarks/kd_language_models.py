"""KD-FedLLM between small language models, of one tokenizer and of two, and into a larger one.

Three clients have descriptions of one kind of place each (E2E NLG: restaurants, pubs, coffee shops)
and learn to write them from attributes. Their model is Karpathy's stories260K, converted to Hugging
Face's format; in some arms one client has a GPT-2 with a tokenizer of its own, in another the server
has a larger Llama. These two have learnt a little from dialogues, a minute of one core each. Settings:
kd_language_models.yaml.

    OMP_NUM_THREADS=1 python benchmarks/kd_language_models.py
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from transformers import AutoTokenizer

from kd_language_models_report import markdown
from llama2c import convert
from small_models import documents, pretrain, train_tokenizer
from trillium.config.experiment import (
    ExperimentConfig,
    Tree,
    experiment,
    merge,
    parse_overrides,
    read_yaml,
)
from trillium.experiment.folder import RunFolder, environment, new_folder
from trillium.experiment.run import Experiment, build
from trillium.files import write_atomic
from trillium.frameworks.kd.alignment.vocabulary import Vocabularies
from trillium.frameworks.kd.dialect import spoken
from trillium.frameworks.kd.protocol import KD
from trillium.report.read import read_run
from trillium.tasks.causal_lm import CausalLM

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared" / "data"
RECIPE = HERE / "kd_language_models.yaml"
OWN_KEYS = ("rows", "warm_up", "titles", "arms")  # of the recipe; all others are of a run
PLACES = ("restaurant", "pub", "coffee shop")


def described(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield attributes, description and kind of place of each row that tells the kind."""
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found = re.findall(r"([^\[\],]+)\[([^\]]*)\]", row["mr"])
            attributes = {key.strip(): value for key, value in found}
            place = attributes.get("eatType")
            if place in PLACES:
                parts = [
                    f"{key} {value}" if key in ("familyFriendly", "customer rating") else value
                    for key, value in attributes.items()
                ]
                yield "; ".join(parts) + ":", row["ref"], place


def write_rows(data: Path, folder: Path, sizes: Mapping[str, int], num_public: int) -> None:
    """Write training and test rows: as many of each kind of place, no attributes in both."""
    found = [*described(data / "devset.csv"), *described(data / "testset_w_refs.csv")]
    random.Random(0).shuffle(found)
    num_test = sizes["test"] // len(PLACES)
    num_train = sizes["of_a_client"] + num_public // len(PLACES)
    splits: dict[str, list[tuple[str, str, str]]] = {"train": [], "test": []}
    for place in PLACES:
        rows = [row for row in found if row[2] == place]
        test = rows[:num_test]
        asked = {attributes for attributes, _, _ in test}
        splits["test"] += test
        splits["train"] += [row for row in rows if row[0] not in asked][:num_train]
    for split, rows in splits.items():
        names = ("prompt", "completion", "client")
        lines = (json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def prepare(recipe: Tree, data: Path, folder: Path) -> dict[str, Any]:
    """Write rows and models; return what learning cost, and how far it came."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(data / "e2e_nlg", folder, recipe["rows"], recipe["data"]["public_size"])
    origin, stories = data / "stories260k", folder / "stories"
    convert(origin / "stories260K.bin", origin / "tok512.bin", stories)
    plan, found = recipe["warm_up"], {}
    texts = documents(data / "text" / plan["text"], int(1e6 * plan["megabytes"]))
    for name, how in plan["models"].items():
        start = time.process_time()
        if isinstance(how["tokenizer"], int):
            tokenizer = train_tokenizer(texts, how["tokenizer"])
        else:
            tokenizer = AutoTokenizer.from_pretrained(folder / how["tokenizer"])
        loss = pretrain(how["kind"], how["sizes"], tokenizer, texts, how["steps"], folder / name)
        found[name] = {"loss": loss, "cpu_seconds": time.process_time() - start}
    return found


def located(tree: Any, folder: Path) -> Any:
    """Return a tree with the folders of prepared models in place of their names."""
    if not isinstance(tree, Mapping):
        return tree
    found = {key: located(value, folder) for key, value in tree.items()}
    if isinstance(found.get("id"), str):
        found["id"] = str(folder / found["id"])
    return found


def configuration(recipe: Tree, arm: Tree, folder: Path) -> ExperimentConfig:
    """Return the checked configuration of an arm."""
    common = {key: value for key, value in recipe.items() if key not in OWN_KEYS}
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}
    tree = merge(merge(common, arm), {"data": {"source": files}})
    return experiment(located(tree, folder))


def bits_per_byte(loss: float, rows: Dataset, tokenizer: Any, max_length: int) -> float:
    """Return a loss per token as bits per byte of response, which do not depend on the tokens."""
    task = CausalLM()
    examples = task.tokenize(rows, tokenizer, max_length)
    num_tokens = sum(task.num_targets(example) for example in examples)
    num_bytes = sum(len(text.encode()) for text in rows["completion"])
    return loss * num_tokens / num_bytes / math.log(2)


def scores(built: Experiment, client: str | None, metrics: Mapping[str, float]) -> dict[str, Any]:
    """Return what is reported of one model on the test rows."""
    kept = {name: metrics[name] for name in ("loss", "perplexity", "token_accuracy")}
    folder, rows = Path(built.config.of(client).model.id), built.data.test
    tokenizer, most = AutoTokenizer.from_pretrained(folder), built.config.training.max_length
    bits = bits_per_byte(kept["loss"], rows, tokenizer, most)
    return {"model": folder.name, **kept, "bits_per_byte": bits}


def vocabularies(built: Experiment) -> dict[str, dict[str, int]]:
    """Return how many tokens were mapped to the server's, of each client that has others."""
    framework, own = built.config.framework, spoken(built.server)
    found: dict[str, dict[str, int]] = {}
    if not isinstance(framework, KD):
        return found
    for client, other in built.server.dialects.items():
        pair = Vocabularies(other.pieces, own.pieces, other.num_classes, own.num_classes)
        found[client] = pair.map().account.to_json()
    return found


def run(config: ExperimentConfig, folder: Path, arm: str) -> dict[str, Any]:
    """Run one arm and return its figures."""
    start = time.process_time()
    built = build(config, RunFolder(folder, arm))
    lines = built.run()
    last = lines[-1]
    found = {name: scores(built, name, own) for name, own in last.get("clients", {}).items()}
    if isinstance(config.framework, KD):
        found["server"] = scores(built, None, last)
    traffic = read_run(folder).traffic
    assert traffic is not None
    lost = ("aligned_rows", "lost_mass", "distil_loss", "train_loss")
    total = traffic.until()
    return {
        "models": found,
        "rounds": [{k: line[k] for k in lost if k in line} for line in lines[1:]],
        "bytes_up": total.bytes_up,
        "bytes_down": total.bytes_down,
        "bytes_once": traffic.bytes_once,
        "kinds": {f"{way} {kind}": size for (way, kind), size in sorted(traffic.kinds.items())},
        "vocabularies": vocabularies(built),
        "cpu_seconds": time.process_time() - start,
    }


def before(recipe: Tree, folder: Path) -> dict[str, Any]:
    """Return the scores of each model as the federation finds it."""
    found = {}
    for name in ("stories", *recipe["warm_up"]["models"]):
        arm = {"framework": "zero_shot", "model": {"id": name}}
        built = build(configuration(recipe, arm, folder))
        found[name] = scores(built, None, built.run()[0])
    return found


def measure(recipe: Tree, data: Path, runs: Path) -> dict[str, Any]:
    """Prepare the models and run all arms."""
    folder = runs / "prepared"
    warmed = prepare(recipe, data, folder)
    content: dict[str, Any] = {"warm_up": warmed, "before": before(recipe, folder), "arms": {}}
    for arm, changes in recipe["arms"].items():
        config = configuration(recipe, changes, folder)
        content["arms"][arm] = run(config, runs / arm, arm)
        print(f"{arm}: {content['arms'][arm]['cpu_seconds']:.0f} CPU seconds", flush=True)
    return content


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description="KD-FedLLM between small language models")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets")
    parser.add_argument("--runs", type=Path, help="new folder for models and runs")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("settings", nargs="*", help="key=value, laid over the recipe")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    recipe = merge(read_yaml(RECIPE), parse_overrides(options.settings))
    runs = options.runs or new_folder(Path("runs"), "kd_language_models")
    content = measure(recipe, options.data, runs)
    content |= {"settings": recipe, "environment": environment("cpu", sys.argv)}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "kd_language_models.json"
    write_atomic(path, json.dumps(content, indent=1) + "\n")
    write_atomic(path.with_suffix(".md"), markdown(content))
    print(markdown(content))


if __name__ == "__main__":
    main()
