"""The newest frames, kept decoded for the projector."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from threading import Lock
from typing import NamedTuple

from pixelmemory.events import Event
from pixelmemory.log.append import Append
from pixelmemory.log.record import StoredEvent

__all__ = ["Tail"]


class _Part(NamedTuple):
    """The events of one append."""

    events: Sequence[Event]
    event_ids: bytes
    logged_at_ns: int


class _TailFrame(NamedTuple):
    first_lsn: int
    event_count: int
    byte_count: int
    parts: tuple[_Part, ...]


class Tail:
    """Frames of the newest ``bytes_max`` encoded bytes; the oldest leave as new ones come. Thread-safe.

    Invariant: the frames are consecutive and the last of them ends at the durable LSN.
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
        parts = tuple(_Part(a.events, a.event_ids, a.logged_at_ns) for a in appends)
        frame = _TailFrame(first_lsn, sum(a.event_count for a in appends), byte_count, parts)
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

    def read(self, from_lsn: int, events_max: int, bytes_max: int) -> list[StoredEvent] | None:
        """As :meth:`pixelmemory.log.Log.read`; None if ``from_lsn`` is not here."""
        taken: list[_TailFrame] = []
        events_left, bytes_left = events_max, bytes_max
        with self._lock:
            at = bisect_right(self._first_lsns, from_lsn, lo=self._head) - 1
            if at < self._head:
                return None
            for index in range(at, len(self._frames)):
                frame = self._frames[index]
                count = frame.first_lsn + frame.event_count - max(from_lsn, frame.first_lsn)
                if count <= 0:
                    return None
                if taken and (count > events_left or frame.byte_count > bytes_left):
                    break
                taken.append(frame)
                events_left -= count
                bytes_left -= frame.byte_count
        return [event for frame in taken for event in _stored(frame) if event.lsn >= from_lsn]


_EMPTY = _TailFrame(0, 0, 0, ())


def _stored(frame: _TailFrame) -> list[StoredEvent]:
    stored: list[StoredEvent] = []
    lsn = frame.first_lsn
    for events, event_ids, logged_at_ns in frame.parts:
        for index, event in enumerate(events):
            stored.append(StoredEvent(lsn, event_ids[16 * index : 16 * index + 16], logged_at_ns, event))
            lsn += 1
    return stored
