"""Peak memory of a Split client's process beside the plan, on a checkpoint that would not fit.

A checkpoint of a public shape, its values at random, is written shard by shard. Then a node, in a
process whose address space is limited to a quarter of the checkpoint, loads its part and trains a round
(two steps of LoRA), asked by this script in place of a server. What it held at most, above what
it held once all was imported (for which it has trained a tiny model), stands beside the peak that
`trillium plan` names. There is no limit for a small model, whose quarter is less than the imports take,
nor in the U shape, whose part has two tables of words.

    OMP_NUM_THREADS=1 python benchmarks/own_part.py --shape llama-3-8b --folder /tmp/own

It takes the size of the checkpoint on disk, which is removed in the end. One that is there is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import trillium
from measured import write_found
from trillium.engines.node import Node
from trillium.engines.node_settings import NodeConfig
from trillium.engines.opening import Opening
from trillium.federation.client import Client
from trillium.frameworks.split.body import Step
from trillium.frameworks.split.delta import GRADIENT, HIDDEN
from trillium.frameworks.split.settings import SplitSettings
from trillium.plan.shapes import shapes
from trillium.quiet import quiet
from trillium.report import human
from trillium.wire.kinds import Limits
from trillium.wire.message import Message, named, scalar

RESULTS = Path(__file__).resolve().parent / "results"
TOKENS, BATCH, STEPS = 128, 4, 2
IMPORTS = 1_500_000_000  # bytes of address space that imports take
SHARD = 1_000_000_000  # bytes
INDEX = "model.safetensors.index.json"
SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
CASES = [("two_part", 1), ("two_part", 2), ("u", 1), ("u", 2)]


def write_checkpoint(config: Any, folder: Path) -> int:
    """Write a model of a shape in bfloat16, its tokenizer and rows; return the bytes of its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.config.save_pretrained(folder)
    draw = torch.Generator().manual_seed(0)
    noise = (torch.randn(2**24, generator=draw) * 0.02).bfloat16()
    weight_map: dict[str, str] = {}
    for number, names in enumerate(_shards(model), start=1):
        file = f"model-{number:05d}.safetensors"
        tensors = {name: _random(model.get_parameter(name), noise) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    total = sum(int(p.nbytes) for p in model.parameters())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    words = {word: index for index, word in enumerate((*SPECIAL, "a", "b", "c"))}
    raw = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    known = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=raw, **known).save_pretrained(folder)
    row = {"prompt": "a " * 40, "completion": "b c " * 60}
    rows = [json.dumps(row)] * (BATCH * STEPS)
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return total


def _shards(model: torch.nn.Module) -> Iterator[list[str]]:
    """Yield the names of parameters that lie together in one file."""
    names, size = list[str](), 0
    for name, parameter in model.named_parameters():
        if names and size + parameter.nbytes > SHARD:
            yield names
            names, size = [], 0
        names, size = [*names, name], size + parameter.nbytes
    yield names


