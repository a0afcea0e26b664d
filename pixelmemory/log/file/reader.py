"""Read durable events back from the segments. Every checksum is verified again."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from pixelmemory.errors import LogCorruptError, StoreError
from pixelmemory.log.contract import StoredEvent
from pixelmemory.log.file.files import Files
from pixelmemory.log.file.frame import Frame, decode_records
from pixelmemory.log.file.segment import Place, Segment
from pixelmemory.log.file.walk import SegmentFile

__all__ = ["SegmentReader"]

#: sequential readers that can go on where they stopped; one more makes the longest idle one start again
POSITIONS_MAX = 4


class _Position:
    """A reader's place in a segment."""

    __slots__ = ("file", "frames", "pending", "segment")

    def __init__(self, segment: Segment, file: SegmentFile, place: Place) -> None:
        self.segment = segment
        self.file = file
        self.frames: Iterator[Frame | None] = file.frames(segment, place)
        #: a frame that was read and did not fit any more; it comes next
        self.pending: Frame | None = None


class SegmentReader:
    """Reads from ``segments``, a list that the log appends to as it rotates. Thread-safe; one read at a time.

    A read that starts where an earlier one ended goes on from there, without a search.

    Args:
        files: the file operations. Those of an open store hold its folder, so that a folder that was moved is read
            where it is now, and another store in its place is not read at all.
        segments: see above.
        check_folder: raises an OSError where the path of the store leads elsewhere.
    """

    def __init__(self, files: Files, segments: list[Segment], check_folder: Callable[[], None]) -> None:
        self._files = files
        self._segments = segments
        self._check_folder = check_folder
        self._lock = Lock()
        #: next LSN -> where it stands
        self._positions: OrderedDict[int, _Position] = OrderedDict()

    def read(self, from_lsn: int, durable_lsn: int, events_max: int, bytes_max: int) -> list[StoredEvent]:
        """As :meth:`pixelmemory.log.file.file_log.FileLog.read`.

        Raises:
            LogCorruptError, UnknownEventError: what stands there cannot be given out.
            StoreError: a segment cannot be opened, because the store's folder is gone from where it was.
        """
        with self._lock:
            events: list[StoredEvent] = []
            next_lsn = from_lsn
            bytes_left = bytes_max
            position = self._positions.pop(from_lsn, None)
            try:
                while next_lsn <= durable_lsn:
                    if position is None:
                        position = self._open(next_lsn)
                    frame = self._next(position, next_lsn)
                    if frame is None:  # the segment's end
                        position.file.close()
                        position = None
                        position = self._open(next_lsn)
                        continue
                    count = frame.last_lsn + 1 - next_lsn
                    if count <= 0:
                        continue
                    byte_count = frame.header.body_bytes
                    if events and (len(events) + count > events_max or byte_count > bytes_left):
                        position.pending = frame
                        break
                    decoded = decode_records(frame, position.segment.path)
                    events += decoded if count == len(decoded) else decoded[-count:]
                    bytes_left -= byte_count
                    next_lsn += count
                    if len(events) >= events_max or bytes_left <= 0:
                        break
            except BaseException:
                if position is not None:
                    position.file.close()
                raise
            if position is not None:
                self._keep(next_lsn, position)
            return events

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No read runs meanwhile; those that come later begin with a search, in what ``segments`` holds then."""
        with self._lock:
            try:
                yield
            finally:
                while self._positions:
                    self._positions.popitem()[1].file.close()

    def close(self) -> None:
        """Close every descriptor. Idempotent."""
        with self._lock:
            while self._positions:
                self._positions.popitem()[1].file.close()

    def _open(self, lsn: int) -> _Position:
        segment = self._segment_of(lsn)
        place = segment.index[bisect_right(segment.index, lsn, key=lambda p: p.lsn) - 1]
        try:
            file = SegmentFile(self._files, segment.path)
        except OSError as error:
            self._check_moved(error)
            raise LogCorruptError(segment.path, 0, segment.header.first_lsn, f"cannot be opened: {error}") from error
        return _Position(segment, file, place)

    def _check_moved(self, error: OSError) -> None:
        """Raise if it is no damage: the folder is gone from where it was, and its files with it."""
        try:
            self._check_folder()
        except OSError as moved:
            raise StoreError(f"the log cannot be read: {error}; {moved}") from error

    def _segment_of(self, lsn: int) -> Segment:
        return self._segments[bisect_right(self._segments, lsn, key=lambda s: s.header.first_lsn) - 1]

    def _next(self, position: _Position, lsn: int) -> Frame | None:
        """The position's next frame, or None at the end of its segment."""
        path = position.segment.path
        try:
            frame, position.pending = position.pending or next(position.frames), None
        except OSError as error:
            raise LogCorruptError(path, 0, lsn, f"cannot be read: {error}") from error
        if frame is None and self._segment_of(lsn) is position.segment:
            raise LogCorruptError(path, position.segment.end_bytes, lsn, "the segment ends before a durable LSN")
        return frame

    def _keep(self, next_lsn: int, position: _Position) -> None:
        if (old := self._positions.pop(next_lsn, None)) is not None:
            old.file.close()
        self._positions[next_lsn] = position
        while len(self._positions) > POSITIONS_MAX:
            self._positions.popitem(last=False)[1].file.close()
