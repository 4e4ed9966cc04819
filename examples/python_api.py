"""Run an experiment from Python and look at what came of it, without a run folder.

    python examples/python_api.py [KEY=VALUE ...]

Settings on the command line are laid over the ones here, e.g. `framework=split framework.cut=2`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import transformers

from trillium.config.experiment import experiment, merge, parse_overrides
from trillium.experiment.run import Experiment, build
from trillium.federation.side import Metrics

# The same tree as in a recipe; docs/configuration.md lists every key.
SETTINGS = {
    "seed": 0,
    "rounds": 2,
    "framework": {"name": "fedllm", "upload": "update"},
    "data": {
        "source": {"name": "builtin", "num_train": 300, "num_test": 60},
        "partition": {"name": "dirichlet", "alpha": 0.5},
        "num_clients": 3,
    },
    "adapter": {"name": "lora", "r": 4},
    "training": {"batch_size": 8, "local_steps": 6, "max_length": 32},
    "wire": {"up": ["int8"]},
}


def show(line: Metrics) -> None:
    """Print one evaluation; it holds what a line of `metrics.jsonl` holds."""
    print(f"round {line['round']}: loss {line['loss']:.3f}, {line['replied']} clients replied")


def main(words: Sequence[str] = ()) -> Experiment:
    """Build, run, and read the ledger."""
    transformers.utils.logging.set_verbosity_error()  # it would report the new head
    config = experiment(merge(SETTINGS, parse_overrides(words)))
    federation = build(config)
    federation.run(observe=show)

    # Without a run folder the ledger stays in memory: one entry per message.
    ledger = federation.fleet.ledger
    for client in federation.clients:
        own = [e for e in ledger.entries if e.client == client.name and e.purpose == "train"]
        up = sum(e.bytes for e in own if e.direction == "up")
        down = sum(e.bytes for e in own if e.direction == "down")
        flops = sum(e.flops or 0 for e in own)
        examples = len(client.examples)
        print(
            f"{client.name}: {examples} examples, {up:,} B up, {down:,} B down, {flops:.2e} FLOPs"
        )

    # The model that the federation would ship, ready to predict.
    server = federation.server
    module = federation.model.mount(server.state, server.base).eval()
    inputs = federation.model.tokenizer("My card was charged twice.", return_tensors="pt")
    device = federation.model.device
    logits = module(
        input_ids=inputs["input_ids"].to(device), attention_mask=inputs["attention_mask"].to(device)
    ).logits
    print("most likely:", federation.data.labels[int(logits[0].argmax())])
    return federation


if __name__ == "__main__":
    main(sys.argv[1:])
