"""Messages that are too long to be carried at once, in parts: framing, which no ledger counts.

Down, all parts but the last are confirmed; up, the first part is the answer, and the rest is fetched.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Protocol

from trillium.errors import UserError
from trillium.wire.kinds import Limits, MessageError

if TYPE_CHECKING:
    from trillium.models.load import LanguageModel

GIB: Final = 1024**3
CARRIED_BYTES: Final = Limits().max_bytes  # at once
_MAGIC: Final = b"TRP"  # a message begins with other letters
_HEADER: Final = struct.Struct("<3sIIQ")  # magic, number of this part, of all, bytes of the whole
_TAKEN: Final = _MAGIC + b"+"
_FETCH: Final = struct.Struct("<4sI")


class TooLong(UserError):  # noqa: N818 - it is what a message is, and is caught by name
    """A message that the other side would not accept."""


@dataclass(frozen=True)
class Lost:
    """In place of a reply: it will not come.

    Attributes:
        sent: whether the request went out, as far as is known.
    """

    reason: str
    sent: bool = True


class Carries(Protocol):
    """What brings bytes to clients, and bytes back."""

    def carry(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Lost]]:
        """Yield `(client, reply)` as replies arrive, or why one will not."""


SAMPLES: Final = 256  # of which activations cross in one message, at most
MORE: Final = 4  # times what a message is expected to hold
HEAD_BYTES: Final = 64 * 1024**2  # for names, shapes and small values


def reply_limits(model: LanguageModel, limits: Limits, *, tokens: int, predictions: int) -> Limits:
    """Return what is accepted of a client in one message: a few times what the run can give rise to.

    `MORE` times all that trains and the weights that it changes, the statistics of features, a batch
    of activations in full length and the soft labels of the public set, each in float64, and some MB.

    Args:
        limits: what is accepted at all.
        tokens: the most of those whose activations may cross at once.
        predictions: of the public set.
    """
    weights = sum(tensor.numel() for tensor in (*model.initial.values(), *model.base.values()))
    width = max((min(p.shape) for p in model.module.parameters() if p.dim() == 2), default=1)
    features = (width + 1) * (width + 1 + min(model.num_classes, width))
    entries = weights + features + tokens * width + predictions * (model.num_classes + 1)
    return replace(limits, max_bytes=min(limits.max_bytes, HEAD_BYTES + MORE * 8 * entries))


def limits_of(model: LanguageModel) -> Limits:
    """Return what is accepted with a model: room for all that trains, and for the weights it changes.

    Four times that, for values beside control variates, in a dtype twice as wide.
    """
    weights = sum(tensor.nbytes for tensor in (*model.initial.values(), *model.base.values()))
    return Limits(max_bytes=max(CARRIED_BYTES, 4 * weights))


def check_size(verb: str, direction: str, size: int, limits: Limits) -> None:
    """Refuse a message that the other side would not accept.

    Raises:
        TooLong: it is.
    """
    if size > limits.max_bytes:
        raise TooLong(
            f"a message of {size / GIB:.1f} GiB ({verb}, {direction})",
            f"no more than {limits.max_bytes / GIB:.1f} GiB are received at once",
            "Let less cross in it: a codec that keeps less, fewer public rows in a round "
            "(framework.public_per_round, data.public_size), or smaller batches",
        )


def divided(data: bytes) -> list[bytes]:
    """Return a message in parts that can be carried; one that can as it is."""
    if len(data) <= CARRIED_BYTES or type(data) is not bytes:  # on paper there is nothing to cut
        return [data]
    most = CARRIED_BYTES - _HEADER.size
    starts = range(0, len(data), most)
    return [
        _HEADER.pack(_MAGIC, number, len(starts), len(data)) + data[start : start + most]
        for number, start in enumerate(starts)
    ]


@dataclass
class Joining:
    """Puts parts together, one after the other."""

    max_bytes: int
    parts: list[bytes] = field(default_factory=list)

    def add(self, data: bytes) -> bytes | None:
        """Take the next part; return the whole with the last one. `MessageError` if it does not fit."""
        if len(data) < _HEADER.size:
            raise MessageError("a part without its header")
        _, number, count, total = _HEADER.unpack_from(data)
        if number == 0:
            self.parts = []
        if number != len(self.parts) or not number < count or total > self.max_bytes:
            raise MessageError(
                f"part {number} of {count}, of {total} bytes, is not what comes next"
            )
        self.parts.append(data[_HEADER.size :])
        come = sum(map(len, self.parts))
        if come > total or (number + 1 == count) != (come == total):
            raise MessageError(f"{come} of {total} bytes with part {number + 1} of {count}")
        if number + 1 < count:
            return None
        whole, self.parts = b"".join(self.parts), []
        return whole


def is_part(data: bytes) -> bool:
    """Whether bytes are a part of a message, or ask for one."""
    return data[: len(_MAGIC)] == _MAGIC


@dataclass
class Halves:
    """A client's side: parts that come, and parts of its answer that wait to be fetched."""

    joining: Joining
    waiting: list[bytes] = field(default_factory=list)

    def take(self, data: bytes) -> tuple[bytes | None, bytes]:
        """Return the whole message, if this was its last part; else what to answer."""
        if data[:4] == _MAGIC + b"?" and len(data) == _FETCH.size:
            number = _FETCH.unpack(data)[1]
            if number >= len(self.waiting):
                raise MessageError(f"there is no part {number} of an answer here")
            return None, self.waiting[number]
        whole = self.joining.add(data)
        return whole, _TAKEN

    def give(self, reply: bytes) -> bytes:
        """Return a reply, or its first part; the others wait."""
        self.waiting = divided(reply)
        first = self.waiting[0]
        if len(self.waiting) == 1:
            self.waiting = []
        return first


def carry(
    engine: Carries, requests: Mapping[str, bytes], limits: Limits
) -> Iterator[tuple[str, bytes | Lost]]:
    """Carry requests, those that are too long in parts, and yield the whole replies."""
    rest = {client: divided(data) for client, data in requests.items()}
    while early := {client: parts.pop(0) for client, parts in rest.items() if len(parts) > 1}:
        taken = set()
        for client, reply in engine.carry(early):
            if reply == _TAKEN:
                taken.add(client)
            else:
                yield client, reply
        for client in early.keys() - taken:
            del rest[client]
    first: dict[str, bytes] = {}
    for client, reply in engine.carry({client: parts[0] for client, parts in rest.items()}):
        if isinstance(reply, bytes) and is_part(reply):
            first[client] = reply
        else:
            yield client, reply
    for client, part in first.items():
        yield client, _fetched(engine, client, part, limits)


def _fetched(engine: Carries, client: str, part: bytes, limits: Limits) -> bytes | Lost:
    joining = Joining(limits.max_bytes)
    try:
        while (whole := joining.add(part)) is None:
            ask = _FETCH.pack(_MAGIC + b"?", len(joining.parts))
            answers = dict(engine.carry({client: ask}))
            found = answers.get(client)
            if not isinstance(found, bytes):
                return found or Lost("no reply")
            part = found
    except MessageError as error:
        return Lost(str(error))
    return whole
