"""Read what can be read of one segment, before and behind damage. Nothing is written."""

from __future__ import annotations

import enum
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from pixelmemory.errors import LogCorruptError, LogError, UnknownEventError
from pixelmemory.log.contract import StoredEvent
from pixelmemory.log.file.files import Files
from pixelmemory.log.file.frame import (
    FRAME_ALIGNMENT_BYTES,
    FRAME_HEADER_BYTES,
    FRAME_MAGIC,
    Frame,
    FrameHeader,
    FrameKind,
    decode_records,
    frame_bytes,
    parse_frame_header,
)
from pixelmemory.log.file.segment import SEGMENT_HEADER_BYTES, Place, Segment, SegmentHeader, parse_header, segment_name
from pixelmemory.log.file.verification import VerifiedLog
from pixelmemory.log.file.walk import CHUNK_BYTES, BadFrameError, SegmentFile

__all__ = [
    "LOOK_PAUSE_SECONDS",
    "Damage",
    "DamageKind",
    "DecodedFrame",
    "SegmentView",
    "Verdict",
    "view_segment",
    "walk_segment",
]

#: the owner of the store may be in the middle of the last frame: it is looked at again so often, with such a pause
LOOKS_MAX, LOOK_PAUSE_SECONDS = 4, 0.02

_NAME = re.compile(r"[0-9]{20}\.log")

#: what an open would say of the log: it is verified, or refused with this error; None where it cannot be asked
Verdict = VerifiedLog | LogError | None


class DamageKind(enum.Enum):
    """What damage means for the log."""

    #: no fault: the end of a frame that was never acknowledged; the next open sets it aside
    TORN = "torn"
    #: events are lost, or cannot be relied on
    EVENTS = "events"
    #: a segment's seal; every event is there
    SEAL = "seal"
    #: a file that is no part of the log
    STRAY = "stray"
    #: a segment under another name than its own
    NAME = "name"
    #: the MANIFEST alone
    MANIFEST = "manifest"
    #: no damage: a later version of pixelmemory wrote it
    LATER_VERSION = "later version"


class Damage(NamedTuple):
    """Something that is not as it should be."""

    kind: DamageKind
    path: Path
    #: where it starts, and how many bytes cannot be read
    byte_offset: int
    byte_count: int
    #: LSNs that are missing or unreadable, inclusive; None where it cannot be known
    first_lsn: int | None
    last_lsn: int | None
    reason: str


class DecodedFrame(NamedTuple):
    """One intact frame."""

    path: Path
    byte_offset: int
    total_bytes: int
    header: FrameHeader
    #: empty for a mark (a seal, or that of a clean close)
    events: list[StoredEvent]


class SegmentView:
    """One file of the log as it was found."""

    def __init__(
        self, path: Path, size_bytes: int, header: SegmentHeader | None, error: LogCorruptError | None
    ) -> None:
        self.path = path
        self.size_bytes = size_bytes
        #: None where it is damaged; then ``error`` says how
        self.header = header
        self.error = error
        #: the LSN it is sorted by: its header's, else its name's; 0 where neither tells
        self.first_lsn = 0
        if header is not None:
            self.first_lsn = header.first_lsn
        elif _NAME.fullmatch(path.name):
            self.first_lsn = int(path.name[:20])
        #: after the walk: where its good frames end; None if it was left out, or if nothing readable reaches the next
        #: segment
        self.end: Place | None = None
        #: after the walk: whether its last frame is a seal
        self.sealed = False
        #: how often bad bytes at its end may be looked at again
        self.looks_left = LOOKS_MAX

    def __repr__(self) -> str:
        return f"<SegmentView {self.path.name} size_bytes={self.size_bytes} end={self.end} sealed={self.sealed}>"

    @property
    def right_path(self) -> Path:
        """The name it should have, in its folder."""
        return self.path.with_name(segment_name(self.first_lsn))


def view_segment(files: Files, path: Path) -> SegmentView:
    """Look at the header of a file of the log.

    Raises:
        OSError: it cannot be read.
    """
    with SegmentFile(files, path) as file:
        size = file.size()
        try:
            return SegmentView(path, size, parse_header(file.header_bytes(), path), None)
        except LogCorruptError as error:
            return SegmentView(path, size, None, error)


