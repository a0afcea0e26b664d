"""Segments: their header, their names, and how one comes into being."""

from __future__ import annotations

import contextlib
import re
import secrets
import struct
import time
import uuid
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from pixelmemory.errors import LogCorruptError
from pixelmemory.faults import fault_point
from pixelmemory.log.file.files import Buffer, Files, write_all
from pixelmemory.log.file.frame import ALGORITHM_CRC32

__all__ = [
    "FORMAT_VERSION",
    "SEGMENT_HEADER_BYTES",
    "Segment",
    "SegmentHeader",
    "SegmentSyncError",
    "create_segment",
    "new_header",
    "pack_header",
    "parse_header",
    "segment_name",
    "segment_names",
]

FORMAT_VERSION = 1
SEGMENT_MAGIC = b"PXMEMLOG"
SEGMENT_HEADER_BYTES = 128
#: segment flag: made by an open; the segment before it may hold bytes beyond ``previous_bytes``, all superseded
FLAG_RECOVERED = 1
#: a place in a segment is remembered about every so many bytes, to start a read there
INDEX_STRIDE_BYTES = 1 << 20

#: magic, format version, algorithm, flags, store id, segment number, first LSN, durable LSN, epoch, created (ns), salt,
#: bytes and checksum of the previous segment's tail, reserved
_FIELDS = struct.Struct("<8sHBxI16sQQQQqQQI32x")
_CHECKSUM = struct.Struct("<I")
_NAME = re.compile(r"[0-9]{20}\.log")


class SegmentSyncError(OSError):
    """A sync of a segment failed, or what makes a new one durable: its last bytes may be there after a crash or not."""


class SegmentHeader(NamedTuple):
    """What a segment says of itself."""

    store_id: uuid.UUID
    #: dense, from 1
    number: int
    first_lsn: int
    #: every event up to it was synced before the segment got its name
    durable_lsn: int
    #: of the open that made it
    epoch: int
    created_ns: int
    #: random; stands in each of its frames, so that a frame of another segment is never taken for one of this
    salt: int
    #: length of the segment before it, up to its last frame (without the seal); 0 for the first
    previous_bytes: int
    #: checksum of that frame
    previous_checksum: int
    flags: int
    #: of this header; the ``previous_checksum`` of the segment's first frame
    checksum: int = 0

    @property
    def recovered(self) -> bool:
        return bool(self.flags & FLAG_RECOVERED)


class Place(NamedTuple):
    """Where a frame starts, and what its header must say."""

    lsn: int
    byte_offset: int
    previous_checksum: int


class Segment:
    """A segment in use.

    Invariant: ``end_bytes`` covers whole frames only, all of them durable; readers never look beyond it.
    """

    __slots__ = ("end_bytes", "header", "index", "path")

    def __init__(self, path: Path, header: SegmentHeader, end_bytes: int = SEGMENT_HEADER_BYTES) -> None:
        self.path = path
        self.header = header
        self.end_bytes = end_bytes
        #: frames to start a read at, about one each INDEX_STRIDE_BYTES
        self.index: list[Place] = [Place(header.first_lsn, SEGMENT_HEADER_BYTES, header.checksum)]

    def __repr__(self) -> str:
        return f"<Segment {self.path.name} number={self.header.number} end_bytes={self.end_bytes}>"

    def note(self, lsn: int, byte_offset: int, previous_checksum: int) -> None:
        """A frame starts here: remember it if the last remembered one is far enough back."""
        if byte_offset - self.index[-1].byte_offset >= INDEX_STRIDE_BYTES:
            self.index.append(Place(lsn, byte_offset, previous_checksum))


def segment_name(first_lsn: int) -> str:
    """The file name of the segment that starts with ``first_lsn``: 20 digits, so that names sort as LSNs do."""
    return f"{first_lsn:020d}.log"


def segment_names(files: Files, folder: Path) -> list[str]:
    """The names of the segments in ``folder`` (``<home>/<name>/log``), in LSN order.

    Raises:
        LogCorruptError: a file that ends in ``.log`` and is not named as a segment.
    """
    names = [name for name in files.names(folder) if name.endswith(".log")]
    for name in names:
        if not _NAME.fullmatch(name):
            raise LogCorruptError(folder / name, 0, None, "its name is not that of a segment (20 digits)")
    return names


