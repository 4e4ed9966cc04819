"""A part that is loaded alone is the one that is cut from the whole: tensors and activations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from test_split_model import CONFIGS, ENCODERS
from torch import Tensor, nn
from transformers import AutoConfig

from checkpoints import checkpoint
from tiny import Recorder, digest, federation, run_rounds, tensors_digest
from trillium.component import resolve
from trillium.errors import UserError
from trillium.experiment.run import resident_model
from trillium.models import own
from trillium.models.adapters import Adapter
from trillium.models.base import ModelConfig
from trillium.models.checkpointing import checkpoint_blocks
from trillium.models.load import LanguageModel, load_model
from trillium.models.own import Ends
from trillium.models.part_folder import write_part
from trillium.models.stand_ins import is_whole
from trillium.rng import scoped_rng
from trillium.tasks import Example
from trillium.training.counting import counting

AUTO = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
}
CASES = [("CAUSAL_LM", name) for name in CONFIGS if name not in ENCODERS]
CASES += [("SEQ_CLS", name) for name in (*sorted(ENCODERS), "gpt2", "llama")]
INDEX = "model.safetensors.index.json"
ALL_ENDS = [Ends(1), Ends(2), Ends(1, True), Ends(1, True, 2)]
LINEAR = {"name": "lora", "target_modules": "all-linear"}
PROBE = [Example(0, torch.arange(5, 12), torch.tensor(0))]


def write(hub: Path, name: str, task: str, *, parts: bool = True, **changes: Any) -> Path:
    """Write a model with random weights, in many files, and a tokenizer of its size."""
    folder = hub / f"own-{name}-{task}-{parts}-{len(changes)}"
    if not folder.exists():
        config = AutoConfig.for_model(name, **(CONFIGS[name] | changes))
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = getattr(transformers, AUTO[task]).from_config(config)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        if task == "SEQ_CLS":
            model = model.base_model  # the head is new, and perhaps a pooler
        model.save_pretrained(folder, max_shard_size="8KB" if parts else "1GB")
        assert (folder / "model.safetensors.index.json").exists() == parts
        for file in (hub / "bert").glob("token*"):
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def load(folder: Path, task: str, ends: Ends | None, **options: Any) -> LanguageModel:
    adapter = options.pop("adapter", LINEAR)
    options |= {"attention": "eager"} if "gemma2" in folder.name else {}
    return load_model(
        ModelConfig(id=str(folder), device="cpu", **options),
        resolve(Adapter, adapter),
        auto_class=AUTO[task],
        peft_task=task,
        labels=("a", "b", "c") if task == "SEQ_CLS" else (),
        seed=5,
        ends=ends,
    )


def tensors(*modules: nn.Module | None) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for module in modules:
        if module is not None:
            found |= {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return found


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        t.dtype == right[n].dtype and torch.equal(t, right[n]) for n, t in left.items()
    )


@pytest.mark.parametrize("ends", ALL_ENDS)
@pytest.mark.parametrize(("task", "name"), CASES)
def test_it_is_the_part_of_the_whole(hub: Path, task: str, name: str, ends: Ends) -> None:
    folder = write(hub, name, task)
    whole, alone = load(folder, task, None), load(folder, task, ends)
    tail = ends.tail_of(whole.num_blocks)
    theirs, ours = whole.parts(ends.cut, tail, PROBE), alone.parts(ends.cut, tail, PROBE)
    for side in ("head", "tail"):
        one, two = getattr(theirs.split, side), getattr(ours.split, side)
        assert (one is None) == (two is None)
        if one is not None:
            assert same(dict(two.named_parameters()), dict(one.named_parameters()))
    assert (ours.width, ours.num_classes) == (theirs.width, theirs.num_classes)
    # Nothing else is there, on no device; and what trains starts as in the whole.
    held = {id(p) for side in (ours.split.head, ours.split.tail) if side for p in side.parameters()}
    assert {id(p) for p in alone.module.parameters()} == held
    names = {*ours.head.names, *ours.tail.names}
    assert alone.initial.keys() == names
    assert same(alone.initial, {n: whole.initial[n] for n in names})
    assert any("lora_A" in n for n in names)

    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    ids = torch.arange(18).view(2, 9) % 40 + 3
    whole.mount(whole.state())
    alone.mount(alone.state())
    heads = [p.split.head.eval()(None, input_ids=ids, attention_mask=mask) for p in (theirs, ours)]
    assert torch.equal(*heads)
    if tail is not None:
        hidden = torch.randn(2, 9, ours.width, generator=torch.Generator().manual_seed(1))
        tails = [p.split.tail for p in (theirs, ours)]
        assert torch.equal(*(t.eval()(hidden, attention_mask=mask) for t in tails if t is not None))


@pytest.mark.parametrize(("task", "name"), [("CAUSAL_LM", "llama"), ("SEQ_CLS", "bert")])
def test_its_blocks_can_run_again(hub: Path, task: str, name: str) -> None:
    plain, again = (load(write(hub, name, task), task, Ends(1)) for _ in range(2))
    checkpoint_blocks(again.module)
    ids, found = torch.arange(18).view(2, 9) % 40 + 3, []
    for model in (plain, again):
        head, state = model.parts(1, None, PROBE).split.head.train(), model.state()
        model.parts(1, None, PROBE).head.mount(state)
        # BERT draws dropout.
        with scoped_rng(0, "again"), counting(torch.device("cpu"), lambda: ()) as count:
            hidden = head(None, input_ids=ids, attention_mask=torch.ones_like(ids))
            hidden.square().sum().backward()
        found.append((count.flops, {n: p.grad for n, p in state.items() if p.grad is not None}))
    assert same(found[0][1], found[1][1])
    assert found[0][1].keys() == plain.initial.keys()
    assert found[1][0] > 1.2 * found[0][0]


@pytest.mark.parametrize("parts", [True, False])
@pytest.mark.parametrize("ends", [Ends(1), Ends(1, True)])
def test_no_other_tensor_is_read(
    hub: Path, ends: Ends, parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that can be read of a file passes through here, and its name is noted."""
    folder = write(hub, "llama", "CAUSAL_LM", parts=parts, tie_word_embeddings=False)
    there, read = list[str](), list[str]()

    class Reader:
        def __init__(self, *args: Any, **options: Any) -> None:
            self.inner: Any = safe_open(*args, **options)

        def __enter__(self) -> Reader:
            return self

        def __exit__(self, *_: object) -> None:
            self.inner.__exit__(None, None, None)

        def keys(self) -> list[str]:
            there.extend(self.inner.keys())
            return list(self.inner.keys())

        def get_tensor(self, name: str) -> Tensor:
            read.append(name)
            found: Tensor = self.inner.get_tensor(name)
            return found

    monkeypatch.setattr(own, "safe_open", Reader)
    part = load(folder, "CAUSAL_LM", ends)
    expected = {name.replace(".base_layer", "").removeprefix("base_model.model.")
                for name, _ in part.module.named_parameters() if "lora" not in name}  # fmt: skip
    assert {*read} == expected
    assert len(read) == len(expected)
    assert {"model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"} <= expected
    assert ("lm_head.weight" in expected) == ends.has_tail
    assert len(there) > 2 * len(read)  # the control: there is more