def walk_segment(
    files: Files, view: SegmentView, following: SegmentView | None, verdict: Callable[[], Verdict]
) -> Iterator[DecodedFrame | Damage]:
    """Every intact frame of a segment, and its damage, in order; completes ``view``.

    Args:
        files: the file operations.
        view: the segment.
        following: the one after it, or None for the last.
        verdict: asked only where bad bytes may be a torn tail.

    Raises:
        OSError: it cannot be read.
    """
    with SegmentFile(files, view.path) as file:
        # the owner may have replaced a small last segment meanwhile: header and frames must be of one file
        view.size_bytes = file.size()
        try:
            view.header, view.error = parse_header(file.header_bytes(), view.path), None
        except LogCorruptError as error:
            view.header, view.error = None, error
        yield from _Walk(file, view, following, verdict).items()


class _Walk:
    """One walk through one open segment."""

    def __init__(
        self,
        file: SegmentFile,
        view: SegmentView,
        following: SegmentView | None,
        verdict: Callable[[], Verdict],
    ) -> None:
        self.file = file
        self.view = view
        self.following = following
        self.verdict = verdict

    def items(self) -> Iterator[DecodedFrame | Damage]:
        header = self.view.header
        if header is not None:
            segment = self._segment(header)
            place: Place | None = Place(header.first_lsn, SEGMENT_HEADER_BYTES, header.checksum)
        else:
            first = self._find_any_frame()
            yield self._bad_header(readable=first is not None)
            if first is None:
                return
            # the salt is all that the walk needs of a segment's header, and it stands in every frame
            segment = self._segment(SegmentHeader(uuid.UUID(int=0), 0, first.first_lsn, 0, 0, 0, first.salt, 0, 0, 0))
            place = self._resume(segment, 0, 0)
        yield from self._frames(segment, place)
        if self.following is not None and self.view.end is not None:
            after = self.following.header
            if after is None or after.previous_bytes == self.view.end.byte_offset:
                yield from self._seal(segment, self.view.end)

    def _segment(self, header: SegmentHeader) -> Segment:
        segment = Segment(self.view.path, header, self.view.size_bytes)
        after = self.following.header if self.following is not None else None
        if after is not None and after.number == header.number + 1:
            # what stands beyond is a seal, or superseded
            segment.end_bytes = min(segment.end_bytes, after.previous_bytes)
        return segment

    # -- frames

    def _frames(self, segment: Segment, place: Place | None) -> Iterator[DecodedFrame | Damage]:
        last = self.following is None
        end = place  # of the frames, a seal left out
        while place is not None:
            try:
                for frame in self.file.walk(segment, place):
                    if frame is None:
                        break
                    place = Place(frame.last_lsn + 1, frame.byte_offset + frame.total_bytes, frame.header.checksum)
                    self.view.sealed = frame.header.kind == FrameKind.SEAL
                    end = end if self.view.sealed else place
                    yield self._decoded(frame)
                self.view.end = end
                return
            except BadFrameError as bad:
                if last and self.file.only_zeros(bad.byte_offset, self.file.size()):
                    self.view.end = end  # they were written ahead, and not used
                    return
                if last and self.view.looks_left:
                    self.view.looks_left -= 1
                    time.sleep(LOOK_PAUSE_SECONDS)
                    self.view.size_bytes = segment.end_bytes = self.file.size()
                    continue
                start = bad.byte_offset + (0 if bad.foreign else FRAME_HEADER_BYTES)
                then = self._resume(segment, start, bad.lsn)
                yield self._bad_bytes(segment, bad, then)
                if then is None and last:
                    self.view.end = end
                place = end = then

    def _decoded(self, frame: Frame) -> DecodedFrame | Damage:
        view = self.view
        try:
            return DecodedFrame(
                view.path, frame.byte_offset, frame.total_bytes, frame.header, decode_records(frame, view.path)
            )
        except UnknownEventError as error:
            kind, reason = DamageKind.LATER_VERSION, str(error)
        except LogCorruptError as error:
            kind, reason = DamageKind.EVENTS, error.reason
        except RecursionError:
            kind, reason = DamageKind.EVENTS, "the payload is nested too deeply"
        first_lsn = frame.header.first_lsn
        return Damage(kind, view.path, frame.byte_offset, frame.total_bytes, first_lsn, frame.last_lsn, reason)

    def _resume(self, segment: Segment, start: int, lsn_min: int) -> Place | None:
        """The next frame that is intact, its body included."""
        end = segment.end_bytes
        for byte_offset, header in self.file.frame_headers(segment, start, end, lsn_min):
            total_bytes = frame_bytes(header.body_bytes)
            if byte_offset + total_bytes <= end:
                data = self.file.read(total_bytes, byte_offset)
                if not header.body_bytes or crc32(memoryview(data)[FRAME_HEADER_BYTES:]) == header.body_checksum:
                    return Place(header.first_lsn, byte_offset, header.previous_checksum)
        return None

    def _find_any_frame(self) -> FrameHeader | None:
        """The first intact frame header, whatever its salt."""
        for chunk_at in range(0, self.view.size_bytes, CHUNK_BYTES):
            chunk = self.file.read(CHUNK_BYTES, chunk_at)
            found = chunk.find(FRAME_MAGIC)
            while found >= 0 and found + FRAME_HEADER_BYTES <= len(chunk):
                salt = int.from_bytes(chunk[found + 40 : found + 48], "little")
                if found % FRAME_ALIGNMENT_BYTES == 0 and (header := parse_frame_header(chunk, found, salt)):
                    return header
                found = chunk.find(FRAME_MAGIC, found + 1)
        return None

    # -- damage

    def _bad_header(self, *, readable: bool) -> Damage:
        view = self.view
        assert view.error is not None
        kind, reason = DamageKind.EVENTS, view.error.reason
        if view.error.byte_offset:
            kind = DamageKind.LATER_VERSION
        elif self.following is None and isinstance(verdict := self.verdict(), VerifiedLog) and verdict.torn_segment:
            kind, reason = DamageKind.TORN, "its creation was interrupted"
        lost = SEGMENT_HEADER_BYTES if readable else view.size_bytes
        return Damage(kind, view.path, 0, lost, None, None, reason)

    def _bad_bytes(self, segment: Segment, bad: BadFrameError, then: Place | None) -> Damage:
        kind, end, last_lsn = DamageKind.EVENTS, segment.end_bytes, None
        if then is not None:
            end, last_lsn = then.byte_offset, then.lsn - 1
        elif self.following is not None:
            last_lsn = self.following.first_lsn - 1
        else:
            if bad.header is not None and not bad.foreign:
                last_lsn = bad.header.first_lsn + bad.header.event_count - 1
            if isinstance(self.verdict(), VerifiedLog):
                kind = DamageKind.TORN
        return Damage(kind, self.view.path, bad.byte_offset, end - bad.byte_offset, bad.lsn, last_lsn, bad.reason)

    def _seal(self, segment: Segment, end: Place) -> Iterator[Damage]:
        """Look at what follows the last frame of a segment that has a successor."""
        view = self.view
        view.sealed = False
        if view.size_bytes == end.byte_offset + FRAME_HEADER_BYTES:
            whole = Segment(view.path, segment.header, view.size_bytes)
            try:
                frame = next(self.file.walk(whole, end))
                view.sealed = frame is not None and frame.header.kind == FrameKind.SEAL
            except BadFrameError:
                pass
        if view.sealed:
            return
        verdict = self.verdict()  # an open may have been interrupted before it sealed: that is no damage
        refused = (verdict.path.name, verdict.byte_offset) if isinstance(verdict, LogCorruptError) else None
        if isinstance(verdict, LogCorruptError) and refused == (view.right_path.name, end.byte_offset):
            count = view.size_bytes - end.byte_offset
            yield Damage(DamageKind.SEAL, view.path, end.byte_offset, count, None, None, verdict.reason)
