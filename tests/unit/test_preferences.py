"""Preferences: rows in the forms that TRL reads, their tokens, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chatty import CHATML, THINKING, byte_level, texts
from tiny import experiment_config
from trillium.data.sources.builtin import Builtin
from trillium.data.sources.files import Files
from trillium.errors import UserError
from trillium.tasks import IGNORE, Example
from trillium.tasks.preference import Preference

ASK = {"role": "user", "content": "Which is larger?"}
GOOD = {"role": "assistant", "content": "The sun."}
BAD = {"role": "assistant", "content": "The moon."}
MORE = [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]
SYSTEM = {"role": "system", "content": "Be brief."}


def load(folder: Path, *rows: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return list(Files(train=path, **options).load("preference", 0).train)


def said(chat: list[dict[str, str]]) -> list[str]:
    return [turn["content"] for turn in chat]


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}, {}),
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, {}),
        ({"q": "The sky is", "a": " blue.", "b": " green."},
         {"prompt": "q", "chosen": "a", "rejected": "b"}),
        ({"what": "sky", "a": "blue", "b": "green"},
         {"prompt": "The {what} is", "chosen": " {a}.", "rejected": " {b}."}),
    ],
    ids=["explicit", "implicit", "named", "templates"],
)  # fmt: skip
def test_texts_are_read(tmp_path: Path, row: dict[str, Any], options: dict[str, str]) -> None:
    [found] = load(tmp_path, row, **options)
    assert found == {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"prompt": ASK["content"], "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"prompt": ASK["content"], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [ASK], "chosen": GOOD["content"], "rejected": [BAD]},
    ],
    ids=["explicit", "implicit", "both", "a text before turns", "a text behind turns"],
)
def test_chats_are_read(tmp_path: Path, row: dict[str, Any]) -> None:
    [found] = load(tmp_path, row)
    assert "prompt" not in found
    assert said(found["chosen"]) == [ASK["content"], GOOD["content"]]
    assert said(found["rejected"]) == [ASK["content"], BAD["content"]]


def test_turns_of_the_prompt_are_not_preferred(tmp_path: Path) -> None:
    before = [SYSTEM, ASK, GOOD]
    rows = load(
        tmp_path,
        {"chosen": [*before, MORE[0], GOOD, *MORE], "rejected": [*before, MORE[0], BAD]},
        {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
    )
    tokenizer = byte_level(CHATML)
    first, second = Preference().tokenize(_dataset(rows), tokenizer, None)
    assert supervised(tokenizer, first) == ["The sun.<|im_end|>\n", "Yes.<|im_end|>\n"]
    assert first.rejected is not None
    assert supervised(tokenizer, first.rejected) == ["The moon.<|im_end|>\n"]
    assert supervised(tokenizer, second) == ["The sun.<|im_end|>\n"]


def test_the_system_is_folded_on_request(tmp_path: Path) -> None:
    row = {"chosen": [SYSTEM, ASK, GOOD], "rejected": [SYSTEM, ASK, BAD]}
    [found] = load(tmp_path, row, system="fold")
    assert said(found["rejected"]) == ["Be brief.\n\nWhich is larger?", "The moon."]


def _dataset(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)


def supervised(tokenizer: Any, text: Example) -> list[str]:
    return [said for said, is_seen in texts(tokenizer, text) if is_seen]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "p", "chosen": "a"}, "no such column"),
        ({"prompt": "p", "chosen": "a", "rejected": ""}, "1 of 2 rows have no value"),
        ({"prompt": "p", "chosen": "  ", "rejected": "b"}, "1 of 2 rows have no value"),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "1 of 2 rows have no value"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
        ({"prompt": "p", "chosen": 5, "rejected": "a"}, "a text is wanted"),
        ({"chosen": "Yes.", "rejected": "No."}, "begin differently"),
        ({"chosen": "The sky", "rejected": "The sky is"}, "ends where the other goes on"),
        ({"chosen": [ASK, GOOD], "rejected": [ASK, GOOD]}, "chosen and rejected are the same"),
        ({"chosen": [ASK, GOOD], "rejected": [SYSTEM, ASK, BAD]}, "begin differently"),
        ({"chosen": [ASK, GOOD, *MORE], "rejected": [ASK, GOOD]}, "chosen has no turn of the"),
        ({"chosen": [ASK, GOOD], "rejected": [ASK]}, "rejected has no turn of the assistant"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "begin differently"),
        ({"prompt": "Who?", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, "the prompt does not"),
        ({"prompt": [ASK], "chosen": [GOOD], "rejected": [{**BAD, "content": " "}]}, "empty turn"),
        ({"prompt": [ASK], "chosen": [GOOD], "rejected": 7}, "each row must be a list of turns"),
        ({"prompt": [ASK], "chosen": [GOOD], "rejected": [{"content": "?"}]}, "has no role"),
    ],
)  # fmt: skip
def test_what_is_no_preference_is_refused(tmp_path: Path, row: dict[str, Any], why: str) -> None:
    is_chat = any(isinstance(value, list) for value in row.values())
    good: dict[str, Any] = {"prompt": "p", "chosen": "x", "rejected": "y"}
    if is_chat:
        good = {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}
        if not isinstance(row.get("prompt"), list):
            good = {"prompt": ASK["content"], "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}
    if "prompt" not in row:
        good = {"chosen": "Is it? Yes.", "rejected": "Is it? No."}
        if is_chat:
            good = {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}
    kept = {name: good[name] for name in good if name in row}
    with pytest.raises(UserError, match=why):
        load(tmp_path, kept, row)


def test_both_texts_are_cut_at_their_end(hub: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(hub / "gpt2")
    rows = _dataset(
        [
            {"prompt": "w1 w2", "chosen": "w3 w4 w5", "rejected": "w6"},
            {"prompt": "w1 w2 w3 w4", "chosen": "w5", "rejected": "w6"},
        ]
    )
    task = Preference()
    whole, gone = task.tokenize(rows, tokenizer, None), task.tokenize(rows, tokenizer, 5)
    assert [[len(text.input_ids) for text in e.texts] for e in whole] == [[7, 5], [7, 7]]
    assert gone[0].input_ids.equal(whole[0].input_ids[:5])
    assert gone[0].labels.tolist() == [IGNORE] * 3 + whole[0].labels.tolist()[3:5]
    assert gone[0].prompt_tokens == 3
    assert whole[0].num_tokens == 7
    # Nothing of an answer is left, so nothing can be preferred.
    assert [task.num_targets(example) for example in gone] == [1, 0]


def test_answers_that_a_template_rewrites_are_refused(tmp_path: Path) -> None:
    rows = load(tmp_path, {"chosen": [ASK, GOOD, *MORE], "rejected": [ASK, BAD]})
    with pytest.raises(UserError, match="2 turns of the assistant"):
        Preference().tokenize(_dataset(rows), byte_level(THINKING), None)


def test_the_built_in_answers_are_right_and_wrong() -> None:
    train = Builtin(num_train=80, num_test=5).load("preference", 0).train
    answers = Builtin(num_train=80, num_test=5).load("causal_lm", 0).train
    assert list(train["chosen"]) == list(answers["completion"])
    assert all(row["chosen"] != row["rejected"] for row in train)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("framework=kd",), "predictions of single texts"),
        (("adapter={name: full}",), "cannot be taken off"),
        (("adapter={name: prompt}",), "cannot be taken off"),
        (("adapter={name: bitfit}",), "cannot be taken off"),
        (("adapter.from=somebody/adapter",), "not the one that training goes on from"),
        (("privacy={name: example, population: 40, epsilon: 8}", "training.local_steps=2"),
         "bounded alone"),
        (("framework.aggregator=stack",), "is the reference"),
        (("head=class_means",), "one class each"),
        (("framework={name: split, train: server}",), "framework.cache=false"),
        (("framework={name: split, delta: {}}",), "framework.delta=null"),
        (("framework={name: split, defence: gaussian}",), "framework.defence=none"),
        (("framework={name: split, leakage: true}",), "framework.leakage=false"),
        (("framework={name: split, train: server, local_rounds: 1, cache: false}",),
         "local_rounds"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_refused(hub: Path, words: tuple[str, ...], why: str) -> None:
    with pytest.raises(UserError, match=why):
        experiment_config(hub, *words, task="preference")
