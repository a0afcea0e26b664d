"""Verify many small frames at once.

A log that one caller at a time writes to has a frame for each event, and looking at a million of them one by one takes
seconds. What :func:`find_run` accepts would pass :func:`pixelmemory.log.file.walk.walk_frames` and
:func:`pixelmemory.log.file.frame.check_records` as well; what it does not accept they look at, and say what is wrong
with.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple
from zlib import crc32

import numpy as np

from pixelmemory.log.file.frame import (
    ALGORITHM_CRC32,
    FRAME_HEADER_BYTES,
    FRAME_MAGIC,
    RECORD_HEADER_BYTES,
    SCHEMA_VERSION,
    FrameKind,
)
from pixelmemory.log.file.segment import Place
from pixelmemory.memory.events import EVENT_TYPES

__all__ = ["FrameRun", "find_run"]

#: fewer frames are not worth it
FRAMES_MIN = 16

#: a frame's header; frames are aligned to its size
_FRAME = np.dtype(
    [
        ("magic", "<u4"),
        ("kind", "u1"),
        ("algorithm", "u1"),
        ("flags", "<u2"),
        ("event_count", "<u4"),
        ("body_bytes", "<u4"),
        ("first_lsn", "<u8"),
        ("durable_lsn", "<u8"),
        ("previous_checksum", "<u4"),
        ("body_checksum", "<u4"),
        ("salt", "<u8"),
        ("zero_sectors", "<u4"),
        ("reserved", "V8"),
        ("checksum", "<u4"),
    ]
)
#: how the first record of a frame begins, in the 64 bytes after the header
_RECORD = np.dtype(
    {
        "names": ["length", "code", "version", "flags"],
        "formats": ["<u4", "<u2", "u1", "u1"],
        "offsets": [0, 8, 10, 11],
        "itemsize": FRAME_HEADER_BYTES,
    }
)
#: of a header, what its checksum covers
_FIELDS_BYTES = FRAME_HEADER_BYTES - 4
assert _FRAME.itemsize == FRAME_HEADER_BYTES
_MAGIC = int.from_bytes(FRAME_MAGIC, "little")
_CODES = np.array(sorted(EVENT_TYPES), dtype=np.uint16)


class FrameRun(NamedTuple):
    """Intact frames of one event each, that follow each other."""

    start: Place
    #: where each frame ends, bytes from the start of its segment
    ends: np.ndarray
    #: of each header
    checksums: np.ndarray
    #: the durable LSN in each header
    durable_lsns: np.ndarray

    @property
    def end(self) -> Place:
        """Where the next frame starts."""
        return self.place_after(len(self.ends) - 1)

    def place_after(self, index: int) -> Place:
        """Where the frame after the one at ``index`` starts; ``start`` for -1."""
        if index < 0:
            return self.start
        return Place(self.start.lsn + index + 1, int(self.ends[index]), int(self.checksums[index]))


def find_run(buffer: memoryview, at: int, stop: int, salt: int, place: Place) -> FrameRun | None:
    """The intact frames of one event each with which ``buffer[at:stop]`` begins, but the last; None if those are few.

    Args:
        salt: of the segment.
        place: what stands at ``at``.
    """
    count = (stop - at) // FRAME_HEADER_BYTES
    if count < 2 * FRAMES_MIN or bytes(buffer[at + 8 : at + 12]) != b"\x01\0\0\0":
        return None
    blocks = np.frombuffer(buffer, _FRAME, count, at)
    starts = np.flatnonzero((blocks["magic"] == _MAGIC) & (blocks["salt"] == salt))
    if len(starts) < FRAMES_MIN:
        return None
    headers = blocks[starts]
    body_bytes = headers["body_bytes"].astype(np.int64)
    ends = np.cumsum(1 + (body_bytes + FRAME_HEADER_BYTES - 1) // FRAME_HEADER_BYTES)  # in units of 64 bytes
    records = np.frombuffer(buffer, _RECORD, count, at)[np.minimum(starts + 1, count - 1)]
    lsns = np.arange(place.lsn, place.lsn + len(starts), dtype=np.uint64)
    good = (
        (starts == np.concatenate(([0], ends[:-1])))
        & (ends <= count)
        & (headers["kind"] == FrameKind.EVENTS)
        & (headers["algorithm"] == ALGORITHM_CRC32)
        & (headers["event_count"] == 1)
        & (headers["first_lsn"] == lsns)
        & (headers["previous_checksum"] == np.concatenate(([place.previous_checksum], headers["checksum"][:-1])))
        & (records["length"].astype(np.int64) + RECORD_HEADER_BYTES == body_bytes)
        & np.isin(records["code"], _CODES)
        & (records["version"] <= SCHEMA_VERSION)
        & (records["flags"] == 0)
    )
    good = good[: _first_false(good)]
    bounds = [at, *(ends[: len(good)] * FRAME_HEADER_BYTES + at).tolist()]
    ours = [crc32(buffer[a : a + _FIELDS_BYTES]) for a in bounds[:-1]]
    bodies = [crc32(buffer[a + FRAME_HEADER_BYTES : b]) for a, b in pairwise(bounds)]
    found = headers[: len(good)]
    good = (found["checksum"] == np.array(ours, np.uint32)) & (found["body_checksum"] == np.array(bodies, np.uint32))
    found = found[: _first_false(good)]
    if len(found) < FRAMES_MIN:
        return None
    found = found[:-1]
    ends = ends[: len(found)] * FRAME_HEADER_BYTES + place.byte_offset
    return FrameRun(place, ends, found["checksum"], found["durable_lsn"])


def _first_false(values: np.ndarray) -> int:
    """The index of the first False; the length if there is none."""
    return len(values) if values.all() else int(values.argmin())
