"""Who reads at the moment, in any store of this process: what runs in the background gives way to them.

The interpreter runs one thread at a time, and takes it from a busy one only after 5 ms. A read changes threads a few
times, so beside a projector that is busy it would wait for several of those turns.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

__all__ = ["give_way", "reading"]

#: long enough for a thread that waits for the interpreter to get it
PAUSE_SECONDS = 0.0001

#: one entry a read; to append and to remove are atomic
_reading: list[None] = []


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """A read goes on within the block."""
    _reading.append(None)
    try:
        yield
    finally:
        _reading.pop()


def give_way() -> None:
    """Let those who read have the interpreter; to be called about every half millisecond of busy Python."""
    if _reading:
        time.sleep(PAUSE_SECONDS)
