"""Decide how a damaged log is repaired: what is mended, where it is cut, which LSNs that costs. Changes nothing."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pixelmemory.doctor.inspection import LogInspection
from pixelmemory.doctor.salvage import Damage, DamageKind, DecodedFrame, SegmentView
from pixelmemory.errors import ManifestError, StoreError
from pixelmemory.log.contract import StoredEvent
from pixelmemory.log.file.files import Files
from pixelmemory.log.file.frame import RECORD_HEADER_BYTES, Frame, FrameKind
from pixelmemory.log.file.segment import SEGMENT_HEADER_BYTES, Segment
from pixelmemory.log.file.walk import SegmentFile
from pixelmemory.memory.events import EventRemoved, MemoryDeleted, encode_event

__all__ = ["Cut", "RepairPlan", "events_behind", "frames_up_to", "plan_repair"]

#: no event takes fewer bytes, so a run of unreadable bytes held at most so many events
RECORD_BYTES_MIN = RECORD_HEADER_BYTES + len(encode_event(MemoryDeleted("", "")))


class Cut(NamedTuple):
    """Where the log will end, and what is behind it."""

    #: the segment that is rewritten, up to ``byte_offset``; None where nothing before the damage is left
    kept: SegmentView | None
    byte_offset: int
    #: LSNs that are removed, inclusive; none if ``last_lsn`` is before ``first_lsn``
    first_lsn: int
    last_lsn: int
    #: False where ``last_lsn`` is only the most that can have been
    exact: bool
    #: files behind the damage
    removed: list[Path]
    #: their bytes, and those behind the cut in ``kept``
    removed_bytes: int
    #: events behind the damage that can still be read
    readable_events: int


class RepairPlan(NamedTuple):
    """What a repair would do."""

    inspection: LogInspection
    store_id: uuid.UUID
    damages: list[Damage]
    #: files that are set aside, with the reason
    strays: list[tuple[Path, str]]
    #: segments that get their name back
    renames: list[tuple[Path, Path]]
    #: segments that are sealed again
    seals: list[SegmentView]
    #: why the MANIFEST is rewritten; None if it is not
    manifest_reason: str | None
    cut: Cut | None
    #: of a torn tail, which is left to the next open
    torn_bytes: int
    #: time of the newest event that can be read, nanoseconds since the epoch
    logged_at_ns: int

    @property
    def needed(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.strays or self.renames or self.seals or self.manifest_reason or self.cut)


def plan_repair(folder: Path, *, known_lsn: int = 0, on_read: Callable[[int], None] | None = None) -> RepairPlan:
    """Look at the store in ``folder`` and decide what would be done. Changes nothing. Nobody may have it open.

    Args:
        folder: the store's.
        known_lsn: an LSN that is known from elsewhere (the projection's checkpoint) to have been given out.
        on_read: called with the number of bytes of every read.

    Raises:
        StoreError: a later version wrote it, or there is nothing to go by.
        OSError: it cannot be read.
    """
    inspection = LogInspection(folder, live=False, on_read=on_read)
    if inspection.store_id is None:
        if inspection.manifest_error is not None and inspection.manifest_error.path.exists():
            raise ManifestError(inspection.manifest_error.path, "is damaged, and no segment says which store this is")
        raise StoreError(
            f"{folder} holds neither a MANIFEST nor a segment that can be read: there is nothing to repair"
        )
    damages: list[Damage] = []
    evidence = _Evidence(inspection, known_lsn)
    for item in inspection.items(thorough=True):
        evidence.add(item)
        if isinstance(item, Damage):
            damages.append(item)
            if item.kind is DamageKind.LATER_VERSION:
                raise StoreError(f"{item.path}: {item.reason}. Repair it with the version that wrote it")
    first = next((damage for damage in damages if damage.kind is DamageKind.EVENTS), None)
    cut = None
    if first is not None or known_lsn >= evidence.next_lsn:
        cut = _plan_cut(inspection, first, evidence)
    remaining = [view for view in inspection.segments if cut is None or view.path not in cut.removed]
    seals: list[SegmentView] = []
    if cut is not None or any(damage.kind is DamageKind.SEAL for damage in damages):
        seals = [view for view in remaining[:-1] if not view.sealed]
    return RepairPlan(
        inspection,
        inspection.store_id,
        damages,
        list(inspection.strays),
        [(view.path, view.right_path) for view in remaining if view.path != view.right_path],
        seals,
        next((damage.reason for damage in damages if damage.kind is DamageKind.MANIFEST), None),
        cut,
        sum(damage.byte_count for damage in damages if damage.kind is DamageKind.TORN),
        evidence.logged_at_ns,
    )


class _Evidence:
    """The last LSN that was, or may have been, given out."""

    def __init__(self, inspection: LogInspection, known_lsn: int) -> None:
        self._inspection = inspection
        headers = [view.header for view in inspection.segments if view.header is not None]
        #: proved by something with a checksum
        self.proved = max([known_lsn, *(max(header.first_lsn - 1, header.durable_lsn) for header in headers)])
        #: of unreadable bytes, as many as they can have held
        self.possible = 0
        self.exact = True
        self.logged_at_ns = 0
        #: after the last event that can be read
        self.next_lsn = 1

    def add(self, item: DecodedFrame | Damage) -> None:
        if isinstance(item, DecodedFrame):
            last_lsn = item.header.first_lsn + item.header.event_count - 1
            self.next_lsn = last_lsn + 1
            self.proved = max(self.proved, item.header.durable_lsn, last_lsn)
            if item.events:
                self.logged_at_ns = max(self.logged_at_ns, item.events[-1].logged_at_ns)
        elif item.kind is DamageKind.EVENTS:
            if item.last_lsn is not None:
                self.proved = max(self.proved, item.last_lsn)
            elif item.byte_count:
                before = self.next_lsn - 1 if item.first_lsn is None else item.first_lsn - 1
                used_bytes = _used_bytes(item) - (0 if item.byte_offset else SEGMENT_HEADER_BYTES)
                self.possible = max(self.possible, before + max(0, used_bytes) // RECORD_BYTES_MIN)
            elif item.first_lsn is not None:  # files are missing, and nothing says what they held
                self.exact = False

    def last_lsn(self) -> tuple[int, bool]:
        """The LSN, and whether it is known exactly."""
        bound = self.proved + self._inspection.log_bytes // RECORD_BYTES_MIN
        names = [view.first_lsn - 1 for view in self._inspection.segments if view.header is None]
        # a name has no checksum: it counts as far as the bytes that are there can have held as many events
        possible = max([self.possible, *(lsn for lsn in names if lsn <= bound)])
        return max(self.proved, possible), self.exact and possible <= self.proved


def _used_bytes(damage: Damage) -> int:
    """The unreadable bytes, less the zeros at their end, which were written ahead."""
    used = 0
    with damage.path.open("rb") as file:
        file.seek(damage.byte_offset)
        for at in range(0, damage.byte_count, 1 << 20):
            chunk = file.read(min(1 << 20, damage.byte_count - at))
            if stripped := len(chunk.rstrip(b"\0")):
                used = at + stripped
    return used


def _plan_cut(inspection: LogInspection, damage: Damage | None, evidence: _Evidence) -> Cut:
    """``damage`` is None where only the projection knows of LSNs behind the end of the log."""
    segments = inspection.segments
    index, byte_offset = len(segments), 0
    while index and segments[index - 1].header is None:
        index -= 1  # its creation was torn
    if damage is not None:
        names = [view.path.name for view in segments], [view.right_path.name for view in segments]
        index = next((places.index(damage.path.name) for places in names if damage.path.name in places), 0)
        byte_offset = damage.byte_offset
    if byte_offset and segments[index].header is not None:
        kept: SegmentView | None = segments[index]
        behind = segments[index + 1 :]
    else:
        kept = segments[index - 1] if index else None
        behind = segments[index:]
        byte_offset = 0
        if kept is not None:
            assert kept.end is not None  # nothing before the first damage is damaged
            byte_offset = kept.end.byte_offset
    first_lsn = 1
    if kept is not None and kept.header is not None:
        first_lsn = kept.header.first_lsn
        for frame in frames_up_to(Files(), kept, kept.path, byte_offset):
            first_lsn = frame.last_lsn + 1
    last_lsn, exact = evidence.last_lsn()
    removed_bytes = sum(view.size_bytes for view in behind)
    if kept is not None:
        removed_bytes += kept.size_bytes - byte_offset
    readable = sum(1 for _ in events_behind(inspection, first_lsn)) if damage is not None else 0
    return Cut(kept, byte_offset, first_lsn, last_lsn, exact, [view.path for view in behind], removed_bytes, readable)


def frames_up_to(files: Files, view: SegmentView, path: Path, end_bytes: int) -> Iterator[Frame]:
    """The frames with events of a segment up to ``end_bytes``; the segment is now at ``path``."""
    header = view.header
    assert header is not None
    with SegmentFile(files, path) as file:
        for frame in file.frames(Segment(path, header, end_bytes)):
            if frame is None:
                return
            if frame.header.kind == FrameKind.EVENTS:
                yield frame


def events_behind(inspection: LogInspection, first_lsn: int) -> Iterator[StoredEvent]:
    """The events from ``first_lsn`` on that can be read, and that were not taken out before."""
    for item in inspection.items(from_lsn=first_lsn):
        if isinstance(item, DecodedFrame):
            for stored in item.events:
                if stored.lsn >= first_lsn and not isinstance(stored.event, EventRemoved):
                    yield stored
