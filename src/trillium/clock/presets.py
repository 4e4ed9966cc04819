"""Places that a report shows times for: links and devices as they are common, and nobody's own.

The speed of a device is what it reaches in training, not what its maker states.
"""

from __future__ import annotations

from typing import Final

from trillium.clock.places import Device, PaperLink, Place

OFFICE: Final = Place(
    device=Device(flops=500e9), link=PaperLink(up=100e6, down=100e6, latency=0.005)
)
HOME: Final = Place(device=Device(flops=200e9), link=PaperLink(up=10e6, down=50e6, latency=0.02))
PHONE: Final = Place(device=Device(flops=30e9), link=PaperLink(up=5e6, down=20e6, latency=0.05))
PRESETS: Final = {"office": OFFICE, "home": HOME, "phone": PHONE}
SERVER: Final = Place(device=Device(flops=10e12), link=PaperLink(up=1e9, down=1e9))
