"""The client's half of a masked sum.

A client shares two secrets of each sum with its peers: a seed, whose stream it adds to what it sends,
and a private key, whose streams with each peer cancel in the sum. Of a client that has answered the
server asks for the shares of the seed, of one that was lost for those of the key; of the same client
nobody gives both. Every sum has secrets of its own, and no stream is ever used twice.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from trillium.privacy import listed
from trillium.privacy.integers import Grid
from trillium.privacy.phases import (
    BOXED,
    ID,
    ID_BYTES,
    KEYS,
    PUBLIC,
    REVEAL,
    SHARES,
    SUM,
    Context,
    as_bytes,
    as_tensor,
    names_in,
    rows_of,
    whole_in,
)
from trillium.privacy.shamir import split
from trillium.privacy.shared import NoisyGrid
from trillium.privacy.streams import (
    KEY,
    agreed,
    derived,
    is_signed,
    mask,
    nbytes,
    opened,
    packed,
    public_of,
    shut,
    signed,
    verifier_of,
)
from trillium.privacy.sums import FEWEST, Masked, Shares
from trillium.privacy.vouching import Unproved, Vouching
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message


class Keeper(Protocol):
    """The side that masks are of."""

    name: str
    store: dict[str, Any]
    round: int

    def lasting(self, purpose: str) -> bytes:
        """Return a secret for one purpose, the same in all rounds."""


@dataclass
class _Sum:
    """A sum under way.

    Attributes:
        peers: who has a share of the secrets, this client among them.
        private, seed: the secrets.
        share: this client's own share of both.
        publics: keys of those peers that are in the sum; none before it has answered.
    """

    context: Context
    peers: list[str]
    threshold: int
    private: bytes = field(repr=False)
    seed: bytes = field(repr=False)
    share: bytes = field(repr=False)
    publics: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Masks:
    """A client's half of masked sums.

    Attributes:
        side: the client.
        least: how many clients must be in a sum, and must have answered when it is revealed.
        on_paper: whether there are no values, and so no secrets.
        vouching: shows whose keys are whose.
        noise: that clients add, each its share, if they do.
    """

    masked: Masked
    side: Keeper
    least: int = FEWEST
    on_paper: bool = False
    vouching: Vouching = field(default_factory=Unproved)
    noise: Shares | None = None
    _sum: _Sum | None = None
    _known: set[bytes] = field(default_factory=set)

    @property
    def verbs(self) -> Mapping[str, Callable[[Any, Message], Message]]:
        """What a client can be asked beside what the framework asks."""
        return {
            KEYS: lambda client, message: self.keys(message),
            SHARES: lambda client, message: self.shares(message),
            REVEAL: lambda client, message: self.reveal(message),
        }

    def keys(self, message: Message) -> Message:
        """Answer with the public keys that last for the run, and the proof of whose they are."""
        if self.on_paper:
            return _answer(KEYS, keys=torch.zeros(2 * KEY, dtype=torch.uint8))
        own = public_of(self.side.lasting("agree")) + verifier_of(self.side.lasting("sign"))
        return _answer(KEYS, keys=as_tensor(own + self.vouching.proof(self.side.name, own)))

    def shares(self, message: Message) -> Message:
        """Draw the secrets of a sum, and answer with a public key, and a box for each peer.

        Raises:
            MessageError: the sum is known, is of too few, or keys are not whose they are said to be.
        """
        peers, threshold = names_in(message, "peers"), whole_in(message, "threshold")
        if self.on_paper:
            return _answer(
                SHARES,
                public=torch.zeros(PUBLIC, dtype=torch.uint8),
                boxes=torch.zeros(len(peers) - 1, BOXED, dtype=torch.uint8),
            )
        name, context = self.side.name, self._begun(message)
        least = min(max(self.least, FEWEST), self.masked.peers + 1)
        if name not in peers or len(peers) < least:
            raise MessageError(f"a sum with {len(peers)} peers, of which {least} are the fewest")
        if not len(peers) < 2 * threshold <= 2 * len(peers):
            raise MessageError(f"{threshold} of {len(peers)} shares would bring a secret back")
        self._note_keys(message, peers)
        private, seed = os.urandom(KEY), os.urandom(KEY)
        public = public_of(private)
        parts = dict(zip(peers, split(seed + private, threshold, len(peers)), strict=True))
        own = parts.pop(name)
        boxes = [
            shut(self._key(context, name, peer), part, context.public(name, public))
            for peer, part in parts.items()
        ]
        self._sum = _Sum(context, peers, threshold, private, seed, own)
        signature = signed(self.side.lasting("sign"), context.public(name, public))
        return _answer(
            SHARES,
            public=as_tensor(public + signature),
            boxes=as_tensor(b"".join(boxes), len(boxes), BOXED),
        )

    def closed(self, reply: Message, message: Message, data: bytes) -> Message:
        """Return a reply as it leaves: what is added up, masked, and nothing beside it.

        Args:
            data: the same as it came.

        Raises:
            MessageError: the sum is not the one that secrets were shared for, or was answered before.
            UserError: there is something else in the reply.
        """
        if reply.verb in self.verbs:
            return reply
        tensors = listed(reply, "sums=masked")
        if not tensors:
            return Message(reply.verb)
        assert reply.summed is not None
        names = names_in(message, "clients")
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        grid = self._grid(message, shapes, len(names), reply.summed.noise)
        if self.on_paper:
            size = nbytes(grid.count, grid.bits)
            hidden = {SUM: torch.zeros(size, dtype=torch.uint8)}
            return Message(reply.verb, hidden, summed=reply.summed)
        values = grid.write(tensors)
        current = self._joined(message, names, hashlib.sha256(data).digest())
        for key, off in self._streams(current):
            mask(values, key, off=off)
        return Message(reply.verb, {SUM: torch.from_numpy(packed(values, grid.bits))})

    def _grid(
        self, message: Message, shapes: Mapping[str, Sequence[int]], clients: int, noise: float
    ) -> Grid | NoisyGrid:
        if self.noise is not None:
            bound = 1.0 if self.on_paper else message.positive("control/clip")
            shares = replace(self.noise, noise=self.noise.noise * noise)
            return NoisyGrid(shapes, bound, shares, clients, _number(message))
        levels = whole_in(message, "levels")
        ranges = message.tensor("control/ranges", torch.float64, (len(shapes),), signed=False)
        reach = [1.0] * len(shapes) if self.on_paper else ranges.tolist()
        return Grid(shapes, reach, levels, clients)

    def reveal(self, message: Message) -> Message:
        """Answer with one share for each peer: of its seed, or of its key if it was lost.

        Raises:
            MessageError: this was done before, too few have answered, or a box is not as it was shut.
        """
        if self.on_paper:
            count = len(message.tensors["control/answered"])
            return _answer(REVEAL, shares=torch.zeros(count, KEY, dtype=torch.uint8))
        current, self._sum = self._sum, None  # whatever comes of it, this is done once
        if current is None or not current.publics or current.context.number != _number(message):
            raise MessageError("the shares of this sum are not, or not any more, to be had here")
        inside = [peer for peer in current.peers if peer in current.publics]
        answered = as_bytes(message, "control/answered", len(inside))
        alive = dict(zip(inside, answered, strict=True))
        if not {*answered} <= {0, 1} or alive[self.side.name] != 1:
            raise MessageError("it is not said of each peer whether it has answered")
        if sum(answered) < current.threshold or whole_in(message, "count") < self.least:
            raise MessageError("too few clients have answered for their sum to be revealed")
        others = [peer for peer in inside if peer != self.side.name]
        boxes = rows_of(as_bytes(message, "control/boxes", len(others), BOXED), BOXED)
        shares = {self.side.name: current.share}
        for peer, box in zip(others, boxes, strict=True):
            key, public = self._key(current.context, peer, self.side.name), current.publics[peer]
            found = opened(key, box, current.context.public(peer, public))
            if found is None or len(found) != 2 * KEY:
                raise MessageError(f"the share of a secret of {peer} is not as it was shut")
            shares[peer] = found
        halves = [shares[p][:KEY] if alive[p] else shares[p][KEY:] for p in inside]
        return _answer(REVEAL, shares=as_tensor(b"".join(halves), len(halves), KEY))

    def _begun(self, message: Message) -> Context:
        """Return the context of a new sum; one that is known is not begun again."""
        number = _number(message)
        if number in self._known:
            raise MessageError("a sum of this number has been before")
        self._known.add(number)
        self._sum = None
        return Context(number, self.side.round)

    def _note_keys(self, message: Message, peers: Sequence[str]) -> None:
        """Keep the keys of peers that came, once it was shown whose they are."""
        known = self.side.store.setdefault("peers", {})
        for place, peer in enumerate(peers):
            if f"control/keys.{place}" in message.tensors:
                data = as_bytes(message, f"control/keys.{place}", None)
                keys, proof = data[: 2 * KEY], data[2 * KEY :]
                if len(keys) != 2 * KEY:
                    raise MessageError(f"the keys of {peer} are cut short")
                self.vouching.check(peer, keys, proof)
                known[peer] = keys.hex()
            elif peer != self.side.name and peer not in known:
                raise MessageError(f"the keys of {peer} have not been told")

    def _peer(self, name: str) -> tuple[bytes, bytes]:
        keys = bytes.fromhex(self.side.store["peers"][name])
        return keys[:KEY], keys[KEY:]

    def _key(self, context: Context, sender: str, receiver: str) -> bytes:
        """Return the key of the box that one of them sends the other."""
        other = receiver if sender == self.side.name else sender
        return agreed(
            self.side.lasting("agree"), self._peer(other)[0], context.box(sender, receiver)
        )

    def _joined(self, message: Message, names: Sequence[str], asked: bytes) -> _Sum:
        """Return the sum that is under way, with the keys of those peers that are in it."""
        current, name = self._sum, self.side.name
        if current is None or current.publics or current.context.number != _number(message):
            raise MessageError("no secrets were shared for this sum, or it was answered before")
        context = Context(current.context.number, self.side.round, asked)
        if context.round != current.context.round:
            raise MessageError("the secrets of this sum are those of another round")
        data = as_bytes(message, "control/publics", len(names), PUBLIC)
        publics = dict(zip(names, rows_of(data, PUBLIC), strict=True))
        inside = {peer: publics[peer] for peer in current.peers if peer in publics}
        if len(inside) < current.threshold or len(names) < max(self.least, FEWEST):
            raise MessageError(f"a sum of {len(names)} clients, which are too few")
        own = public_of(current.private)
        if inside.get(name, b"")[:KEY] != own:
            raise MessageError("a sum that this client is not in")
        for peer, public in inside.items():
            key, signature = public[:KEY], public[KEY:]
            if peer != name and not is_signed(
                self._peer(peer)[1], signature, context.public(peer, key)
            ):
                raise MessageError(f"the key of {peer} for this sum is not its own")
        current.context = context
        current.publics = {peer: public[:KEY] for peer, public in inside.items()}
        return current

    def _streams(self, current: _Sum) -> list[tuple[bytes, bool]]:
        """Return the keys of all streams that hide what is sent, and which of them are taken off."""
        name, context = self.side.name, current.context
        pairs = [
            (agreed(current.private, public, context.pair(name, peer)), name > peer)
            for peer, public in current.publics.items()
            if peer != name
        ]
        return [(derived(current.seed, context.own(name)), False), *pairs]


def _answer(verb: str, **tensors: Tensor) -> Message:
    return Message(verb, {f"control/{name}": tensor for name, tensor in tensors.items()})


def _number(message: Message) -> bytes:
    return as_bytes(message, ID, ID_BYTES)
