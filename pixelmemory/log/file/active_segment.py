"""The active segment: write frames, sync, rotate. Used by the writer thread alone."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pixelmemory.errors import LogError, LogWriteError, UnknownOutcomeError
from pixelmemory.faults import fault_point
from pixelmemory.log.file.append import Append
from pixelmemory.log.file.files import Files, write_all
from pixelmemory.log.file.frame import FLAG_SYNCED_EACH, FrameKind, frame_bytes
from pixelmemory.log.file.recovery import ReadyLog
from pixelmemory.log.file.segment import (
    SEGMENT_HEADER_BYTES,
    Segment,
    SegmentHeader,
    SegmentSyncError,
    create_segment,
    new_header,
    segment_name,
)
from pixelmemory.log.file.segment_writer import SegmentWriter

__all__ = ["ActiveSegment"]

#: zeros are written this far ahead of small frames: a sync that need not record a new file length is two to four times
#: as fast on ext4 (measured: 3,200 against 1,300 syncs a second with frames of 384 bytes)
RESERVE_BYTES = 256 * 1024
#: larger frames gain nothing from it
RESERVED_FRAME_BYTES_MAX = 64 * 1024
#: of zeros in one write of a probe
PROBE_WRITE_BYTES = 1 << 20

_logger = logging.getLogger("pixelmemory.log")


class ActiveSegment:
    """Appends to the last of ``segments``, and adds to the list when it rotates.

    Invariants: everything before the end of ``_writer`` is whole frames. Once ``broken`` is set,
    the descriptor is neither written nor synced again. With ``sync_each`` the caller syncs after each frame. A segment
    is made only after ``check_folder`` has found the store's folder where it was (it raises an OSError otherwise).
    """

    def __init__(
        self,
        files: Files,
        ready: ReadyLog,
        *,
        segment_bytes_max: int,
        sync_each: bool,
        check_folder: Callable[[], None] = lambda: None,
    ) -> None:
        self._files = files
        self._check_folder = check_folder
        self._segments = ready.segments
        self._fd: int | None = ready.fd
        self._writer = ready.writer
        self._segment_bytes_max = segment_bytes_max
        self._flags = FLAG_SYNCED_EACH if sync_each else 0
        #: size of the last frame that was tried
        self._tried_bytes = 0
        #: the segment is written with zeros up to here; nothing is reserved where a sync is rare
        self._reserved_bytes = self._writer.end.byte_offset
        self._reserves = self._may_reserve = sync_each
        #: last LSN whose sync returned
        self.synced_lsn = self.last_lsn
        #: a sync, or what must not fail half-way, failed
        self.broken = False
        self.syncs = 0
        self.sync_seconds = 0.0
        self.rotations = 0
        self.frames = 0
        self.bytes_written = 0

    def __repr__(self) -> str:
        return f"<ActiveSegment next_lsn={self._writer.end.lsn} synced_lsn={self.synced_lsn} broken={self.broken}>"

    @property
    def next_lsn(self) -> int:
        """LSN of the next event."""
        return self._writer.end.lsn

    @property
    def last_lsn(self) -> int:
        """LSN of the last event that was written."""
        return self._writer.end.lsn - 1

    def write(self, appends: Sequence[Append]) -> int:
        """Write ``appends``, whose LSNs are set, as one frame. Returns the bytes of its records.

        Raises:
            LogWriteError: nothing was recorded, and ``broken`` says whether later writes can be tried.
            UnknownOutcomeError: it may have been; ``broken`` is set.
        """
        body_bytes = sum(append.byte_count for append in appends)
        self._tried_bytes = frame_bytes(body_bytes)
        self._make_room_in_segment()
        assert self._fd is not None
        place = self._writer.end.byte_offset
        frame = self._writer.build(
            [append.body for append in appends],
            event_count=sum(append.event_count for append in appends),
            durable_lsn=self.synced_lsn,
            flags=self._flags,
        )
        if self._reserves and len(frame) <= RESERVED_FRAME_BYTES_MAX:
            self._reserve(place + len(frame))
        fault_point("frame.before_write")
        try:
            write_all(self._files, self._fd, frame, place)
        except OSError as error:
            raise self._undo(error) from error
        fault_point("frame.after_write")
        self._writer.advance()
        self.frames += 1
        self.bytes_written += len(frame)
        return body_bytes

    def _make_room_in_segment(self) -> None:
        """Go on in a new segment if the frame that is tried does not fit into the active one."""
        end_bytes = self._writer.end.byte_offset
        if end_bytes > SEGMENT_HEADER_BYTES and end_bytes + self._tried_bytes > self._segment_bytes_max:
            self._rotate()

    def probe(self) -> None:
        """See whether the frame that failed last would be written now: make its segment, fill its place with zeros.

        They are what is reserved there anyway, so the next frame of that size has its room. What cannot be filled is
        given back: the room on a disk that is almost full belongs to others too.

        Raises:
            LogWriteError: not yet. ``broken`` says whether it may be tried again.
        """
        assert not self.broken
        self.check_folder()
        self._make_room_in_segment()
        assert self._fd is not None
        start = self._writer.end.byte_offset
        end_bytes = start + self._tried_bytes
        try:
            for at in range(start, end_bytes, PROBE_WRITE_BYTES):
                write_all(self._files, self._fd, bytes(min(PROBE_WRITE_BYTES, end_bytes - at)), at)
        except OSError as error:
            with contextlib.suppress(OSError):  # zeros may stay
                self._files.truncate(self._fd, max(start, self._reserved_bytes))
            raise _not_written(error) from error
        self._reserved_bytes = max(end_bytes, self._reserved_bytes)
        self._reserves = self._may_reserve

    def check_folder(self) -> None:
        """Check that the store's folder is where it was.

        Raises:
            LogWriteError: it is not.
        """
        try:
            self._check_folder()
        except OSError as error:
            raise LogWriteError(f"the log cannot be written: {error}. Nothing was recorded") from error

    def _reserve(self, end_bytes: int) -> None:
        """Have zeros written beyond ``end_bytes``, within the segment's size."""
        if end_bytes <= self._reserved_bytes:
            return
        assert self._fd is not None
        start = max(self._writer.end.byte_offset, self._reserved_bytes)
        count = min(start + RESERVE_BYTES, max(self._segment_bytes_max, end_bytes)) - start
        try:
            write_all(self._files, self._fd, bytes(count), start)
            self._reserved_bytes = start + count
        except OSError as error:  # it is only for speed: the frame is tried all the same
            self._reserves = False
            _logger.info("no room is reserved in the log any more: %s", error)

    def publish(self) -> None:
        """Let readers see what was written."""
        self._segments[-1].end_bytes = self._writer.end.byte_offset

    def sync(self) -> None:
        """Make everything that was written durable.

        Raises:
            UnknownOutcomeError: the flush failed. The kernel may have dropped the bytes and call the pages clean, so a
                later flush would prove nothing (PostgreSQL's fsync bug of 2018); ``broken`` is set.
        """
        assert self._fd is not None
        self._sync(self._fd)
        fault_point("frame.after_sync")
        self.synced_lsn = self.last_lsn

    def _sync(self, fd: int) -> None:
        started = time.perf_counter()
        try:
            self._files.sync(fd)
        except OSError as error:
            self.broken = True
            raise UnknownOutcomeError(
                f"the log could not be flushed: {error}. What was being written may or may not be recorded; reopen the "
                "store, then retry with the same ids"
            ) from error
        self.syncs += 1
        self.sync_seconds += time.perf_counter() - started

    def _undo(self, error: OSError) -> LogError:
        """Remove a frame that was written in part, durably. Returns what to raise."""
        assert self._fd is not None
        place = self._writer.end.byte_offset
        try:
            fault_point("undo.before_truncate")
            self._files.truncate(self._fd, place)
            if (size := self._files.size(self._fd)) != place:
                raise OSError(f"the segment has {size} bytes after it was cut to {place}")
            fault_point("undo.after_truncate")
            self._sync(self._fd)
            fault_point("undo.after_sync")
        except (OSError, UnknownOutcomeError) as second:
            self.broken = True
            return UnknownOutcomeError(
                f"a write to the log failed ({error}), and so did its removal ({second}). It may or may "
                "not be recorded. Reopen the store, then retry with the same ids"
            )
        self.synced_lsn = self.last_lsn
        self._reserved_bytes = place
        return _not_written(error)

    def _rotate(self) -> None:
        """Go on in a new segment.

        The order matters: everything in the old one is synced, then the new one exists, then the old one is sealed, and
        only then is a frame written to the new one.

        Raises:
            LogWriteError, UnknownOutcomeError: as :meth:`write`.
        """
        self.check_folder()
        old, end = self._segments[-1], self._writer.end
        if self.synced_lsn < self.last_lsn:
            self.sync()
        header = new_header(
            store_id=old.header.store_id,
            number=old.header.number + 1,
            first_lsn=end.lsn,
            durable_lsn=self.last_lsn,
            epoch=old.header.epoch,
            previous_bytes=end.byte_offset,
            previous_checksum=end.previous_checksum,
        )
        path = old.path.with_name(segment_name(end.lsn))
        fd = self._create(path, header)
        assert self._fd is not None
        try:
            self._writer.write_mark(self._files, self._fd, FrameKind.SEAL, "seal")
        except OSError as error:
            self.broken = isinstance(error, SegmentSyncError) or not self._undo_rotation(error, path)
            with contextlib.suppress(OSError):
                self._files.close(fd)
            raise LogWriteError(
                f"segment {old.path.name} could not be sealed: {error}. Nothing was recorded; make room"
            ) from error
        self.syncs += 2
        with contextlib.suppress(OSError):  # it is synced, and nothing more is written to it
            self._files.close(self._fd)
        self._fd = fd
        self._segments.append(Segment(path, header))
        self._writer = SegmentWriter(self._segments[-1])
        self._reserved_bytes = SEGMENT_HEADER_BYTES
        self.rotations += 1

    def _undo_rotation(self, error: OSError, path: Path) -> bool:
        """Remove a seal that could not be written, then the segment it was for. Returns whether that is durable."""
        self._undo(error)
        if not self.broken:
            try:
                self._files.unlink(path)
                self._files.sync_folder(path.parent)
            except OSError:
                return False
        return not self.broken

    def _create(self, path: Path, header: SegmentHeader) -> int:
        try:
            return create_segment(self._files, path, header)
        except SegmentSyncError as error:
            self.broken = True
            raise LogWriteError(
                f"segment {path.name} could not be made durable: {error}. Nothing was recorded"
            ) from error
        except OSError as error:
            raise LogWriteError(f"a new segment could not be made: {error}. Nothing was recorded; make room") from error

    def move_to(self, segments: list[Segment], fd: int, writer: SegmentWriter) -> None:
        """Go on with ``writer`` in the last of ``segments``, another log with the same LSNs, all of it synced."""
        assert writer.end.lsn == self._writer.end.lsn
        old, self._fd = self._fd, fd
        self._segments[:] = segments
        self._writer = writer
        self._reserved_bytes = writer.end.byte_offset
        self.synced_lsn = self.last_lsn
        if old is not None:
            with contextlib.suppress(OSError):  # nothing in it counts any more
                self._files.close(old)

    def close(self) -> None:
        """Sync, attest with a closing frame, close the descriptor. Idempotent.

        Raises:
            UnknownOutcomeError: what the relaxed sync modes acknowledged could not be flushed.
        """
        if self._fd is None:
            return
        try:
            if not self.broken:
                if self.synced_lsn < self.last_lsn:
                    self.sync()
                self._attest()
        finally:
            fd, self._fd = self._fd, None
            with contextlib.suppress(OSError):  # everything that matters was synced, or has failed already
                self._files.close(fd)

    def _attest(self) -> None:
        assert self._fd is not None
        try:
            self._writer.write_mark(self._files, self._fd, FrameKind.CLOSE, "close")
        except OSError as error:
            # every event is durable; the next open only has to look at the last frame again
            _logger.warning("the log was closed without its closing mark: %s", error)


def _not_written(error: OSError) -> LogWriteError:
    return LogWriteError(f"the log could not be written: {error}. Nothing was recorded; make room, then try again")
