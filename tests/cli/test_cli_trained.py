"""`eval`, `predict`, `export` and `generate` of a run, far from where and what it was made of."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from huggingface_hub import ModelCard
from peft import PeftModel

from checkpoints import checkpoint
from cli_help import Cli, trillium

FAST = (
    *("rounds=1", "data.num_clients=2", "data.public_size=4", "training.local_steps=2"),
    "training.batch_size=8",
)


def start(
    monkeypatch: pytest.MonkeyPatch, hub: Path, folder: Path, task: str, model: str, *words: str
) -> Path:
    """Run in a folder, with relative paths; then leave it, and remove the rows."""
    there = folder / "there"
    (there / "rows").mkdir(parents=True)
    rows = there / "rows" / "train.jsonl"
    rows.write_bytes((hub / f"{task}.jsonl").read_bytes())
    base = checkpoint(hub, model, "SEQ_CLS" if task == "classification" else "CAUSAL_LM")
    (there / "model").symlink_to(base)
    monkeypatch.chdir(there)
    given = ("--model=model", "--data=rows/train.jsonl", f"task={task}", *FAST, *words)
    assert trillium(monkeypatch, "run", *given) == 0
    [run] = (there / "runs").iterdir()
    rows.unlink()
    away = folder / "away"
    away.mkdir()
    monkeypatch.chdir(away)
    return run


@pytest.fixture(scope="module")
def made(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier, its training file gone."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        targets = "adapter.target_modules=[query]"
        return start(patch, hub, folder, "classification", "bert", targets)


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it; where this test is, there is nothing."""
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    return Path(shutil.copytree(made, tmp_path / "run"))


def test_a_run_folder_stands_by_itself(run: Path, made: Path, cli: Cli) -> None:
    measured = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    found = json.loads(cli.done("eval", run, "--json"))
    assert found["num_examples"] == measured["num_examples"]
    assert found["loss"] == pytest.approx(measured["loss"], rel=1e-6)
    assert cli("export", run, "--to", "whole", "--merge") == 0
    assert cli("report", run) == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert Path(config["model"]["id"]).is_absolute()
    assert Path(config["data"]["source"]["train"]) == made.parents[1] / "rows" / "train.jsonl"
    (run / "test.parquet").unlink()
    assert "there is no such file" in cli.refused("eval", run)


