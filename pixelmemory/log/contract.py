"""What a log owes the engine."""

from __future__ import annotations

import msgspec

from pixelmemory.memory.events import Event

__all__ = ["StoredEvent"]


class StoredEvent(msgspec.Struct, frozen=True, gc=False):
    """An event with what the log knows of it. Many at a time: the garbage collector need not look at them."""

    lsn: int
    #: 16 bytes, unique for ever
    event_id: bytes
    #: when it was appended, nanoseconds since the epoch; never decreases from one LSN to the next
    logged_at_ns: int
    event: Event
