"""Chats as tokens: the tokenizer's template sets the text, and says what of it is a response.

Where a template marks responses (`{% generation %}`), the marks are what is supervised. Else a response
is what a turn of the assistant adds to the text behind the prompt for it. A template that rewrites
earlier turns, as those do that drop the thinking of all but the last, gives an example for each turn of
the assistant, with the text that a model would be given there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from transformers.utils.chat_template_utils import render_jinja_template

from trillium.errors import UserError
from trillium.tasks.ends import ANSWER

Spans = list[tuple[list[int], bool]]
"""Runs of tokens, and whether they are supervised."""
Range = tuple[int, int]
Turn = dict[str, Any]

_MARKS: Final = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_ANOTHER_FORM: Final = "Correct the row, or choose a model whose template takes it"


@dataclass(frozen=True)
class Chat:
    """One row, as a template reads it.

    Attributes:
        supervised: of each turn, whether it is a response to learn from.
        row: where it comes from, in words.
    """

    turns: Sequence[Turn]
    supervised: Sequence[bool]
    tools: list[dict[str, Any]] | None
    row: str

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Chat:
        """Return the chat of a row in the canonical columns."""
        turns, supervised = [], []
        for turn in row["messages"]:
            more = json.loads(turn.get("more") or "{}")
            weight = more.pop("weight", 1)
            turns.append({"role": turn["role"], "content": turn["content"], **more})
            supervised.append(turn["role"] == "assistant" and weight != 0)
        tools = json.loads(row.get("tools") or "null")
        return cls(turns, supervised, tools, row.get("row") or "a row in the chat form")


def prompt_tokens(tokenizer: Any, prompt: str) -> list[int]:
    """Return the tokens of a chat in which the user has said one thing."""
    chat = Chat([{"role": "user", "content": prompt}], [False], None, "the prompt")
    return _ids(tokenizer, _Template(tokenizer, chat).text(1, prompt=True))


def answer_tokens(tokenizer: Any, row: Mapping[str, Any]) -> list[int]:
    """Return the tokens from which the next response of a chat is written.

    What the assistant says at its end is left out: that is what is asked for.
    """
    chat = Chat.of(row)
    said = [place for place, turn in enumerate(chat.turns, 1) if not _answers(turn)]
    return _ids(tokenizer, _Template(tokenizer, chat).text(max(said, default=0), prompt=True))


def chat_spans(row: Mapping[str, Any], tokenizer: Any) -> list[Spans]:
    """Return the examples of a row: one, or one for each response if the template wants it so.

    Raises:
        UserError: there is no template, or it refuses the chat, or leaves out what it says.
    """
    chat = Chat.of(row)
    template = _Template(tokenizer, chat)
    template.check_calls()
    whole = template.text(len(chat.turns))
    found: list[Range] = []
    for place in (place for place, wanted in enumerate(chat.supervised) if wanted):
        until = template.text(place + 1)
        if not whole.startswith(until):
            break
        found += template.responses(place, until)
    else:
        return [_tokens(tokenizer, whole, found)]
    examples = []
    for place in (place for place, wanted in enumerate(chat.supervised) if wanted):
        until = template.text(place + 1)
        examples.append(_tokens(tokenizer, until, template.responses(place, until)))
    return examples


class _Template:
    """The template of a tokenizer over one chat."""

    def __init__(self, tokenizer: Any, chat: Chat) -> None:
        self._tokenizer, self._chat = tokenizer, chat
        self._known: dict[tuple[int, bool], str] = {}
        try:
            self._source: str = tokenizer.get_chat_template(None, chat.tools)
        except ValueError as error:
            raise UserError(
                "rows in the chat form (column messages)",
                "the tokenizer of this model has no chat template",
                "Choose an instruction-tuned model, or name the columns prompt and completion",
            ) from error

    def text(self, num_turns: int, *, prompt: bool = False) -> str:
        """Return the text of the first turns, with what asks for a response behind it if wanted."""
        key = (num_turns, prompt)
        if key not in self._known:
            self._known[key] = self._render(self._chat.turns[:num_turns], prompt=prompt)[0]
        return self._known[key]

    def responses(self, place: int, until: str) -> list[Range]:
        """Return what of the text up to a turn of the assistant is its response."""
        if not _MARKS.search(self._source):
            return [(self._border(place, until), len(until))]
        marks = self._render(self._chat.turns[: place + 1])[1]
        # Of the marks, those of this turn: behind what the text is without it.
        before = self.text(place) if place else ""
        start = _common(before, until)
        answers = [n for n, turn in enumerate(self._chat.turns[: place + 1]) if _answers(turn)]
        if len(marks) == len(answers):
            return marks[-1:]
        return [(first, last) for first, last in marks if last > start]

    def check_calls(self) -> None:
        """Refuse a template that leaves out the tools, or calls of them."""
        turns, tools = self._chat.turns, self._chat.tools
        calls = any("tool_calls" in turn for turn in turns)
        if not tools and not calls:
            return
        whole = self._render(turns)[0]
        without = [{k: v for k, v in turn.items() if k != "tool_calls"} for turn in turns]
        if calls and self._render(without)[0] == whole:
            raise self._refused("the chat template leaves out tool_calls")
        if tools and self._render(turns, tools=False)[0] == whole:
            raise self._refused("the chat template leaves out the tools")

    def _border(self, place: int, until: str) -> int:
        """Return where the response of a turn begins."""
        before = self.text(place, prompt=True) if place else None
        if before is not None and until.startswith(before):
            return len(before)
        # The prompt says more than the chat does later, such as a thought that it begins.
        start = _common(self.text(place) if place else "", until)
        opening = self._opening()
        at = until.find(opening, start)
        if opening and at >= 0:
            return at + len(opening)
        turn = self._chat.turns[place]
        other = [*self._chat.turns[:place], {**turn, "content": ANSWER}]
        at = self._render(other)[0].rfind(ANSWER)
        if at >= start and _common(self._render(other)[0], until) >= at:
            return at
        raise self._refused(
            f"the chat template does not show where the response of turn {place + 1} begins"
        )

    def _opening(self) -> str:
        """Return what the template writes in front of a response; empty if it does not say."""
        turns = [{"role": "user", "content": "hi"}]
        try:
            plain, asked = self._render(turns)[0], self._render(turns, prompt=True)[0]
        except UserError:
            return ""
        return asked[len(plain) :] if asked.startswith(plain) else ""

    def _render(
        self, turns: Sequence[Turn], *, prompt: bool = False, tools: bool = True
    ) -> tuple[str, list[Range]]:
        """Return a text, and the ranges of it that the template marks."""
        try:
            texts, marks = render_jinja_template(
                conversations=[list(turns)],
                tools=self._chat.tools if tools else None,
                chat_template=self._source,
                return_assistant_tokens_mask=bool(_MARKS.search(self._source)),
                add_generation_prompt=prompt,
                **self._tokenizer.special_tokens_map,
            )
        # A template is code from elsewhere, and raises what it likes. It may quote the row.
        except Exception as error:
            what = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise self._refused(f"the chat template refuses it: {what}") from error
        return texts[0], marks[0] if marks else []

    def _refused(self, why: str) -> UserError:
        is_system = any(turn["role"] in ("system", "developer") for turn in self._chat.turns)
        fold = "Write data.source.system=fold, which puts the system's turn into the user's. "
        return UserError(
            f"a chat, {self._chat.row}, with turns of {_roles(self._chat.turns)}",
            why,
            fold * is_system + _ANOTHER_FORM,
        )


def _common(first: str, second: str) -> int:
    """Return how many characters two texts begin with in common."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(first), len(second)))


