"""The whole state in each round: nothing to remember, nothing to lose."""

from __future__ import annotations

from typing import Any

from trillium.frameworks.fedllm.downloads import (
    Download,
    Parcel,
    Sent,
    check_start,
    marked,
    since_start,
)
from trillium.wire.kinds import Tensors
from trillium.wire.message import Message
from trillium.wire.wire import Wire


class StateDownload(Download, name="state"):
    """Send all values that differ from those at the start; clients keep nothing of them."""

    def send(self, store: dict[str, Any], parcel: Parcel) -> Sent:
        """Return the values and which they are."""
        return since_start(parcel, "parameters")

    def receive(
        self, store: dict[str, Any], message: Message, start: Tensors, wire: Wire
    ) -> Tensors:
        """Return the start values with those that came."""
        check_start(message, start)
        names = marked(list(start), message.meta.get("sent"))
        return {**start, **message.expect("parameters", {name: start[name] for name in names})}
