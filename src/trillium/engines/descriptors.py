"""File descriptors: each connection takes one, and so does each file that is written beside them."""

from __future__ import annotations

import logging
import resource
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

# For checkpoints, logs, models and Flower; no connection gets one of these.
RESERVED: Final = 256
OPEN: Final = Path("/proc/self/fd")


def connections(wanted: int) -> int:
    """Raise the limit of this process as far as it may, and return how many connections it can take.

    At most `wanted`; less where the limit of the system is low, so that files can always be opened.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError):  # some systems allow less than they say
            log.warning("the limit of %d open files cannot be raised", soft)
    if soft == resource.RLIM_INFINITY:
        return wanted
    taken = sum(1 for _ in OPEN.iterdir()) if OPEN.is_dir() else 0
    room = max(soft - RESERVED - taken, 1)
    if room < wanted:
        log.warning("room for %d of %d connections: %d files may be open", room, wanted, soft)
    return min(wanted, room)
