"""Chats as tokens: the tokenizer's template sets the text, and says what of it is a response.

Where a template marks responses (`{% generation %}`), the marks are what is supervised. Else a response
is what a turn of the assistant adds to the text behind the prompt for it. A template that rewrites
earlier turns, as those do that drop the thinking of all but the last, gives an example for each turn of
the assistant, with the text that a model would be given there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

from trillium.errors import UserError
from trillium.tasks.spans import Spans, spans_of, token_ids
from trillium.tasks.templates import ANSWER, Range, Template, TemplateError, Turn

_NEEDED: Final = ("tool_calls", "reasoning_content", "thinking", "reasoning")
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
            own = {"role": turn["role"], "content": turn["content"], **more}
            turns.append(_with_calls(own, as_text=False))
            supervised.append(turn["role"] == "assistant" and weight != 0)
        tools = json.loads(row.get("tools") or "null")
        return cls(turns, supervised, tools, row.get("row") or "a row in the chat form")


def prompt_tokens(tokenizer: Any, prompt: str) -> list[int]:
    """Return the tokens of a chat in which the user has said one thing."""
    chat = Chat([{"role": "user", "content": prompt}], [False], None, "the prompt")
    return token_ids(tokenizer, _Said(tokenizer, chat).text(1, prompt=True))


def answer_tokens(tokenizer: Any, row: Mapping[str, Any]) -> list[int]:
    """Return the tokens from which the next response of a chat is written.

    What the assistant says at its end is left out: that is what is asked for.
    """
    chat = Chat.of(row)
    said = [place for place, turn in enumerate(chat.turns, 1) if not _answers(turn)]
    return token_ids(tokenizer, _Said(tokenizer, chat).text(max(said, default=0), prompt=True))


def chat_spans(row: Mapping[str, Any], tokenizer: Any) -> list[Spans]:
    """Return the examples of a row: one, or one for each response if the template wants it so.

    Raises:
        UserError: there is no template, or it refuses the chat, or leaves out what it says.
    """
    said = _Said(tokenizer, Chat.of(row))
    said.check_whole()
    wanted = [place for place, is_wanted in enumerate(said.chat.supervised) if is_wanted]
    if all(said.whole.startswith(said.until(place) or "") for place in wanted):
        found = [own for place in wanted for own in said.in_whole(place)]
        return [spans_of(tokenizer, said.whole, found)]
    examples = []
    for place in wanted:
        until = said.text(place + 1)
        examples.append(spans_of(tokenizer, until, said.responses(place, until)))
    return examples


class _Said:
    """A chat as the template of a tokenizer says it."""

    def __init__(self, tokenizer: Any, chat: Chat) -> None:
        self.chat = chat
        self._known: dict[tuple[int, bool], str] = {}
        try:
            self._template = Template.of(tokenizer, chat.tools)
        except TemplateError as error:
            raise UserError(
                "rows in the chat form (column messages)",
                "the tokenizer of this model has no chat template",
                "Choose an instruction-tuned model, or name the columns prompt and completion",
            ) from error
        if any("tool_calls" in turn for turn in chat.turns) and not self._takes(chat.turns):
            as_texts = [_with_calls(turn, as_text=True) for turn in chat.turns]
            if self._takes(as_texts):
                self.chat = replace(chat, turns=as_texts)

    @cached_property
    def whole(self) -> str:
        """The text of all turns."""
        return self.text(len(self.chat.turns))

    def text(self, num_turns: int, *, prompt: bool = False) -> str:
        """Return the text of the first turns, with what asks for a response behind it if wanted."""
        key = (num_turns, prompt)
        if key not in self._known:
            self._known[key] = self._render(self.chat.turns[:num_turns], prompt=prompt)[0]
        return self._known[key]

    def until(self, place: int) -> str | None:
        """Return the text up to a turn; `None` where the template takes the whole chat alone."""
        try:
            return self.text(place + 1)
        except UserError:
            if place + 1 == len(self.chat.turns):
                raise
            return None

    def in_whole(self, place: int) -> list[Range]:
        """Return what of the text of all turns is the response of one."""
        until = self.until(place)
        if until is not None:
            return self.responses(place, until)
        at, text = self._answered(place, len(self.chat.turns))
        rest = text[at + len(ANSWER) :]
        behind = self._template.behind
        if at < 0 or not (self.whole.startswith(text[:at]) and rest.startswith(behind)):
            raise self._hidden(place)
        own = (at, len(self.whole) - len(rest) + len(behind))
        if not self._template.has_marks:
            return [own]
        marks = self._render(self.chat.turns)[1]
        return [(first, last) for first, last in marks if first < own[1] and last > own[0]]

    def responses(self, place: int, until: str) -> list[Range]:
        """Return what of the text up to a turn of the assistant is its response."""
        if not self._template.has_marks:
            return [(self._border(place, until), len(until))]
        marks = self._render(self.chat.turns[: place + 1])[1]
        answers = [turn for turn in self.chat.turns[: place + 1] if _answers(turn)]
        if len(marks) == len(answers):
            return marks[-1:]
        # Of the marks, those of this turn: behind what the text is without it.
        start = _common(self.text(place) if place else "", until)
        return [(first, last) for first, last in marks if last > start]

    def check_whole(self) -> None:
        """Refuse a template that leaves out turns, tools, calls, or what the assistant thinks."""
        turns = self.chat.turns
        unread = [turn["role"] for turn in turns if turn["role"] in self._template.unread]
        if unread:
            raise self._refused(f"the chat template leaves out the turns of the {unread[0]}")
        # Beside a call, a template may leave out what is said.
        needed = {key: [n for n, turn in enumerate(turns) if key in turn] for key in _NEEDED}
        needed["content"] = [n for n in needed["tool_calls"] if turns[n]["content"]]
        for key, places in needed.items():
            if not places:
                continue
            place = places[-1]
            kept = {name: value for name, value in turns[place].items() if name != key}
            without = {"content": "", **kept}
            shown = (self._shown([*turns[:place], turn]) for turn in (turns[place], without))
            if len({*shown}) == 1:
                raise self._refused(f"the chat template leaves out {key}")
        if self.chat.tools and self._render(turns, tools=False)[0] == self.whole:
            raise self._refused(
                "the chat template leaves out the tools", "Write data.source.tools=null. "
            )

    def _border(self, place: int, until: str) -> int:
        """Return where the response of a turn begins."""
        before = self.text(place, prompt=True) if place else None
        if before is not None and until.startswith(before):
            return len(before)
        # The prompt says more than the chat does later, such as a thought that it begins.
        start = _common(self.text(place) if place else "", until)
        opening = self._template.opening
        at = until.find(opening, start)
        if opening and at >= 0:
            return at + len(opening)
        at, text = self._answered(place, place + 1)
        if at >= start and _common(text, until) >= at:
            return at
        content: str = self.chat.turns[place]["content"]
        at = until.rfind(content.strip())
        if content.strip() and at >= start:
            return at
        raise self._hidden(place)

    def _answered(self, place: int, num_turns: int) -> tuple[int, str]:
        """Return the text of turns of which one says something else, and where it says that."""
        turns = list(self.chat.turns[:num_turns])
        turns[place] = {**turns[place], "content": ANSWER}
        text = self._render(turns)[0]
        return text.rfind(ANSWER), text

    def _shown(self, turns: Sequence[Turn]) -> str | None:
        """Return the text of turns, if the template takes them."""
        return self._render(turns)[0] if self._takes(turns) else None

    def _takes(self, turns: Sequence[Turn]) -> bool:
        try:
            self._template.render(turns, self.chat.tools)
        except TemplateError:
            return False
        return True

    def _render(
        self, turns: Sequence[Turn], *, prompt: bool = False, tools: bool = True
    ) -> tuple[str, list[Range]]:
        try:
            return self._template.render(turns, self.chat.tools if tools else None, prompt=prompt)
        except TemplateError as error:
            raise self._refused(f"the chat template refuses it: {error}") from error

    def _hidden(self, place: int) -> UserError:
        return self._refused(
            f"the chat template does not show where the response of turn {place + 1} is"
        )

    def _refused(self, why: str, instead: str = "") -> UserError:
        is_system = any(turn["role"] in ("system", "developer") for turn in self.chat.turns)
        fold = "Write data.source.system=fold, which puts the system's turn into the user's. "
        return UserError(
            f"a chat, {self.chat.row}, with turns of {_roles(self.chat.turns)}",
            why,
            instead + fold * is_system + _ANOTHER_FORM,
        )


def _with_calls(turn: Turn, *, as_text: bool) -> Turn:
    """Return a turn with the arguments of its calls as objects, or as the texts of such.

    Most templates write objects as JSON, and would quote a text once more; some join texts.
    """

    def written(arguments: object) -> object:
        if as_text:
            return arguments if isinstance(arguments, str) else json.dumps(arguments)
        try:
            found = json.loads(arguments) if isinstance(arguments, str) else arguments
        except ValueError:
            return arguments
        return found if isinstance(found, dict) else arguments

    def one(call: dict[str, Any]) -> dict[str, Any]:
        if isinstance(call.get("function"), dict):
            return {**call, "function": one(call["function"])}
        return {**call, "arguments": written(call["arguments"])} if "arguments" in call else call

    if "tool_calls" not in turn:
        return turn
    return {**turn, "tool_calls": [one(call) for call in turn["tool_calls"]]}


def _common(first: str, second: str) -> int:
    """Return how many characters two texts begin with in common."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(first), len(second)))


def _roles(turns: Sequence[Turn]) -> str:
    names = [turn["role"] for turn in turns[:6]]
    return ", ".join(names) + ", …" * (len(turns) > len(names))


def _answers(turn: Turn) -> bool:
    return bool(turn["role"] == "assistant")
