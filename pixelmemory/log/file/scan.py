"""Look into a log without opening it: for tools that inspect a damaged store, or one that is open elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pixelmemory.errors import LogCorruptError, UnknownEventError
from pixelmemory.log.contract import StoredEvent
from pixelmemory.log.file.files import Files
from pixelmemory.log.file.frame import FRAME_HEADER_BYTES, decode_records
from pixelmemory.log.file.segment import (
    SEGMENT_HEADER_BYTES,
    Place,
    Segment,
    SegmentHeader,
    parse_header,
    segment_name,
    segment_names,
)
from pixelmemory.log.file.switch import log_folder
from pixelmemory.log.file.verification import only_zeros
from pixelmemory.log.file.walk import BadFrameError, Window, find_frame_header, walk_frames

__all__ = ["Finding", "scan"]


class Finding(NamedTuple):
    """Something in a log that is not as it should be."""

    path: Path
    byte_offset: int
    #: first LSN that is affected; None where it cannot be known
    lsn: int | None
    reason: str


def scan(folder: Path, files: Files | None = None) -> Iterator[StoredEvent | Finding]:
    """Every event that can be read from the store in ``folder``, in LSN order, and everything that is wrong with it.

    Nothing is written and no lock is taken. After damage the walk goes on at the next intact batch. While another
    process writes, its last batch may be found incomplete. Memory: one batch, or a megabyte.

    Raises:
        OSError: the folder cannot be read.
    """
    files = files or Files()
    log = log_folder(folder, files)
    try:
        names = segment_names(files, log)
    except LogCorruptError as error:
        yield Finding(error.path, 0, None, error.reason)
        names = [name for name in files.names(log) if name.endswith(".log") and name != error.path.name]
    segments: list[Segment] = []
    for name in names:
        try:
            segments.append(_open(files, log / name))
        except LogCorruptError as error:
            yield Finding(error.path, error.byte_offset, error.lsn, error.reason)
        except FileNotFoundError:
            yield Finding(log / name, 0, None, "the segment went away while it was looked at")
    previous: SegmentHeader | None = None
    for index, segment in enumerate(segments):
        yield from _compare(segment, previous)
        previous = segment.header
        following = segments[index + 1].header if index + 1 < len(segments) else None
        if following is not None and following.number != segment.header.number + 1:
            following = None  # it is not the one that followed; _compare says so
        if following is not None:
            segment.end_bytes = min(segment.end_bytes, following.previous_bytes)
        yield from _scan_segment(files, segment, following)


def _open(files: Files, path: Path) -> Segment:
    fd = files.open_read(path)
    try:
        return Segment(path, parse_header(files.read(fd, SEGMENT_HEADER_BYTES, 0), path), files.size(fd))
    finally:
        files.close(fd)


def _compare(segment: Segment, previous: SegmentHeader | None) -> Iterator[Finding]:
    header, path = segment.header, segment.path
    if path.name != segment_name(header.first_lsn):
        yield Finding(path, 0, header.first_lsn, f"the segment was named {segment_name(header.first_lsn)}")
    number = 1 if previous is None else previous.number + 1
    if header.number != number:
        yield Finding(
            path, 0, header.first_lsn, f"this is segment {header.number}, and segment {number} should be here"
        )
    if previous is not None and header.store_id != previous.store_id:
        yield Finding(path, 0, header.first_lsn, f"the segment belongs to another store ({header.store_id})")


def _scan_segment(files: Files, segment: Segment, following: SegmentHeader | None) -> Iterator[StoredEvent | Finding]:
    place: Place | None = segment.index[0]
    fd = files.open_read(segment.path)
    try:
        while place is not None:
            try:
                for frame in walk_frames(Window(files, fd), segment, place):
                    if frame is None:
                        break
                    place = Place(
                        frame.header.first_lsn + frame.header.event_count,
                        frame.byte_offset + frame.total_bytes,
                        frame.header.checksum,
                    )
                    try:
                        yield from decode_records(frame, segment.path)
                    except (LogCorruptError, UnknownEventError) as error:
                        yield Finding(segment.path, error.byte_offset, error.lsn, str(error))
                if following is not None and place.lsn < following.first_lsn:
                    reason = f"LSN {place.lsn} to {following.first_lsn - 1} are missing at its end"
                    yield Finding(segment.path, place.byte_offset, place.lsn, reason)
                return
            except BadFrameError as bad:
                if following is None and only_zeros(files, fd, bad.byte_offset, segment.end_bytes):
                    return  # reserved, and not used
                start = bad.byte_offset + FRAME_HEADER_BYTES
                found = next(find_frame_header(Window(files, fd), segment, start, segment.end_bytes, bad.lsn), None)
                then = (
                    "nothing intact follows"
                    if found is None
                    else f"LSN {found[1].first_lsn} follows at byte {found[0]}"
                )
                yield Finding(segment.path, bad.byte_offset, bad.lsn, f"{bad.reason}; {then}")
                place = None
                if found is not None:
                    place = Place(found[1].first_lsn, found[0], found[1].previous_checksum)
    finally:
        files.close(fd)