def test_values_are_converted_as_in_the_whole(hub: Path) -> None:
    folder = write(hub, "llama", "CAUSAL_LM")
    ends = Ends(2, True)
    for dtype in ("bfloat16", "float64"):
        whole, alone = (load(folder, "CAUSAL_LM", e, dtype=dtype) for e in (None, ends))
        theirs, ours = (m.parts(2, m.num_blocks, PROBE).split for m in (whole, alone))
        assert same(tensors(ours.head), {n: tensors(theirs.head)[n] for n in tensors(ours.head)})
        assert {t.dtype for t in ours.head.parameters()} >= {getattr(torch, dtype)}
        mask = torch.ones(1, 5, dtype=torch.long)
        ids = torch.arange(3, 8)[None]
        both = (
            split.head.eval()(None, input_ids=ids, attention_mask=mask) for split in (theirs, ours)
        )
        assert torch.equal(*both)


@pytest.mark.parametrize(
    "adapter",
    [
        {"name": "lora", "target_modules": ["q_proj", "v_proj"], "layers": [1, 2]},
        {"name": "lora", "target_modules": ["q_proj", "embed_tokens"], "init": "orthonormal"},
        {"name": "lora", "target_modules": ["q_proj"], "dora": True},
        {"name": "ia3"},
        {"name": "bottleneck"},
        {"name": "bitfit", "layer_norm": True},
        {"name": "full"},
    ],
)
def test_every_adapter_starts_as_in_the_whole(hub: Path, adapter: dict[str, Any]) -> None:
    """The first trains nothing in the client's first blocks."""
    folder = write(hub, "llama", "CAUSAL_LM", tie_word_embeddings=False)
    for ends in (Ends(1), Ends(1, True, 2)):
        whole, alone = (load(folder, "CAUSAL_LM", e, adapter=adapter) for e in (None, ends))
        tail = ends.tail_of(3)
        theirs, ours = whole.parts(1, tail, PROBE), alone.parts(1, tail, PROBE)
        assert ours.head.names == theirs.head.names
        assert ours.tail.names == theirs.tail.names
        names = {*ours.head.names, *ours.tail.names}
        assert same(alone.initial, {name: whole.initial[name] for name in names})


