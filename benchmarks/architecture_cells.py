"""The cells of the matrix of architectures: each equals what plain Transformers and PEFT do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig

from tiny_models import AUTO
from trillium.config.experiment import acting, experiment, parse_overrides
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder
from trillium.experiment.generation import generate_run
from trillium.experiment.run import Experiment, build
from trillium.experiment.trained import evaluate_run, export_run
from trillium.plan.models import Models
from trillium.plan.predict import predict
from trillium.plan.result import texts_of
from trillium.rng import generator
from trillium.tasks import IGNORE, Example
from trillium.tasks.batches import epoch
from trillium.tasks.writing import Writing
from trillium.training.loop import batches
from trillium.wire.ledger import Entry

RATE, STEPS, BATCH, NEW = 0.05, 2, 8, 5
TEMPERATURE = 3.0
PROMPT = "w1 w2 w3 w4 w5 w6"
DEFAULTS = (
    "model.device=cpu",
    "model.dropout=0.0",
    "data.num_clients=1",
    "data.public_size=6",
    "data.test_fraction=0.3",
    "rounds=1",
    f"training.local_steps={STEPS}",
    f"training.batch_size={BATCH}",
    f"training.optimizer={{name: sgd, lr: {RATE}}}",
    "wire={up: [], down: []}",
)
# Rounding in other orders of operations, in float32, as a share of what has moved.
CLOSE = 2e-3


class Differs(Exception):  # noqa: N818 - a finding, not a fault of the program
    """What was found is not what plain libraries make."""


@dataclass
class Case:
    """One architecture and task, and what was run of it.

    Attributes:
        folder: of the checkpoint.
    """

    folder: Path
    task: str
    work: Path
    runs: dict[str, Experiment | UserError] = field(default_factory=dict)
    begun: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    entries: dict[str, list[Entry]] = field(default_factory=dict)

    def run(self, name: str, *words: str) -> Experiment:
        """Return a federation that has run, and keep what it began with."""
        if name not in self.runs:
            try:
                self.runs[name] = self._run(name, *words)
            except UserError as error:
                self.runs[name] = error
        found = self.runs[name]
        if isinstance(found, UserError):
            raise found
        return found

    def _run(self, name: str, *words: str) -> Experiment:
        given = [
            *DEFAULTS,
            f"model.id={self.folder}",
            f"task={self.task}",
            f"data.source={{name: files, train: {self.work / self.task}.jsonl}}",
            *words,
        ]
        if not any(word.startswith("framework=kd") for word in given):
            given.remove("data.public_size=6")
            given.append("data.set_aside=6")
        tree = acting(parse_overrides(given), parse_overrides(given))[0]
        path = self.work / f"{self.folder.name}-{name}"
        built = build(
            experiment(tree), RunFolder(path, name), self.entries.setdefault(name, []).append
        )
        draw = torch.Generator().manual_seed(9)
        for (
            tensor
        ) in built.model.initial.values():  # away from zeros, so that all gradients are there
            tensor += 0.1 * torch.randn(tensor.shape, generator=draw).to(tensor.dtype)
        for side in (built.server, *built.clients):
            if hasattr(side, "state") and side.state:
                side.state = built.model.state()
        self.begun[name] = {k: v.clone() for k, v in built.model.initial.items()}
        built.model.save(built.model.state(), self.work / f"{path.name}-begun")
        built.run()
        return built

    @property
    def classifies(self) -> bool:
        """Whether the task is classification."""
        return self.task == "classification"

    def base(self, config: Path | None = None) -> Any:
        """Return the model as plain Transformers loads it."""
        auto = getattr(transformers, AUTO[self.task])
        found = AutoConfig.from_pretrained(config or self.folder)
        found.use_cache = False
        without_dropout(found)
        model = auto.from_pretrained(self.folder, config=found, dtype=torch.float32)
        return model.eval()

    def plain(self, name: str) -> nn.Module:
        """Return the model that a run began with, as plain PEFT loads it."""
        begun = self.work / f"{self.folder.name}-{name}-begun"
        base = self.base(begun if self.classifies else None)
        found: nn.Module = PeftModel.from_pretrained(base, begun, is_trainable=True)
        for key, parameter in found.named_parameters():
            parameter.requires_grad_(key in self.begun[name])
        return found

    def close(self, name: str, module: nn.Module, built: Experiment) -> None:
        """Hold a trained state to a plain model, by how far training has moved it."""
        plain = dict(module.named_parameters())
        begun, state = self.begun[name], built.server.state
        if missing := state.keys() - plain.keys():
            raise Differs(f"PEFT has no {sorted(missing)[0]}")
        moved = max(float((plain[k].detach() - begun[k]).abs().max()) for k in state)
        gap = max(float((plain[k].detach() - state[k].detach()).abs().max()) for k in state)
        if not (moved > 0 and gap <= CLOSE * moved):
            raise Differs(f"weights differ by {gap:.1e}, where training moved them by {moved:.1e}")


def without_dropout(hf_config: Any) -> None:
    """Set every dropout of a configuration to zero, nested ones, too."""
    for key, value in hf_config.to_dict().items():
        if isinstance(value, float) and "drop" in key:
            setattr(hf_config, key, 0.0)
    for key in getattr(hf_config, "sub_configs", {}):
        if getattr(hf_config, key, None) is not None:
            without_dropout(getattr(hf_config, key))


def batch_of(examples: list[Example]) -> tuple[dict[str, Tensor], Tensor]:
    """Pad on the right to the longest example, in whole eights."""
    longest = math.ceil(max(len(e.input_ids) for e in examples) / 8) * 8
    ids = torch.zeros(len(examples), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORE)
    for row, example in enumerate(examples):
        ids[row, : len(example.input_ids)] = example.input_ids
        mask[row, : len(example.input_ids)] = 1
        if example.labels.dim():
            labels[row, : len(example.labels)] = example.labels
    if not examples[0].labels.dim():
        labels = torch.stack([e.labels for e in examples])
    return {"input_ids": ids, "attention_mask": mask}, labels


def told(module: Any, examples: list[Example]) -> tuple[Tensor, Tensor]:
    """Return the logits `(predictions, classes)` that speak about something, and what is right."""
    inputs, labels = batch_of(examples)
    logits = module(**inputs).logits
    if labels.dim() == 2:
        wanted = labels[:, 1:] != IGNORE
        return logits[:, :-1][wanted], labels[:, 1:][wanted]
    return logits, labels


def cross_entropy(module: nn.Module, examples: list[Example]) -> Tensor:
    """Return the mean loss."""
    return nn.functional.cross_entropy(*told(module, examples))


def train(
    module: nn.Module,
    chunks: list[list[Example]],
    loss: Callable[[nn.Module, list[Example]], Tensor] = cross_entropy,
) -> nn.Module:
    """Take plain SGD steps."""
    module.train()
    own = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(own, lr=RATE)
    for chunk in chunks:
        optimizer.zero_grad()
        loss(module, chunk).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(own, 1.0)
        optimizer.step()
    return module


def chunks_of(built: Experiment) -> list[list[Example]]:
    """Return the batches of the only client in the first round."""
    own, chunks = built.clients[0], list[list[Example]]()
    draw = generator(built.config.seed, "batches", own.name, 1)
    while len(chunks) < STEPS:
        chunks += epoch(own.examples, BATCH, draw)
    return chunks[:STEPS]


def same(found: Tensor, expected: Tensor, share: float = 1e-4) -> None:
    """Hold logits to others."""
    gap, size = float((found - expected).abs().max()), float(expected.abs().max())
    if not gap <= share * size:
        raise Differs(f"logits differ by {gap:.1e}, they are {size:.1e}")


@torch.no_grad()
def answers(module: Any, case: Case) -> Tensor:
    """Return logits of two texts, one of them padded."""
    ids = torch.tensor([[2, 5, 6, 7, 8, 9, 11, 3], [2, 10, 11, 12, 3, 0, 0, 0]])
    mask = (ids != 0).long()
    logits: Tensor = (
        module.eval()(input_ids=ids, attention_mask=mask, use_cache=False).logits
        if not case.classifies
        else module.eval()(input_ids=ids, attention_mask=mask).logits
    )
    return logits if case.classifies else logits[mask.bool()]


# The cells


def load(case: Case) -> None:
    """A model is loaded as plain Transformers loads it."""
    from tiny_models import CLASSES
    from trillium.component import resolve
    from trillium.models.adapters import Adapter
    from trillium.models.base import ModelConfig
    from trillium.models.load import load_model

    found = load_model(
        ModelConfig(id=str(case.folder), device="cpu"),
        resolve(Adapter, "lora"),
        auto_class=AUTO[case.task],
        peft_task="SEQ_CLS" if case.classifies else "CAUSAL_LM",
        labels=CLASSES if case.classifies else (),
        seed=0,
    )
    base = case.base()
    base.config.pad_token_id = 0
    base.config.get_text_config().pad_token_id = 0
    same(answers(found.module, case), answers(base, case))


def fedllm(case: Case) -> None:
    """One client is plain PEFT training."""
    built = case.run("fedllm", "framework=fedllm")
    case.close("fedllm", train(case.plain("fedllm"), chunks_of(built)), built)


def all_linear(case: Case) -> None:
    """So it is with adapters in all linear layers, and in what PEFT's defaults are for classifiers."""
    targets = "all-linear"
    words = ("framework=fedllm", f"adapter={{name: lora, r: 3, target_modules: {targets}}}")
    built = case.run("all_linear", *words)
    case.close("all_linear", train(case.plain("all_linear"), chunks_of(built)), built)


