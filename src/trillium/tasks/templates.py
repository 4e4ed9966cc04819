"""A tokenizer's chat template: text from turns, and what it shows of itself."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final

from transformers.utils.chat_template_utils import render_jinja_template

Range = tuple[int, int]
Turn = dict[str, Any]

ANSWER: Final = "trillium-answer"  # stands where a template is asked what it does with a content
_MARKS: Final = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


class TemplateError(ValueError):
    """A template does not take some turns; it may quote them."""


@dataclass(frozen=True)
class Template:
    """A template, and the special tokens that it may write.

    Attributes:
        source: in Jinja.
        special: by name, as JSON, so that templates are equal where they do the same.
    """

    source: str
    special: str

    @classmethod
    def of(cls, tokenizer: Any, tools: Sequence[Mapping[str, Any]] | None = None) -> Template:
        """Return the template for chats with these tools; `TemplateError` where there is none."""
        try:
            source = tokenizer.get_chat_template(None, tools)
        except (ValueError, AttributeError) as error:
            raise TemplateError("there is no template") from error
        return _shared(source, json.dumps(tokenizer.special_tokens_map, default=str))

    @property
    def has_marks(self) -> bool:
        """Whether it says itself what a response is."""
        return bool(_MARKS.search(self.source))

    @cached_property
    def takes_parts(self) -> bool:
        """Whether it shows contents only where they are lists of parts, as some multimodal ones do."""
        turn = {"role": "user", "content": ANSWER}
        return not self._shows(turn) and self._shows(_in_parts(turn))

    @cached_property
    def unread(self) -> frozenset[str]:
        """The roles of an instructor whose turns it leaves out, without a word."""
        rest = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
        found = set()
        for role in ("system", "developer"):
            try:
                text, _ = self.render([{"role": role, "content": ANSWER}, *rest])
            except TemplateError:
                continue  # which it does say
            if ANSWER not in text:
                found.add(role)
        return frozenset(found)

    @cached_property
    def behind(self) -> str:
        """What it writes behind a response that ends a chat; empty if it does not say."""
        turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": ANSWER}]
        try:
            text, _ = self.render(turns)
        except TemplateError:
            return ""
        return text.rpartition(ANSWER)[2] if ANSWER in text else ""

    @cached_property
    def opening(self) -> str:
        """What it writes in front of a response; empty if it does not say."""
        turns = [{"role": "user", "content": "hi"}]
        try:
            plain, asked = self.render(turns)[0], self.render(turns, prompt=True)[0]
        except TemplateError:
            return ""
        return asked[len(plain) :] if asked.startswith(plain) else ""

    def render(
        self,
        turns: Sequence[Turn],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        prompt: bool = False,
    ) -> tuple[str, list[Range]]:
        """Return the text of turns, and the ranges of it that the template marks as responses.

        Args:
            prompt: whether to ask for a response behind it.
        """
        return self._render(
            [_in_parts(t) for t in turns] if self.takes_parts else turns, tools, prompt
        )

    def _render(
        self, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]] | None, prompt: bool
    ) -> tuple[str, list[Range]]:
        try:
            texts, marks = render_jinja_template(
                conversations=[list(turns)],
                tools=None if tools is None else list(tools),
                chat_template=self.source,
                return_assistant_tokens_mask=self.has_marks,
                add_generation_prompt=prompt,
                **json.loads(self.special),
            )
        # A template is code from elsewhere, and raises what it likes.
        except Exception as error:
            what = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise TemplateError(what) from error
        return texts[0], marks[0] if marks else []

    def _shows(self, turn: Turn) -> bool:
        try:
            return ANSWER in self._render([turn], None, False)[0]
        except TemplateError:
            return False


def _in_parts(turn: Turn) -> Turn:
    return {**turn, "content": [{"type": "text", "text": turn["content"]}]}


@lru_cache(maxsize=64)
def _shared(source: str, special: str) -> Template:
    """Return one object for equal templates, so that each is asked about itself once."""
    return Template(source, special)
