"""Walk the frames of one segment in order, every checksum verified.

:class:`SegmentFile` is the one way to them: it opens the file, walks it, says what is wrong, and closes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self
from zlib import crc32

from pixelmemory.errors import LogCorruptError
from pixelmemory.log.file.files import Files
from pixelmemory.log.file.frame import (
    FRAME_ALIGNMENT_BYTES,
    FRAME_HEADER_BYTES,
    FRAME_MAGIC,
    Frame,
    FrameHeader,
    FrameKind,
    frame_bytes,
    parse_frame_header,
)
from pixelmemory.log.file.runs import FrameRun, find_run
from pixelmemory.log.file.segment import SEGMENT_HEADER_BYTES, Place, Segment

__all__ = ["BadFrameError", "SegmentFile"]

CHUNK_BYTES = 1 << 20


class BadFrameError(Exception):
    """Bytes that are not the frame that should stand there. Internal: callers turn it into LogCorruptError, or decide
    that it is a torn tail.

    Attributes:
        byte_offset: where the frame should start.
        lsn: its first LSN.
        reason: what is wrong.
        header: its header, where that is intact; None otherwise.
        foreign: the frame is intact and does not belong here.
    """

    def __init__(
        self, byte_offset: int, lsn: int, reason: str, header: FrameHeader | None = None, *, foreign: bool = False
    ) -> None:
        super().__init__(f"byte {byte_offset}, LSN {lsn}: {reason}")
        self.byte_offset = byte_offset
        self.lsn = lsn
        self.reason = reason
        self.header = header
        self.foreign = foreign


class _Window:
    """A part of a file in memory, moved forward as it is asked for. Holds one chunk, or one frame if that is larger."""

    __slots__ = ("_buffer", "_chunk_bytes", "_fd", "_files", "_start")

    def __init__(self, files: Files, fd: int, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._files = files
        self._fd = fd
        self._chunk_bytes = chunk_bytes
        self._start = 0
        self._buffer = memoryview(b"")

    def view(self, byte_offset: int, count: int, end: int) -> tuple[memoryview, int]:
        """A buffer that holds ``count`` bytes from ``byte_offset``, and where in it they start.

        Nothing beyond ``end`` is read. The buffer may be short where the file is.
        """
        at = byte_offset - self._start
        if at < 0 or at + count > len(self._buffer):
            wanted = min(max(count, self._chunk_bytes), end - byte_offset)
            parts: list[bytes] = []
            got = 0
            while got < wanted and (part := self._files.read(self._fd, wanted - got, byte_offset + got)):
                parts.append(part)
                got += len(part)
            self._buffer = memoryview(parts[0] if len(parts) == 1 else b"".join(parts))
            self._start = byte_offset
            at = 0
        return self._buffer, at


def _walk_frames(
    window: _Window, segment: Segment, place: Place, on_run: Callable[[FrameRun], None] | None = None
) -> Iterator[Frame | None]:
    """The frames of ``segment`` from ``place`` to its ``end_bytes``; then None, and more when that has grown.

    With ``on_run``, frames of one event each whose records are in order as well are not yielded but given to it, many
    at a time; a frame always comes after them.

    Raises:
        BadFrameError: at the first frame that is damaged or does not belong there.
    """
    lsn, byte_offset, checksum = place
    salt = segment.header.salt
    view = window.view
    buffer, start = memoryview(b""), 0
    filled = False
    while True:
        end = segment.end_bytes
        if byte_offset >= end:
            yield None
            continue
        if end - byte_offset < FRAME_HEADER_BYTES:
            raise BadFrameError(byte_offset, lsn, f"{end - byte_offset} bytes are too short for a frame header")
        at = byte_offset - start
        if at + FRAME_HEADER_BYTES > len(buffer):
            buffer, at = view(byte_offset, FRAME_HEADER_BYTES, end)
            start = byte_offset - at
            filled = True
        if len(buffer) - at < FRAME_HEADER_BYTES:
            raise BadFrameError(byte_offset, lsn, "the file ends before its frame does")
        if filled and on_run is not None:  # once for each part of the file that was read
            filled = False
            run = find_run(buffer, at, min(len(buffer), end - start), salt, Place(lsn, byte_offset, checksum))
            if run is not None:
                on_run(run)
                lsn, byte_offset, checksum = run.end
                continue
        header = parse_frame_header(buffer, at, salt)
        if header is None:
            raise BadFrameError(byte_offset, lsn, "the frame header fails its checksum")
        total_bytes = frame_bytes(header.body_bytes)
        if byte_offset + total_bytes > end:
            short = f"the frame is short: {end - byte_offset} of {total_bytes} bytes"
            raise BadFrameError(byte_offset, lsn, short, header)
        if header.first_lsn != lsn or header.previous_checksum != checksum:
            other = f"a frame of LSN {header.first_lsn} that does not follow the one before it"
            raise BadFrameError(byte_offset, lsn, other, header, foreign=True)
        if header.body_bytes:
            if at + total_bytes > len(buffer):
                buffer, at = view(byte_offset, total_bytes, end)
                start = byte_offset - at
                filled = True
            if crc32(buffer[at + FRAME_HEADER_BYTES : at + total_bytes]) != header.body_checksum:
                raise BadFrameError(byte_offset, lsn, "the frame fails its checksum", header)
        yield Frame(byte_offset, header, total_bytes, buffer, at + FRAME_HEADER_BYTES)
        if header.kind != FrameKind.EVENTS:  # nothing may follow: the caller sees whether something does
            on_run = None
        lsn += header.event_count
        checksum = header.checksum
        byte_offset += total_bytes


def _find_frame_headers(
    window: _Window, segment: Segment, start: int, end: int, lsn_min: int
) -> Iterator[tuple[int, FrameHeader]]:
    """Every intact frame header of this segment from ``start`` to ``end`` whose first LSN is at least ``lsn_min``, with
    its byte offset. For what lies beyond damage; the bodies are not looked at."""
    byte_offset = -(-start // FRAME_ALIGNMENT_BYTES) * FRAME_ALIGNMENT_BYTES
    while byte_offset + FRAME_HEADER_BYTES <= end:
        buffer, at = window.view(byte_offset, FRAME_HEADER_BYTES, end)
        chunk = bytes(buffer[at:])
        found = chunk.find(FRAME_MAGIC)
        while found >= 0 and found + FRAME_HEADER_BYTES <= len(chunk):
            if found % FRAME_ALIGNMENT_BYTES == 0:
                header = parse_frame_header(chunk, found, segment.header.salt)
                if header is not None and header.first_lsn >= lsn_min:
                    yield byte_offset + found, header
            found = chunk.find(FRAME_MAGIC, found + 1)
        if len(chunk) < FRAME_ALIGNMENT_BYTES:
            return
        byte_offset += len(chunk) // FRAME_ALIGNMENT_BYTES * FRAME_ALIGNMENT_BYTES


class SegmentFile:
    """The file of one segment, open for reading. To be closed, or used in a ``with``.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, files: Files, path: Path) -> None:
        self.path = path
        self._files = files
        self._fd: int | None = files.open_read(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _open_fd(self) -> int:
        assert self._fd is not None, "the file was closed"
        return self._fd

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with suppress(OSError):  # it was only read, and it is closed even so
                self._files.close(fd)

    def size(self) -> int:
        """Of the file, in bytes."""
        return self._files.size(self._open_fd)

    def read(self, count: int, byte_offset: int) -> bytes:
        """Up to ``count`` bytes from ``byte_offset``; fewer at the end of the file."""
        return self._files.read(self._open_fd, count, byte_offset)

    def header_bytes(self) -> bytes:
        """What stands in the place of the segment's header."""
        return self.read(SEGMENT_HEADER_BYTES, 0)

    def only_zeros(self, start: int, end: int) -> bool:
        """Whether there is nothing else from ``start`` to ``end``, or to the end of the file if that comes first."""
        while start < end and (data := self.read(min(CHUNK_BYTES, end - start), start)):
            if any(data):
                return False
            start += len(data)
        return True

    def walk(
        self, segment: Segment, place: Place | None = None, on_run: Callable[[FrameRun], None] | None = None
    ) -> Iterator[Frame | None]:
        """The frames from ``place`` (its start, without one) to the segment's ``end_bytes``; then None, and more when
        that has grown.

        With ``on_run``, frames of one event each whose records are in order as well are not yielded but given to it,
        many at a time; a frame always comes after them.

        Raises:
            BadFrameError: at the first frame that is damaged or does not belong there: for those who look into it.
            OSError: the file cannot be read.
        """
        return _walk_frames(_Window(self._files, self._open_fd), segment, place or segment.index[0], on_run)

    def frames(self, segment: Segment, place: Place | None = None) -> Iterator[Frame | None]:
        """As :meth:`walk`, for those to whom every bad frame is damage.

        Raises:
            LogCorruptError: at the first one.
            OSError: the file cannot be read.
        """
        try:
            yield from self.walk(segment, place)
        except BadFrameError as bad:
            raise LogCorruptError(self.path, bad.byte_offset, bad.lsn, bad.reason) from bad

    def frame_headers(self, segment: Segment, start: int, end: int, lsn_min: int) -> Iterator[tuple[int, FrameHeader]]:
        """Every intact frame header of ``segment`` from ``start`` to ``end`` whose first LSN is at least ``lsn_min``,
        with its byte offset. For what lies beyond damage; the bodies are not looked at."""
        return _find_frame_headers(_Window(self._files, self._open_fd), segment, start, end, lsn_min)
