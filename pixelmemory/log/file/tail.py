"""The newest frames, kept decoded for the projector."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from threading import Lock
from typing import NamedTuple

from pixelmemory.log.contract import StoredEvent
from pixelmemory.log.file.append import Append
from pixelmemory.memory.events import Event

__all__ = ["Tail"]


class _TailFrame(NamedTuple):
    """One frame, in few objects: the garbage collector looks at all that are kept for long."""

    first_lsn: int
    byte_count: int
    events: Sequence[Event]
    #: 16 bytes for each event
    event_ids: bytes
    #: for each event
    logged_at_ns: Sequence[int]


class Tail:
    """Frames of the newest ``bytes_max`` encoded bytes; the oldest leave as new ones come. Thread-safe.

    Invariant: the frames are consecutive and the last of them, if there is any, ends at the durable LSN.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._lock = Lock()
        self._frames: list[_TailFrame] = []
        self._first_lsns: list[int] = []
        #: frames before it have left; the lists are cut when they are half empty
        self._head = 0
        self.byte_count = 0

    def add(self, appends: Sequence[Append], byte_count: int) -> None:
        """Keep the frame that ``appends`` became."""
        first_lsn = appends[0].first_lsn
        assert first_lsn is not None
        events = [event for append in appends for event in append.events]
        event_ids = b"".join([append.event_ids for append in appends])
        logged_at_ns = [append.logged_at_ns for append in appends for _ in append.events]
        frame = _TailFrame(first_lsn, byte_count, events, event_ids, logged_at_ns)
        with self._lock:
            self._frames.append(frame)
            self._first_lsns.append(first_lsn)
            self.byte_count += byte_count
            while self.byte_count > self._bytes_max:
                self.byte_count -= self._frames[self._head].byte_count
                self._frames[self._head] = _EMPTY
                self._head += 1
            if self._head > 64 and self._head * 2 > len(self._frames):
                del self._frames[: self._head]
                del self._first_lsns[: self._head]
                self._head = 0

    def clear(self) -> None:
        """Keep nothing of what is there now."""
        with self._lock:
            self._frames.clear()
            self._first_lsns.clear()
            self._head = 0
            self.byte_count = 0

    def read(self, from_lsn: int, events_max: int, bytes_max: int) -> list[StoredEvent] | None:
        """As :meth:`pixelmemory.log.file.file_log.FileLog.read`; None if ``from_lsn`` is not here."""
        taken: list[_TailFrame] = []
        events_left, bytes_left = events_max, bytes_max
        with self._lock:
            at = bisect_right(self._first_lsns, from_lsn, lo=self._head) - 1
            if at < self._head:
                return None
            for index in range(at, len(self._frames)):
                frame = self._frames[index]
                count = frame.first_lsn + len(frame.events) - max(from_lsn, frame.first_lsn)
                if count <= 0:
                    return None
                if taken and (count > events_left or frame.byte_count > bytes_left):
                    break
                taken.append(frame)
                events_left -= count
                bytes_left -= frame.byte_count
        return [event for frame in taken for event in _stored(frame, from_lsn)]


_EMPTY = _TailFrame(0, 0, (), b"", ())


def _stored(frame: _TailFrame, from_lsn: int) -> list[StoredEvent]:
    """The events of ``frame`` from ``from_lsn`` on."""
    ids = frame.event_ids
    return [
        StoredEvent(frame.first_lsn + index, ids[16 * index : 16 * index + 16], frame.logged_at_ns[index], event)
        for index, event in enumerate(frame.events)
        if frame.first_lsn + index >= from_lsn
    ]
