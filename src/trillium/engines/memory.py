"""What a process that has little memory does with what it frees."""

from __future__ import annotations

import ctypes
from typing import Final

# From malloc.h of glibc.
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
OWN_PAGES: Final = 64 * 1024  # bytes from which on what is asked for has pages of its own


def free_at_once() -> None:
    """Let tensors have pages of their own, which go back to the system as soon as they are freed.

    Otherwise glibc keeps them for what comes next, and batches of many sizes leave it with several
    times what is in use. A step takes longer so. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, OWN_PAGES)
        mallopt(_TRIM_THRESHOLD, OWN_PAGES)
