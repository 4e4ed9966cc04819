"""Public sets that the server writes: whose words, whose distribution, and whose text it never is."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from tiny import NUM_ROWS, experiment_config, federation
from trillium.data.deployed import read_server_data, write_server_data
from trillium.data.load import load_data, row_keys
from trillium.data.publics import Public
from trillium.data.publics.sampled import Sampled
from trillium.data.publics.words import Words, whole_words
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import Experiment, build
from trillium.experiment.written import with_public
from trillium.models.base import ModelConfig
from trillium.models.load import LanguageModel
from trillium.tasks import IGNORE, Task
from trillium.training.meters import Meter

WORDS = {f"w{index}" for index in range(40)}
GREEDY = "data.public={name: sampled, top_k: 1, max_new_tokens: 6}"


def kd(hub: Path, *words: str, **options: Any) -> Experiment:
    return federation(hub, "framework=kd", *words, **options)


def given(fed: Experiment) -> tuple[Task, ModelConfig, LanguageModel, int]:
    """What a public set is written from."""
    return fed.config.task, fed.config.of(None).model, fed.model, fed.config.seed


@pytest.fixture(scope="module")
def author(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal language model with weights, so that they can be loaded twice."""
    folder = tmp_path_factory.mktemp("author") / "gpt2"
    torch.manual_seed(3)
    config = AutoConfig.from_pretrained(hub / "gpt2")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(hub / "gpt2").save_pretrained(folder)
    return folder


def single_words(folder: Path) -> str:
    """Data whose texts are the first thirty words of the vocabulary, one each."""
    rows = [{"text": f"W{index} ", "label": f"class {index % 3}"} for index in range(30)]
    path = folder / "single.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.source={{name: files, train: {path}}}"


# Words


