"""What the tokens of a tokenizer stand for, in a form in which those of any two can be compared."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from transformers.convert_slow_tokenizer import bytes_to_unicode

from trillium.errors import UserError

# Not a byte, and the same in every tokenizer. A token with several roles is that of the first.
ROLES: Final = {"eos": "\u0100", "bos": "\u0101", "unk": "\u0102", "pad": "\u0103"}
UNKNOWN: Final = ROLES["unk"]
_META: Final = "▁"  # SentencePiece's space
_BYTE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_LOWER: Final = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}  # other bytes stay
_SPACES: Final = dict.fromkeys(map(ord, " \t\n\r"))


@dataclass(frozen=True)
class Pieces:
    """The pieces of text that the tokens of one tokenizer stand for.

    A piece is written as a string with one character for each byte of its UTF-8, `chr(byte)`: a token
    may be a part of a letter. A special token is the one character of its role in `ROLES`, so that
    the ends of texts are the same piece whatever they are called.

    Attributes:
        tokens: as the vocabulary spells them, by token id; empty where an id has no token.
        pieces: what they stand for, by token id; `None` where an id has no token.
        keeps_spaces: whether spaces can be told from tokens. If not, as in WordPiece, every token that
            begins a word has a space in front here, and punctuation has none.
    """

    tokens: tuple[str, ...]
    pieces: tuple[str | None, ...]
    keeps_spaces: bool = True
    keeps_case: bool = True

    @classmethod
    def of(cls, tokenizer: Any) -> Pieces:
        """Return the pieces of a Hugging Face tokenizer, if it is known what its tokens stand for.

        What a tokenizer is made of says how its tokens are to be read; where it is written in
        Python, the marks in its vocabulary say it.
        """
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        backend = getattr(tokenizer, "backend_tokenizer", None)
        parts = list(_parts(json.loads(backend.to_str()))) if backend is not None else []
        read, keeps_spaces = _reader(parts or _guess(vocabulary), vocabulary)
        size = 1 + max(vocabulary.values(), default=-1)
        tokens: list[str] = [""] * size
        pieces: list[str | None] = [None] * size
        for token, index in vocabulary.items():
            tokens[index], pieces[index] = token, read(token).decode("latin-1")
        for role, piece in reversed(ROLES.items()):
            special: int | None = getattr(tokenizer, f"{role}_token_id", None)
            if special is not None:
                pieces[special] = piece
        keeps_case = not any(part["type"] == "Lowercase" or part.get("lowercase") for part in parts)
        return cls(tuple(tokens), tuple(pieces), keeps_spaces, keeps_case)

    def known(self, size: int) -> Iterator[tuple[int, str]]:
        """Yield the first `size` tokens that stand for something, with their pieces."""
        for token, piece in enumerate(self.pieces[:size]):
            if piece is not None:
                yield token, piece

    def respelled(self, piece: str) -> str:
        """Return a piece of another tokenizer as this one would write it."""
        if not self.keeps_case:
            piece = piece.translate(_LOWER)
        if not self.keeps_spaces and not _is_word(piece):
            piece = piece.removeprefix(" ")
        return piece

    def comparable(self, piece: str) -> str:
        """Return a piece without what this tokenizer does not keep."""
        piece = piece if self.keeps_spaces else piece.translate(_SPACES)
        return piece if self.keeps_case else piece.translate(_LOWER)


def is_byte(token: str) -> bool:
    """Whether this is a byte as SentencePiece spells those for which it has no other token."""
    return _BYTE.fullmatch(token) is not None


Part = dict[str, Any]


def _parts(node: Any) -> Iterator[Part]:
    if isinstance(node, dict):
        if isinstance(node.get("type"), str):
            yield node
        for name in node.keys() - {"vocab", "merges", "added_tokens", "post_processor"}:
            yield from _parts(node[name])
    elif isinstance(node, list):
        for child in node:
            yield from _parts(child)


def _guess(vocabulary: dict[str, int]) -> list[Part]:
    """Return the part that a vocabulary looks like."""
    marks = {"Ġ": "ByteLevel", _META: "Metaspace", "##": "WordPiece"}
    return [
        {"type": kind, "prefix": mark}
        for mark, kind in marks.items()
        if any(token.startswith(mark) for token in vocabulary)
    ][:1]


def _reader(parts: list[Part], vocabulary: dict[str, int]) -> tuple[Callable[[str], bytes], bool]:
    """Return what reads a token, and whether spaces can be told from tokens."""
    types = {part["type"] for part in parts}
    if types & {"CTC", "BPEDecoder"} or any(part.get("end_of_word_suffix") for part in parts):
        raise UserError(
            "a tokenizer whose tokens mark the ends of words",
            "their text cannot be compared with that of other models' tokens",
            "Choose a model with a byte-level, SentencePiece or WordPiece tokenizer",
        )
    if "ByteLevel" in types:
        return _read_byte_level, True
    if "Metaspace" in types or any(_swaps_space(part) for part in parts):
        return _read_sentencepiece, True
    prefixes = (part.get("continuing_subword_prefix") or part.get("prefix") for part in parts)
    prefix = next(filter(None, prefixes), None)
    if prefix is None and ("Fuse" in types or any(token.isspace() for token in vocabulary)):
        return str.encode, True
    return partial(_read_word, prefix=prefix), False


def _swaps_space(part: Part) -> bool:
    """Whether a normalizer or decoder swaps the space and SentencePiece's mark for it."""
    pattern = part.get("pattern")
    old = pattern.get("String") if isinstance(pattern, dict) else None
    return part["type"] == "Replace" and {old, part.get("content")} == {" ", _META}


_BYTES: Final = {char: byte for byte, char in bytes_to_unicode().items()}


def _read_byte_level(token: str) -> bytes:
    """Read a token of byte-level BPE; an added token may stand for itself."""
    if all(char in _BYTES for char in token):
        return bytes(_BYTES[char] for char in token)
    return token.encode()


def _read_sentencepiece(token: str) -> bytes:
    """Read a token in which a mark is the space, or which is one byte."""
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(_META, " ").encode()


def _read_word(token: str, prefix: str | None) -> bytes:
    """Read a word, or the continuation of one, which has the prefix."""
    if prefix is not None and token.startswith(prefix) and token != prefix:
        return token.removeprefix(prefix).encode()
    return (f" {token}" if _is_word(token) else token).encode()


def _is_word(text: str) -> bool:
    """Whether this is more than ASCII's spaces and punctuation."""
    return any(char.isalnum() or ord(char) > 127 for char in text)
