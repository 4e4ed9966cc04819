"""The tokenizer of a model is the one in its folder, whatever class its architecture usually has."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import FULL_TOKENIZER_FILE
from transformers.utils import cached_file

from trillium.errors import UserError
from trillium.models.hub import MISSING, locate

log = logging.getLogger(__name__)
_PROBE: Final = "The quick  brown fox, 3.14 times: Ünï-códe 東京\n\tdef f(x): return x\n"
_WORDS: Final = 64  # of the vocabulary, in the probe


def read_tokenizer(model_id: str, revision: str | None, *, trust_remote_code: bool) -> Any:
    """Return the tokenizer of a model.

    Transformers chooses a class by the architecture, and some of these make a tokenizer of their own
    of what is saved. So a probe is read with the file `tokenizer.json`, too; where the two differ, the
    file is taken as it is.

    Raises:
        UserError: not even then are they alike.
    """
    location, options = locate(model_id), {"revision": revision}
    tokenizer: Any = AutoTokenizer.from_pretrained(
        location, trust_remote_code=trust_remote_code, **options
    )
    silent = {f"_raise_exceptions_for_{what}": False for what in MISSING}
    file = cached_file(location, FULL_TOKENIZER_FILE, **options, **silent)
    if file is None:
        return tokenizer
    state = Path(file).stat()
    text, tokens = _probe(file, state.st_mtime_ns, state.st_size)
    if not tokens or _reads(tokenizer, text) == tokens:
        return tokenizer
    usual = type(tokenizer).__name__
    found: Any = PreTrainedTokenizerFast.from_pretrained(location, **options)
    if _reads(found, text) != tokens:
        raise UserError(
            f"the tokenizer of model.id={model_id}",
            f"neither {usual} nor Transformers' plain one reads a text as {FULL_TOKENIZER_FILE} says",
            "Save the tokenizer anew beside the model, from the library that it was made with",
        )
    log.warning(
        "model.id=%s: %s, which Transformers takes for this architecture, reads texts otherwise than "
        "%s says; the file is taken as it is",
        model_id,
        usual,
        FULL_TOKENIZER_FILE,
    )
    return found


@lru_cache(maxsize=8)
def _probe(file: str, changed: int, size: int) -> tuple[str, list[int]]:
    """Return a text with words of a vocabulary, and its tokens, without special ones.

    There are none where the file cannot read what it does not know; its texts are looked at one by one.
    """
    raw = Tokenizer.from_file(file)
    raw.no_truncation()
    raw.no_padding()
    step = max(1, raw.get_vocab_size() // _WORDS)
    words = [raw.decode([token]) for token in range(0, raw.get_vocab_size(), step)]
    text = _PROBE + " ".join(words)
    try:
        return text, list(raw.encode(text, add_special_tokens=False).ids)
    except Exception:  # of the library, which names no kind
        return text, []


def _reads(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return found