def test_whole_words_are_the_tokens_that_begin_a_word() -> None:
    """Byte-level BPE marks them with a space of its own, WordPiece marks all others."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    raw.train_from_iterator(["the cat saw the other cat, then the catalogue"] * 9, trainer)
    marked = {t[1:] for t in raw.get_vocab() if t.startswith("Ġ") and t[1:].isalnum()}
    assert {"the", "cat", "saw"} < marked
    assert {*whole_words(PreTrainedTokenizerFast(tokenizer_object=raw))} == marked

    pieces = ["[UNK]", "a", "play", "ing", "##ing", "##s", "!", "2019", "[unused1]"]
    wordpiece = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    wordpiece.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=wordpiece, unk_token="[UNK]")
    assert whole_words(tokenizer) == ["a", "play", "ing", "2019"]


@pytest.mark.parametrize("task", ["classification", "causal_lm"])
def test_words_are_of_the_vocabulary_and_texts_of_the_lengths(hub: Path, task: str) -> None:
    public = "data.public={name: words, shortest: 3, longest: 5}"
    fed = kd(hub, public, "data.public_size=60", task=task)
    rows = fed.data.public
    assert set(rows.column_names) <= {"text", "prompt", "completion"}
    for name in rows.column_names:
        split = [text.split(" ") for text in rows[name]]
        assert {len(words) for words in split} == {3, 4, 5}
        assert {word for words in split for word in words} <= WORDS
    assert len(fed.server.public) == len({*row_keys(rows)}) == 60


def chi_square(counts: Counter[Any]) -> float:
    """How far counts are from being equal."""
    expected = counts.total() / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts.values())


def test_all_words_and_lengths_are_equally_likely(hub: Path) -> None:
    fed = kd(hub)
    rows = islice(Words(shortest=1, longest=4).write(*given(fed), Meter({})), 100)
    texts = [row["text"].split() for batch in rows for row in batch]
    words = Counter(word for text in texts for word in text)
    lengths = Counter(len(text) for text in texts)
    assert words.keys() == WORDS
    assert lengths.keys() == {1, 2, 3, 4}
    assert chi_square(words) < 73  # 39 degrees of freedom: one seed of a thousand is above
    assert chi_square(lengths) < 17  # 3 degrees of freedom, likewise
    words["w3"] //= 2
    assert chi_square(words) > 73


def test_texts_follow_from_the_seed(hub: Path) -> None:
    first, again, other = (
        kd(hub, "data.public=words", f"seed={seed}").data.public["text"] for seed in (1, 1, 2)
    )
    assert list(first) == list(again)
    assert not {*first} & {*other}


def test_no_text_of_others_is_written(hub: Path, tmp_path: Path) -> None:
    """All texts are single words; thirty of forty are taken, whatever their case and blanks."""
    data = single_words(tmp_path)
    words = (data, "data.public={name: words, shortest: 1, longest: 1}")
    fed = kd(hub, *words, "data.public_size=10")
    assert {*fed.data.public["text"]} == {f"w{index}" for index in range(30, 40)}
    num_rows = sum(len(rows) for rows in fed.data.clients.values()) + len(fed.data.test)
    assert num_rows == 30
    with pytest.raises(UserError, match="only 10 are neither"):
        kd(hub, *words, "data.public_size=11")


def test_training_rows_are_not_taken(hub: Path) -> None:
    def num_training_rows(fed: Experiment) -> int:
        return sum(len(rows) for rows in fed.data.clients.values())

    written, taken = kd(hub, "data.public=words"), kd(hub)
    assert num_training_rows(written) == num_training_rows(taken) + 12
    # More than there are training rows.
    assert (
        len(kd(hub, "data.public=words", f"data.public_size={2 * NUM_ROWS}").server.public) == 120
    )
    assert written.data.summary()["public"] == {"num_examples": 12, "from": "words"}
    assert taken.data.summary()["public"] == {"num_examples": 12, "from": "rows"}


def test_nothing_is_written_where_nobody_needs_it(hub: Path) -> None:
    fed = federation(hub, "framework=fedllm", "data.public=words")
    assert len(fed.data.public) == 0
    assert fed.data.summary()["public"] == {"num_examples": 0, "from": "rows"}


@pytest.mark.parametrize("task", ["classification", "causal_lm"])
def test_a_federation_learns_from_words(hub: Path, task: str) -> None:
    fed = kd(hub, "data.public=words", "rounds=1", task=task)
    if task == "classification":
        assert {int(example.labels) for example in fed.server.public} == {IGNORE}
    [_, line] = fed.run()
    assert line["distil_loss"] > 0
    assert line["shipped"] == "server model"


def test_a_tokenizer_without_words_is_refused(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trillium.data.publics.words.whole_words", lambda tokenizer: [])
    with pytest.raises(UserError, match="whole word"):
        kd(hub, "data.public=words")


# A file


@pytest.mark.parametrize("task", ["classification", "causal_lm"])
def test_the_rows_of_a_file_are_taken_once_but_no_text_of_others(
    hub: Path, tmp_path: Path, task: str
) -> None:
    path = tmp_path / "other.csv"
    texts = [f"w{index % 40} w{index // 40} w1 w2 w3" for index in range(60)]
    path.write_text("".join(f"{line}\n" for line in ["said,then", *(f"{t},{t}" for t in texts)]))
    columns = {"classification": "text: said", "causal_lm": "prompt: said, completion: then"}[task]
    public = f"data.public={{name: file, path: {path}, {columns}}}"
    first, again, other = (
        kd(hub, public, "data.public_size=40", f"seed={seed}", task=task).data.public
        for seed in (1, 1, 2)
    )
    for rows in (first, other):
        for name in rows.column_names:
            assert len({*rows[name]}) == 40
            assert {*rows[name]} < {*texts}
    assert first.to_list() == again.to_list()
    assert first.to_list() != other.to_list()
    with pytest.raises(UserError, match="of 60 texts only 60 are neither"):
        kd(hub, public, "data.public_size=61", task=task)
    values = [*kd(hub, task=task).data.test[0].values()]  # of a test row: two texts, or one
    with path.open("a") as file:
        file.write(",".join(values[:2] if task == "causal_lm" else [values[0], "x"]) + "\n")
    with pytest.raises(UserError, match="of 61 texts only 60 are neither"):
        kd(hub, public, "data.public_size=61", task=task)


def test_a_file_that_is_not_there_or_lacks_the_column_is_refused(hub: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    public = f"data.public={{name: file, path: {path}}}"
    with pytest.raises(UserError, match="there is no such file"):
        kd(hub, public)
    path.write_text("said\nw1\n")
    with pytest.raises(UserError, match=r"data\.public\.text: text in .*no such column"):
        kd(hub, public)


# Samples


def first_token(fed: Experiment, prompt: list[int]) -> Tensor:
    """Probabilities of the token after a prompt, by the plain model."""
    module = fed.model.mount(fed.model.state()).eval()
    with torch.no_grad():
        logits: Tensor = module(input_ids=torch.tensor([prompt])).logits[0, -1]
    return logits.softmax(-1)


def frequencies(fed: Experiment, public: Sampled, num_batches: int) -> Tensor:
    """How often the model writes each word of the vocabulary; special tokens count as one."""
    counts = torch.zeros(44, dtype=torch.float64)
    for batch in islice(public.write(*given(fed), fed.server.meter), num_batches):
        for row in batch:
            text = row["completion"].strip()
            counts[int(text[1:]) + 4 if text else 0] += 1
    return counts / counts.sum()


def joined(probabilities: Tensor) -> Tensor:
    """The same with the special tokens as one."""
    return torch.cat([probabilities[:4].sum()[None], torch.zeros(3), probabilities[4:]])


def test_samples_are_of_the_models_distribution(hub: Path) -> None:
    fed = kd(hub, task="causal_lm")
    expected = joined(first_token(fed, [2]))  # after the token that begins a text
    found = frequencies(fed, Sampled(max_new_tokens=1, batch_size=500), 8)
    hot = frequencies(fed, Sampled(max_new_tokens=1, batch_size=500, temperature=4), 8)
    assert (found - expected).abs().sum() / 2 < 0.05
    assert (hot - expected).abs().sum() / 2 > 0.2
    few = frequencies(fed, Sampled(max_new_tokens=1, batch_size=500, top_k=3), 1)
    best = expected.topk(3).indices
    assert {*few.nonzero()[:, 0].tolist()} == {*best.tolist()}
    shares = expected[best] / expected[best].sum()
    assert torch.allclose(few[best], shares, atol=0.08)


def greedy(fed: Experiment, prompt: list[int], num_tokens: int) -> str:
    """What the plain model finds most probable, token after token, without a cache."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(int(first_token(fed, tokens).argmax()))
        if tokens[-1] == fed.model.tokenizer.eos_token_id:
            break
    text = fed.model.tokenizer.decode(tokens[len(prompt) :], skip_special_tokens=True)
    return str(text)


