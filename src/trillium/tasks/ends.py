"""What ends a response: the tokens at which generation stops, and whether training teaches one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import nn

from trillium.tasks import IGNORE, Example
from trillium.tasks.templates import Template, TemplateError

log = logging.getLogger(__name__)


def end_ids(tokenizer: Any, module: nn.Module) -> list[int]:
    """Return the tokens that end a response, sorted; none where nothing does.

    These are the tokenizer's end token, what its chat template writes behind a turn of the assistant,
    and all that the model's own generation settings name.
    """
    settings = getattr(module, "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    own = named if isinstance(named, list | tuple) else [named]
    found = [tokenizer.eos_token_id, template_end(tokenizer), *own]
    return sorted({int(token) for token in found if token is not None})


def before_end(tokens: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Return the tokens in front of the first that ends a response: what was said."""
    return list(takewhile(lambda token: token not in ends, tokens))


def template_end(tokenizer: Any) -> int | None:
    """Return the special or added token that the chat template writes first behind a response."""
    try:
        behind = Template.of(tokenizer).behind
    except TemplateError:
        return None
    known = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    known -= {tokenizer.unk_token_id}
    tokens: list[int] = tokenizer(behind, add_special_tokens=False)["input_ids"]
    return next((token for token in tokens if token in known), None)


def warn_unless_ended(examples: Iterable[Example], tokenizer: Any) -> None:
    """Warn where no example supervises what ends a text or a turn."""
    ends = {tokenizer.eos_token_id, template_end(tokenizer)} - {None}
    wanted, any_response = torch.tensor(sorted(ends), dtype=torch.int64), False
    for example in examples:
        if bool(torch.isin(example.labels, wanted).any()):
            return
        any_response = any_response or bool((example.labels != IGNORE).any())
    if any_response:
        named = (
            ", ".join(map(repr, tokenizer.convert_ids_to_tokens(sorted(ends)))) or "there is none"
        )
        log.warning(
            "nothing ends a response: no row has a supervised end token (%s), so the model is not "
            "taught to stop, and generation goes on to the most tokens that it may write. Give the "
            "tokenizer an end token, or a chat template that writes one behind each response",
            named,
        )
