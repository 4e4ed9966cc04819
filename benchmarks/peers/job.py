"""What all contestants do alike, in plain PyTorch + PEFT: model, rows, one epoch, evaluation."""

import json
import os
import random
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sitecustomize import event as event

FOLDER = Path(os.environ["PEERS_JOB"])
JOB = json.loads((FOLDER / "job.json").read_text(encoding="utf-8"))
BATCH, WINDOW, MULTIPLE, LR, MAX_LENGTH = 32, 50, 8, 1e-3, 64
State = dict[str, Tensor]
Rows = list[tuple[list[int], int]]

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
torch.manual_seed(0)


def tokenizer() -> Any:
    """Return the model's tokenizer."""
    return AutoTokenizer.from_pretrained(JOB["model"])


def model() -> nn.Module:
    """Return the model with LoRA, at the values that all start from."""
    base = AutoModelForSequenceClassification.from_pretrained(
        JOB["model"], num_labels=JOB["num_labels"]
    )
    lora = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
    found: nn.Module = get_peft_model(base, lora)
    put(found, torch.load(FOLDER / "start.pt"))
    return found


def trained(net: nn.Module) -> dict[str, nn.Parameter]:
    """Return what is trained and exchanged."""
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def get(net: nn.Module) -> State:
    """Return a copy of what is exchanged."""
    return {name: p.detach().clone() for name, p in trained(net).items()}


def put(net: nn.Module, state: State) -> None:
    """Set what is exchanged."""
    with torch.no_grad():
        for name, parameter in trained(net).items():
            parameter.copy_(state[name])


def rows(name: str, tokens: Any) -> Rows:
    """Return the rows of a client, or of the test set, tokenised."""
    lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    texts = [row["text"] for row in found]
    ids = tokens(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
    return [(i, row["label"]) for i, row in zip(ids, found, strict=True)]


def collate(chunk: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Return token ids and mask, padded to a multiple of eight, and labels."""
    length = -(-max(len(ids) for ids, _ in chunk) // MULTIPLE) * MULTIPLE
    ids = torch.full((len(chunk), length), JOB["pad"])
    mask = torch.zeros_like(ids)
    for row, (known, _) in enumerate(chunk):
        ids[row, : len(known)], mask[row, : len(known)] = torch.tensor(known), 1
    return ids, mask, torch.tensor([label for _, label in chunk])


def batches(own: Rows, seed: int) -> list[Rows]:
    """Return one epoch in batches of like lengths, as Trillium makes them: the same work for all."""
    rng = random.Random(seed)
    left, chunks = rng.sample(own, len(own)), []
    for start in range(0, len(left), WINDOW * BATCH):
        inside = sorted(left[start : start + WINDOW * BATCH], key=lambda row: len(row[0]))
        chunks += [inside[k : k + BATCH] for k in range(0, len(inside), BATCH)]
    rng.shuffle(chunks)
    return chunks


def loss(net: nn.Module, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """Return the mean loss of a batch."""
    return nn.functional.cross_entropy(net(input_ids=ids, attention_mask=mask).logits, labels)


def train(net: nn.Module, own: Rows, seed: int) -> float:
    """Train one epoch, and return the mean loss."""
    parameters = list(trained(net).values())
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.0)
    net.train()
    total = 0.0
    for chunk in batches(own, seed):
        found = loss(net, *collate(chunk))
        found.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total += float(found.detach()) * len(chunk)
    return total / len(own)


@torch.inference_mode()
def evaluate(net: nn.Module, test: Rows, number: int) -> float:
    """Return the accuracy after a round, and tell the race."""
    net.eval()
    ordered, hits = sorted(test, key=lambda row: len(row[0])), 0
    for start in range(0, len(ordered), 64):
        ids, mask, labels = collate(ordered[start : start + 64])
        predicted = net(input_ids=ids, attention_mask=mask).logits.argmax(-1)
        hits += int((predicted == labels).sum())
    event("round", round=number, accuracy=hits / len(test))
    return hits / len(test)
