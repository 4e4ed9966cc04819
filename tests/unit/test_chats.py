"""Chats in the forms that people keep them in: what a model reads, and what of it is supervised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatty import (
    ASKED,
    CHATML,
    JOINED,
    MARKED,
    OPENING,
    PARTS,
    REASONING,
    STRICT,
    THINKING,
    TOOLS,
    byte_level,
    texts,
)
from trillium.data.deployed import read_rows, write_rows
from trillium.data.sources.files import Files
from trillium.errors import UserError
from trillium.tasks.causal_lm import CausalLM
from trillium.tasks.ends import template_end

HI = {"role": "user", "content": "hi"}
YES = {"role": "assistant", "content": "yes"}
MORE = {"role": "user", "content": "more"}
NO = {"role": "assistant", "content": "no"}
BRIEF = {"role": "system", "content": "be brief"}
PLAIN_TEXT = [("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", False)]
ANSWERED = [*PLAIN_TEXT, ("yes<|im_end|>\n", True)]


def runs(path: Path, row: Any, template: str | None = CHATML, **options: Any) -> list[Any]:
    """Return the examples of one row, from the file on."""
    file = path / "a.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    rows = Files(train=file, **options).load("causal_lm", 0).train
    tokenizer = byte_level(template)
    return [texts(tokenizer, e) for e in CausalLM().tokenize(rows, tokenizer, 10_000)]


FORMS: dict[str, Any] = {
    "messages": {"messages": [HI, YES]},
    "unnamed keys": {"messages": [{**HI, "id": 3, "weight": None}, {**YES, "weight": 1}]},
    "parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
            {"role": "assistant", "content": ["yes"]},
        ]
    },
    "sharegpt": {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]},
    "conversations": {"conversations": [HI, YES]},
    "pair of turns": {"prompt": [HI], "completion": [YES]},
    "text and turns": {"prompt": "hi", "completion": [YES]},
    "turns and text": {"prompt": [HI], "completion": "yes"},
    "only turns": {"prompt": [], "completion": [HI, YES]},
    "JSON in a text": {"messages": json.dumps([HI, YES])},
    "prompt beside": {"prompt": "unread", "messages": [HI, YES]},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_the_same_chat(form: str, tmp_path: Path) -> None:
    assert runs(tmp_path, FORMS[form]) == [ANSWERED]


@pytest.mark.parametrize("name", ["system", "history"])
def test_turns_in_a_column_that_nobody_names_are_not_lost(name: str, tmp_path: Path) -> None:
    for row in (FORMS["sharegpt"], {"instruction": "Add.", "output": "3"}):
        with pytest.raises(UserError, match=f"column {name} in a.jsonl: it is part of the chats"):
            runs(tmp_path, {**row, name: "be brief"})
        assert runs(tmp_path, {**row, name: ""})


def test_instructions_are_prompts(tmp_path: Path) -> None:
    for given_, prompt in (("1 and 2", "Add.\n\n1 and 2"), ("", "Add."), (None, "Add.")):
        row = {"instruction": "Add.", "input": given_, "output": "3"}
        assert runs(tmp_path, row, None) == [[(prompt, False), ("3<eos>", True)]]


REFUSED: dict[str, tuple[Any, str]] = {
    "image": ({"content": [{"type": "image", "url": "x"}]}, "a part that is no text"),
    "no role": ({"role": None}, "turn 2: it has no role"),
    "misspelt": ({"role": "asistant"}, "Did you mean 'assistant'"),
    "no content": ({"content": None}, "turn 2: it has no content"),
    "number": ({"content": 7}, "no text"),
    "object": ({"content": {"a": 1}}, "no text"),
    "empty parts": ({"content": []}, "empty list"),
    "weight": ({"weight": 0.5}, "weight is not 0 or 1"),
    "function call": ({"function_call": {"name": "f"}}, "a function_call"),
    "calls": ({"tool_calls": "f"}, "tool_calls are no list"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_chat_is_refused_with_the_row(kind: str, tmp_path: Path) -> None:
    more, why = REFUSED[kind]
    with pytest.raises(UserError, match=r"messages: messages, row 1 of a\.jsonl") as found:
        runs(tmp_path, {"messages": [HI, {**YES, **more}]})
    assert why in found.value.why


def test_turns_of_weight_0_are_read_and_not_learnt(tmp_path: Path) -> None:
    [example] = runs(tmp_path, {"messages": [HI, {**YES, "weight": 0}, MORE, NO]})
    assert [text for text, seen in example if seen] == ["no<|im_end|>\n"]
    assert "".join(text for text, _ in example).count("yes") == 1
    [example] = runs(tmp_path, {"messages": [HI, {**YES, "weight": 0}, MORE, NO]}, MARKED)
    assert [text for text, seen in example if seen] == ["no<|im_end|>"]
    # What the assistant says in a prompt is none of the completion.
    [example] = runs(tmp_path, {"prompt": [HI, YES, MORE], "completion": [NO]})
    assert [text for text, seen in example if seen] == ["no<|im_end|>\n"]


def test_a_chat_may_begin_with_the_assistant(tmp_path: Path) -> None:
    for template in (CHATML, THINKING, MARKED):
        examples = runs(tmp_path, {"messages": [YES, HI, NO]}, template)
        seen = [text for example in examples for text, seen in example if seen]
        assert len(seen) == 2
        assert all("assistant" not in text for text in seen)
        assert "yes<|im_end|>" in seen[0]


def test_marks_of_the_template_say_what_is_supervised(tmp_path: Path) -> None:
    [example] = runs(tmp_path, {"messages": [HI, YES, MORE, NO]}, MARKED)
    assert [text for text, seen in example if seen] == ["yes<|im_end|>", "no<|im_end|>"]
    thoughts = MARKED.replace(
        "{% generation %}", "{% if loop.last %}<t>{% endif %}{% generation %}"
    )
    examples = runs(tmp_path, {"messages": [HI, YES, MORE, NO]}, thoughts)
    assert [[t for t, seen in e if seen] for e in examples] == [["yes<|im_end|>"], ["no<|im_end|>"]]


def test_a_template_that_rewrites_gives_each_answer_its_own_prefix(tmp_path: Path) -> None:
    first, second = runs(tmp_path, {"messages": [HI, YES, MORE, NO]}, THINKING)
    assert first == [*PLAIN_TEXT, ("<think>\n\n</think>\n\nyes<|im_end|>\n", True)]
    assert second == [
        (
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
            "<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n",
            False,
        ),
        ("<think>\n\n</think>\n\nno<|im_end|>\n", True),
    ]
    # Numbered apart, though of one row.
    rows = Files(train=tmp_path / "a.jsonl").load("causal_lm", 0).train
    examples = CausalLM().tokenize(rows, byte_level(THINKING), 10_000)
    assert [example.index for example in examples] == [0, 1]


def test_a_prompt_that_says_more_than_the_chat_has_a_border(tmp_path: Path) -> None:
    assert runs(tmp_path, {"messages": [HI, YES]}, OPENING) == [ANSWERED]


@pytest.mark.parametrize(
    ("chat", "why"),
    [
        ([BRIEF, HI, YES], "no system turn"),
        ([HI, MORE, YES], "roles must alternate"),
        ([YES, HI], "roles must alternate"),
    ],
)
def test_what_the_template_refuses_is_said_with_the_row(
    chat: list[Any], why: str, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=r"row 1 of a\.jsonl.*the chat template refuses it"
    ) as found:
        runs(tmp_path, {"messages": chat}, STRICT)
    assert why in found.value.why
    assert found.value.__cause__ is not None  # a template may quote rows: only its colon leaves


def test_the_systems_turn_can_be_folded_into_the_users(tmp_path: Path) -> None:
    row = {"messages": [BRIEF, HI, YES]}
    [example] = runs(tmp_path, row, STRICT, system="fold")
    assert example == [("user:be brief\n\nhi<|im_end|>assistant:", False), ("yes<|im_end|>", True)]
    with pytest.raises(UserError, match=r"data\.source\.system=fold"):
        runs(tmp_path, row, STRICT)


CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
CALLS = [HI, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
CALLS += [{"role": "tool", "content": "3", "tool_call_id": "x"}, YES]


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL])])
def test_tools_and_calls_go_through_the_template(tools: Any, tmp_path: Path) -> None:
    [example] = runs(tmp_path, {"messages": CALLS, "tools": tools}, TOOLS)
    assert example[0][0].startswith(json.dumps(TOOL))
    assert [text for text, seen in example if seen] == [
        '<call>{"a": 1, "b": 2}</call><|im_end|>\n',
        "yes<|im_end|>\n",
    ]


def test_arguments_are_as_the_template_wants_them(tmp_path: Path) -> None:
    """Objects, which it writes as JSON, or texts, which it joins."""
    for arguments in ('{"a": 1, "b": 2}', {"a": 1, "b": 2}):
        call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
        chat = [HI, {"role": "assistant", "tool_calls": [call]}]
        for template in (TOOLS, JOINED):
            [example] = runs(tmp_path, {"messages": chat}, template)
            assert example[1] == ('<call>{"a": 1, "b": 2}</call><|im_end|>\n', True)


def test_what_the_assistant_thinks_is_not_lost(tmp_path: Path) -> None:
    row = {"messages": [HI, {**YES, "reasoning_content": "hm"}]}
    [example] = runs(tmp_path, row, REASONING)
    assert example[1] == ("<think>hm</think>yes<|im_end|>\n", True)
    with pytest.raises(UserError, match="leaves out reasoning_content"):
        runs(tmp_path, row)


def test_a_template_that_leaves_out_what_is_said_is_refused(tmp_path: Path) -> None:
    deaf = "{% for m in messages if m['role'] != 'system' %}" + CHATML.partition("%}")[2]
    with pytest.raises(UserError, match=r"leaves out the turns of the system\. Write data.source"):
        runs(tmp_path, {"messages": [BRIEF, HI, YES]}, deaf)
    assert runs(tmp_path, {"messages": [HI, YES]}, deaf) == [ANSWERED]
    either = TOOLS.replace(
        "{{ m['content'] }}", "{% if not m.tool_calls %}{{ m['content'] }}{% endif %}"
    )
    said = {**YES, "tool_calls": [CALL]}
    with pytest.raises(UserError, match="leaves out content"):
        runs(tmp_path, {"messages": [HI, said]}, either)


def test_a_template_that_wants_parts_gets_them(tmp_path: Path) -> None:
    assert runs(tmp_path, {"messages": [HI, YES]}, PARTS) == [ANSWERED]
    assert template_end(byte_level(PARTS)) == byte_level().convert_tokens_to_ids("<|im_end|>")


def test_a_template_may_take_the_whole_chat_alone(tmp_path: Path) -> None:
    [example] = runs(tmp_path, {"messages": [YES, HI, NO]}, ASKED)
    assert [text for text, seen in example if seen] == ["yes<|im_end|>\n", "no<|im_end|>\n"]
    marked = ASKED.replace(
        "{{ m['content'] }}", "{% generation %}{{ m['content'] }}{% endgeneration %}"
    )
    [example] = runs(tmp_path, {"messages": [YES, HI, NO]}, marked)
    assert ("yes", True) in example
    with pytest.raises(UserError, match="no user"):
        runs(tmp_path, {"messages": [YES]}, ASKED)


def test_a_template_that_leaves_out_calls_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"row 1 of a\.jsonl.*leaves out tool_calls"):
        runs(tmp_path, {"messages": CALLS})
    with pytest.raises(UserError, match=r"row 1 of a\.jsonl.*leaves out the tools"):
        runs(tmp_path, {"messages": [HI, YES], "tools": [TOOL]})
    assert runs(tmp_path, {"messages": [HI, YES], "tools": [TOOL]}, tools=None) == [ANSWERED]
    with pytest.raises(UserError, match=r"tools: tools, row 1 of a\.jsonl"):
        runs(tmp_path, {"messages": [HI, YES], "tools": "add"})


def test_a_model_without_template_is_said_to_have_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no chat template"):
        runs(tmp_path, {"messages": [HI, YES]}, None)


def test_chats_of_a_client_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [
        {"q": [HI], "a": [{**YES, "weight": 0}, MORE, NO], "tools": [TOOL]},
        {"q": [], "a": CALLS, "tools": None},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for options in ({"prompt": "q", "completion": "a"}, {"messages": "a"}):
        source = Files(train=tmp_path / "a.jsonl", encoding="utf-16", **options)
        plain = source.model_copy(update={"encoding": None})
        wanted = plain.load("causal_lm", 0).train.remove_columns("row")
        write_rows(tmp_path / "out" / "b.jsonl", wanted, (), source)
        found = read_rows(tmp_path / "out" / "b.jsonl", source, "causal_lm", ())
        assert list(found.remove_columns("row")) == list(wanted)


SAID = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).map(
    lambda text: text.replace("<|", "").replace("<eos>", "").replace("<pad>", "")
)


@settings(max_examples=60, deadline=None)
@given(
    said=st.lists(SAID | st.sampled_from(["\n", "\n\nyes", " ", "\n \n"]), min_size=2, max_size=5),
    template=st.sampled_from([CHATML, THINKING, OPENING, MARKED, TOOLS, PARTS]),
    first=st.booleans(),
)
def test_any_text_survives_from_file_to_example_and_back(
    said: list[str], template: str, first: bool, tmp_path_factory: Any
) -> None:
    roles = ["assistant", "user"] * 3
    turns = [
        {"role": role, "content": text}
        for role, text in zip(roles[not first :], said, strict=False)
    ]
    examples = runs(tmp_path_factory.getbasetemp(), {"messages": turns}, template)
    seen = [text for example in examples for text, is_seen in example if is_seen]
    answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    end = "<|im_end|>" if template == MARKED else "<|im_end|>\n"
    thought = "<think>\n\n</think>\n\n"
    assert [text.removeprefix(thought) for text in seen] == [text + end for text in answers]
    whole = "".join(text for text, _ in examples[-1])
    assert all(f"\n{turn['content']}<|im_end|>" in whole for turn in turns[:1])


@settings(max_examples=60, deadline=None)
@given(prompt=SAID.filter(bool), answer=SAID.filter(lambda text: text.strip()))
def test_prompts_and_completions_survive_too(
    prompt: str, answer: str, tmp_path_factory: Any
) -> None:
    row = {"prompt": prompt, "completion": answer}
    [example] = runs(tmp_path_factory.getbasetemp(), row, None)
    assert example == [(prompt, False), (f"{answer}<eos>", True)]
