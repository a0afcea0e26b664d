"""Make a verified log ready to be appended to: what was not attested is copied to a fresh segment and synced.

Why: bytes that were written before a crash may be in the page cache, clean, and not on the device (a failed flush marks
them so). Only bytes that are rewritten to another file are known to be flushed by that file's sync.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from pixelmemory.faults import fault_point
from pixelmemory.log.file.files import Files, ensure_folder, read_file, write_file
from pixelmemory.log.file.frame import FrameKind
from pixelmemory.log.file.segment import (
    FLAG_RECOVERED,
    SEGMENT_HEADER_BYTES,
    Place,
    Segment,
    SegmentHeader,
    create_segment,
    new_header,
    segment_name,
)
from pixelmemory.log.file.segment_writer import SegmentWriter
from pixelmemory.log.file.verification import VerifiedLog, VerifiedSegment
from pixelmemory.log.file.walk import SegmentFile

__all__ = ["ReadyLog", "RecoveryReport", "renew_log"]

_logger = logging.getLogger("pixelmemory.log")

#: a last segment up to this size is copied whole into the new one, so that many opens do not leave many segments
REWRITE_BYTES_MAX = 1 << 20


class RecoveryReport(NamedTuple):
    """What an open found and did."""

    #: segments in use, the new one included
    segments: int
    frames: int
    events: int
    durable_lsn: int
    #: bytes that were verified
    log_bytes: int
    #: the log was new or had been closed properly
    clean: bool
    #: bytes of whole frames that were copied to the new segment
    copied_bytes: int
    #: bytes of an incomplete final frame that were dropped
    torn_bytes: int
    #: the file that keeps them; None if there were none
    quarantine_path: Path | None
    seconds: float


class ReadyLog(NamedTuple):
    """A log whose last segment is new and empty of anything unsynced."""

    #: in LSN order; the last is the active one
    segments: list[Segment]
    #: descriptor of the active segment
    fd: int
    #: at the end of the active segment
    writer: SegmentWriter
    #: of the last event, nanoseconds since the epoch; 0 if there is none
    last_logged_at_ns: int
    report: RecoveryReport


def renew_log(files: Files, folder: Path, log: VerifiedLog, store_id: uuid.UUID, epoch: int) -> ReadyLog:
    """Set torn bytes aside, finish what a crash interrupted, and make the active segment.

    ``folder`` is the store's. An interruption at any point leaves a log that opens to the same events.

    Raises:
        OSError: the folder cannot be written. Nothing that was acknowledged is lost.
    """
    started = time.monotonic()
    for path in log.leftovers:
        files.unlink(path)
    torn_bytes, quarantine_path = _set_aside(files, folder, log)
    _finish_all(files, folder / "log", log.segments)
    last = log.segments[-1] if log.segments else None
    start, header = _plan(last, store_id, epoch)
    path = folder / "log" / segment_name(start.lsn)
    active = Segment(path, header)
    writer = SegmentWriter(active)
    fd = create_segment(files, path, header, _copy_frames(files, last, start, writer) if last is not None else ())
    replaced = last is not None and header.number == last.segment.header.number
    if last is not None and not replaced:
        try:
            last.segment.end_bytes = start.byte_offset
            _finish(files, last.segment, start, cut=last.size_bytes != start.byte_offset)
        except BaseException:
            files.close(fd)
            raise
    kept = log.segments[:-1] if replaced else log.segments
    assert writer.end.lsn == header.durable_lsn + 1
    report = RecoveryReport(
        segments=len(kept) + 1,
        frames=sum(found.event_frames for found in log.segments),
        events=header.durable_lsn,
        durable_lsn=header.durable_lsn,
        log_bytes=sum(found.end.byte_offset for found in log.segments),
        clean=log.torn_segment is None and (last is None or (last.closed and last.clean_end)),
        copied_bytes=active.end_bytes - SEGMENT_HEADER_BYTES,
        torn_bytes=torn_bytes,
        quarantine_path=quarantine_path,
        seconds=time.monotonic() - started,
    )
    logged_at_ns = max((found.logged_at_ns for found in log.segments), default=0)
    return ReadyLog([*(f.segment for f in kept), active], fd, writer, logged_at_ns, report)


def _plan(last: VerifiedSegment | None, store_id: uuid.UUID, epoch: int) -> tuple[Place, SegmentHeader]:
    """Where in ``last`` the copying starts, and the header of the segment that it goes to."""
    if last is None:
        first = Place(1, SEGMENT_HEADER_BYTES, 0)
        return first, new_header(store_id=store_id, number=1, first_lsn=1, durable_lsn=0, epoch=epoch)
    old = last.segment.header
    durable_lsn = last.end.lsn - 1
    if last.end.byte_offset <= REWRITE_BYTES_MAX or last.attested.lsn == old.first_lsn:
        # the new segment replaces the old one under the same name
        header = new_header(
            store_id=store_id,
            number=old.number,
            first_lsn=old.first_lsn,
            durable_lsn=durable_lsn,
            epoch=epoch,
            previous_bytes=old.previous_bytes,
            previous_checksum=old.previous_checksum,
        )
        return Place(old.first_lsn, SEGMENT_HEADER_BYTES, old.checksum), header
    start = last.attested
    header = new_header(
        store_id=store_id,
        number=old.number + 1,
        first_lsn=start.lsn,
        durable_lsn=durable_lsn,
        epoch=epoch,
        previous_bytes=start.byte_offset,
        previous_checksum=start.previous_checksum,
        flags=FLAG_RECOVERED,
    )
    return start, header


def _copy_frames(files: Files, last: VerifiedSegment, start: Place, writer: SegmentWriter) -> Iterator[bytearray]:
    """The frames of ``last`` from ``start`` that hold events, made again by ``writer``."""
    source = last.segment
    source.end_bytes = last.end.byte_offset
    with SegmentFile(files, source.path) as file:
        # what was good a moment ago may not be now: the device gives one thing, then another
        for frame in file.frames(source, start):
            if frame is None:
                return
            header = frame.header
            if header.kind != FrameKind.EVENTS:
                continue
            yield writer.build(
                [frame.body], event_count=header.event_count, durable_lsn=header.durable_lsn, flags=header.flags
            )
            writer.advance()
            writer.segment.end_bytes = writer.end.byte_offset


def _finish_all(files: Files, log_folder: Path, segments: list[VerifiedSegment]) -> None:
    """Seal each segment that has a successor, where an interrupted rotation or open did not, or may not have.

    A seal that can be read may be in the page cache alone; the first frame that is written after it proves that it was
    synced.
    """
    unfinished = [
        found
        for found, following in pairwise(segments)
        if not found.sealed
        or (following is segments[-1] and (following.segment.header.recovered or not following.frames))
    ]
    if unfinished:
        files.sync_folder(log_folder)  # nor is the successor's name known to be durable, and the seal must not be first
    for found in unfinished:
        _finish(files, found.segment, found.end, cut=not found.sealed and found.size_bytes != found.end.byte_offset)


def _finish(files: Files, segment: Segment, end: Place, *, cut: bool) -> None:
    """Seal; ``cut`` off first what the next segment supersedes."""
    fd = files.open_write(segment.path)
    try:
        if cut:
            fault_point("seal.before_truncate")
            files.truncate(fd, end.byte_offset)
        SegmentWriter(segment, end).write_mark(files, fd, FrameKind.SEAL, "seal")
    finally:
        files.close(fd)


def _set_aside(files: Files, folder: Path, log: VerifiedLog) -> tuple[int, Path | None]:
    """Keep what is dropped in ``quarantine/``. Returns how many bytes, and the (last) file."""
    byte_count = 0
    target: Path | None = None
    if log.segments and (bad := log.segments[-1].bad) is not None:
        path = log.segments[-1].segment.path
        byte_count, target = _keep(files, folder, path, bad.byte_offset)
        _logger.warning(
            "%s: the final frame, at byte %d, LSN %d, is incomplete or damaged (%s) and dropped; %d bytes are in %s",
            *(path, bad.byte_offset, bad.lsn, bad.reason, byte_count, target),
        )
    if (torn := log.torn_segment) is not None:
        count, target = _keep(files, folder, torn, 0)
        byte_count += count
        files.unlink(torn)
        files.sync_folder(torn.parent)
        _logger.warning("%s: its creation was interrupted; its %d bytes are in %s", torn, count, target)
    return byte_count, target


def _keep(files: Files, folder: Path, path: Path, start: int) -> tuple[int, Path]:
    """Copy ``path`` from ``start`` on to ``quarantine/``, synced."""
    quarantine = folder / "quarantine"
    ensure_folder(files, quarantine)
    data = read_file(files, path, start)
    # the same bytes get the same name, however often an open is interrupted here
    target = quarantine / f"{path.name}.{start}.{crc32(data):08x}"
    write_file(files, target, data, "quarantine")
    files.sync_folder(quarantine)
    fault_point("quarantine.after_folder_sync")
    return len(data), target
