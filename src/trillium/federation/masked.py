"""The server's half of a masked sum: it hands on keys and boxes, adds up, and takes the masks off.

Each phase goes on with those that have answered the one before. Who has answered with a masked sum is
in it, whoever is lost later: there is one such set in a sum, and one reveal.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from trillium.errors import UserError
from trillium.federation.circle import Circle
from trillium.federation.failed import RoundFailed
from trillium.federation.means import RunningMean
from trillium.federation.side import Side
from trillium.federation.sums import Ask, Form, Noisy
from trillium.privacy.integers import FIRST, Grid
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
    rows_of,
)
from trillium.privacy.shared import NoisyGrid
from trillium.privacy.streams import (
    KEY,
    Lanes,
    lanes,
    nbytes,
    unpacked,
)
from trillium.privacy.sums import FEWEST, WIDE, Masked
from trillium.rng import generator
from trillium.wire.addend import Addend
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message, scalar

PROOF: Final = 4096  # bytes of what shows whose keys are whose, at most


@dataclass(frozen=True)
class _Shared:
    """What a client has answered with for the others: its key of the sum, and a box for each peer."""

    public: bytes
    boxes: Mapping[str, bytes]


@dataclass
class MaskedSums:
    """What adds up what clients send, and sees no more than the sum.

    Attributes:
        side: of the server, which keeps the keys of clients, and the ranges of sums.
        on_paper: whether there are no values, and so no secrets.
        told: of the last sum, for the measures of its round.
    """

    masked: Masked
    side: Side
    on_paper: bool = False
    told: dict[str, Any] = field(default_factory=dict)
    _paper: RunningMean = field(default_factory=RunningMean)  # what there is of a sum on paper

    def total(
        self,
        requests: Mapping[str, Message],
        form: Form,
        ask: Ask,
        seen: Callable[[Message], bytes],
        need: int,
        newcomers: Collection[str],
        noisy: Noisy | None = None,
    ) -> Addend:
        """Return the mean over the clients that have answered.

        Args:
            requests: the same for all.
            seen, need, newcomers, noisy: as in `Summing.total`.

        Raises:
            RoundFailed: fewer are left than it takes, and no sum is revealed.
        """
        message = self._common(requests, seen)
        need = max(need, len(requests) // 2 + 1, FEWEST - 1)
        self._meet(requests, newcomers, ask)
        names = sorted(self._store("keys").keys() & requests.keys())
        self._check(names, max(need, FEWEST))
        draw = generator(self.side.seed, "peers", self.side.round)
        order = torch.randperm(len(names), generator=draw).tolist()
        circle = Circle.drawn(names, self.masked.peers, need, order)
        number = bytes(ID_BYTES) if self.on_paper else os.urandom(ID_BYTES)
        context = Context(number, self.side.round)
        shared = dict(sorted(self._share(circle, context, ask).items()))
        self._check(shared, max(need, FEWEST))
        grid = self._grid(form, len(shared), context, noisy)
        asked = self._asked(message, grid, context, shared)
        total, answered = self._collect(dict.fromkeys(shared, asked), grid, ask)
        self._check(answered, need)
        parts = self._reveal(circle, context, shared, answered, ask)
        if self.on_paper:
            if isinstance(grid, Grid):
                self._note(form, dict.fromkeys(grid.shapes, 1.0))
            return Addend(self._paper.result())
        if shared.keys() - answered:
            context = replace(context, asked=seen(asked))
        secrets = {owner: circle.secret(owner, parts[owner], self.side.round) for owner in shared}
        publics = {name: found.public[:KEY] for name, found in shared.items()}
        circle.unmask(total, secrets, publics, answered, context)
        if isinstance(grid, NoisyGrid):
            return Addend(grid.read(total, len(answered)))
        mean = grid.read(total, len(answered))
        self.told = {"beyond_range": mean.beyond}
        self._note(form, mean.known() if grid.levels == WIDE else mean.ranges)
        return Addend(mean.tensors)

    def _common(self, requests: Mapping[str, Message], seen: Callable[[Message], bytes]) -> Message:
        """Return what all clients are asked; masks of those that are asked otherwise do not cancel."""
        different = {id(message): message for message in requests.values()}
        if not different:
            raise RoundFailed(f"round {self.side.round}: a masked sum of nobody")
        message, *others = different.values()
        if others and not self.on_paper and any(seen(o) != seen(message) for o in others):
            raise UserError(
                "sums=masked with clients that are sent different states",
                "masks are bound to what clients are asked, and would not cancel",
                "Write framework.download=state, and the same wire.down for all",
            )
        return message

    def _store(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.side.store.setdefault("sums", {}).setdefault(name, {})
        return found

    def _check(self, left: Collection[str], need: int) -> None:
        if len(left) < need:
            raise RoundFailed(
                f"round {self.side.round}: {len(left)} clients are left, and a masked sum takes {need}"
            )

    def _meet(self, requests: Mapping[str, Message], newcomers: Collection[str], ask: Ask) -> None:
        """Ask for the keys of those that are new."""
        keys, told = self._store("keys"), self._store("told")
        new = [name for name in sorted(requests) if name not in keys or name in newcomers]

        def read(reply: Message) -> bytes:
            found = self._bytes(reply, "control/keys", 2 * KEY if self.on_paper else None)
            if not 2 * KEY <= len(found) <= 2 * KEY + PROOF:
                raise MessageError(f"{reply.verb}: keys of {len(found)} bytes")
            return found

        for name in new:
            keys.pop(name, None)
            told.pop(name, None)
        for name, found in ask(dict.fromkeys(new, Message(KEYS)), read):
            keys[name] = found.hex()
        for known in told.values():
            known[:] = [name for name in known if name not in new]

    def _share(self, circle: Circle, context: Context, ask: Ask) -> dict[str, _Shared]:
        """Let clients share their secrets."""
        keys, told = self._store("keys"), self._store("told")
        requests = {}
        for name, peers in circle.peers.items():
            new = {p for p in peers if p != name and p not in told.get(name, [])}
            tensors = {
                f"control/keys.{place}": self._tensor(bytes.fromhex(keys[peer]))
                for place, peer in enumerate(peers)
                if peer in new
            }
            tensors[ID] = self._tensor(context.number)
            meta = {"peers": list(peers), "threshold": circle.threshold}
            requests[name] = Message(SHARES, tensors, meta)

        def reader(name: str) -> Callable[[Message], _Shared]:
            others = [peer for peer in circle.peers[name] if peer != name]

            def read(reply: Message) -> _Shared:
                public = self._bytes(reply, "control/public", PUBLIC)
                boxes = rows_of(self._bytes(reply, "control/boxes", len(others), BOXED), BOXED)
                return _Shared(public, dict(zip(others, boxes, strict=True)))

            return read

        found = dict(ask(requests, {name: reader(name) for name in requests}))
        for name in found:
            known = told.setdefault(name, [])
            known += [p for p in circle.peers[name] if p != name and p not in known]
        return found

    def _grid(
        self, form: Form, clients: int, context: Context, noisy: Noisy | None
    ) -> Grid | NoisyGrid:
        shapes = {name: tuple(tensor.shape) for name, tensor in form.tensors.items()}
        if noisy is not None:
            return NoisyGrid(shapes, noisy.bound, noisy.shares, clients, context.number)
        ranges, names = self._store("ranges"), sorted(shapes)
        if form.reach is not None:
            return Grid(shapes, [form.reach] * len(names), self.masked.bits, clients)
        if form.whole is None and ranges.keys() >= shapes.keys():
            return Grid(shapes, [ranges[name] for name in names], self.masked.bits, clients)
        return Grid(shapes, [FIRST] * len(names), WIDE, clients)

    def _note(self, form: Form, ranges: Mapping[str, float]) -> None:
        if form.whole is None and form.reach is None:
            self._store("ranges").update(ranges)

    def _asked(
        self,
        message: Message,
        grid: Grid | NoisyGrid,
        context: Context,
        shared: Mapping[str, _Shared],
    ) -> Message:
        publics = b"".join(found.public for found in shared.values())
        tensors = {
            ID: self._tensor(context.number),
            "control/publics": self._tensor(publics, len(shared), PUBLIC),
        }
        meta = {**message.meta, "clients": list(shared)}
        if isinstance(grid, NoisyGrid):
            tensors["control/clip"] = scalar(grid.bound)
        else:
            tensors["control/ranges"] = torch.tensor(grid.ranges, dtype=torch.float64)
            meta["levels"] = grid.levels
        return replace(message, tensors={**message.tensors, **tensors}, meta=meta)

    def _collect(
        self, requests: Mapping[str, Message], grid: Grid | NoisyGrid, ask: Ask
    ) -> tuple[Lanes, set[str]]:
        """Return the sum of what clients answer, and who that is."""
        size, answered = nbytes(grid.count, grid.bits), set[str]()
        total = np.zeros(0 if self.on_paper else grid.count, lanes(grid.bits))
        self._paper = RunningMean()

        def read(reply: Message) -> Tensor:
            for name, tensor in reply.summed.added().items() if reply.summed is not None else ():
                self._paper.add(name, tensor, 1.0)
            return reply.tensor(SUM, torch.uint8, (size,))

        for name, found in ask(requests, read):
            if not self.on_paper:
                total += unpacked(found.numpy(), grid.count, grid.bits)
            answered.add(name)
        return total, answered

    def _reveal(
        self,
        circle: Circle,
        context: Context,
        shared: Mapping[str, _Shared],
        answered: Collection[str],
        ask: Ask,
    ) -> dict[str, dict[str, bytes]]:
        """Return the shares that clients have of each other's secrets, by owner and holder."""
        requests, readers = {}, {}
        for name in sorted(answered):
            inside = [peer for peer in circle.peers[name] if peer in shared]
            boxes = [shared[peer].boxes[name] for peer in inside if peer != name]
            tensors = {
                ID: self._tensor(context.number),
                "control/answered": self._tensor(bytes(p in answered for p in inside)),
                "control/boxes": self._tensor(b"".join(boxes), len(boxes), BOXED),
            }
            requests[name] = Message(REVEAL, tensors, {"count": len(answered)})

            def read(reply: Message, inside: Sequence[str] = inside) -> dict[str, bytes]:
                data = self._bytes(reply, "control/shares", len(inside), KEY)
                return dict(zip(inside, rows_of(data, KEY), strict=True))

            readers[name] = read
        parts: dict[str, dict[str, bytes]] = {name: {} for name in shared}
        for holder, found in ask(requests, readers):
            for owner, part in found.items():
                parts[owner][holder] = part
        return parts

    def _bytes(self, reply: Message, name: str, *shape: int | None) -> bytes:
        if self.on_paper:
            return bytes(reply.tensors[name].nbytes)
        return as_bytes(reply, name, *shape)

    def _tensor(self, data: bytes, *shape: int) -> Tensor:
        if self.on_paper:
            return torch.zeros(shape or (len(data),), dtype=torch.uint8)
        return as_tensor(data, *shape)
