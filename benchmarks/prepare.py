"""Write the rows and the small models that a recipe reads, into `runs/prepared/<recipe>`.

    python benchmarks/prepare.py comparison
    python benchmarks/prepare.py frontier_split
    python benchmarks/prepare.py e2e_nlg
    python benchmarks/prepare.py smollm2
    python benchmarks/prepare.py kd_label_skew
    OMP_NUM_THREADS=1 python benchmarks/prepare.py kd_language_models

What is there already is written again only where that takes a moment; models are not.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

from transformers import AutoModel, AutoTokenizer

from e2e_nlg import write_rows as write_meanings
from llama2c import convert
from small_models import documents, pretrain, train_tokenizer
from trillium.models.packaged import MINILM, find_packaged

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared" / "data"
PREPARED = Path("runs/prepared")
TOPICS = HERE / "comparison" / "topics.csv"
PLACES = ("restaurant", "pub", "coffee shop")
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
Pairs = Iterable[tuple[str, str, str]]


def frontier_split(data: Path, folder: Path, num_steps: int = 1000) -> None:
    """Write eight rows of each class, drawn with seed 0, and a GPT-2 that has read some megabytes."""
    choose_rows(data / "banking77" / "train.csv", 8, folder / "train.csv")
    if not (folder / "gpt2" / "config.json").is_file():
        texts = documents(data / "text" / "sgd.txt.zst", 9_000_000)
        sizes = {"n_embd": 128, "n_layer": 6, "n_head": 4, "n_positions": 128, **NO_DROPOUT}
        tokenizer = train_tokenizer(texts, 4096)
        loss = pretrain("gpt2", sizes, tokenizer, texts, num_steps, folder / "gpt2")
        print(f"gpt2: loss {loss:.2f} after {num_steps} steps")


def smollm2_banking77(data: Path, folder: Path) -> None:
    """Write nine rows of each class to learn from, and four to measure by."""
    choose_rows(data / "banking77" / "train.csv", 9, folder / "train.csv")
    choose_rows(data / "banking77" / "test.csv", 4, folder / "test.csv")


def comparison(data: Path, folder: Path) -> None:
    """Write rows of Banking77 with the topics of their classes, texts of another domain, half a MiniLM.

    A file of more training rows begins with those of the others, and has each class as often as any
    other that has rows left: `train_1400.csv` has 1,400.
    """
    topics = topics_of()

    def told(rows: Iterable[tuple[int, dict[str, str]]]) -> list[dict[str, str]]:
        return [{**row, "topic": topics[row["category"]]} for _, row in rows]

    test, train = (ranked(data / "banking77" / f"{part}.csv") for part in ("test", "train"))
    write_csv(told(pair for pair in test if pair[0] < 10), folder / "test.csv")
    rows = told(sorted(train, key=itemgetter(0)))
    for count in (600, 900, 1100, 1400, 2000, 2400, 5400, len(rows)):
        write_csv(rows[:count], folder / f"train_{count}.csv")
    lines = (data / "self_instruct" / "user_oriented_instructions.jsonl").open(encoding="utf-8")
    write_csv(({"text": json.loads(line)["instruction"]} for line in lines), folder / "other.csv")
    whole = find_packaged(MINILM)
    module = AutoModel.from_pretrained(whole)
    module.encoder.layer = module.encoder.layer[:3]
    module.config.num_hidden_layers = 3
    module.save_pretrained(folder / "minilm_3")
    AutoTokenizer.from_pretrained(whole).save_pretrained(folder / "minilm_3")


def topics_of() -> dict[str, str]:
    """Return the topic of each intent of Banking77."""
    with TOPICS.open(encoding="utf-8", newline="") as file:
        return {row["category"]: row["topic"] for row in csv.DictReader(file)}


def kd_label_skew(data: Path, folder: Path) -> None:
    """Write 1,500 training rows and all test rows, once by intent and once by topic."""
    topics = topics_of()
    for split, most in {"train": 1500, "test": None}.items():
        with (data / "banking77" / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if most is not None:
            random.Random(0).shuffle(rows)
        chosen = rows[:most]
        write_csv(chosen, folder / f"intents_{split}.csv")
        by_topic = [{**row, "category": topics[row["category"]]} for row in chosen]
        write_csv(by_topic, folder / f"topics_{split}.csv")


def choose_rows(path: Path, per_class: int, into: Path) -> None:
    """Write so many rows of each class of a file, drawn with seed 0."""
    write_csv((row for rank, row in ranked(path) if rank < per_class), into)


def ranked(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Return the rows of a file, shuffled with seed 0, and how many of its class stand before each."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    random.Random(0).shuffle(rows)
    counts: Counter[str] = Counter()
    found = []
    for row in rows:
        found.append((counts[row["category"]], row))
        counts[row["category"]] += 1
    return found


def write_csv(rows: Iterable[Mapping[str, str]], into: Path) -> None:
    """Write rows that have the same columns."""
    first, *others = rows
    with into.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*first])
        writer.writeheader()
        writer.writerows([first, *others])


def e2e_nlg(data: Path, folder: Path) -> None:
    """Write descriptions to learn from and to measure by, and the decoder that learns them."""
    write_meanings(data / "e2e_nlg", folder)
    stories = folder / "stories"
    origin = data / "stories260k"
    convert(origin / "stories260K.bin", origin / "tok512.bin", stories)
    tokenizer = AutoTokenizer.from_pretrained(stories)
    tokenizer.eos_token = tokenizer.bos_token  # what has parted texts in its training
    tokenizer.save_pretrained(stories)


def smollm2(data: Path, folder: Path) -> None:
    """Write rows of two tasks for a small instruct model, and a GPT-2 that has read a little."""
    places = [*attributed(data / "e2e_nlg" / "devset.csv")]
    random.Random(0).shuffle(places)
    meanings = dict(attributed(data / "e2e_nlg" / "testset_w_refs.csv"))  # one reference of each
    write_pairs(places[:240], folder / "e2e_train.jsonl")
    write_pairs(unseen(meanings.items(), places[:240])[:100], folder / "e2e_test.jsonl")
    write_pairs(places[240:480], folder / "e2e_tune.jsonl")
    write_pairs(unseen(places[480:], places[:480])[:80], folder / "e2e_validation.jsonl")
    sums = {split: [*solved(data / "gsm8k" / f"{split}.jsonl")] for split in ("train", "test")}
    write_pairs(sums["train"][:240], folder / "gsm8k_train.jsonl")
    write_pairs(sums["test"][:80], folder / "gsm8k_test.jsonl")
    if not (folder / "gpt2" / "config.json").is_file():
        texts = documents(data / "text" / "sgd.txt.zst", 4_000_000)
        sizes = {"n_embd": 96, "n_layer": 4, "n_head": 4, "n_positions": 256, **NO_DROPOUT}
        pretrain("gpt2", sizes, train_tokenizer(texts, 1024), texts, 200, folder / "gpt2")


def attributed(path: Path) -> Iterator[tuple[str, str]]:
    """Yield what is to be described, and a description, of each row."""
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            pairs = re.findall(r"([^\[\],]+)\[([^\]]*)\]", row["mr"])
            told = "\n".join(f"{key.strip()}: {value}" for key, value in pairs)
            yield f"{told}\ndescription:", f" {row['ref'].strip()}"


def unseen(
    pairs: Iterable[tuple[str, str]], known: Iterable[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Return the pairs whose prompts are not among others, shuffled."""
    prompts = {*dict(known)}
    found = [pair for pair in pairs if pair[0] not in prompts]
    random.Random(0).shuffle(found)
    return found


