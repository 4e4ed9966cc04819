"""What has changed since the client was last here, coded against the copy that it holds.

The server keeps, for each client, exactly what that client holds. With a lossy codec the difference to
it is coded, so what a codec loses in one round is part of the next round's difference: error feedback
without a buffer of its own, as in the downlink of Double-Squeeze (Tang et al., 2019, arXiv 1905.05957).
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, ClassVar

from pydantic import Field

from trillium.frameworks.fedllm.downloads import (
    Download,
    Parcel,
    Sent,
    changed,
    check_start,
    mark,
    marked,
    since_start,
)
from trillium.wire.kinds import MessageError, Nature, Tensors
from trillium.wire.message import Message, named
from trillium.wire.wire import Wire


class ChangeDownload(Download, name="change"):
    """Send only what differs from what the client holds; clients keep a copy of the state.

    Values are sent if the codecs lose nothing, differences if they do. A client that is new, or of
    which nobody knows what it holds, begins at the start values and is sent a snapshot: the values
    themselves, as tensors of the kind `snapshot`, which codecs leave alone unless they name it.

    Attributes:
        resync_after: a client that has missed this many rounds or more gets a snapshot, too.
    """

    sends: ClassVar[Nature] = "changes"

    resync_after: int = Field(default=10, ge=1)

    def send(self, store: dict[str, Any], parcel: Parcel) -> Sent:
        """Return the differences, or a snapshot, and which tensors they are of."""
        held, last = store.get(parcel.client, (None, 0))
        if held is None or parcel.is_new or parcel.number - last > self.resync_after:
            return since_start(parcel, "snapshot", {"base": "start"})
        moved = changed(parcel.target, held)
        meta = {"sent": mark(list(parcel.target), moved), "base": "held"}
        wanted = {name: parcel.target[name] for name in moved}
        if parcel.wire.is_lossless("parameters", "down"):
            return Sent(parcel.message(named("parameters", wanted), meta), {**held, **wanted})
        changes = named("parameters", {name: wanted[name] - held[name] for name in moved})
        previewed = parcel.wire.preview(parcel.message(changes, meta), "down")
        seen = previewed.seen.expect("parameters", wanted)
        reached = {name: held[name] + seen[name] for name in moved}
        return Sent(previewed.message, {**held, **reached})

    def state_of(self, store: dict[str, Any], client: str, is_new: bool) -> Hashable:
        """Return which copy the client holds, and since when."""
        held, last = (None, 0) if is_new else store.get(client, (None, 0))
        return id(held), last

    def settle(self, store: dict[str, Any], parcel: Parcel, sent: Sent, answered: bool) -> None:
        """Remember what the client holds, and since when; or forget it."""
        if answered:
            store[parcel.client] = (sent.held, parcel.number)
        else:
            store.pop(parcel.client, None)

    def receive(
        self, store: dict[str, Any], message: Message, start: Tensors, wire: Wire
    ) -> Tensors:
        """Return the copy, brought up to date."""
        names = marked(list(start), message.meta.get("sent"))
        like = {name: start[name] for name in names}
        if message.meta.get("base") == "start":
            check_start(message, start)
            held = {**start, **message.expect("snapshot", like)}
        elif "held" not in store:
            raise MessageError("this client holds nothing that a change could be added to")
        else:
            old, came = store["held"], message.expect("parameters", like)
            if not wire.is_lossless("parameters", "down"):
                came = {name: old[name] + came[name] for name in names}
            held = {**old, **came}
        store["held"] = held
        return held