def _random(like: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    times = -(-like.numel() // noise.numel())
    return noise.repeat(times)[: like.numel()].view(like.shape).clone()


def tree_of(folder: Path, shape: str, cut: int) -> dict[str, Any]:
    """Return the recipe."""
    return {
        "framework": {"name": "split", "shape": shape, "cut": cut},
        "task": "causal_lm",
        "rounds": 1,
        "model": {"id": str(folder), "dtype": "bfloat16", "device": "cpu"},
        "adapter": {"name": "lora", "r": 8, "target_modules": ["q_proj", "v_proj"]},
        "data": {
            "source": {
                "name": "files",
                "train": str(folder / "rows.jsonl"),
                "prompt": "prompt",
                "completion": "completion",
            },
            "num_clients": 1,
        },
        "training": {"batch_size": BATCH, "max_length": TOKENS},
    }


def planned(tree: dict[str, Any]) -> int:
    """Return the peak of a client that the plan names, in bytes."""
    told = {"data": {"examples": BATCH * STEPS, "tokens": TOKENS}}
    table = trillium.plan({**tree, "plan": told}).table()
    return int(table["peak_bytes"].max())


def train(folder: Path, limit: int | None, **where: Any) -> dict[str, int]:
    """Load the part and train a round in this process; return what it held, in bytes."""
    tree, state = tree_of(folder, **where), folder / "state"
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with tempfile.TemporaryDirectory() as tiny:
        config = AutoConfig.for_model("llama", vocab_size=16, hidden_size=16, intermediate_size=16,
                                      num_hidden_layers=4, num_attention_heads=2)  # fmt: skip
        write_checkpoint(config, Path(tiny))
        _load_and_train(tree_of(Path(tiny), **where), Path(tiny) / "state")
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    node, loaded = _load_and_train(tree, state)
    part = sum(p.nbytes for p in node.client.model.module.parameters())
    return {
        "imports": before,
        "part": part,
        "loaded": loaded - before,
        "peak": _status("VmHWM") - before,
        "address_space": _status("VmPeak"),
        "counted": node.client.meter.read().peak_bytes,
    }


def _load_and_train(tree: dict[str, Any], state: Path) -> tuple[Node, int]:
    data = Path(tree["data"]["source"]["train"])
    node = Node(NodeConfig(name="node", data=data, state=state), Opening("run", tree, [], 0))
    node.settle(0)
    loaded = _status("VmHWM")
    _round(node.client)
    return node, loaded


def _round(client: Client) -> None:
    """Ask the client as a server would whose gradients are noise."""
    step, draw = Step(1.0, 1e-4).tensors(), torch.Generator().manual_seed(1)
    peak = 0

    def ask(verb: str, tensors: dict[str, torch.Tensor]) -> Message:
        nonlocal peak
        packed = client.wire.pack(Message(verb, tensors, {"round": 1}), "down")
        reply = client.wire.unpack(client.handle(packed.data), "up", Limits()).message
        assert reply.verb == verb, reply.meta
        peak = max(peak, client.meter.read().peak_bytes)
        return reply

    verb: Any = client.verbs["begin"]
    split: SplitSettings = verb.args[0]
    parts = split.parts_of(client)
    names = split.client_names(parts, client.training)
    ask("begin", named("parameters", {name: client.initial[name] for name in names}))
    for _ in range(STEPS):
        hidden = ask("forward", step).tensors[HIDDEN]
        noise = torch.randn(hidden.shape, generator=draw).to(hidden.dtype)
        if parts.split.tail is not None:
            ask("finish_batch", {"activations/output": noise, "control/share": scalar(1.0)})
        ask("backward", {GRADIENT: noise * 1e-3})
    ask("finish", step)
    client.meter.reset(type(client.meter.read())(peak_bytes=peak))


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    [line] = [line for line in lines if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def main() -> None:
    """Write the checkpoint, measure each case in a process, and write the results."""
    parser = argparse.ArgumentParser(description="Peak memory of a Split client's process")
    parser.add_argument("--shape", default="llama-3.2-3b", choices=sorted(shapes()))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "own_part")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        told = json.loads(options.child)
        print(json.dumps(train(options.folder, **told)))
        return
    load = os.getloadavg()[0]
    found = []
    index, is_there = options.folder / INDEX, (options.folder / INDEX).exists()
    try:
        if not is_there:
            write_checkpoint(shapes()[options.shape].config(), options.folder)
        total = json.loads(index.read_text(encoding="utf-8"))["metadata"]["total_size"]
        for shape, cut in CASES:
            tree, limit = tree_of(options.folder, shape, cut), total // 4
            is_limited = shape == "two_part" and limit > IMPORTS
            case: dict[str, Any] = {
                "shape": shape,
                "cut": cut,
                "limit": limit if is_limited else None,
            }
            told = json.dumps(case)
            case["planned"] = planned(tree)
            words = [sys.executable, __file__, "--folder", str(options.folder), "--child", told]
            # Arrow's own allocator reserves 1 GB of address space, of which it uses 4 MB.
            own = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
            done = subprocess.run(words, capture_output=True, text=True, check=False, env=own)
            if done.returncode:
                sys.exit(f"{case}\n{done.stderr[-4000:]}")
            case |= json.loads(done.stdout.splitlines()[-1])
            case["share"] = round(case["peak"] / case["planned"], 3)
            found.append(case)
            shown = {k: human.prefixed(v, "B") if isinstance(v, int) and v > 99 else v
                     for k, v in case.items()}  # fmt: skip
            print(shown, flush=True)
    finally:
        if not is_there:
            shutil.rmtree(options.folder, ignore_errors=True)
    told = {"shape": options.shape, "checkpoint": total, "goal": 1.2}
    write_found(options.out / f"own_part_{options.shape}.json", load, found, **told)


if __name__ == "__main__":
    quiet()
    main()
