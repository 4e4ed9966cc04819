"""Model against inputs: vocabularies, positions, kinds of models, and the classes of a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import AutoPeftModelForCausalLM, load_peft_weights
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from checkpoints import LABELS, MORE, checkpoint
from tiny import _COMMON, CONFIGS, experiment_config, federation
from trillium.config.experiment import ExperimentConfig, acting, experiment, merge, parse_overrides
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import build
from trillium.models.base import ModelConfig
from trillium.models.inputs import order_of, read_inputs

REAL = ("model.random_weights=false", "model.dtype=float32")


def words_of(folder: Path, *words: str) -> tuple[str, ...]:
    return (f"model.id={folder}", *REAL, *words)


def copied(source: Path, target: Path, **changes: object) -> Path:
    """A model folder with other values in its configuration."""
    shutil.copytree(source, target)
    path = target / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return target


@pytest.fixture
def wordy(hub: Path, tmp_path: Path) -> Path:
    """A decoder with a tokenizer of two more tokens than it has embeddings."""
    folder = tmp_path / "wordy"
    shutil.copytree(checkpoint(hub, "llama", "CAUSAL_LM"), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["w98", "w99"])
    tokenizer.save_pretrained(folder)
    return folder


def test_tokens_without_embeddings_are_refused_with_both_sizes(hub: Path, wordy: Path) -> None:
    with pytest.raises(UserError, match=r"46 tokens, and the model embeddings for 44") as error:
        federation(hub, *words_of(wordy), model="llama", task="causal_lm")
    assert "model.resize_embeddings=true" in error.value.instead


def test_new_tokens_are_trained_exchanged_and_exported(
    hub: Path, wordy: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"w1 w98 w{n}", "completion": "w99 w2"} for n in range(12)]
    file, test = tmp_path / "rows.jsonl", tmp_path / "test.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    test.write_text("".join(json.dumps({**row, "prompt": "w9 w98"}) + "\n" for row in rows))
    words = words_of(wordy, "model.resize_embeddings=true", "data.num_clients=1", "rounds=1")
    rows_of = ("data.set_aside=0", f"data.source={{train: {file}, test: {test}}}")
    config = experiment_config(hub, *words, *rows_of, model="llama", task="causal_lm")
    run = build(config, RunFolder(tmp_path / "run", "run"))
    new = [name for name in run.model.initial if "trainable_tokens" in name]
    assert len(new) == 2, "the embeddings of the new tokens, and their rows in front of the logits"
    run.run()
    for name in new:
        assert not torch.equal(run.server.state[name].cpu(), run.model.initial[name])
    there = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run" / "adapter").eval()
    ids = torch.tensor([[5, 44, 45, 6]])
    with torch.no_grad():
        ours = run.model.mount(run.server.state).eval()(input_ids=ids).logits
        assert torch.allclose(there(input_ids=ids).logits, ours, atol=1e-5)


def test_an_adapter_that_cannot_train_them_is_refused(hub: Path, wordy: Path) -> None:
    words = words_of(wordy, "model.resize_embeddings=true", "adapter={name: ia3}")
    with pytest.raises(UserError, match="no way to train the embeddings"):
        federation(hub, *words, model="llama", task="causal_lm")


def test_positions_behind_that_of_padding_are_not_counted(hub: Path) -> None:
    roberta = checkpoint(hub, "roberta", "SEQ_CLS")
    config = ModelConfig(id=str(roberta))
    assert read_inputs(config, ()).positions == 63  # of 64 rows, with padding at 0
    run = federation(hub, f"model.id={roberta}", *REAL, "adapter.target_modules=[query]")
    assert run.model.num_positions == 63


@pytest.mark.parametrize("positions", [13, 15, 30])
@pytest.mark.parametrize("given", [None, 14])
def test_batches_never_go_beyond_the_positions(
    hub: Path, tmp_path: Path, positions: int, given: int | None
) -> None:
    folder = copied(hub / "bert", tmp_path / "short", max_position_embeddings=positions)
    words = [f"model.id={folder}"] + [f"training.max_length={given}"] * (given is not None)
    if given is not None and positions < 16:
        with pytest.raises(UserError, match=f"the model has {positions} positions"):
            federation(hub, *words, model="bert")
    else:
        federation(hub, *words, "rounds=1", model="bert").run()


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_models_of_two_stacks_do_not_write(hub: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(hub / "gpt2", tmp_path / kind)
    AutoConfig.for_model(kind).save_pretrained(tmp_path / kind)
    with pytest.raises(UserError, match=f"{kind} is a sequence-to-sequence model"):
        federation(hub, f"model.id={tmp_path / kind}", task="causal_lm")


def test_an_encoder_is_no_language_model(hub: Path) -> None:
    with pytest.raises(UserError, match="an encoder that sees the tokens"):
        federation(hub, model="bert", task="causal_lm")


def test_code_of_a_model_is_neither_run_nor_asked_about(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = {"AutoConfig": "code.Mine", "AutoModelForSequenceClassification": "code.Model"}
    folder = copied(hub / "bert", tmp_path / "own", model_type="my-own", auto_map=maps)
    (folder / "code.py").write_text("raise SystemExit('it was run')\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it was asked about"))
    with pytest.raises(UserError, match="comes with code of its own") as error:
        federation(hub, f"model.id={folder}", model="bert")
    assert "model.trust_remote_code=true" in error.value.instead


def _without(hub: Path, folder: Path, *names: str) -> Path:
    shutil.copytree(hub / "bert", folder)
    known = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[EOS]"}
    kept = {name: token for name, token in known.items() if name not in names}
    raw = AutoTokenizer.from_pretrained(hub / "bert").backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=raw, **kept).save_pretrained(folder)
    return folder


def test_a_tokenizer_without_padding_borrows_another_token(hub: Path, tmp_path: Path) -> None:
    folder = _without(hub, tmp_path / "no-pad", "pad_token")
    run = federation(hub, f"model.id={folder}", "rounds=1", model="bert")
    assert run.model.tokenizer.pad_token == "[EOS]"
    run.run()
    folder = _without(hub, tmp_path / "none", "pad_token", "eos_token", "unk_token")
    with pytest.raises(UserError, match="no token for padding"):
        federation(hub, f"model.id={folder}", model="bert")


@pytest.mark.parametrize("kind", [models.WordLevel, models.BPE])
def test_words_without_a_token_are_not_lost(hub: Path, tmp_path: Path, kind: Any) -> None:
    """It serves as long as it knows all words; others end one kind, and one drops them."""
    words = {f"w{i}": i + 4 for i in range(40)} | {"[PAD]": 0}
    raw = Tokenizer(models.WordLevel(words) if kind is models.WordLevel else models.BPE(
        {**{c: i + 4 for i, c in enumerate("w0123456789")}, "[PAD]": 0}, []))  # fmt: skip
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "model"
    shutil.copytree(hub / "bert", folder)
    for file in folder.glob("token*"):
        file.unlink()
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]").save_pretrained(folder)
    words_of_run = (f"model.id={folder}", "framework=zero_shot")
    federation(hub, *words_of_run, model="bert").run()
    rows = [json.loads(line) for line in (hub / "classification.jsonl").read_text().splitlines()]
    rows[7]["text"] += " zebra"
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"no token for some words of 1 of \d+ texts"):
        federation(hub, *words_of_run, f"data.source={{train: {file}}}", model="bert")


def test_a_tokenizer_that_pads_on_the_left_gives_the_same_run(hub: Path, tmp_path: Path) -> None:
    shutil.copytree(hub / "gpt2", tmp_path / "left")
    tokenizer = AutoTokenizer.from_pretrained(hub / "gpt2", padding_side="left")
    tokenizer.save_pretrained(tmp_path / "left")
    left, right = (
        federation(hub, f"model.id={folder}", "rounds=1").run()[-1]["loss"]
        for folder in (tmp_path / "left", hub / "gpt2")
    )
    assert left == right


# The classes of a checkpoint


def classifier(hub: Path, folder: Path, *names: str) -> Path:
    """A fine-tuned classifier whose classes have these names, in this order."""
    shutil.copytree(checkpoint(hub, "bert", "SEQ_CLS", with_head=True), folder)
    path = folder / "config.json"
    labels = {"id2label": {str(i): n for i, n in enumerate(names)},
              "label2id": {n: i for i, n in enumerate(names)}}  # fmt: skip
    path.write_text(json.dumps({**json.loads(path.read_text()), **labels}))
    return folder


def test_labels_are_found_among_the_classes_of_a_checkpoint() -> None:
    assert order_of(["neg", "pos"], ["POS", "NEG"]) == (1, 0)
    assert order_of(["0", "1"], ["LABEL_0", "LABEL_1"]) == (0, 1)
    assert order_of(["b"], ["a", "b", "c"]) == (1,)
    assert order_of(["a", "d"], ["a", "b", "c"]) is None
    assert order_of(["a", "A"], ["a", "b"]) is None
    assert order_of([], ["a", "b"]) is None


def test_a_permuted_order_is_kept_and_counts_the_same(hub: Path, tmp_path: Path) -> None:
    """What a checkpoint knows is measured by name: the model itself, asked in its order, agrees."""
    folder = classifier(hub, tmp_path / "model", "class 2", "class 0", "class 1")
    run = federation(hub, *words_of(folder), "framework=zero_shot", model="bert")
    assert run.data.labels == ("class 2", "class 0", "class 1")
    (line,) = run.run()
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    texts = run.data.test["text"]
    names = [run.data.labels[label] for label in run.data.test["label"]]
    inputs = run.model.tokenizer(list(texts), padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = plain(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits
    found = [plain.config.id2label[int(index)] for index in logits.argmax(-1)]
    hits = sum(a == b for a, b in zip(found, names, strict=True))
    assert line["accuracy"] == pytest.approx(hits / len(names))
    assert "that of the checkpoint" in run.data.summary()["head"]


def test_some_of_the_classes_are_enough(hub: Path, tmp_path: Path) -> None:
    source = classifier(hub, tmp_path / "all", "class 1", "class 2", "class 0")
    some = tmp_path / "some.jsonl"
    rows = [json.loads(line) for line in (hub / "classification.jsonl").read_text().splitlines()]
    some.write_text("".join(json.dumps(r) + "\n" for r in rows if r["label"] != "class 2"))
    words = words_of(source, f"data.source={{train: {some}}}")
    run = federation(hub, *words, model="bert")
    assert run.data.labels == ("class 1", "class 0")
    head: Any = run.model.module.get_submodule("base_model.model.classifier.original_module")
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(source)
    assert torch.equal(head.weight, plain.classifier.weight[[0, 2]])
    assert run.model.num_classes == 2


def test_a_head_of_other_classes_is_new(hub: Path, tmp_path: Path) -> None:
    folder = classifier(hub, tmp_path / "model", *LABELS)
    run = federation(hub, *words_of(folder), model="bert")
    assert "is new: the checkpoint's classes are others (a, b, c)" in run.data.summary()["head"]
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    head: Any = run.model.module.get_submodule("base_model.model.classifier.original_module")
    assert not torch.allclose(head.weight, plain.classifier.weight)


# Adapters that training goes on from


@pytest.fixture
def trained(hub: Path, tmp_path: Path) -> Path:
    """A LoRA adapter that a run of another rank than the default has trained and exported."""
    base = checkpoint(hub, "llama", "CAUSAL_LM")
    words = words_of(base, "adapter={name: lora, r: 5, alpha: 7, target_modules: [q_proj, v_proj]}")
    config = experiment_config(hub, *words, "rounds=1", model="llama", task="causal_lm")
    build(config, RunFolder(tmp_path / "first", "first")).run()
    return tmp_path / "first" / "adapter"


def settings(hub: Path, *words: str) -> ExperimentConfig:
    tree = experiment_config(hub, model="llama", task="causal_lm").tree()
    del tree["adapter"], tree["model"]
    own = parse_overrides(words)
    return experiment(acting(merge(tree, own), own)[0])


@pytest.mark.parametrize("framework", ["fedllm", "kd", "split", "zero_shot"])
@pytest.mark.parametrize("explicit", [False, True])
def test_training_goes_on_from_an_adapter(
    hub: Path, trained: Path, framework: str, explicit: bool
) -> None:
    base = checkpoint(hub, "llama", "CAUSAL_LM")
    named = [f"model.id={base}", f"adapter.from={trained}"] if explicit else [f"model.id={trained}"]
    config = settings(hub, *named, f"framework={framework}", "model.device=cpu")
    assert config.model.id == str(base)
    assert config.adapter.to_config()["r"] == 5
    assert experiment(config.tree()) == config
    run = build(config)
    for name, tensor in load_peft_weights(str(trained), device="cpu").items():
        ours = name.replace(".weight", ".default.weight")
        assert torch.equal(run.model.initial[ours], tensor)
    run.run()
    first = json.loads((trained.parent / "metrics.jsonl").read_text().splitlines()[-1])
    assert run.history[0]["loss"] == pytest.approx(first["loss"], rel=1e-5)


def test_options_that_an_adapter_does_not_have_are_refused(hub: Path, trained: Path) -> None:
    with pytest.raises(UserError, match=r"adapter\.r=16 with the adapter in .*it has r=5"):
        settings(hub, f"model.id={trained}", "adapter.r=16")


def test_an_adapter_of_another_kind_or_base_is_refused(
    hub: Path, trained: Path, tmp_path: Path
) -> None:
    path = trained / "adapter_config.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "peft_type": "IA3"}))
    with pytest.raises(UserError, match="of the kind IA3"):
        settings(hub, f"model.id={trained}")
    path.write_text(json.dumps({**found, "r": 6}))
    with pytest.raises(UserError, match="its values do not fit"):
        build(settings(hub, f"model.id={trained}", "model.device=cpu"))
    path.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        settings(hub, f"model.id={trained}")


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_an_encoder_that_looks_ahead_by_little_is_refused_too(
    hub: Path, tmp_path: Path, name: str
) -> None:
    options = {**MORE, **CONFIGS}[name] | {"initializer_range": 0.02, "num_hidden_layers": 2}
    folder = tmp_path / name
    AutoConfig.for_model(name, **_COMMON, **options).save_pretrained(folder)
    for file in (hub / "bert").glob("token*"):
        shutil.copy(file, folder)
    with pytest.raises(UserError, match="sees the tokens which it would have to predict"):
        federation(hub, f"model.id={folder}", "adapter=full", model="bert", task="causal_lm")


def test_a_model_without_a_form_for_the_task_is_refused_by_that(hub: Path) -> None:
    folder = checkpoint(hub, "distilbert", "SEQ_CLS")
    with pytest.raises(UserError, match="Transformers has no AutoModelForCausalLM for this"):
        federation(hub, f"model.id={folder}", *REAL, "adapter=full", model="bert", task="causal_lm")


@pytest.mark.parametrize("whole", [False, True])
def test_a_tokenizer_whose_unknown_token_replaces_nothing_may_lose_words(
    hub: Path, tmp_path: Path, *, whole: bool
) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = alphabet if whole else alphabet[:30]
    raw = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(known)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    shutil.copy(hub / "bert" / "config.json", tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**about, "vocab_size": 400}))
    PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(tmp_path)
    if whole:
        assert federation(hub, f"model.id={tmp_path}", model="bert").clients
        return
    with pytest.raises(UserError, match="none for unknown words: they would be lost"):
        federation(hub, f"model.id={tmp_path}", model="bert")
