"""The fleet: sample a cohort, ask it, yield replies, survive the ones that never come."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any, TypeVar

import torch

from trillium.errors import one_line
from trillium.federation.agreed import Agreed, Sizes
from trillium.federation.clock import Clock
from trillium.federation.cohort import FleetConfig, Turns
from trillium.federation.engine import CountingEngine, GuardedEngine, LateEngine
from trillium.federation.engine import Engine as Engine
from trillium.federation.engine import Gathered as Gathered
from trillium.federation.engine import LaunchingEngine as LaunchingEngine
from trillium.federation.engine import PostingEngine as PostingEngine
from trillium.federation.engine import Saved as Saved
from trillium.federation.failed import RoundFailed as RoundFailed
from trillium.federation.failed import RoundUndone as RoundUndone
from trillium.federation.guard import Guard
from trillium.federation.parts import Lost as Lost
from trillium.federation.parts import carry, check_size
from trillium.federation.sums import Form, Read, Summing
from trillium.rng import generator
from trillium.wire.addend import Addend
from trillium.wire.kinds import Limits, MessageError
from trillium.wire.ledger import Entry, Ledger, Purpose
from trillium.wire.message import Message
from trillium.wire.wire import Direction, Packed, Wire

log = logging.getLogger(__name__)

ERROR_VERB = "error"
T = TypeVar("T")


class Fleet:
    """The clients as the server sees them.

    Attributes:
        round: the current round; 0 before the first.
        asked: the cohort that was sampled for this round.
        missing: clients that dropped out of this round, with the reason.
        wires: of the clients whose wire is not everybody's.
        newcomers: clients that hold nothing of earlier rounds, as far as is known.
        unsure: clients that were asked in a round which is to count for nothing, and may not have gone
            back; the next time that they are asked they are newcomers.
        short: whether fewer clients than it needs were there at the beginning of this round.
        failed: how often a round has failed before, by its number.
        held: by client, the round of the state that it has said to keep.
        gone: those whose state of this round, or before it, is gone, and why.
        limits: what is accepted of a message.
        most: what is accepted of a reply.
        agreed: what clients have said of themselves, and are held to.
        sizes: what they have sent in this round.
        banned: those that are left out for the rest of the run, and why.
        guard: in a private run, what adds up, and says who is asked.
        masks: where sums are masked, what adds up.
        turns: where clients are asked in turns, whose is which.
        clock: in a simulation that knows how fast everything is, when answers arrive.
        under_way: what clients are at work on whose answers make a later round, with the round in which
            they were asked.
        staleness: how many rounds before this one those were asked whose answers have made it.
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
        self.engine, self.wire, self.ledger, self.config = engine, wire, ledger, config
        self.wires = wires
        self.seed = seed
        self.round = 0
        self.asked: list[str] = list(engine.clients)
        self.missing: dict[str, str] = {}
        self.newcomers: Set[str] = frozenset()
        self.unsure: frozenset[str] = frozenset()
        self.failed: Mapping[int, int] = {}
        self.held: dict[str, int] = {}
        self.gone: dict[str, str] = {}
        self.agreed, self.sizes = Agreed(), Sizes()
        self.banned: dict[str, str] = {}
        self._owed: dict[str, Entry] = {}  # what was asked of clients that have not answered it
        self.guard: Guard | None = None
        self.masks: Summing | None = None
        self.turns = Turns()
        self.clock: Clock | None = None
        self.under_way: dict[str, Entry] = {}
        self.staleness: dict[str, int] = {}
        self.limits = self.most = Limits()
        self.short = False
        self._refused: set[str] = set()  # whose answers of this round could not be used
        config.check(len(engine.clients))

    def wire_of(self, client: str) -> Wire:
        """Return what messages to and from a client go through."""
        try:
            return self.wires[client]
        except KeyError:
            return self.wire

    def begin_round(self, number: int) -> list[str]:
        """Sample the cohort of a round and return it, sorted by name."""
        self.book_late()
        self.round, self.missing, self.gone, self.sizes = number, {}, {}, Sizes()
        self._refused, self.staleness = set(), {}
        need = max(self._need(len(self.engine.clients)) - len(self.under_way), 0)
        gathered = self.engine.gather(need)
        self.short = len(gathered.present) < need
        names = [name for name in self.engine.clients if name not in self.under_way]
        present = gathered.present - self._late(gathered.present, need)
        self.asked = self._drawn(names, number, present)
        late = (name for name in self.asked if name in gathered.present - present)
        self.missing |= dict.fromkeys(late, "it still owes the answer to an earlier ask")
        self.newcomers = gathered.newcomers | self.unsure.intersection(self.asked)
        self.unsure = self.unsure.difference(self.asked)
        self._forgo(gathered.behind)
        self.agree()
        return self.asked

    def _drawn(self, names: Sequence[str], number: int, present: Set[str]) -> list[str]:
        """Return who is to be asked in a round; who is to be, and is away, is missing."""
        guard, at_work = self.guard, len(self.under_way)
        size = max(self.config.size(len(names) + at_work) - at_work, 0)
        if self.config.sampling == "cyclic":
            total = len(names) if guard is None else guard.clients or len(names)
            period, even = self.config.period(total), guard is None or not guard.adds
            asked = self.turns.cohort(names, number, period, self.seed, even=even)
        elif guard is not None and guard.adds:
            asked = guard.cohort(names)
        else:
            draw = torch.randperm(len(names), generator=generator(self.seed, "cohort", number))
            # Who is away would be asked in vain, so those come last; else the draw stays as it is.
            order = sorted((names[index] for index in draw), key=lambda n: n not in present)
            return sorted(order[:size])
        self.missing |= dict.fromkeys((n for n in asked if n not in present), "it is away")
        return asked

    def num_replied(self, missing: Mapping[str, str]) -> int:
        """Return how many answers have made the round."""
        return len(self.staleness) or len(self.asked) - len(missing)

    def agree(self) -> None:
        """Hold clients to what they said at the start; without those that now say something else."""
        changed = {}
        if isinstance(self.engine, CountingEngine):
            changed = self.agreed.note(self.engine.counts)
        out = {**self.banned, **changed}
        self.missing |= {name: why for name, why in out.items() if name in self.asked}
        if out.keys() & set(self.asked):
            self._check_enough()

    def undo(self, why: str) -> RoundUndone:
        """Return the failure of a round that must not count; who stands out in it is left out."""
        suspect = self.sizes.suspect()
        if suspect is None:
            return RoundUndone(f"round {self.round}: {why}; it is undone, and no client stands out")
        name, said = suspect
        # Others may only have been unable to go on with what has come of it.
        self.missing = {n: why for n, why in self.missing.items() if n not in self._refused}
        self.banned[name] = f"it is left out since round {self.round}, where {said}"
        self.missing[name] = said
        return RoundUndone(f"round {self.round}: {why}; it is undone: {name} stands out, as {said}")

    def save(self) -> None:
        """Let all clients write down what they hold; who has lost its work of the round is missing.

        Raises:
            RoundFailed: fewer clients are left than `min_replies`.
        """
        self.book_late()
        if isinstance(self.engine, GuardedEngine) and (out := self.engine.revoked()):
            self.missing |= dict.fromkeys(out, "its key was revoked")
            who = ", ".join(sorted(out))
            raise RoundFailed(
                f"round {self.round}: what {who} sent is dropped, as its key was revoked"
            )
        saved = self.engine.save(self.round)
        if saved is not None:
            self.held = dict(saved.held)
            self._forgo(saved.lost)

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

    def _now(self) -> float | None:
        """Return how long the run has taken, where time is simulated."""
        return None if self.clock is None else self.clock.seconds

    def _late(self, present: Set[str], need: int) -> Set[str]:
        """Return who is late with an earlier answer when enough others are free, in simulated time."""
        if self.clock is None:
            return frozenset()
        if (lacking := need - len(present - self.clock.late)) > 0:
            self.clock.wait(lacking)
        return self.clock.late

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

    def _forgo(self, behind: Mapping[str, str]) -> None:
        """Do without clients whose state is not that of the run, and begin anew with them later."""
        for name, why in behind.items():
            self.held.pop(name, None)
            log.warning("round %d: %s: %s", self.round, name, why)
        self.gone |= behind
        self.unsure |= behind.keys()
        self.missing |= {name: why for name, why in behind.items() if name in self.asked}
        if behind:
            self._check_enough()

    @property
    def adds_only(self) -> bool:
        """Whether what clients send is to be added up, and nothing else be made of it."""
        return self.guard is not None or self.masks is not None

    @property
    def cohort(self) -> list[str]:
        """The clients of this round that have not dropped out, sorted by name."""
        return [name for name in self.asked if name not in self.missing]

    def ask(
        self,
        requests: Mapping[str, Message],
        read: Read[T],
        purpose: Purpose = "train",
    ) -> Iterator[tuple[str, T]]:
        """Send each client its message and yield `(client, read(reply))` as replies arrive.

        A client whose reply is missing, malformed, an error, or refused by `read` drops out of the
        round.

        Args:
            read: checks a reply and takes from it what is wanted; raises `MessageError`. One for
                all, or one for each client.

        Raises:
            RoundFailed: fewer clients are left than `min_replies`.
        """
        sent, waiting = self._pack(requests, purpose)
        replies = carry(self.engine, sent, self.most)
        if self.clock is not None and purpose != "evaluate":
            replies = self.clock.arrivals(self.clock.send(sent, replies))
        yield from self._answers(replies, waiting, read, purpose)

    def next(
        self,
        requests: Mapping[str, Message],
        read: Mapping[str, Callable[[Message], T]],
        buffer: int,
    ) -> Iterator[tuple[str, T]]:
        """Send each client its message and yield the next answers, whichever round they were asked in.

        All others stay under way. A client that is lost is so for what it was asked alone.

        Args:
            read: as in `ask`, for all that are under way, too.
            buffer: how many answers.

        Raises:
            RoundFailed: fewer than `min_replies` have come, or than the buffer where that is not set.
        """
        sent, entries = self._pack(requests, "train")
        self.under_way |= entries
        if self.clock is not None:
            self.clock.send(sent, carry(self.engine, sent, self.most))
            replies = self.clock.arrivals()
        else:
            assert isinstance(self.engine, LaunchingEngine)
            self.engine.launch(sent)
            replies = self.engine.arrivals()
        asked = {client: entry.round for client, entry in self.under_way.items()}
        for client, answer in self._collect(replies, self.under_way, read, "train", buffer):
            self.staleness[client] = self.round - asked[client]
            yield client, answer
        for _, entry in sorted(self.under_way.items()):
            if entry.round == self.round:
                self.ledger.add(entry)
        self._hold(len(self.staleness), buffer, self.config.min_replies or buffer)

    def addends(
        self,
        requests: Mapping[str, Message],
        forms: Mapping[str, Form],
        common: Form,
        buffer: int | None = None,
    ) -> Iterator[tuple[str, Addend]]:
        """Send each client its message, for what is then only added up.

        Yields:
            What each client has sent, with its name; or, where no client is to be seen alone, one mean
            in the place of all, of weight 1 and no name.

        Args:
            forms: of what each client sends.
            common: of what all do, even if nobody is asked.
            buffer: as in `next`; without it the answers are those to these messages.

        Raises:
            RoundFailed: fewer clients are left than `min_replies`.
        """
        if self.guard is not None and self.guard.adds:
            yield "", self.guard.total(requests, common, self.ask)
            return
        noisy = (
            None if self.guard is None else self.guard.shared(self.guard.announce(common), common)
        )
        if self.masks is not None:
            need, new = self._need(len(requests)), self.newcomers
            yield "", self.masks.total(requests, common, self.ask, self._seen, need, new, noisy)
        elif self.guard is not None:
            yield from self.ask(requests, {name: forms[name].closed for name in requests})
        elif buffer is None:
            yield from self.ask(requests, {name: forms[name].read for name in requests})
        else:
            yield from self.next(
                requests, {name: form.read for name, form in forms.items()}, buffer
            )

    def _seen(self, message: Message) -> bytes:
        """Return the digest of a message as it crosses to clients of the common wire."""
        whole = replace(message, meta={**message.meta, "round": self.round})
        return hashlib.sha256(self.wire.pack(whole, "down").data).digest()

    def ask_all(
        self,
        requests: Mapping[str, Message],
        read: Read[T],
        purpose: Purpose = "train",
    ) -> dict[str, T]:
        """Ask, wait for everybody, and return the answers sorted by client.

        Sorted, because sums of floats, and what is drawn, depend on the order, and replies come in any.
        """
        return dict(sorted(self.ask(requests, read, purpose), key=lambda answer: answer[0]))

    def tell(self, requests: Mapping[str, Message], purpose: Purpose = "train") -> set[str]:
        """Send each client its message and return who has confirmed that it came."""
        return {client for client, _ in self.ask(requests, lambda reply: None, purpose)}

    def post(
        self, requests: Mapping[str, Message], read: Mapping[str, Callable[[Message], T]]
    ) -> Iterator[tuple[str, T]]:
        """Send each client its message now, and return what yields the answers as `ask` does.

        The clients can be asked more before these answers are collected: each answers in the order in
        which it was asked. An engine in which nobody works at the same time is waited for here, so that
        the order is the same in all.

        Args:
            read: checks the reply of each client and takes from it what is wanted.
        """
        sent, waiting = self._pack(requests, "train")
        if isinstance(self.engine, PostingEngine):
            replies = self.engine.post(sent)
        else:
            replies = iter(list(carry(self.engine, sent, self.most)))
        if self.clock is not None:
            replies = self.clock.arrivals(self.clock.send(sent, replies))
        return self._answers(replies, waiting, read, "train")

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

    def attend(self) -> list[str]:
        """Return who of the cohort takes part in a round in which nobody is asked anything.

        Raises:
            RoundFailed: fewer clients are left than `min_replies`.
        """
        present = [client for client in self.cohort if not self._drops_out(client)]
        self._check_enough()
        return present

    def _drops_out(self, client: str) -> bool:
        fails = self.fails(client)
        if fails:
            self.missing[client] = f"simulated failure (failure_rate={self.config.failure_rate})"
        return fails

    def fails(self, client: str) -> bool:
        """Whether a client is drawn to fail in this round; see `FleetConfig.failure_rate`."""
        if not self.config.failure_rate or self.round == 0:
            return False
        again = [str(count)] if (count := self.failed.get(self.round, 0)) else []
        draw = torch.rand((), generator=generator(self.seed, "failure", self.round, client, *again))
        return float(draw) < self.config.failure_rate

    def _check_enough(self) -> None:
        need = self._need(len(self.asked))
        if self.guard is not None and self.guard.adds:  # by chance there may be nobody
            need = min(self.config.min_replies or 0, len(self.asked))
        self._hold(len(self.cohort) + len(self.under_way), len(self.asked), need)

    def _hold(self, left: int, asked: int, need: int) -> None:
        """Let the round fail if fewer are left of it than it needs."""
        if left < need:
            reasons = "; ".join(f"{name}: {why}" for name, why in sorted(self.missing.items()))
            why = f"{left} of {asked} clients are left, min_replies is {need} ({reasons})"
            if self._refused and self.sizes.suspect() is not None:
                raise self.undo(why)
            raise RoundFailed(f"round {self.round}: {why}")

    def _need(self, num_clients: int) -> int:
        return self.config.min_replies or min(self.config.taken(num_clients), num_clients)


def _cost_of(reply: Message) -> torch.Tensor:
    """Return FLOPs, seconds, peak and raw bytes, as a client says of its answer, float64 `(4,)`."""
    return reply.tensor("control/cost", torch.float64, (4,), signed=False)