def test_training_goes_on_from_an_adapter_of_the_whole(hub: Path, tmp_path: Path) -> None:
    for name, task in (("llama", "CAUSAL_LM"), ("bert", "SEQ_CLS")):
        folder = write(hub, name, task)
        whole, saved = load(folder, task, None), tmp_path / name
        state = whole.state()
        for parameter in state.values():
            parameter.data += 0.1
        whole.save(state, saved)
        onward = {**LINEAR, "from": str(saved)}
        for ends in (Ends(1), Ends(1, True)):
            theirs, ours = (load(folder, task, e, adapter=onward) for e in (None, ends))
            assert same(ours.initial, {n: theirs.initial[n] for n in ours.initial})
            assert not same(ours.initial, {n: whole.initial[n] for n in ours.initial})


def test_what_cannot_be_read_in_parts_is_loaded_whole_and_said(
    hub: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(hub, "llama", "CAUSAL_LM", parts=False, hidden_act="gelu")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    whole = load(folder, "CAUSAL_LM", Ends(1))
    assert "no weights in the safetensors format" in caplog.text
    assert load(folder, "CAUSAL_LM", None).initial.keys() == whole.initial.keys()
    drawn = load(folder, "CAUSAL_LM", Ends(1), random_weights=True)
    assert "its weights are drawn" in caplog.text
    assert drawn.initial.keys() == whole.initial.keys()


FEDERATIONS: list[tuple[str, ...]] = [
    ("framework.train=both",),
    ("framework.train=both", "framework.mode=relay"),
    ("framework.train=both", "framework.shape=u", "framework.mode=splitfed_v1"),
    ("framework.train=both", "framework.shape=u", "framework.tail=2", "framework.staleness=1"),
    ("framework.train=both", "framework.delta={}"),
    ("framework.train=server", "framework.local_rounds=1"),
    ("framework.train=server", "framework.shape=u"),
    ("framework.train=server", "framework.cut=2", "tiers={thin: {clients: [client-1], cut: 1}}"),
    ("framework.train=both", "adapter=full"),
]


@pytest.mark.parametrize("words", FEDERATIONS, ids=" ".join)
@pytest.mark.parametrize(("model", "task"), [("bert", "classification"), ("llama", "causal_lm")])
def test_a_federation_of_clients_with_parts_is_one_of_clients_with_the_whole(
    hub: Path, model: str, task: str, words: tuple[str, ...], uncounted: None
) -> None:
    folder = checkpoint(hub, model, "SEQ_CLS" if task == "classification" else "CAUSAL_LM")
    given = ("framework=split", f"model.id={folder}", "model.random_weights=false", *words)
    runs = []
    for alone in (False, True):
        fed = federation(hub, *given, model=model, task=task)
        for client in fed.clients if alone else ():
            ends = fed.config.framework.ends(client.tier)
            assert ends is not None
            client.model = resident_model(fed.config.of(client.name), fed.data.labels, ends)
            assert not is_whole(client.model.module)
        recorder = Recorder(fed)
        run_rounds(fed, 2)
        replies = [digest(reply) for _, _, reply in recorder.log]
        runs.append((tensors_digest(dict(fed.server.state)), replies))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("ends", [Ends(2), Ends(1, True, 2)])
@pytest.mark.parametrize(("name", "task"), [("llama", "CAUSAL_LM"), ("bert", "SEQ_CLS")])
def test_a_folder_with_the_part_serves_as_the_model(
    hub: Path, tmp_path: Path, name: str, task: str, ends: Ends
) -> None:
    folder, part = write(hub, name, task), tmp_path / "part"
    labels = ("a", "b", "c") if task == "SEQ_CLS" else ()
    write_part(ModelConfig(id=str(folder)), AUTO[task], labels, ends, part)
    alone, given = (load(place, task, ends) for place in (folder, part))
    assert same(tensors(given.module), tensors(alone.module))
    assert same(given.initial, alone.initial)
    with safe_open(part / "model.safetensors", "pt") as file:
        size = sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118
        assert len(file.keys()) < len(json.loads((folder / INDEX).read_text())["weight_map"])
    base = [p for n, p in given.module.named_parameters()
            if not any(word in n for word in ("lora", "classifier"))]  # fmt: skip
    assert size == sum(p.nbytes for p in base)
    if not ends.has_tail:
        fewer = load(part, task, Ends(1))
        assert same(tensors(fewer.module), tensors(load(folder, task, Ends(1)).module))


def test_a_folder_with_the_part_serves_for_nothing_else(hub: Path, tmp_path: Path) -> None:
    folder, part = write(hub, "llama", "CAUSAL_LM"), tmp_path / "part"
    write_part(ModelConfig(id=str(folder)), AUTO["CAUSAL_LM"], (), Ends(1), part)
    for ends in (None, Ends(2), Ends(1, True)):
        with pytest.raises(UserError, match="part of a split client alone"):
            load(part, "CAUSAL_LM", ends)
    weights = bytearray((part / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (part / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match="damaged or others"):
        load(part, "CAUSAL_LM", Ends(1))
    drawn = ModelConfig(id=str(folder), random_weights=True)
    with pytest.raises(UserError, match="not read as they are"):
        write_part(drawn, AUTO["CAUSAL_LM"], (), Ends(1), tmp_path / "other")