def test_what_is_written_goes_on_from_the_prompts_in_turn(hub: Path) -> None:
    """Prompts of different lengths share a batch; none of them sees another's padding."""
    prompts = ("w1 w2 w3 w4", "w7", "w30 w31")
    public = Sampled(prompts=prompts, top_k=1, max_new_tokens=5, batch_size=4)
    fed = kd(hub, task="causal_lm")
    rows = [row for batch in islice(public.write(*given(fed), Meter({})), 2)
            for row in batch]  # fmt: skip
    assert [row["prompt"] for row in rows] == [prompts[index % 3] for index in range(8)]
    for row in rows:
        tokens = [2, *fed.model.tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]]
        assert row["completion"] == greedy(fed, tokens, 5)


def test_a_model_that_writes_one_text_is_told(hub: Path) -> None:
    fed = kd(hub, GREEDY, "data.public_size=1", task="causal_lm")
    assert fed.data.public[0] == {"prompt": "", "completion": greedy(fed, [2], 6)}
    with pytest.raises(UserError, match="only 1 are neither blank") as caught:
        kd(hub, GREEDY, "data.public_size=2", task="causal_lm")
    assert "data.public_size=1 or less" in caught.value.instead
    # The same model with all of its distribution writes as many as one likes.
    kd(hub, GREEDY.replace("top_k: 1", "top_k: 9"), "data.public_size=30", task="causal_lm")


def test_samples_follow_from_the_seed_and_cost_something(hub: Path) -> None:
    public = "data.public={name: sampled, max_new_tokens: 8}"
    first, again, other = (
        kd(hub, public, f"seed={seed}", "model.id=AUTHOR".replace("AUTHOR", str(hub / "gpt2")),
           task="causal_lm") for seed in (1, 1, 2)
    )  # fmt: skip
    assert first.data.public.to_list() == again.data.public.to_list()
    assert first.data.public.to_list() != other.data.public.to_list()
    assert first.server.meter.read().flops == again.server.meter.read().flops > 0
    assert kd(hub, "data.public=words", task="causal_lm").server.meter.read().flops == 0
    [_, line] = first.run()[:2]
    assert line["distil_loss"] > 0


