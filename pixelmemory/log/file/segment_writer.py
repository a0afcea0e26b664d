"""The chain of one segment: each frame that is made names the one before it."""

from __future__ import annotations

from collections.abc import Sequence

from pixelmemory.faults import fault_point
from pixelmemory.log.file.files import Buffer, Files, write_all
from pixelmemory.log.file.frame import FrameKind, build_frame
from pixelmemory.log.file.segment import Place, Segment, SegmentSyncError

__all__ = ["SegmentWriter"]


class SegmentWriter:
    """Makes the frames of ``segment``, one behind the other.

    Invariants: ``end`` is where the next frame goes, and has all that it must say of the one before it. It moves by
    :meth:`advance` alone, which the caller calls once the frame stands in the file, or is certain to.

    Args:
        segment: places to start a read at are noted in it as frames are added.
        end: None for a segment that holds nothing yet.
    """

    __slots__ = ("_next", "end", "segment")

    def __init__(self, segment: Segment, end: Place | None = None) -> None:
        self.segment = segment
        self.end = end or segment.index[0]
        #: where the frame that was built last ends
        self._next = self.end

    def __repr__(self) -> str:
        return f"<SegmentWriter {self.segment.path.name} end={self.end}>"

    def build(
        self, bodies: Sequence[Buffer], *, event_count: int, durable_lsn: int, flags: int, kind: int = FrameKind.EVENTS
    ) -> bytearray:
        """The next frame.

        Args:
            bodies: its records, in pieces.
            durable_lsn: the last LSN that is known to be synced.
        """
        end = self.end
        frame, checksum = build_frame(
            bodies,
            kind=kind,
            flags=flags,
            event_count=event_count,
            first_lsn=end.lsn,
            durable_lsn=durable_lsn,
            previous_checksum=end.previous_checksum,
            salt=self.segment.header.salt,
            byte_offset=end.byte_offset,
        )
        self._next = Place(end.lsn + event_count, end.byte_offset + len(frame), checksum)
        return frame

    def advance(self) -> None:
        """The frame that was built last has its place: the next one goes behind it."""
        self.segment.note(*self.end)
        self.end = self._next

    def mark(self, kind: int) -> bytearray:
        """A frame without events (``CLOSE``, ``SEAL``) that says that everything before it is synced."""
        return self.build((), kind=kind, event_count=0, durable_lsn=self.end.lsn - 1, flags=0)

    def write_mark(self, files: Files, fd: int, kind: int, point: str) -> None:
        """End the segment: write a mark at its end, cut off what follows, and sync.

        Everything before it must be synced already. ``point`` prefixes the fault points.

        Raises:
            SegmentSyncError: the sync failed.
            OSError: it could not be written.
        """
        mark = self.mark(kind)
        fault_point(point + ".before_write")
        write_all(files, fd, mark, self.end.byte_offset)
        fault_point(point + ".after_write")
        files.truncate(fd, self.end.byte_offset + len(mark))
        try:
            files.sync(fd)
        except OSError as error:
            raise SegmentSyncError(*error.args) from error
        fault_point(point + ".after_sync")
