"""The whole state in each round: nothing to remember, nothing to lose."""

from __future__ import annotations

from typing import Any

from trillium.frameworks.fedllm.downloads import (
    Download,
    Parcel,
    Sent,
    changed,
    check_start,
    digest,
    mark,
    marked,
)
from trillium.wire.kinds import Tensors
from trillium.wire.message import Message, named
from trillium.wire.wire import Wire


class StateDownload(Download, name="state"):
    """Send all values that differ from those at the start; clients keep nothing of them."""

    def send(self, store: dict[str, Any], parcel: Parcel) -> Sent:
        """Return the values and which they are."""
        names = list(parcel.target)
        moved = changed(parcel.target, parcel.start)
        tensors = named("parameters", {name: parcel.target[name] for name in moved})
        meta = {"sent": mark(names, set(moved)), "start": digest(parcel.start)}
        held = dict(parcel.target)
        if moved and not parcel.wire.is_lossless("parameters", "down"):
            message = Message("train", tensors, {**meta, "round": parcel.number})
            seen = parcel.wire.preview(message, "down")
            held |= seen.expect("parameters", {name: parcel.target[name] for name in moved})
        return Sent(tensors, meta, held)

    def receive(
        self, store: dict[str, Any], message: Message, start: Tensors, wire: Wire
    ) -> Tensors:
        """Return the start values with those that came."""
        check_start(message, start)
        names = marked(list(start), message.meta.get("sent"))
        return {**start, **message.expect("parameters", {name: start[name] for name in names})}
