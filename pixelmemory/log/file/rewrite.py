"""Rewrite a whole log, with other events in the place of some, and put it in the place of the old one.

A frame names the checksum of the one before it, so none can be changed without those behind it. Two phases: what is
durable is copied while appends go on; the writer thread, between two commits, copies the rest and switches.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pixelmemory.errors import LogCorruptError
from pixelmemory.faults import fault_point
from pixelmemory.log.contract import StoredEvent
from pixelmemory.log.file.files import Buffer, Files, write_all
from pixelmemory.log.file.frame import Frame, FrameKind, frame_bytes, transform_records
from pixelmemory.log.file.segment import (
    SEGMENT_HEADER_BYTES,
    Place,
    Segment,
    SegmentHeader,
    new_header,
    pack_header,
    segment_name,
)
from pixelmemory.log.file.segment_writer import SegmentWriter
from pixelmemory.log.file.switch import LOG, NEW_LOG, remove_log
from pixelmemory.log.file.walk import SegmentFile
from pixelmemory.memory.events import Event

__all__ = ["NewLog", "Rewriting"]

_logger = logging.getLogger("pixelmemory.log")

#: the writer thread is asked for the rest when it is no more than this, or after so many rounds
REST_BYTES_MAX = 1 << 20
ROUNDS_MAX = 8


class NewLog:
    """A log in the making, in a folder of its own. Nothing of it counts before :meth:`finish` has returned.

    Args:
        files: the file operations.
        folder: empty.
        model: a segment header of the log that it replaces, for store and epoch.
        segment_bytes_max: as for appends.
    """

    def __init__(self, files: Files, folder: Path, model: SegmentHeader, segment_bytes_max: int) -> None:
        self._files = files
        self._folder = folder
        self._model = model
        self._segment_bytes_max = segment_bytes_max
        #: in LSN order
        self.segments: list[Segment] = []
        #: of the last of them
        self.writer: SegmentWriter | None = None
        self._fd: int | None = None

    @property
    def end(self) -> Place:
        """Where the next frame goes."""
        return Place(1, 0, 0) if self.writer is None else self.writer.end

    def add(self, frame: Frame, bodies: Sequence[Buffer]) -> None:
        """Append a frame: the header's fields of ``frame``, with other records."""
        size = frame_bytes(sum(map(len, bodies)))
        if self._fd is None:
            self._begin_segment()
        elif self.end.byte_offset > SEGMENT_HEADER_BYTES and self.end.byte_offset + size > self._segment_bytes_max:
            self._seal()
            self._begin_segment()
        assert self.writer is not None
        assert self._fd is not None
        header, place = frame.header, self.end.byte_offset
        data = self.writer.build(
            bodies, event_count=header.event_count, durable_lsn=header.durable_lsn, flags=header.flags
        )
        write_all(self._files, self._fd, data, place)
        self.writer.advance()
        self.segments[-1].end_bytes = self.end.byte_offset
        fault_point("rewrite.after_write")

    def sync(self) -> None:
        """Have what was written so far on the device, so that the last sync has little to do."""
        if self._fd is not None:
            self._files.sync(self._fd)

    def finish(self) -> int:
        """Seal the last segment, begin the active one behind it, sync everything. Returns its descriptor, now the
        caller's."""
        if self._fd is not None:
            self._seal()
        self._begin_segment()
        assert self._fd is not None
        self._files.sync(self._fd)
        fault_point("rewrite.after_sync")
        self._files.sync_folder(self._folder)
        fault_point("rewrite.after_folder_sync")
        fd, self._fd = self._fd, None
        return fd

    def close(self) -> None:
        """Close the descriptor, if it was not handed over. Idempotent."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with contextlib.suppress(OSError):
                self._files.close(fd)

    def _begin_segment(self) -> None:
        end, previous = self.end, len(self.segments)
        header = new_header(
            store_id=self._model.store_id,
            number=previous + 1,
            first_lsn=end.lsn,
            durable_lsn=end.lsn - 1,
            epoch=self._model.epoch,
            previous_bytes=end.byte_offset,
            previous_checksum=end.previous_checksum,
        )
        path = self._folder / segment_name(end.lsn)
        self._fd = self._files.open_new(path)
        write_all(self._files, self._fd, pack_header(header), 0)
        self.segments.append(Segment(path, header))
        self.writer = SegmentWriter(self.segments[-1])

    def _seal(self) -> None:
        """End the segment. One sync does for all of it, since nothing counts before the whole log is synced."""
        assert self._fd is not None
        assert self.writer is not None
        fault_point("rewrite.before_seal")
        write_all(self._files, self._fd, self.writer.mark(FrameKind.SEAL), self.end.byte_offset)
        self._files.sync(self._fd)
        fault_point("rewrite.after_segment_sync")
        fd, self._fd = self._fd, None
        self._files.close(fd)


class Rewriting:
    """One rewrite on its way: reads the published frames of ``segments`` and writes the new log.

    Args:
        files: the file operations.
        folder: the store's.
        segments: the log's list; segments may be added to it meanwhile.
        segment_bytes_max: as for appends.
        transform: gives what stands in the place of an event.
        check: called for each frame; what it raises ends the rewrite.

    Attributes:
        events_changed: so far.
    """

    def __init__(
        self,
        files: Files,
        folder: Path,
        segments: list[Segment],
        segment_bytes_max: int,
        transform: Callable[[StoredEvent], Event],
        check: Callable[[], None],
    ) -> None:
        self._files = files
        self._folder = folder
        self._segments = segments
        self._transform = transform
        self._check = check
        self.new = NewLog(files, folder / NEW_LOG, segments[-1].header, segment_bytes_max)
        self.events_changed = 0
        self._index = 0
        self._source: SegmentFile | None = None
        self._frames: Iterator[Frame | None] = iter(())

    def prepare(self) -> None:
        """Make the folder of the new log.

        Raises:
            OSError: it cannot be made.
        """
        fault_point("rewrite.before_create")
        self._files.make_folder(self._folder / NEW_LOG)
        self._files.sync_folder(self._folder)
        fault_point("rewrite.after_create")

    def copy_while_open(self, durable_lsn: Callable[[], int]) -> None:
        """Copy what is durable, and what becomes so meanwhile, until little is left; sync that.

        Raises:
            LogCorruptError, UnknownEventError: an event cannot be read.
            OSError: a file cannot be read or written.
        """
        for _ in range(ROUNDS_MAX):
            if self.copy(durable_lsn()) <= REST_BYTES_MAX:
                break
        self.new.sync()

    def copy(self, until_lsn: int) -> int:
        """Copy the frames up to ``until_lsn``, all of which are published. Returns their bytes.

        Raises:
            LogCorruptError, UnknownEventError, OSError: as :meth:`copy_while_open`.
        """
        byte_count = 0
        while self.new.end.lsn <= until_lsn:
            self._check()
            frame = self._next()
            bodies, changed = transform_records(frame, self._segments[self._index].path, self._transform)
            self.new.add(frame, bodies)
            self.events_changed += changed
            byte_count += frame.total_bytes
        return byte_count

    def _next(self) -> Frame:
        """The next frame with events; there must be one."""
        while True:
            segment = self._segments[self._index]
            if self._source is None:
                self._source = SegmentFile(self._files, segment.path)
                self._frames = self._source.frames(segment)
            frame = next(self._frames)
            if frame is not None and frame.header.event_count:
                return frame
            if frame is None:
                lsn = self.new.end.lsn
                if self._index + 1 == len(self._segments) or self._segments[self._index + 1].header.first_lsn != lsn:
                    raise LogCorruptError(segment.path, segment.end_bytes, lsn, "the segment ends before a durable LSN")
                self._close_source()
                self._index += 1

    def close(self) -> None:
        """Close what is open. Idempotent."""
        self._close_source()
        self.new.close()

    def _close_source(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            source.close()

    def remove(self) -> None:
        """Remove the new log, which is of no use, as far as that can be done; the next open does the rest."""
        try:
            if self._files.is_folder(self._folder / LOG):
                remove_log(self._files, self._folder / NEW_LOG)
        except OSError as error:
            _logger.warning("%s is left until the store is opened again: %s", self._folder / NEW_LOG, error)
