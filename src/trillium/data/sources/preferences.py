"""Two answers to a prompt, in the forms that TRL reads, brought to two: texts, and whole chats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trillium.data.sources.chats import (
    ChatError,
    System,
    Turn,
    even,
    folded,
    read_chat,
    unsupervised,
)
from trillium.data.sources.table import Table


def read_preferences(
    rows: Table,
    names: Mapping[str, str],
    system: System,
    texts: Callable[[str], list[str]],
) -> dict[str, list[Any]]:
    """Return prompts with two answers, or two chats, whichever the rows have.

    Args:
        names: of the columns, or templates of them, for `prompt`, `chosen` and `rejected`.
        texts: gives the texts of one of the three.
    """
    answers = [
        rows.full_column(what, names[what]) if names[what] in rows.names else texts(what)
        for what in ("chosen", "rejected")
    ]
    asked, prompts = names["prompt"], list[Any]([None]) * len(rows)
    chats = any(isinstance(answer, list) for answer in (*answers[0], *answers[1]))
    if chats and asked in rows.names:
        prompts = list(rows.column("prompt", asked))
    elif asked in rows.names or asked != "prompt":
        prompts = texts("prompt")
    if not chats:
        answers = [texts("chosen"), texts("rejected")]
    found: list[Sequence[Any]] = []
    triples = zip(prompts, *answers, strict=True)
    for place, (prompt, chosen, rejected) in enumerate(triples):
        try:
            found.append(
                read_chats(prompt, chosen, rejected, system)
                if chats
                else read_texts(prompt, chosen, rejected)
            )
        except ChatError as error:
            wrong = rejected if error.value is None else error.value
            raise rows.wrong("rejected", names["rejected"], place, wrong, str(error)) from None
    if not chats:
        return dict(
            zip(("prompt", "chosen", "rejected"), map(list, zip(*found, strict=True)), strict=True)
        )
    evened = even([chat for pair in found for chat in pair])
    return {"chosen": evened[::2], "rejected": evened[1::2]}


def read_texts(prompt: str | None, chosen: str, rejected: str) -> tuple[str, str, str]:
    """Return prompt and answers.

    Args:
        prompt: without one it is what both begin with, as TRL takes it: up to the first character in
            which they differ, without a blank in front of that.

    Raises:
        ChatError: there are no two answers to one prompt.
    """
    if chosen == rejected:
        raise ChatError("chosen and rejected are the same, so nothing is preferred")
    if prompt is not None:
        return prompt, chosen, rejected
    pairs = enumerate(zip(chosen, rejected, strict=False))
    at = next((n for n, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
    at -= chosen[at - 1 : at] == " "
    prompt, found = chosen[:at], (chosen[at:], rejected[at:])
    if not prompt.strip():
        raise ChatError("chosen and rejected begin differently, so they do not tell the prompt")
    if not all(answer.strip() for answer in found):
        raise ChatError(
            "one of chosen and rejected ends where the other goes on, and answers nothing"
        )
    return prompt, *found


def read_chats(
    prompt: Any, chosen: Any, rejected: Any, system: System
) -> tuple[list[Turn], list[Turn]]:
    """Return two whole chats, of which the turns behind the prompt are supervised.

    Args:
        prompt: a text that the user says, or turns; without one, and where the answers are whole chats,
            it is the turns that both begin with.
        chosen, rejected: turns, or a text that the assistant says.
        system: as of `read_chat`.

    Raises:
        ChatError: there are no two answers to one prompt.
    """
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    asked = read_chat(before, "keep") if before else []
    chats = [_answer(answer) for answer in (chosen, rejected)]
    if chats[0] == chats[1]:
        raise ChatError("chosen and rejected are the same, so nothing is preferred")
    if not asked or any(chat[0]["role"] != "assistant" for chat in chats):
        shared = _common(*chats)
        if not shared:
            raise ChatError("chosen and rejected begin differently, so they do not tell the prompt")
        if asked and shared[-len(asked) :] != asked:
            raise ChatError("chosen and rejected are whole chats, which the prompt does not begin")
        asked, chats = shared, [chat[len(shared) :] for chat in chats]
    for name, chat in zip(("chosen", "rejected"), chats, strict=True):
        if not chat or chat[0]["role"] != "assistant":
            raise ChatError(f"{name} has no turn of the assistant behind the turns of the prompt")
        if not all(turn["content"].strip() or turn.get("more") for turn in chat):
            raise ChatError(f"{name} has an empty turn")
    whole = [[*unsupervised(asked), *chat] for chat in chats]
    first, second = (folded(chat) if system == "fold" else chat for chat in whole)
    return first, second


def _answer(value: Any) -> list[Turn]:
    return read_chat(
        [{"role": "assistant", "content": value}] if isinstance(value, str) else value, "keep"
    )


def _common(first: list[Turn], second: list[Turn]) -> list[Turn]:
    pairs = enumerate(zip(first, second, strict=False))
    at = next((n for n, (a, b) in pairs if a != b), min(len(first), len(second)))
    return first[:at]
