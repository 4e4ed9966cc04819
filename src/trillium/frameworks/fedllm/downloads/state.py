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
        wanted = {name: parcel.target[name] for name in moved}
        meta = {"sent": mark(names, set(moved)), "start": digest(parcel.start)}
        message = parcel.message(named("parameters", wanted), meta)
        if not moved or parcel.wire.is_lossless("parameters", "down"):
            return Sent(message, parcel.target)
        previewed = parcel.wire.preview(message, "down")
        seen = previewed.seen.expect("parameters", wanted)
        return Sent(previewed.message, {**parcel.target, **seen})

    def receive(
        self, store: dict[str, Any], message: Message, start: Tensors, wire: Wire
    ) -> Tensors:
        """Return the start values with those that came."""
        check_start(message, start)
        names = marked(list(start), message.meta.get("sent"))
        return {**start, **message.expect("parameters", {name: start[name] for name in names})}
