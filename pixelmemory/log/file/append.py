"""One caller's call on its way to the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pixelmemory.errors import InvalidArgumentError, LimitExceededError, LogError
from pixelmemory.log.file.frame import RECORD_HEADER_BYTES, encode_records, new_event_ids, type_code
from pixelmemory.memory.events import Event, encode_event

__all__ = ["Append"]


class Append:
    """One atomic append: all of its events are recorded, or none.

    Attributes:
        events: the events, in order.
        event_count: how many.
        byte_count: their size as records.
        event_ids: 16 bytes for each event.
        logged_at_ns: shared by all its events, nanoseconds since the epoch.
        first_lsn: set when the writer takes it from the buffer; None before, and when nothing was recorded.
        error: why it was not recorded, or may not be; set before ``on_commit`` is called. None otherwise.
        context: the caller's own.
        body: the encoded records; empty once committed.
    """

    __slots__ = (
        "_payloads",
        "body",
        "byte_count",
        "context",
        "error",
        "event_count",
        "event_ids",
        "events",
        "first_lsn",
        "logged_at_ns",
    )

    def __init__(self, events: Sequence[Event], context: Any, bytes_max: int) -> None:
        self.events = tuple(events)
        self.event_count = len(self.events)
        if not self.events:
            raise InvalidArgumentError("events", "must not be empty")
        self.context = context
        self.first_lsn: int | None = None
        self.error: LogError | None = None
        self.event_ids = new_event_ids(self.event_count)
        self.logged_at_ns = 0
        self.body = b""
        byte_count = 0
        payloads: list[bytes] = []
        for event in self.events:
            payload = encode_event(event)
            byte_count += RECORD_HEADER_BYTES + len(payload)
            if byte_count > bytes_max:
                raise LimitExceededError(
                    "entries", f"take more than {bytes_max} bytes (append_bytes_max) in one call; split the call"
                )
            payloads.append(payload)
        self.byte_count = byte_count
        self._payloads: Sequence[bytes] = payloads

    def __repr__(self) -> str:
        state = f"LSN {self.first_lsn}" if self.first_lsn is not None else "no LSN"
        return f"<Append events={self.event_count} bytes={self.byte_count} {state} error={self.error!r}>"

    @property
    def last_lsn(self) -> int | None:
        """LSN of the last event, or None as ``first_lsn``."""
        return None if self.first_lsn is None else self.first_lsn + self.event_count - 1

    def encode(self, logged_at_ns: int) -> None:
        """Make ``body``, with this time in each record."""
        self.logged_at_ns = logged_at_ns
        self.body = encode_records(
            [type_code(event) for event in self.events], self._payloads, self.event_ids, logged_at_ns
        )

    def settle(self, error: LogError | None, *, unrecorded: bool) -> None:
        """Committed, or failed with ``error``: the encoded bytes are of no more use."""
        self.error = error
        self.body = b""
        self._payloads = ()
        if unrecorded:
            self.first_lsn = None