def test_the_weights_of_the_named_model_write(hub: Path, author: Path) -> None:
    """A classifier's run, with texts of another model: greedy, so that it can be written out."""
    words = f"data.public={{name: sampled, model: {author}, top_k: 1, prompts: [w5 w6]}}"
    fed = kd(hub, words, "data.public_size=1", model="bert")
    plain = AutoModelForCausalLM.from_pretrained(author, dtype=torch.float64).eval()
    tokens = [2, 4 + 5, 4 + 6]
    with torch.no_grad():
        for _ in range(48):
            tokens.append(int(plain(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
            if tokens[-1] == 3:
                break
    text = fed.model.tokenizer.decode(tokens[3:], skip_special_tokens=True).strip()
    assert fed.data.public.to_list() == [{"text": text}]
    assert fed.server.meter.read().flops > 0


def test_who_cannot_write_is_refused(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a classifier, which cannot write"):
        kd(hub, "data.public=sampled")
    folder = tmp_path / "bert"
    AutoModel.from_config(AutoConfig.from_pretrained(hub / "bert")).save_pretrained(folder)
    AutoTokenizer.from_pretrained(hub / "bert").save_pretrained(folder)
    with pytest.raises(UserError, match=r"data\.public\.model=\S+bert: .*its weights lack"):
        kd(hub, f"data.public={{name: sampled, model: {folder}}}")
    with pytest.raises(UserError, match=r"data\.public\.model=\S+nowhere"):
        kd(hub, f"data.public={{name: sampled, model: {tmp_path / 'nowhere'}}}")


# The run


def test_a_run_that_goes_on_takes_the_texts_from_its_folder(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine might write others, and clients keep those that they were sent."""
    config = experiment_config(hub, "framework=kd", "data.public=words", "rounds=2")
    whole = build(config, RunFolder(tmp_path / "whole", "kd")).run()

    def stop(line: dict[str, Any]) -> None:
        if line["round"] == 1:
            raise KeyboardInterrupt

    fed = build(config, RunFolder(tmp_path / "run", "kd"))
    with pytest.raises(KeyboardInterrupt):
        fed.run(stop)
    written = (tmp_path / "run" / "public.jsonl").read_text()
    assert [json.loads(line)["text"] for line in written.splitlines()] == list(
        fed.data.public["text"]
    )

    def never(self: Public, *args: object) -> None:
        raise AssertionError("it writes again")

    monkeypatch.setattr(Words, "write", never)
    again = build(config, RunFolder.reopen(tmp_path / "run"))
    assert again.data.public.to_list() == fed.data.public.to_list()
    summary = json.loads((tmp_path / "run" / "data.json").read_text())
    assert summary["public"] == {"num_examples": 12, "from": "words"}
    timeless = [{k: v for k, v in line.items() if k != "seconds"} for line in again.run()]
    assert timeless == [{k: v for k, v in line.items() if k != "seconds"} for line in whole]
    with pytest.raises(AssertionError, match="it writes again"):
        build(config, RunFolder(tmp_path / "new", "kd"))


def test_the_server_of_a_deployment_writes_the_same(hub: Path, tmp_path: Path) -> None:
    config = experiment_config(hub, "framework=kd", "data.public=words")
    simulated = build(config)
    write_server_data(tmp_path, load_data(config.data, "classification", config.seed))
    assert not (tmp_path / "public.jsonl").exists()
    data = read_server_data(tmp_path, "classification")
    found = with_public(config, simulated.model, data, Meter({}), None, resumes=False)
    assert found.public.to_list() == simulated.data.public.to_list()
    assert found.public_from == "words"


@pytest.mark.parametrize("word", ["framework.public_labels=true", "framework.ensemble=lowest_loss"])
def test_labels_that_are_not_there_are_refused(hub: Path, word: str) -> None:
    with pytest.raises(UserError, match=r"with data\.public=words"):
        kd(hub, "data.public=words", word)
    kd(hub, word, "framework.public_labels=true")


def test_chats_are_refused(hub: Path) -> None:
    fed = kd(hub, "data.public=words", task="causal_lm")
    chats = Dataset.from_list([{"messages": [{"role": "user", "content": "w1"}]}])
    data = dataclasses.replace(fed.data, test=chats)
    with pytest.raises(UserError, match="chat form"):
        with_public(fed.config, fed.model, data, Meter({}), None, resumes=False)


def test_lengths_out_of_order_are_refused(hub: Path) -> None:
    with pytest.raises(UserError, match="shortest: 9 with longest: 3"):
        kd(hub, "data.public={name: words, shortest: 9, longest: 3}")
