"""Verify a log at open, and decide what its bad bytes are. Nothing is written here.

The rule. A frame is *attested* if anything written after its sync says so: a later frame's durable LSN, or its
segment's header. Bad bytes that were attested, or in a segment that is not the last, are corruption: the open stops and
changes nothing. Bad bytes that were not are the torn end of an unacknowledged frame if the frame is short or lost a
whole sector (it reads as zeros); :mod:`pixelmemory.log.file.recovery` keeps them in ``quarantine/`` and drops them.
Anything else is refused.
"""

from __future__ import annotations

import uuid
from collections import deque
from itertools import pairwise
from pathlib import Path

from pixelmemory.errors import LogCorruptError
from pixelmemory.log.file.files import Files
from pixelmemory.log.file.frame import (
    FLAG_SYNCED_EACH,
    FRAME_HEADER_BYTES,
    Frame,
    FrameKind,
    check_records,
    count_zero_sectors,
    frame_bytes,
    last_logged_at_ns,
)
from pixelmemory.log.file.runs import FrameRun
from pixelmemory.log.file.segment import (
    INDEX_STRIDE_BYTES,
    SEGMENT_HEADER_BYTES,
    Place,
    Segment,
    SegmentHeader,
    parse_header,
    segment_name,
    segment_names,
)
from pixelmemory.log.file.walk import BadFrameError, SegmentFile

__all__ = ["VerifiedLog", "VerifiedSegment", "verify_log"]


class VerifiedSegment:
    """What one segment was found to hold."""

    def __init__(self, segment: Segment, size_bytes: int) -> None:
        header = segment.header
        self.segment = segment
        #: of the file
        self.size_bytes = size_bytes
        #: of any kind
        self.frames = 0
        #: frames that hold events
        self.event_frames = 0
        #: where the good frames end
        self.end = Place(header.first_lsn, SEGMENT_HEADER_BYTES, header.checksum)
        #: where those with events end that are attested
        self.attested = self.end
        #: its last frame is a seal: the next segment exists
        self.sealed = False
        #: its last frame says that the log was closed properly
        self.closed = False
        #: of its last event, nanoseconds since the epoch; 0 if it has none
        self.logged_at_ns = 0
        #: what stands after the good frames, if it is more than the zeros that a writer reserves
        self.bad: BadFrameError | None = None

    def take_run(self, run: FrameRun, durable_lsn: int, waiting: deque[Place]) -> None:
        """Go on beyond ``run``; ``waiting`` holds the ends of frames that are not attested yet, and gets its own."""
        count = len(run.ends)
        first = run.start.byte_offset
        while (noted := self.segment.index[-1].byte_offset + INDEX_STRIDE_BYTES) < run.end.byte_offset:
            self.segment.note(*(run.start if noted <= first else run.place_after(int(run.ends.searchsorted(noted)))))
        self.frames += count
        self.event_frames += count
        self.end = run.end
        attested = min(max(durable_lsn - run.start.lsn + 1, 0), count)
        while waiting and waiting[0].lsn - 1 <= durable_lsn:
            self.attested = waiting.popleft()
        if attested:
            self.attested = run.place_after(attested - 1)
        waiting.extend(run.place_after(index) for index in range(attested, count))

    @property
    def clean_end(self) -> bool:
        """Whether every event in the file is good and attested."""
        return self.bad is None and self.attested.lsn == self.end.lsn


class VerifiedLog:
    """A log that may be used, as it stands on disk.

    Attributes:
        segments: in LSN order; empty for a new log.
        torn_segment: a last segment whose creation was torn; None if there is none.
        leftovers: temporary files of interrupted opens and rotations.
    """

    def __init__(self, segments: list[VerifiedSegment], torn_segment: Path | None, leftovers: list[Path]) -> None:
        self.segments = segments
        self.torn_segment = torn_segment
        self.leftovers = leftovers


def verify_log(files: Files, folder: Path, store_id: uuid.UUID, epoch: int, *, drop_damaged: bool) -> VerifiedLog:
    """Verify every segment in ``folder`` (``<home>/<name>/log``) against itself and its neighbours.

    Payloads are not decoded. ``drop_damaged`` lets a final frame of full length that fails its checksum be dropped.

    Raises:
        LogCorruptError: damage, with its place. Nothing was changed.
        UnknownEventError: a later version wrote it.
        OSError: it cannot be read.
    """
    verification = _Verification(files, folder, store_id, epoch)
    loaded = verification.load()
    verified = verification.verify_all(loaded, drop_damaged=drop_damaged) if loaded else []
    leftovers = [folder / name for name in files.names(folder) if name.endswith(".log.tmp")]
    return VerifiedLog(verified, verification.torn_segment, leftovers)