def kd(case: Case) -> None:
    """One client is a textbook teacher."""
    built = case.run("kd", f"framework={{name: kd, direction: server, temperature: {TEMPERATURE}}}")
    teacher, student = (case.plain("kd") for _ in range(2))
    train(teacher, chunks_of(built)).eval()
    public = built.server.public

    def loss(module: nn.Module, chunk: list[Example]) -> Tensor:
        with torch.no_grad():
            wanted = (told(teacher, chunk)[0].float() / TEMPERATURE).softmax(-1)
        found = (told(module, chunk)[0] / TEMPERATURE).log_softmax(-1)
        return TEMPERATURE**2 * (wanted * (wanted.log() - found)).sum() / len(wanted)

    draw = generator(built.config.seed, "distil", "server", 1)
    train(student, [*epoch(public, BATCH, draw)], loss)
    case.close("kd", student, built)


def split(case: Case) -> None:
    """One client is plain PEFT training of the whole model."""
    words = ("framework={name: split, shape: two_part}",)
    built = case.run("split", *words)
    case.close("split", train(case.plain("split"), chunks_of(built)), built)


def split_u(case: Case) -> None:
    """So it is in the U shape."""
    built = case.run("split_u", "framework={name: split, shape: u}")
    case.close("split_u", train(case.plain("split_u"), chunks_of(built)), built)