def pack_header(header: SegmentHeader) -> bytes:
    """The header's 128 bytes."""
    fields = _FIELDS.pack(
        SEGMENT_MAGIC,
        FORMAT_VERSION,
        ALGORITHM_CRC32,
        header.flags,
        header.store_id.bytes,
        header.number,
        header.first_lsn,
        header.durable_lsn,
        header.epoch,
        header.created_ns,
        header.salt,
        header.previous_bytes,
        header.previous_checksum,
    )
    return fields + _CHECKSUM.pack(crc32(fields))


def parse_header(data: bytes, path: Path) -> SegmentHeader:
    """The header in the first 128 bytes of a segment.

    Raises:
        LogCorruptError: it is short, fails its checksum, or is of another format version.
    """
    if len(data) < SEGMENT_HEADER_BYTES:
        raise LogCorruptError(
            path, 0, None, f"the segment header is short: {len(data)} of {SEGMENT_HEADER_BYTES} bytes"
        )
    (checksum,) = _CHECKSUM.unpack_from(data, _FIELDS.size)
    if checksum != crc32(data[: _FIELDS.size]):
        raise LogCorruptError(path, 0, None, "the segment header fails its checksum")
    (
        magic,
        version,
        algorithm,
        flags,
        store_id,
        number,
        first_lsn,
        durable_lsn,
        epoch,
        created_ns,
        salt,
        length,
        tail,
    ) = _FIELDS.unpack_from(data)
    if magic != SEGMENT_MAGIC:
        raise LogCorruptError(path, 0, None, "this is not a segment of pixelmemory")
    if version != FORMAT_VERSION or algorithm != ALGORITHM_CRC32 or flags & ~FLAG_RECOVERED:
        raise LogCorruptError(
            path, 8, None, f"format version {version}, algorithm {algorithm}, flags {flags} need a later pixelmemory"
        )
    return SegmentHeader(
        uuid.UUID(bytes=store_id),
        number,
        first_lsn,
        durable_lsn,
        epoch,
        created_ns,
        salt,
        length,
        tail,
        flags,
        checksum,
    )


def new_header(
    *,
    store_id: uuid.UUID,
    number: int,
    first_lsn: int,
    durable_lsn: int,
    epoch: int,
    previous_bytes: int = 0,
    previous_checksum: int = 0,
    flags: int = 0,
) -> SegmentHeader:
    """A header with a salt and a time of its own, and its checksum."""
    header = SegmentHeader(
        store_id,
        number,
        first_lsn,
        durable_lsn,
        epoch,
        time.time_ns(),
        secrets.randbits(64),
        previous_bytes,
        previous_checksum,
        flags,
    )
    return header._replace(checksum=_CHECKSUM.unpack(pack_header(header)[_FIELDS.size :])[0])


def create_segment(files: Files, path: Path, header: SegmentHeader, frames: Iterable[Buffer] = ()) -> int:
    """Write a segment under a temporary name, sync it, give it its name, sync the folder. Returns its descriptor.

    So a segment that bears its name has a whole header, and ``frames`` if any, on the device. An old segment of that
    name is replaced at once.

    Raises:
        SegmentSyncError: a sync or the rename failed; the name may be there or not.
        OSError: it could not be written, and nothing bears the name.
    """
    temporary = path.with_name(path.name + ".tmp")
    fault_point("segment.before_create")
    fd = files.open_new(temporary)
    try:
        end_bytes = 0
        for data in chain((pack_header(header),), frames):
            write_all(files, fd, data, end_bytes)
            end_bytes += len(data)
        fault_point("segment.after_write")
        try:
            files.sync(fd)
            fault_point("segment.after_sync")
            files.rename(temporary, path)
            fault_point("segment.after_rename")
            files.sync_folder(path.parent)
        except OSError as error:
            raise SegmentSyncError(*error.args) from error
        fault_point("segment.after_folder_sync")
    except BaseException:
        with contextlib.suppress(OSError):
            files.close(fd)
        raise
    return fd
