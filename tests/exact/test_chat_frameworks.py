"""Every framework trains on chats, with tools, and of templates that rewrite earlier turns."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from chatty import THINKING, TOOLS, byte_level
from tiny import CONFIGS, federation, run_rounds
from trillium.data.deployed import read_server_data, write_server_data
from trillium.errors import UserError
from trillium.frameworks.kd.public import decode_public
from trillium.tasks.ends import end_ids
from trillium.tasks.writing import until_end
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message

TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def write(folder: Path, template: str, name: str = "llama") -> Path:
    tokenizer = byte_level(template)
    options = {**CONFIGS["llama"], "vocab_size": len(tokenizer), "max_position_embeddings": 512}
    config = AutoConfig.for_model("llama", pad_token_id=0, eos_token_id=1, **options)
    config.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    rows = []
    for index in range(24):
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": f"say {index}"},
            {"role": "assistant", "content": f"\n\n{index}"},
            {"role": "user", "content": "more"},
            {"role": "assistant", "content": "done", "weight": index % 2},
        ]
        if template == TOOLS:
            turns[1]["tool_calls"] = [CALL]
        rows.append({"messages": turns, "tools": [TOOL] if template == TOOLS else None})
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "causal_lm.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize("template", [THINKING, TOOLS], ids=["thinking", "tools"])
@pytest.mark.parametrize("framework", ["fedllm", "kd", "split"])
def test_every_framework_trains_on_chats(
    framework: str, template: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub = write(tmp_path, template)
    with caplog.at_level(logging.WARNING):
        built = federation(
            hub,
            f"framework={framework}",
            "training.max_length=256",
            "data.public_size=5",
            "data.num_clients=2",
            model="llama",
            task="causal_lm",
        )
    assert "nothing ends a response" not in caplog.text
    run_rounds(built, 1)
    tokenizer = built.model.tokenizer
    ends = end_ids(tokenizer, built.model.module)
    assert ends == sorted([tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")])
    # What an example ends with is where generation stops.
    for example in built.clients[0].examples:
        answer = example.labels[example.labels >= 0].tolist()
        assert until_end(answer, ends)[-1] in ends
    # A node reads what the server's folder was given.
    write_server_data(tmp_path / "server", built.data)
    read = read_server_data(tmp_path / "server", "causal_lm")
    for found, wanted in ((read.test, built.data.test), (read.public, built.data.public)):
        kept = [name for name in ("messages", "tools") if name in wanted.column_names]
        assert list(found.select_columns(kept)) == list(wanted.select_columns(kept))


def test_models_whose_templates_make_other_examples_do_not_distil(tmp_path: Path) -> None:
    hub = write(write(tmp_path, THINKING, "other"), TOOLS.replace("tools", "nothing"))
    with pytest.raises(UserError, match="makes an example of each response"):
        federation(
            hub,
            "framework=kd",
            "data.public_size=5",
            f"tiers={{own: {{clients: ['client-1'], model: {{id: {hub / 'other'}}}}}}}",
            model="llama",
            task="causal_lm",
        )


@pytest.mark.parametrize(
    ("turn", "tools"),
    [
        ({"more": "{"}, ""),
        ({"more": "[]"}, ""),
        ({"more": 7}, ""),
        ({"weight": "0"}, ""),
        ({}, "{}"),
        ({}, "[" * 10_000),
        ({}, None),
    ],
)
def test_a_public_set_of_broken_chats_is_refused(turn: dict[str, Any], tools: Any) -> None:
    said = {"role": "user", "content": "hi"}

    def received(turn: dict[str, Any], tools: Any) -> dict[str, list[Any]]:
        columns = {"messages": [[{**said, **turn}]], "tools": [tools]}
        data = bytearray(json.dumps(columns).encode())
        tensor = torch.frombuffer(data, dtype=torch.uint8)
        return decode_public(Message("receive_public", {"public/rows": tensor}), "causal_lm", 0)

    assert received({"more": '{"weight": 0}'}, "[]")["tools"] == ["[]"]
    with pytest.raises(MessageError, match="that is none"):
        received(turn, tools)
