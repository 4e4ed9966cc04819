"""Rows that nobody has answered: what a model is asked about, in all forms that rows are kept in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chatty import CHATML, byte_level
from trillium.data.rows import inputs_of
from trillium.data.sources.files import Files
from trillium.errors import UserError
from trillium.tasks.causal_lm import CausalLM

ASKED = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "hi"}, "hi"),
        ({"prompt": "hi", "completion": None}, "hi"),
        ({"instruction": "Add.", "input": "1 2", "output": ""}, "Add.\n\n1 2"),
        ({"messages": [USER]}, ASKED),
        ({"messages": [USER, {"role": "assistant", "content": "old"}]}, ASKED),
        ({"conversations": [{"from": "human", "value": "hi"}]}, ASKED),
        ({"prompt": [USER]}, ASKED),
    ],
)
def test_rows_are_asked_about_as_they_were_trained_on(
    tmp_path: Path, row: dict[str, Any], expected: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    [found] = inputs_of(Files(train=tmp_path / "rows.jsonl"), "causal_lm")
    tokenizer = byte_level(CHATML)
    assert tokenizer.decode(CausalLM().prompt_of(found, tokenizer, chat=False)) == expected


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "hi"}\n')
    for task in ("classification", "causal_lm"):
        with pytest.raises(UserError, match="question"):
            inputs_of(Files(train=tmp_path / "rows.jsonl"), task)