def test_a_run_that_held_out_no_rows_asks_for_a_file(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    words = ("adapter.target_modules=[query]", "evaluation.where=clients", "data.test_fraction=0")
    run = start(monkeypatch, hub, tmp_path, "classification", "bert", *words)
    assert "Name some rows with --data FILE" in cli.refused("eval", run)


def test_rows_of_the_source_count_if_they_are_those_that_were_measured(
    run: Path, made: Path, hub: Path, cli: Cli
) -> None:
    (run / "test.parquet").unlink()
    rows = made.parents[1] / "rows" / "train.jsonl"
    rows.write_bytes((hub / "classification.jsonl").read_bytes())
    assert cli("eval", run) == 0
    lines = rows.read_text().splitlines()
    rows.write_text("\n".join(lines[1:]))
    assert "not those that the run was measured on" in cli.refused("eval", run)
    rows.unlink()


def test_the_adapter_loads_in_three_lines_and_takes_several_texts(
    run: Path, hub: Path, cli: Cli
) -> None:
    assert cli("export", run, "--to", "mine") == 0
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        checkpoint(hub, "bert", "SEQ_CLS"), config=transformers.AutoConfig.from_pretrained("mine")
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained("mine")
    model = PeftModel.from_pretrained(base, "mine")
    assert model.config.id2label == {0: "class 0", 1: "class 1", 2: "class 2"}
    found = model(**tokenizer(["w1 w2 w3", "w4"], padding=True, return_tensors="pt")).logits
    assert found.shape == (2, 3)
    saved = json.loads(Path("mine/adapter_config.json").read_text())
    assert Path(saved["base_model_name_or_path"]).is_absolute()


def test_a_decoder_classifies_batches_as_it_was_exported(
    monkeypatch: pytest.MonkeyPatch, hub: Path, tmp_path: Path, cli: Cli
) -> None:
    """It looks for the last token that is not padding, so it must know which one that is."""
    run = start(monkeypatch, hub, tmp_path, "classification", "gpt2")
    assert cli("export", run, "--to", "whole", "--merge") == 0
    model = transformers.AutoModelForSequenceClassification.from_pretrained("whole").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained("whole")
    texts = ["w1 w2 w3", "w4"]
    together = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    alone = model(**tokenizer(texts[1], return_tensors="pt")).logits
    torch.testing.assert_close(together[1:], alone)
    assert model.config.use_cache
    told = transformers.pipeline("text-classification", model="whole", device="cpu")(texts)
    assert {one["label"] for one in told} <= {"class 0", "class 1", "class 2"}


def test_the_card_says_what_the_model_is_and_no_row(run: Path, hub: Path, cli: Cli) -> None:
    assert cli("export", run, "--to", "mine") == 0
    card = ModelCard.load("mine/README.md")
    assert card.data.library_name == "peft"
    assert card.data.pipeline_tag == "text-classification"
    measured = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    results = {found.metric_type: found.metric_value for found in card.data.eval_results}
    assert results == {name: measured[name] for name in ("accuracy", "f1", "loss")}
    for words in ("framework `fedllm`", "training rows of client-0", "rounds=1", "AutoConfig"):
        assert words in card.text
    texts = [
        json.loads(line)["text"] for line in (hub / "classification.jsonl").read_text().splitlines()
    ]
    assert not any(text in card.content for text in texts)
    assert cli("export", run, "--to", "whole", "--merge") == 0
    whole = ModelCard.load("whole/README.md")
    assert whole.data.library_name == "transformers"
    assert "PeftModel" not in whole.text


def test_eval_measures_all_of_a_file(run: Path, cli: Cli) -> None:
    """Also one that is smaller than the public set, in other columns, without some of the classes."""
    rows = [("w1 w2", "class 1"), ("w3", "class 0"), ("w1 w2", "class 1")]
    with Path("new.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("question", "intent"), *rows])
    columns = ("data.source.text=question", "data.source.label=intent")
    found = json.loads(cli.done("eval", run, "--data", "new.csv", *columns, "--json"))
    assert found["num_examples"] == 3
    Path("other.csv").write_text("text,label\nw1,class 7\n")
    assert "lacks the class of 1 rows" in cli.refused("eval", run, "--data", "other.csv")


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_predict_labels_rows_that_have_none(run: Path, suffix: str, cli: Cli) -> None:
    texts = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9"]
    Path("new.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    to = f"said.{suffix}"
    assert cli("predict", run, "new.jsonl", "--to", to) == 0
    if suffix == "csv":
        with Path(to).open(newline="") as file:
            lines = [dict(line) for line in csv.DictReader(file)]
        shares = [[float(line[f"probability of class {c}"]) for c in range(3)] for line in lines]
    else:
        lines = [json.loads(line) for line in Path(to).read_text().splitlines()]
        shares = [list(line["probabilities"].values()) for line in lines]
    assert [line["text"] for line in lines] == texts
    assert [int(line["row"]) for line in lines] == [1, 2, 3]
    assert cli("export", run, "--to", "whole", "--merge") == 0
    plain = transformers.AutoModelForSequenceClassification.from_pretrained("whole").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained("whole")
    given = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = plain(**given).logits.softmax(-1)
    torch.testing.assert_close(torch.tensor(shares), wanted, rtol=0, atol=1e-5)
    names = [plain.config.id2label[int(best)] for best in wanted.argmax(-1)]
    assert [line["label"] for line in lines] == names
    assert len(cli.done("predict", run, "new.jsonl").splitlines()) == 3


@pytest.mark.parametrize("task", ["causal_lm", "preference"])
def test_a_language_model_answers_rows_and_comes_with_its_ends(
    monkeypatch: pytest.MonkeyPatch, hub: Path, tmp_path: Path, task: str, cli: Cli
) -> None:
    run = start(monkeypatch, hub, tmp_path, task, "gpt2")
    prompts = ["w1 w2 w3", "w4", "w5 w6"]
    Path("new.csv").write_text("prompt\n" + "\n".join(prompts) + "\n")
    words = ("new.csv", "--max-new-tokens", 4, "evaluation.batch_tokens=16")
    lines = [json.loads(line) for line in cli.done("predict", run, *words).splitlines()]
    assert [line["prompt"] for line in lines] == prompts
    told = json.loads(cli.done("generate", run, *prompts, "--max-new-tokens", 4, "--json"))
    said = [found["text"] for found in told["texts"]]
    assert [line["response"] for line in lines] == said
    for to, merge in (("mine", ()), ("whole", ("--merge",))):
        assert cli("export", run, "--to", to, *merge) == 0
        found = transformers.GenerationConfig.from_pretrained(to)
        assert found.eos_token_id == [3]
        assert found.pad_token_id == 0
        card = ModelCard.load(f"{to}/README.md")
        assert f"task\n`{task}`" in card.text
        measures = {found.metric_type for found in card.data.eval_results}
        assert {"causal_lm": "perplexity", "preference": "reward_margin"}[task] in measures
    model = transformers.AutoModelForCausalLM.from_pretrained("whole")
    tokenizer = transformers.AutoTokenizer.from_pretrained("whole", padding_side="left")
    bos = tokenizer.bos_token
    given = tokenizer([f"{bos} {prompt}" for prompt in prompts], padding=True, return_tensors="pt")
    given.pop("token_type_ids", None)
    written = model.generate(**given, max_new_tokens=4, do_sample=False)
    behind = written[:, given["input_ids"].shape[1] :]
    assert tokenizer.batch_decode(behind, skip_special_tokens=True) == said


def test_text_is_written_across_a_cut_without_the_rows(
    monkeypatch: pytest.MonkeyPatch, hub: Path, tmp_path: Path, cli: Cli
) -> None:
    run = start(monkeypatch, hub, tmp_path, "causal_lm", "gpt2", "framework=split")
    told = json.loads(cli.done("generate", run, "w1 w2", "--max-new-tokens", 3, "--json"))
    assert told["crossed"]["bytes_up"] > 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("eval", "RUN", "other.yaml"), "takes the folder of a run"),
        (("eval", "RUN", "rows.csv"), "name a file of rows with --data"),
        (("eval", "RUN", "rounds=3"), "has no effect on it any more"),
        (("eval", "RUN", "data.test_size=3"), "has no effect on it any more"),
        (("eval", "RUN", "data.source=builtin"), "it generates rows"),
        (("eval", "RUN", "task=causal_lm"), "was trained for task=classification"),
        (("eval", "RUN", "--data", "none.csv"), "there is no such file"),
        (("eval", "RUN", "--client", "client-0"), "Leave --client out"),
        (("predict", "RUN", "none.csv"), "there is no such file"),
        (("predict", "RUN", "some.csv"), "there is no such column"),
        (("predict", "RUN", "some.csv", "x.yaml"), "takes the folder of a run"),
        (("predict", "RUN", "some.csv", "rounds=1"), "has no effect on it any more"),
        (("predict", "RUN", "some.csv", "--to", "out.xlsx"), "Write out.jsonl"),
        (("predict", "RUN", "some.csv", "--to", "some.csv"), "it exists already"),
        (("predict", "nowhere", "some.csv"), "it is no folder of a run"),
        (("export", "RUN", "--to", "no/such/folder"), "there is no folder"),
        (("export", "RUN", "--to", "new", "--client", "client-0"), "Leave --client out"),
        (("generate", "RUN", "a text"), "a classifier cannot write"),
    ],
)
def test_what_a_verb_does_not_take_is_refused_in_three_parts(
    run: Path, words: tuple[str, ...], expected: str, cli: Cli
) -> None:
    Path("some.csv").write_text("question\nw1\n")
    given = [str(run) if word == "RUN" else word for word in words]
    error = cli.refused(*given)
    assert [line.split(":")[0] for line in error.splitlines()[:3]] == [
        "Given",
        "Problem",
        "Instead",
    ]
    assert expected in error
    assert "Traceback" not in error


def test_the_harness_asks_no_classifier(run: Path, cli: Cli) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: lm-eval)")
    assert "trained for task=classification" in " ".join(
        cli.refused("eval", run, "--lm-eval", "hellaswag").split()
    )
