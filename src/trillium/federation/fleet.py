"""The fleet: ask the clients of a round, yield replies, survive the ones that never come."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from trillium.federation.dispatch import Dispatch
from trillium.federation.engine import GuardedEngine, LaunchingEngine, PostingEngine
from trillium.federation.failed import RoundFailed
from trillium.federation.parts import carry
from trillium.federation.sums import Form, Read
from trillium.wire.addend import Addend
from trillium.wire.ledger import Purpose
from trillium.wire.message import Message

T = TypeVar("T")


class Fleet(Dispatch):
    """The clients as the server sees them: whom it asks, and what they answer."""

    def begin_round(self, number: int) -> list[str]:
        """Book what is late; sample the cohort of a round and return it, sorted by name."""
        self.book_late()
        return super().begin_round(number)

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
