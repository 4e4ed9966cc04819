"""Chats, in the forms that people keep them in, brought to one: turns of a role and a text.

What a turn has beside these (`tool_calls`, `weight`, …) stands in its `more`, as JSON: an Arrow column
would give every turn the keys of all others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from trillium.data.sources.table import Doubled, no_text
from trillium.errors import suggest

System = Literal["keep", "fold"]
Turn = dict[str, str]

ROLES: Final = ("system", "developer", "user", "assistant", "tool")
# Other names of two of them, as ShareGPT and its kin write them.
_ALIASES: Final = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "observation": "tool",
}
_TEXTS: Final = ("reasoning_content", "thinking", "reasoning", "name", "tool_call_id")
_UNREAD: Final = ("function_call", "audio")


class ChatError(ValueError):
    """Why a value is no chat.

    Attributes:
        value: what of it is wrong, where it is a part; it may be named where the user alone reads.
    """

    def __init__(self, why: str, value: object = None) -> None:
        super().__init__(why)
        self.value = value


def read_chat(value: object, system: System) -> list[Turn]:
    """Return the turns of a chat.

    Args:
        value: a list of `{role, content}` or `{from, value}`, or such a list as JSON, as a csv has it.
        system: whether to fold a system turn into the user's turn behind it.

    Raises:
        ChatError: it is no chat.
    """
    if isinstance(value, str):
        value = _parsed(value)
    if not isinstance(value, list) or not value:
        raise ChatError("each row must be a list of turns {role: …, content: …}")
    turns = []
    for number, turn in enumerate(value, start=1):
        try:
            turns.append(_turn(turn))
        except ChatError as error:
            raise ChatError(f"turn {number}: {error}", error.value) from None
    return folded(turns) if system == "fold" else turns


def read_pair(prompt: object, completion: object, system: System) -> list[Turn]:
    """Return the turns of a prompt and a completion, one of which is a list of turns.

    What the assistant says in the prompt is not supervised.
    """
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) and prompt else prompt
    after = [{"role": "assistant", "content": completion}]
    turns = unsupervised(read_chat(before, "keep") if before else [])
    turns += read_chat(after if isinstance(completion, str) else completion, "keep")
    return folded(turns) if system == "fold" else turns


def unsupervised(turns: Sequence[Turn]) -> list[Turn]:
    """Return turns of which no response is to be learnt."""

    def silent(turn: Turn) -> Turn:
        more = {**json.loads(turn.get("more") or "{}"), "weight": 0}
        return {**turn, "more": json.dumps(more)} if turn["role"] == "assistant" else turn

    return [silent(turn) for turn in turns]


def read_tools(value: object) -> str:
    """Return the tools of a row as JSON; an empty text where there are none.

    Raises:
        ChatError: these are no tools.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        value = _parsed(value)
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise ChatError("tools are a list of objects, each with the schema of a function")
    return _dumped(value) if value else ""


def even(chats: Sequence[list[Turn]]) -> list[list[Turn]]:
    """Give all turns the same keys, as Arrow wants them."""
    if not any("more" in turn for chat in chats for turn in chat):
        return list(chats)
    return [[{**turn, "more": turn.get("more", "")} for turn in chat] for chat in chats]


def _parsed(text: str) -> object:
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        raise ChatError("a list of objects is wanted, and this text is not JSON of one") from None
    return found


def _turn(turn: object) -> Turn:
    if not isinstance(turn, dict):
        raise ChatError("it is no object {role: …, content: …}")
    if isinstance(turn, Doubled):
        raise ChatError("it has a key twice", turn.doubled[0])
    role_key, content_key = ("from", "value") if turn.get("from") else ("role", "content")
    more = _more(turn)
    content = _content(turn.get(content_key), optional="tool_calls" in more)
    found = {"role": _role(turn.get(role_key)), "content": content}
    return {**found, "more": _dumped(more)} if more else found


def _role(role: object) -> str:
    if not isinstance(role, str) or not role:
        raise ChatError("it has no role (the key role, or from)")
    found = _ALIASES.get(role, role)
    if found not in ROLES:
        raise ChatError(f"there is no such role. {suggest(role, (*ROLES, *_ALIASES))}", role)
    return found


def _content(content: object, optional: bool) -> str:
    if content is None and optional:
        return ""
    if content is None:
        raise ChatError("it has no content (the key content, or value)")
    if not isinstance(content, list):
        return _text(content)
    parts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind != "text":
            raise ChatError("its content has a part that is no text, and only texts train", kind)
        parts.append(_text(part.get("text") if isinstance(part, dict) else part))
    if not parts:
        raise ChatError("its content is an empty list")
    return "".join(parts)


def _text(value: object) -> str:
    if type(value) is not str:
        raise ChatError(f"its content is no text: {no_text(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ChatError(no_text(value)) from None
    return value


def _more(turn: dict[str, Any]) -> dict[str, Any]:
    """Return what a turn has that a template or the loss may need."""
    for key in _UNREAD:
        if turn.get(key):
            raise ChatError(f"it has a {key}, which no template reads; write tool_calls for calls")
    more: dict[str, Any] = {}
    for key in _TEXTS:
        if turn.get(key) is not None:
            more[key] = _text(turn[key])
    if turn.get("weight") is not None:
        if turn["weight"] not in (0, 1):
            raise ChatError("its weight is not 0 or 1", turn["weight"])
        if turn["weight"] == 0:
            more["weight"] = 0
    if turn.get("tool_calls"):
        calls = turn["tool_calls"]
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise ChatError("its tool_calls are no list of objects")
        more["tool_calls"] = calls
    return more


def folded(turns: Sequence[Turn]) -> list[Turn]:
    """Put what the system says in front of what the user says next."""
    found: list[Turn] = []
    waiting: list[str] = []
    fold: Callable[[str], str] = lambda text: "\n\n".join([*waiting, text])  # noqa: E731
    for turn in turns:
        if turn["role"] in ("system", "developer"):
            waiting.append(turn["content"])
            continue
        if waiting and turn["role"] == "user":
            turn = {**turn, "content": fold(turn["content"])}
        elif waiting:
            found.append({"role": "user", "content": "\n\n".join(waiting)})
        waiting = []
        found.append(turn)
    return found + [{"role": "user", "content": "\n\n".join(waiting)}] * bool(waiting)


def _dumped(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError) as error:
        raise ChatError("it holds what is no JSON, or half of a surrogate pair") from error
    return text