class _Verification:
    """One look at one log."""

    def __init__(self, files: Files, folder: Path, store_id: uuid.UUID, epoch: int) -> None:
        self.files = files
        self.folder = folder
        self.store_id = store_id
        self.epoch = epoch
        self.torn_segment: Path | None = None

    # -- finding the segments

    def load(self) -> list[tuple[Segment, int]]:
        """Each segment with its size, the headers verified, a last one whose creation was torn left out."""
        names = segment_names(self.files, self.folder)
        loaded: list[tuple[Segment, int]] = []
        for name in names:
            path = self.folder / name
            with SegmentFile(self.files, path) as file:
                size, data = file.size(), file.header_bytes()
                torn = size < SEGMENT_HEADER_BYTES or (size == SEGMENT_HEADER_BYTES and not any(data))
                if name == names[-1] and torn and not self._sealed_before(loaded):
                    self.torn_segment = path
                    break
                header = parse_header(data, path)
            self._check_header(path, header, loaded[-1][0] if loaded else None)
            loaded.append((Segment(path, header, size), size))
        return loaded

    def _sealed_before(self, loaded: list[tuple[Segment, int]]) -> bool:
        """Whether the segment before ends in a seal: it says that the next one was whole once."""
        return bool(loaded) and self.verify(*loaded[-1], last=True).sealed

    def _check_header(self, path: Path, header: SegmentHeader, previous: Segment | None) -> None:
        def refuse(reason: str) -> LogCorruptError:
            return LogCorruptError(path, 0, header.first_lsn, reason)

        if header.store_id != self.store_id:
            raise refuse(f"the segment belongs to another store ({header.store_id})")
        if path.name != segment_name(header.first_lsn):
            raise refuse(f"the segment was named {segment_name(header.first_lsn)}")
        if previous is None:
            if header.number != 1 or header.first_lsn != 1:
                raise refuse(f"this is segment {header.number}, and the segments before it are missing")
        elif header.number != previous.header.number + 1:
            raise refuse(
                f"segment {header.number} follows segment {previous.header.number}: one is missing, or doubled"
            )
        elif header.epoch < previous.header.epoch:
            raise refuse(f"its epoch {header.epoch} is before that of the segment before it ({previous.header.epoch})")
        if header.epoch > self.epoch:
            raise refuse(
                f"it was written in epoch {header.epoch}, and MANIFEST is at {self.epoch}: an older copy of it"
            )

    # -- verifying one segment

    def verify(self, segment: Segment, size_bytes: int, *, last: bool) -> VerifiedSegment:
        """Walk the segment's frames up to ``segment.end_bytes``."""
        found = VerifiedSegment(segment, size_bytes)
        durable_lsn = segment.header.durable_lsn
        # ends of frames that are not attested yet; one at most where each frame is synced
        waiting: deque[Place] = deque()

        def take(run: FrameRun) -> None:
            nonlocal durable_lsn
            durable_lsn = max(durable_lsn, int(run.durable_lsns.max()))
            found.take_run(run, durable_lsn, waiting)

        last_frame: Frame | None = None
        file = SegmentFile(self.files, segment.path)
        try:
            for frame in file.walk(segment, found.end, take):
                if frame is None:
                    break
                header = frame.header
                if found.sealed or header.kind not in (FrameKind.EVENTS, FrameKind.CLOSE, FrameKind.SEAL):
                    reason = "a frame after the seal" if found.sealed else f"a frame of unknown kind {header.kind}"
                    raise BadFrameError(frame.byte_offset, header.first_lsn, reason, header, foreign=True)
                check_records(frame, segment.path)
                segment.note(*found.end)
                found.frames += 1
                found.closed = header.kind == FrameKind.CLOSE
                found.sealed = header.kind == FrameKind.SEAL
                found.end = Place(
                    header.first_lsn + header.event_count, frame.byte_offset + frame.total_bytes, header.checksum
                )
                if header.event_count:
                    last_frame = frame
                    found.event_frames += 1
                if header.durable_lsn > durable_lsn:
                    durable_lsn = header.durable_lsn
                if header.kind == FrameKind.EVENTS:  # the others' own syncs may have failed, or not have come
                    waiting.append(found.end)
                while waiting and waiting[0].lsn - 1 <= durable_lsn:
                    found.attested = waiting.popleft()
        except BadFrameError as error:
            found.bad = error
            if last and not error.foreign:
                self._refuse_if_attested(found, file, durable_lsn)
            if last and file.only_zeros(error.byte_offset, size_bytes):
                found.bad = None
        finally:
            file.close()
        if found.bad is None and found.end.lsn <= segment.header.durable_lsn:
            reason = f"the segment ends here, though it held LSN {segment.header.durable_lsn} when it was made"
            raise LogCorruptError(segment.path, found.end.byte_offset, found.end.lsn, reason)
        if last_frame is not None:
            found.logged_at_ns = last_logged_at_ns(last_frame, segment.path)
        return found

    def _refuse_if_attested(self, found: VerifiedSegment, file: SegmentFile, durable_lsn: int) -> None:
        """Raise if the bad bytes were durable once: then they are damage, not a torn tail."""
        bad, path = found.bad, found.segment.path
        assert bad is not None
        if durable_lsn >= bad.lsn:
            raise LogCorruptError(path, bad.byte_offset, bad.lsn, f"{bad.reason}, though it was synced")
        start = bad.byte_offset + FRAME_HEADER_BYTES
        for byte_offset, header in file.frame_headers(found.segment, start, found.size_bytes, bad.lsn):
            # frames of the relaxed sync modes may follow one that was never synced
            if header.durable_lsn >= bad.lsn or header.flags & FLAG_SYNCED_EACH:
                reason = f"{bad.reason}, and an intact frame follows at byte {byte_offset}"
                raise LogCorruptError(path, bad.byte_offset, bad.lsn, reason)
        if bad.header is not None and bad.header.flags & FLAG_SYNCED_EACH:
            end = bad.byte_offset + frame_bytes(bad.header.body_bytes)
            if not file.only_zeros(end, found.size_bytes):
                reason = f"{bad.reason}, and more was written after it, from byte {end}"
                raise LogCorruptError(path, bad.byte_offset, bad.lsn, reason)

    def _is_torn(self, found: VerifiedSegment) -> bool:
        """Whether the bad bytes are what a write leaves that power loss or a kill cut off."""
        bad = found.bad
        assert bad is not None
        if bad.foreign:
            return False
        total_bytes = FRAME_HEADER_BYTES if bad.header is None else frame_bytes(bad.header.body_bytes)
        if bad.byte_offset + total_bytes > found.size_bytes:
            return True
        with SegmentFile(self.files, found.segment.path) as file:
            data = file.read(total_bytes, bad.byte_offset)
        if bad.header is None:
            return not any(data)
        return len(data) < total_bytes or count_zero_sectors(data, bad.byte_offset) > bad.header.zero_sectors

    # -- verifying the log

    def verify_all(self, loaded: list[tuple[Segment, int]], *, drop_damaged: bool) -> list[VerifiedSegment]:
        """Every segment against itself and its neighbours.

        Raises:
            LogCorruptError: damage, with its place. Nothing was changed.
        """
        verified: list[VerifiedSegment] = []
        for (segment, size), (following, _) in pairwise(loaded):
            segment.end_bytes = min(size, following.header.previous_bytes)
            found = self.verify(segment, size, last=False)
            self._check_complete(found, following)
            verified.append(found)
        found = self.verify(*loaded[-1], last=True)
        path = found.segment.path
        if found.sealed:
            raise LogCorruptError(path, found.end.byte_offset, found.end.lsn, "the segment after this one is missing")
        bad = found.bad
        if bad is not None and bad.foreign:
            raise LogCorruptError(path, bad.byte_offset, bad.lsn, bad.reason)
        if bad is not None and not self._is_torn(found) and not drop_damaged:
            hint = (
                "it is the final frame, of full length, and may have been acknowledged. To drop it, open with "
                "options=Options(drop_damaged_final_frame=True) once"
            )
            raise LogCorruptError(path, bad.byte_offset, bad.lsn, f"{bad.reason}; {hint}")
        verified.append(found)
        self._check_seals(verified)
        return verified

    def _check_complete(self, found: VerifiedSegment, following: Segment) -> None:
        """Check that ``found`` ends exactly as the segment after it says."""
        path, bad, header = found.segment.path, found.bad, following.header
        if bad is not None:
            raise LogCorruptError(path, bad.byte_offset, bad.lsn, f"{bad.reason}; later segments exist")
        end = found.end
        if end.byte_offset != header.previous_bytes:
            reason = f"the segment ends at byte {end.byte_offset} instead of {header.previous_bytes}"
            raise LogCorruptError(path, end.byte_offset, end.lsn, reason)
        if end.lsn != header.first_lsn or end.previous_checksum != header.previous_checksum or found.sealed:
            reason = f"it does not follow {path.name}, which ends before LSN {end.lsn}"
            raise LogCorruptError(following.path, 0, header.first_lsn, reason)

    def _check_seals(self, verified: list[VerifiedSegment]) -> None:
        """Check what follows the frames of each segment that has a successor: its seal.

        The successor's first frame is written after the seal was synced; only a recovery puts frames there before.
        """
        for found, following in pairwise(verified):
            found.sealed, torn = self._look_for_seal(found)
            unused = not following.frames and following.bad is None
            interrupted = following.segment.header.recovered or (unused and (found.sealed or torn))
            if found.sealed and found.size_bytes == found.end.byte_offset + FRAME_HEADER_BYTES:
                continue
            if following is not verified[-1] or not interrupted:
                path, end = found.segment.path, found.end
                raise LogCorruptError(path, end.byte_offset, end.lsn, "the segment's seal is damaged or gone")
            found.sealed = False

    def _look_for_seal(self, found: VerifiedSegment) -> tuple[bool, bool]:
        """Whether a seal and nothing but zeros follow the frames; whether an interrupted seal does."""
        start = found.end.byte_offset
        segment = Segment(found.segment.path, found.segment.header, found.size_bytes)
        with SegmentFile(self.files, segment.path) as file:
            if found.size_bytes - start < FRAME_HEADER_BYTES or file.only_zeros(start, found.size_bytes):
                return False, True
            try:
                frame = next(file.walk(segment, found.end))
            except BadFrameError:
                return False, False
            sealed = frame is not None and frame.header.kind == FrameKind.SEAL
            return sealed and file.only_zeros(start + FRAME_HEADER_BYTES, found.size_bytes), False
