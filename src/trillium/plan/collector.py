"""Python's search for reference cycles, put off where it would only find what is still needed."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused(*, for_good: bool = False) -> Iterator[None]:
    """Look for no reference cycles meanwhile.

    Importing PyTorch and Transformers makes a million objects that stay, and a plan some more; the
    collector looks through them again and again, which takes a third of the time of importing.

    Args:
        for_good: never look through the objects made meanwhile: the program is about to end.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if for_good:
            gc.freeze()
        if enabled:
            gc.enable()
