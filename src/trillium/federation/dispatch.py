"""What is sent to clients and what comes back: packed, checked, and booked in the ledger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any, Final, TypeVar

import torch

from trillium.errors import one_line
from trillium.federation.cohort import FleetConfig
from trillium.federation.engine import Engine, LateEngine
from trillium.federation.members import Members
from trillium.federation.parts import Lost, check_size
from trillium.federation.sums import Read
from trillium.wire.kinds import Limits, MessageError
from trillium.wire.ledger import Entry, Ledger, Purpose
from trillium.wire.message import Message
from trillium.wire.wire import Direction, Packed, Wire

ERROR_VERB: Final = "error"
T = TypeVar("T")


class Dispatch(Members):
    """The clients of a run, and the bytes that go to and come from them.

    Attributes:
        wires: of the clients whose wire is not everybody's.
        limits: what is accepted of a message.
        most: what is accepted of a reply.
    """

    def __init__(
        self,
        engine: Engine,
        wire: Wire,
        ledger: Ledger,
        config: FleetConfig,
        seed: int,
        wires: Mapping[str, Wire] = MappingProxyType({}),
    ) -> None:
        super().__init__(engine, config, seed)
        self.wire, self.ledger, self.wires = wire, ledger, wires
        self.limits = self.most = Limits()
        self._owed: dict[str, Entry] = {}  # what was asked of clients that have not answered it

    def wire_of(self, client: str) -> Wire:
        """Return what messages to and from a client go through."""
        try:
            return self.wires[client]  # which may make it
        except KeyError:
            return self.wire

    def _pack(
        self, requests: Mapping[str, Message], purpose: Purpose
    ) -> tuple[dict[str, bytes], dict[str, Entry]]:
        """Return the bytes for each client, but for those that are to fail, and what to book of it."""
        sent: dict[str, bytes] = {}
        entries: dict[str, Entry] = {}
        failing: list[Entry] = []
        made: dict[tuple[int, int], Packed] = {}  # what goes to many is packed once
        for client, message in requests.items():
            wire = self.wire_of(client)
            key = id(message), id(wire)
            if key not in made:
                if not message.is_finite:  # who gets it could only refuse it
                    raise self.undo(f"what it would {message.verb} with is not finite")
                meta = {**message.meta, "round": self.round}
                made[key] = wire.pack(replace(message, meta=meta), "down")
            packed = made[key]
            check_size(message.verb, "down", packed.largest_bytes, self.limits)
            entry = self._entry(client, packed, "down", purpose)
            if purpose == "train" and self._drops_out(client):
                failing.append(entry)
                continue
            sent[client], entries[client] = packed.data, entry
        for entry in sorted(failing, key=lambda entry: entry.client):
            self.ledger.add(entry)
        return sent, entries

    def _answers(
        self,
        replies: Iterator[tuple[str, bytes | Lost]],
        waiting: dict[str, Entry],
        read: Read[T],
        purpose: Purpose,
    ) -> Iterator[tuple[str, T]]:
        """Yield what is read from the replies, as many of them as the round takes."""
        count = enough = len(waiting)
        if self.config.late and purpose == "train" and self.round:
            enough = min(count, self.config.taken(len(self.engine.clients)))
        came = 0
        for answer in self._collect(replies, waiting, read, purpose, enough):
            came += 1
            yield answer
        is_over = came == enough < count
        if is_over and self.clock is not None:
            self.clock.give_up()
        for client, entry in sorted(waiting.items()):
            self.ledger.add(entry)
            self.missing[client] = (
                f"{came} of {count} had answered before" if is_over else "no reply"
            )
            if is_over:
                self._owed[client] = entry
        self._check_enough()

    def _collect(
        self,
        replies: Iterator[tuple[str, bytes | Lost]],
        waiting: dict[str, Entry],
        read: Read[T],
        purpose: Purpose,
        most: int,
    ) -> Iterator[tuple[str, T]]:
        """Check and book what comes, and yield so many answers; the others stay in `waiting`."""
        came = 0
        while came < most and (found := next(replies, None)) is not None:
            client, data = found
            if client not in waiting:
                continue  # it was not asked, or answers twice
            entry = waiting.pop(client)
            if entry.round == self.round and (not isinstance(data, Lost) or data.sent):
                self.ledger.add(entry)
            if isinstance(data, Lost):
                if data.sent:
                    self._owed[client] = entry
                self.missing[client] = one_line(data.reason)
                continue
            try:
                reply = self._receive(client, entry.verb, data, purpose)
                answer = (read if callable(read) else read[client])(reply)
                if not self.adds_only:  # else it would tell of others' data
                    self.sizes.note(client, reply)
            except MessageError as error:
                self.missing[client] = one_line(str(error))
                self._refused.add(client)
                continue
            came += 1
            yield client, answer

    def _receive(self, client: str, verb: str, data: bytes, purpose: Purpose) -> Message:
        """Check a reply and book it; what cannot be used has crossed all the same, and is booked."""
        packed = Packed(data, Message(ERROR_VERB), {"control": len(data)})
        measured: dict[str, Any] = {}
        try:
            packed = self.wire_of(client).unpack(data, "up", self.most)
            reply = packed.message
            check_size(verb, "up", packed.largest_bytes, self.limits)
            if reply.verb == ERROR_VERB:
                raise MessageError(str(reply.meta.get("reason", "the client gave no reason")))
            if reply.verb != verb:
                raise MessageError(f"asked to {verb}, the client answered {reply.verb}")
            self.agreed.check(client, reply)
            cost = _cost_of(reply)
            flops, seconds, peak, raw = cost.tolist()
            # What the tensors weighed before the codecs only their sender knows.
            if self.guard is None or flops:  # else they stayed with the client
                measured = {"flops": flops, "seconds": seconds, "peak_bytes": int(peak)}
            measured["bytes_raw"] = int(raw) + cost.nbytes
            return reply
        finally:
            self.ledger.add(replace(self._entry(client, packed, "up", purpose), **measured))

    def _entry(self, client: str, packed: Packed, direction: Direction, purpose: Purpose) -> Entry:
        return Entry(
            round=self.round,
            client=client,
            verb=packed.message.verb,
            direction=direction,
            purpose=purpose,
            bytes=len(packed.data),
            bytes_raw=packed.bytes_raw,
            kinds=packed.kinds,
            at_seconds=None if purpose == "evaluate" else self._now(),
        )

    def _now(self) -> float | None:
        """Return how long the run has taken, where time is simulated."""
        return None if self.clock is None else self.clock.seconds

    def book_late(self) -> None:
        """Book the answers that came when nobody waited for them any more: they have crossed."""
        late = self.engine.late() if isinstance(self.engine, LateEngine) else ()
        for client, size in late:
            if entry := self._owed.pop(client, None):
                kinds = {"late": size}
                came = replace(entry, direction="up", bytes=size, bytes_raw=size, kinds=kinds)
                self.ledger.add(came)
        for client, data in () if self.clock is None else self.clock.take_late():
            entry = self._owed.pop(client)
            with suppress(MessageError):  # it is booked whether or not it could be used
                self._receive(client, entry.verb, data, entry.purpose)

    def worked(self, client: str, reply: bytes) -> float:
        """Return the FLOPs that an answer took its client, as it says; 0 if that cannot be read."""
        try:
            message = self.wire_of(client).unpack(reply, "up", self.most).message
            return float(_cost_of(message)[0])
        except MessageError:
            return 0.0

    def dump(self) -> dict[str, Any]:
        """Return what is under way, where time is simulated, as tensors and plain values."""
        if self.clock is None:
            return {}
        owed = {client: asdict(entry) for client, entry in self._owed.items()}
        under_way = {client: asdict(entry) for client, entry in self.under_way.items()}
        return {"clock": self.clock.dump(), "owed": owed, "under_way": under_way}

    def load(self, content: Mapping[str, Any]) -> None:
        """Go on from what `dump` returned; elsewhere what was under way is asked anew."""
        self.under_way = {}
        if self.clock is not None and content:
            self.clock.load(content["clock"])
            self._owed = {client: Entry(**entry) for client, entry in content["owed"].items()}
            under_way = content["under_way"].items()
            self.under_way = {client: Entry(**entry) for client, entry in under_way}


def _cost_of(reply: Message) -> torch.Tensor:
    """Return FLOPs, seconds, peak and raw bytes, as a client says of its answer, float64 `(4,)`."""
    return reply.tensor("control/cost", torch.float64, (4,), signed=False)