def split_cached(case: Case) -> None:
    """With cached activations it is plain training of what the server holds."""
    built = case.run("cached", "framework={name: split, train: server}")
    plain = case.plain("cached")
    framework: Any = built.config.framework
    own = {*framework.parts(built.model, built.server.test).body.names}
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name in own)
    draw = generator(built.config.seed, "batches", "server", 1)
    chunks = [*batches(built.clients[0].examples, built.config.training, draw)]
    case.close("cached", train(plain, chunks), built)


def _trained(case: Case) -> tuple[Experiment, Path, Tensor]:
    built = case.run("fedllm", "framework=fedllm")
    assert built.folder is not None
    expected = answers(built.model.mount(built.server.state), case)
    return built, built.folder.path, expected


def export(case: Case) -> None:
    """PEFT reads what is exported, and it answers as what was measured."""
    _, path, expected = _trained(case)
    to = path / "exported"
    export_run(path, to, merge=False)
    same(
        answers(PeftModel.from_pretrained(case.base(to if case.classifies else None), to), case),
        expected,
    )


def merged(case: Case) -> None:
    """Transformers reads the merged model."""
    _, path, expected = _trained(case)
    export_run(path, path / "merged", merge=True)
    auto = getattr(transformers, AUTO[case.task])
    same(answers(auto.from_pretrained(path / "merged"), case), expected)