def solved(path: Path) -> Iterator[tuple[str, str]]:
    """Yield short questions and their answers, without the marks of a calculator."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(rows)
    for row in rows:
        answer = re.sub(r"<<.*?>>", "", row["answer"])
        if len(row["question"]) < 200 and len(answer) < 200:
            yield f"{row['question']}\n", answer


def write_pairs(pairs: Iterable[tuple[str, str]], path: Path) -> None:
    """Write prompts and completions."""
    lines = (json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in pairs)
    path.write_text("".join(lines), encoding="utf-8")


def kd_language_models(data: Path, folder: Path, num_steps: int = 200) -> None:
    """Write rows of three kinds of places, stories260K, and two models that have learnt a little."""
    found = [*described(data / "e2e_nlg" / "devset.csv")]
    found += described(data / "e2e_nlg" / "testset_w_refs.csv")
    write_places(found, folder, of_a_client=120, num_test=150, num_public=48)
    origin = data / "stories260k"
    convert(origin / "stories260K.bin", origin / "tok512.bin", folder / "stories")
    if (folder / "warm_up.json").is_file():
        return
    texts = documents(data / "text" / "sgd.txt.zst", 4_000_000)
    plans: dict[str, tuple[str, dict[str, Any], Callable[[], Any]]] = {
        "gpt2": (
            "gpt2",
            {"n_embd": 96, "n_layer": 4, "n_head": 4, "n_positions": 256, **NO_DROPOUT},
            lambda: train_tokenizer(texts, 1024),
        ),
        "large": (
            "llama",
            {
                "hidden_size": 128,
                "intermediate_size": 344,
                "num_hidden_layers": 6,
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "max_position_embeddings": 512,
                "tie_word_embeddings": True,
            },
            lambda: AutoTokenizer.from_pretrained(folder / "stories"),
        ),
    }
    warmed = {}
    for name, (kind, sizes, tokenizer) in plans.items():
        start = time.process_time()
        loss = pretrain(kind, sizes, tokenizer(), texts, num_steps, folder / name)
        warmed[name] = {"loss": loss, "cpu_seconds": time.process_time() - start}
    (folder / "warm_up.json").write_text(json.dumps(warmed), encoding="utf-8")


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


def write_places(
    found: list[tuple[str, str, str]],
    folder: Path,
    of_a_client: int,
    num_test: int,
    num_public: int,
) -> None:
    """Write training and test rows: as many of each kind of place, no attributes in both."""
    random.Random(0).shuffle(found)
    splits: dict[str, list[tuple[str, str, str]]] = {"train": [], "test": []}
    for place in PLACES:
        rows = [row for row in found if row[2] == place]
        test = rows[: num_test // len(PLACES)]
        asked = {attributes for attributes, _, _ in test}
        most = of_a_client + num_public // len(PLACES)
        splits["test"] += test
        splits["train"] += [row for row in rows if row[0] not in asked][:most]
    for split, rows in splits.items():
        names = ("prompt", "completion", "client")
        lines = (json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


RECIPES: dict[str, Callable[[Path, Path], None]] = {
    "comparison": comparison,
    "frontier_split": frontier_split,
    "e2e_nlg": e2e_nlg,
    "kd_label_skew": kd_label_skew,
    "kd_language_models": kd_language_models,
    "smollm2": smollm2,
    "smollm2_banking77": smollm2_banking77,
}


def main() -> None:
    """Write what a recipe reads."""
    parser = argparse.ArgumentParser(description="Write what a benchmark's recipe reads")
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets")
    options = parser.parse_args()
    folder = PREPARED / options.recipe
    folder.mkdir(parents=True, exist_ok=True)
    RECIPES[options.recipe](options.data, folder)
    print(f"{folder} written.")


if __name__ == "__main__":
    main()