def _roles(turns: Sequence[Turn]) -> str:
    names = [turn["role"] for turn in turns[:6]]
    return ", ".join(names) + ", …" * (len(turns) > len(names))


def _answers(turn: Turn) -> bool:
    return bool(turn["role"] == "assistant")


def _tokens(tokenizer: Any, text: str, supervised: Sequence[Range]) -> Spans:
    """Return a text as tokens, with the borders of what is supervised between two of them.

    Where a token would reach across a border (an answer that begins with a blank line), both sides are
    tokenised apart: so a model meets them when it writes.
    """
    borders = sorted({0, len(text), *(border for found in supervised for border in found)})
    pieces = list(pairwise(borders))
    seen = [any(s <= first and last <= e for s, e in supervised) for first, last in pieces]
    whole = _ids(tokenizer, text)
    spans: Spans = []
    done = 0
    for (_, last), is_seen in zip(pieces, seen, strict=True):
        until = whole if last == len(text) else _ids(tokenizer, text[:last])
        if whole[: len(until)] != until or len(until) < done:
            break
        spans.append((until[done:], is_seen))
        done = len(until)
    else:
        return spans
    return [
        (_ids(tokenizer, text[first:last], continues=first > 0), is_seen)
        for (first, last), is_seen in zip(pieces, seen, strict=True)
    ]


def _ids(tokenizer: Any, text: str, *, continues: bool = False) -> list[int]:
    """Return the tokens of a text; of one that continues another, without what begins a text."""
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not continues:
        return found
    line: list[int] = tokenizer("\n", add_special_tokens=False)["input_ids"]
    behind: list[int] = tokenizer("\n" + text, add_special_tokens=False)["input_ids"]
    return behind[len(line) :] if behind[: len(line)] == line else found