def evaluation(case: Case) -> None:
    """The measured loss is that of PEFT's model, and is measured again."""
    built, path, _ = _trained(case)
    to = path / "evaluated"
    export_run(path, to, merge=False)
    plain = PeftModel.from_pretrained(case.base(to if case.classifies else None), to).eval()
    with torch.no_grad():
        loss = float(cross_entropy(plain, built.server.test))
    for found in (built.history[-1]["loss"], evaluate_run(path, {})["loss"]):
        if not math.isclose(found, loss, rel_tol=1e-3):
            raise Differs(f"the loss is {found}, plainly {loss}")


def generation(case: Case) -> None:
    """What is written is what Transformers writes, also across a cut."""
    if case.classifies:
        raise UserError("a classifier", "it writes nothing", "Write task=causal_lm")
    _trained(case)
    for name in ("fedllm", "split", "split_u"):
        found = case.runs.get(name)
        if not isinstance(found, Experiment):
            continue
        assert found.folder is not None
        folder = found.folder.path
        export_run(folder, folder / "wrote", merge=False)
        plain = PeftModel.from_pretrained(case.base(), folder / "wrote").eval()
        prompt = found.model.tokenizer(PROMPT)["input_ids"]
        task: Any = found.config.task
        prompt = task.prompt_tokens(PROMPT, found.model.tokenizer, chat=False)
        rules = GenerationConfig(
            max_new_tokens=NEW, do_sample=False, use_cache=True, eos_token_id=3, pad_token_id=0
        )
        ids = torch.tensor([prompt])
        out = plain.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=rules
        )
        tokens = out[0, len(prompt) :].tolist()
        tokens = tokens[: tokens.index(3)] if 3 in tokens else tokens
        text = found.model.tokenizer.decode(tokens, skip_special_tokens=True)
        said = generate_run(folder, [PROMPT], Writing(NEW)).texts[0]
        if said != text:
            raise Differs(f"{name}: {said!r} was written, plainly {text!r}")


def plan(case: Case) -> None:
    """A plan foresees bytes and FLOPs of the ledger."""
    for name, run in case.runs.items():
        if isinstance(run, UserError) or name not in ("fedllm", "split"):
            continue
        texts = texts_of(run.config, run.server, run.clients)
        found = predict(run.config, texts, Models())
        entries = case.entries[name]
        for direction in ("up", "down"):
            planned = getattr(found.total, direction).bytes
            measured = run.fleet.ledger.bytes_total(direction)
            if planned != measured:
                raise Differs(
                    f"{name}: {planned} bytes {direction} are planned, {measured} crossed"
                )
        flops = sum(entry.flops or 0 for entry in entries if entry.purpose != "evaluate")
        if not math.isclose(found.total.flops, flops, rel_tol=1e-6):
            raise Differs(f"{name}: {found.total.flops:.6g} FLOPs are planned, {flops:.6g} counted")


CELLS: dict[str, Callable[[Case], None]] = {
    "load": load,
    "FedLLM": fedllm,
    "all-linear": all_linear,
    "KD": kd,
    "Split": split,
    "U": split_u,
    "cached": split_cached,
    "export": export,
    "merge": merged,
    "evaluation": evaluation,
    "generation": generation,
    "plan": plan,
}
