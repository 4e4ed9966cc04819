"""From the bytes of a file to its text: UTF-8, or the encoding that was named."""

from __future__ import annotations

import codecs
import gzip
import zlib
from pathlib import Path
from typing import Final

from trillium.errors import UserError

_GZIP: Final = b"\x1f\x8b"
_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHERS: Final = {
    b"PAR1": "a Parquet file",
    b"PK\x03\x04": "a zip archive, such as a spreadsheet",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"%PDF": "a PDF file",
    b"ARROW1": "an Arrow file",
}

# Encodings of texts that are not mostly of Latin letters.
_NOT_LATIN: Final = ("cp1251", "koi8_r", "gb18030", "big5", "cp932", "euc_jp", "cp949", "cp1253")


def read_bytes(path: Path) -> bytes:
    """Return what is in a file, unpacked where it is packed by gzip."""
    data = path.read_bytes()
    if not data.startswith(_GZIP):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"file {path}", f"it is compressed by gzip, and broken: {error}", "Compress it again"
        ) from error


def read_text(path: Path, encoding: str | None) -> str:
    """Return the text of a file without a byte-order mark.

    Raises:
        UserError: it is in another encoding, which is named, or no text at all.
    """
    data = read_bytes(path)
    for magic, what in _OTHERS.items():
        if data.startswith(magic):
            raise UserError(
                f"file {path}", f"it is {what}, and not text", "Correct the suffix, or unpack it"
            )
    try:
        text = data.decode(encoding or "utf-8")
    except UnicodeError as error:
        if encoding is not None:
            raise UserError(
                f"file {path} with data.source.encoding={encoding}",
                f"it is in another encoding: {error}",
                f"It looks like {found_encoding(data)}",
            ) from error
        found = found_encoding(data)
        line = data.count(b"\n", 0, getattr(error, "start", 0)) + 1
        wide = [letter for letter in data.decode(errors="replace") if letter > "\x7f"]
        wrong = wide.count("\ufffd")
        if 2 * wrong < len(wide):
            raise UserError(
                f"file {path}, line {line}",
                f"it is UTF-8 but for {wrong} bytes",
                "Correct them; no other encoding would read the rest",
            ) from error
        raise UserError(
            f"file {path}, line {line}",
            f"it is not UTF-8, but probably {found}",
            f"Save it as UTF-8, or write data.source.encoding={found}",
        ) from error
    unmarked = _utf_16(data)
    if encoding is None and unmarked is not None:
        raise UserError(
            f"file {path}",
            f"it is not UTF-8, but probably {unmarked}",
            f"Save it as UTF-8, or write data.source.encoding={unmarked}",
        )
    return text.removeprefix("\ufeff")


def found_encoding(data: bytes) -> str:
    """Return the name of the encoding that text is most probably in."""
    from charset_normalizer import from_bytes

    for mark, marked in _MARKS:
        if data.startswith(mark):
            return marked
    wide = _utf_16(data)
    if wide is not None:
        return wide
    high = sum(byte > 127 for byte in data[:100_000])
    letters = sum(chr(byte).isalpha() for byte in data[:100_000] if byte < 128)
    if high < 0.3 * (high + letters):  # a few accents among Latin letters
        return "latin-1" if not any(0x80 <= byte < 0xA0 for byte in data) else "cp1252"
    lines = b"\n".join(line for line in data.splitlines() if not line.isascii())
    best = from_bytes(lines[:100_000], cp_isolation=list(_NOT_LATIN)).best()
    return "cp1252" if best is None else str(best.encoding)


def _utf_16(data: bytes) -> str | None:
    """Return which UTF-16 bytes are that have no mark: every other one of most texts is 0 then."""
    half = len(data[:4096]) // 2
    even, odd = data[:4096:2].count(0), data[1:4096:2].count(0)
    if half and max(even, odd) > 0.4 * half and min(even, odd) < 0.1 * half:
        return "utf-16-le" if odd > even else "utf-16-be"
    return None


def check_encoding(name: str) -> str:
    """Return the name of an encoding of texts, if Python knows it."""
    try:
        "".encode(name)
        known = codecs.lookup(name)
    except (LookupError, ValueError) as error:
        raise UserError(
            f"encoding: {name}", "there is no such encoding", "Write e.g. latin-1, cp1252 or utf-16"
        ) from error
    return known.name
