"""Training in bfloat16 with weights in float32 is what plain PyTorch does under `torch.autocast`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tiny import (
    distance,
    experiment_config,
    federation,
    perturb,
    plain_model,
    round_batches,
    run_rounds,
    trained,
)
from trillium.config.experiment import experiment, parse_overrides
from trillium.errors import UserError
from trillium.tasks.batches import collate

BFLOAT16 = ("model.dtype=float32", "training.autocast=bfloat16")
# After several steps, another last bit is another rounding.
ONE = ("data.num_clients=1", "rounds=1", "training.local_steps=1", *BFLOAT16)
CASES = [("bert", "classification"), ("llama", "causal_lm"), ("gpt2", "causal_lm")]


@pytest.mark.parametrize("words", ["fedllm", "split", "{name: split, shape: u, tail: 2}"])
@pytest.mark.parametrize(("model", "task"), CASES)
def test_it_is_that_of_pytorch(hub: Path, words: str, model: str, task: str) -> None:
    own = (*ONE, f"framework={words}", "training.optimizer={name: sgd, lr: 0.1}")
    fed = perturb(federation(hub, *own, model=model, task=task))
    rounded, plain = plain_model(fed), plain_model(fed)
    run_rounds(fed, 1)
    for module, dtype in ((rounded, torch.bfloat16), (plain, None)):
        optimizer = torch.optim.SGD(trained(module).values(), lr=0.1)
        for chunk in round_batches(fed, 1):
            batch = collate(chunk, 0, torch.device("cpu"))
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                logits, labels = module(**batch.inputs).logits, batch.labels
                if labels.dim() == 2:
                    logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
                loss = nn.functional.cross_entropy(logits.float(), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained(module).values(), 1.0)
            optimizer.step()
    apart = distance(trained(rounded), trained(plain))
    assert apart > 1e-4, "nothing was rounded"
    assert distance(fed.server.state, trained(rounded)) < 1e-3 * apart
    assert all(tensor.dtype == torch.float32 for tensor in fed.server.state.values())


def test_what_is_evaluated_is_not_rounded(hub: Path) -> None:
    """Nor are soft labels: those of an untrained model are those without it."""
    words = ("framework=kd", "training.optimizer.lr=1.0e-30", "model.dtype=float32", "rounds=1")
    found = []
    for more in ((), ("training.autocast=bfloat16",)):
        fed = federation(hub, *words, *more, task="causal_lm")
        fed.run()
        found.append(fed)
    one, other = found
    assert one.history[-1]["loss"] == other.history[-1]["loss"]
    assert one.history[-1]["train_loss"] != other.history[-1]["train_loss"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("model.dtype=bfloat16",), "weights in float32"),
        (("model.quantize=nf4",), "weights in float32"),
        (("framework=fedkseed",), "the same in 16 bits"),
        (("framework=kd", "server.model={dtype: bfloat16}"), "weights in float32"),
    ],
)
def test_what_it_cannot_be_with_is_refused(words: tuple[str, ...], why: str) -> None:
    with pytest.raises(UserError, match=why):
        experiment(parse_overrides(["training.autocast=bfloat16", *words]))


def test_other_precisions_are_refused(hub: Path) -> None:
    with pytest.raises(UserError, match="no such choice"):
        experiment_config(hub, "training.autocast=float16", "model.dtype=float32")
