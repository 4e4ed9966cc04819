"""What the built-in task takes: word counts, and a frozen encoder with a linear classifier.

Both references see all training rows in one place. Word counts ought to do badly and the frozen
encoder better: the test rows say what the training rows say in other words.

    python benchmarks/default_task.py
    python benchmarks/default_task.py --grid    by difficulty, on the rows that settings are chosen by
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression

from bag_of_words import bag_of_words, scores
from trillium.config.comparison import comparison
from trillium.config.experiment import merge, read_yaml, recipe_path
from trillium.config.texts import Texts
from trillium.data.load import load_data
from trillium.experiment.environment import environment
from trillium.files import write_atomic
from trillium.models.adapters.full import Full
from trillium.models.base import ModelConfig
from trillium.models.load import LanguageModel, load_model
from trillium.report.measures import BY_NAME
from trillium.report.summary import Stat
from trillium.tasks.batches import collate, in_order
from trillium.tasks.classification import Classification

RESULTS = Path(__file__).parent / "results"
ARM = "fedllm"  # of the recipe; all arms have the same data
Rows = tuple[list[str], list[int]]
Found = dict[str, dict[str, float]]
ASIDES, TYPOS = (0.0, 0.15, 0.3, 0.45, 0.6), (0.0, 0.02, 0.05)


def encoder() -> LanguageModel:
    """Return MiniLM as it is; the task head that comes with it is not used."""
    task = Classification()
    return load_model(
        ModelConfig(),
        Full(),
        auto_class=task.auto_class,
        peft_task=task.peft_task,
        labels=("a", "b"),
        seed=0,
    )


@torch.inference_mode()
def features(model: LanguageModel, texts: list[str], max_length: int) -> np.ndarray[Any, Any]:
    """Return the mean of the last hidden states of each text, of length one, `(texts, hidden)`."""
    body: Any = model.module.base_model
    rows = Dataset.from_dict({"text": texts, "label": [0] * len(texts)})
    examples = Classification().tokenize(rows, model.tokenizer, max_length)
    pooled = []
    for chunk in in_order(examples, 64):
        batch = collate(chunk, model.tokenizer.pad_token_id, model.device)
        mask = batch.attention_mask[..., None].float()
        hidden = body(**batch.inputs).last_hidden_state
        pooled.append((hidden * mask).sum(1) / mask.sum(1))
    found: np.ndarray[Any, Any] = torch.nn.functional.normalize(torch.cat(pooled)).cpu().numpy()
    return found


def references(tree: Mapping[str, Any], seed: int, model: LanguageModel) -> Found:
    """Return the scores of both references on the data that a run with this seed has."""
    config = comparison(tree, {}).experiments([seed])[ARM, seed]
    data = load_data(config.data, config.task.data_form, seed)
    train: Rows = ([], [])
    for rows in data.clients.values():
        train[0].extend(rows["text"])
        train[1].extend(rows["label"])
    test: Rows = (list(data.test["text"]), list(data.test["label"]))
    length = Texts(config, data.labels).fit(data).training.limit
    classifier = LogisticRegression(C=10.0, max_iter=2000)
    classifier.fit(features(model, train[0], length), train[1])
    return {
        "TF-IDF (1-2 grams), linear SVM": bag_of_words(train, test),
        "frozen MiniLM, logistic regression": scores(
            test[1], classifier.predict(features(model, test[0], length))
        ),
    }


def by_difficulty(
    tree: Mapping[str, Any], seeds: Sequence[int], model: LanguageModel
) -> list[dict[str, Any]]:
    """Print and return the mean accuracies by how hard the requests are, on validation rows."""
    found = []
    for asides, typos in product(ASIDES, TYPOS):
        given = {"held_out": "validation", "asides": asides, "typos": typos}
        hard = merge(tree, {"data": {"source": given}})
        each = [references(hard, seed, model) for seed in seeds]
        means = {name: fmean(one[name]["accuracy"] for one in each) for name in each[0]}
        found.append({"asides": asides, "typos": typos, "accuracy": means})
        print(json.dumps(found[-1]), flush=True)
    return found


def by_seed(tree: Mapping[str, Any], seeds: Sequence[int], model: LanguageModel) -> dict[str, Any]:
    """Print and return the scores of both references for each seed, on test rows."""
    found = {seed: references(tree, seed, model) for seed in seeds}
    table = Table("Reference", "Accuracy", "F1 (macro)", title="Built-in task, data in one place")
    for name in found[seeds[0]]:
        stats = {m: Stat.of(found[seed][name][m] for seed in found) for m in ("accuracy", "f1")}
        table.add_row(name, *(BY_NAME[m].show(s.mean, s.sd) for m, s in stats.items() if s))
    Console().print(table)
    return {str(seed): values for seed, values in found.items()}


def main() -> None:
    """Compute, print and write `results/default_task.json`, or `default_difficulty.json`."""
    parser = argparse.ArgumentParser(description="References on the built-in task")
    parser.add_argument("--recipe", type=Path, default=recipe_path("compare"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--grid", action="store_true")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model, tree = encoder(), read_yaml(options.recipe)
    found: dict[str, Any]
    if options.grid:
        name, found = "difficulty", {"grid": by_difficulty(tree, options.seeds, model)}
    else:
        name, found = "task", {"seeds": by_seed(tree, options.seeds, model)}
    content = {
        "data": tree["data"],
        **found,
        "environment": environment(str(model.device), sys.argv),
    }
    write_atomic(RESULTS / f"default_{name}.json", json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
