"""Records and frames as bytes. Pure functions; the layout is drawn in the package's docstring."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import msgspec

from pixelmemory.errors import LogCorruptError, UnknownEventError
from pixelmemory.log.contract import StoredEvent
from pixelmemory.log.file.files import Buffer
from pixelmemory.memory.events import EVENT_TYPES, Event, decode_event, encode_event

__all__ = [
    "FRAME_ALIGNMENT_BYTES",
    "FRAME_HEADER_BYTES",
    "RECORD_HEADER_BYTES",
    "Frame",
    "FrameHeader",
    "FrameKind",
    "build_frame",
    "check_records",
    "count_zero_sectors",
    "decode_records",
    "encode_records",
    "frame_bytes",
    "last_logged_at_ns",
    "new_event_ids",
    "parse_frame_header",
    "transform_records",
    "type_code",
]

#: zlib's CRC-32; the only algorithm of format version 1
ALGORITHM_CRC32 = 1
#: schema version of the payloads that this version writes, and the newest it reads
SCHEMA_VERSION = 1
#: the unit in which a device writes or loses data
SECTOR_BYTES = 512

FRAME_MAGIC = b"\xb5PMF"
FRAME_HEADER_BYTES = 64
#: frames start at a multiple of this, so that a frame header never straddles two sectors
FRAME_ALIGNMENT_BYTES = 64
#: frame flag: the writer synced this frame before it wrote anything after it (``SyncMode.ALWAYS``)
FLAG_SYNCED_EACH = 1

#: length, checksum
_RECORD_HEAD = struct.Struct("<II")
#: type, schema version, flags, event id, logged at (ns)
_RECORD_REST = struct.Struct("<HBB16sq")
_RECORD = struct.Struct("<IIHBB16sq")
_RECORD_PREFIX = struct.Struct("<IIHBB")
RECORD_HEADER_BYTES = _RECORD.size

#: magic, kind, algorithm, flags, event count, body length, first LSN, durable LSN, previous checksum, body checksum,
#: salt, zero sectors, reserved
_FRAME_FIELDS = struct.Struct("<4sBBHIIQQIIQI8x")
_FRAME = struct.Struct("<4sBBHIIQQIIQI8xI")
_CHECKSUM = struct.Struct("<I")

_PADDING = b"\xff" * FRAME_ALIGNMENT_BYTES
_ZEROS = bytes(FRAME_ALIGNMENT_BYTES)
_TYPE_CODES = {cls: code for code, cls in EVENT_TYPES.items()}


class FrameKind:
    """The kinds of frame. Only ``EVENTS`` holds records."""

    EVENTS = 1
    #: written by a clean close: attests every frame before it
    CLOSE = 2
    #: the segment is complete and the next one exists
    SEAL = 3


class FrameHeader(NamedTuple):
    """The fields of a frame header, in their order on disk."""

    magic: bytes
    kind: int
    algorithm: int
    flags: int
    event_count: int
    #: bytes of the records, without the padding
    body_bytes: int
    first_lsn: int
    #: last LSN that was known to be synced when the frame was written
    durable_lsn: int
    previous_checksum: int
    body_checksum: int
    salt: int
    #: sectors' worth of the frame that hold only zeros by nature
    zero_sectors: int
    #: of the header; the next frame's ``previous_checksum``
    checksum: int


class Frame(NamedTuple):
    """One intact frame as it was read: ``buffer[body_at : body_at + header.body_bytes]`` are its records."""

    byte_offset: int
    header: FrameHeader
    #: on disk, header and padding included
    total_bytes: int
    buffer: memoryview
    body_at: int

    @property
    def body(self) -> memoryview:
        return self.buffer[self.body_at : self.body_at + self.header.body_bytes]

    @property
    def last_lsn(self) -> int:
        return self.header.first_lsn + self.header.event_count - 1


def encode_records(types: Sequence[int], payloads: Sequence[bytes], event_ids: bytes, logged_at_ns: int) -> bytes:
    """The records of one append: ``event_ids`` holds 16 bytes for each, all share ``logged_at_ns``."""
    parts: list[bytes] = []
    id_at = 0
    for type_code, payload in zip(types, payloads, strict=True):
        rest = _RECORD_REST.pack(type_code, SCHEMA_VERSION, 0, event_ids[id_at : id_at + 16], logged_at_ns)
        parts += (_RECORD_HEAD.pack(len(payload), crc32(payload, crc32(rest))), rest, payload)
        id_at += 16
    return b"".join(parts)


def type_code(event: Event) -> int:
    """The record's type: the event's tag."""
    return _TYPE_CODES[type(event)]


# Not os.urandom for each event: it lets go of the interpreter's lock, and beside a busy projector it takes a fifth of a
# millisecond to get that back.
_random = random.Random(os.urandom(32))  # noqa: S311 - ids are unique, not secret
os.register_at_fork(after_in_child=lambda: _random.seed(os.urandom(32)))


def new_event_ids(count: int) -> bytes:
    """``count`` random ids of 16 bytes each."""
    return _random.randbytes(16 * count)


def frame_bytes(body_bytes: int) -> int:
    """The size on disk of a frame with ``body_bytes`` of records."""
    return (
        FRAME_HEADER_BYTES + (body_bytes + FRAME_ALIGNMENT_BYTES - 1) // FRAME_ALIGNMENT_BYTES * FRAME_ALIGNMENT_BYTES
    )


def build_frame(
    bodies: Sequence[Buffer],
    *,
    kind: int,
    flags: int,
    event_count: int,
    first_lsn: int,
    durable_lsn: int,
    previous_checksum: int,
    salt: int,
    byte_offset: int,
) -> tuple[bytearray, int]:
    """A whole frame, ready to be written at ``byte_offset`` of its segment, and its checksum."""
    body_bytes = sum(map(len, bodies))
    padding = _PADDING[: -body_bytes % FRAME_ALIGNMENT_BYTES]
    frame = bytearray().join((_ZEROS, *bodies, padding))
    body_checksum = crc32(memoryview(frame)[FRAME_HEADER_BYTES:])
    fields = _FRAME_FIELDS.pack(
        FRAME_MAGIC,
        kind,
        ALGORITHM_CRC32,
        flags,
        event_count,
        body_bytes,
        first_lsn,
        durable_lsn,
        previous_checksum,
        body_checksum,
        salt,
        count_zero_sectors(frame, byte_offset),
    )
    checksum = crc32(fields)
    frame[: _FRAME_FIELDS.size] = fields
    _CHECKSUM.pack_into(frame, _FRAME_FIELDS.size, checksum)
    return frame, checksum


def count_zero_sectors(frame: Buffer, byte_offset: int) -> int:
    """How many sectors hold nothing but zeros of this frame after its header, were it at ``byte_offset``.

    A lost sector reads as zeros; a frame that has more of them than its header says was torn.
    """
    whole = frame if isinstance(frame, bytearray | bytes) else bytes(frame)
    if whole.find(_ZEROS, FRAME_HEADER_BYTES) < 0:  # both ends are aligned, so a zero piece is at least this long
        return 0
    count = 0
    at = FRAME_HEADER_BYTES
    while at < len(whole):
        stop = min(len(whole), at + SECTOR_BYTES - (byte_offset + at) % SECTOR_BYTES)
        piece = whole[at:stop]
        if at > FRAME_HEADER_BYTES or (byte_offset + at) % SECTOR_BYTES == 0:  # else it shares the header's sector
            count += piece.count(0) == len(piece)
        at = stop
    return count


def parse_frame_header(buffer: Buffer, at: int, salt: int) -> FrameHeader | None:
    """The intact header of this segment at ``buffer[at:]`` (64 bytes must be there), or None."""
    header = FrameHeader._make(_FRAME.unpack_from(buffer, at))
    if (
        header.magic == FRAME_MAGIC
        and header.salt == salt
        and header.checksum == crc32(buffer[at : at + _FRAME_FIELDS.size])
        and header.algorithm == ALGORITHM_CRC32
    ):
        return header
    return None


def _records(frame: Frame, path: Path) -> Iterator[tuple[int, int, int, bytes, int, memoryview]]:
    """(LSN, byte offset, type, event id, logged at, payload) of each record, their structure checked."""
    at, stop, first_lsn = frame.body_at, frame.body_at + frame.header.body_bytes, frame.header.first_lsn
    to_file = frame.byte_offset + FRAME_HEADER_BYTES - frame.body_at
    for lsn in range(first_lsn, first_lsn + frame.header.event_count):
        if at + RECORD_HEADER_BYTES > stop:
            raise LogCorruptError(path, at + to_file, lsn, "the frame holds fewer records than its header says")
        length, _, code, version, flags, event_id, logged_at_ns = _RECORD.unpack_from(frame.buffer, at)
        end = at + RECORD_HEADER_BYTES + length
        if end > stop:
            raise LogCorruptError(path, at + to_file, lsn, "a record ends beyond its frame")
        if code not in EVENT_TYPES or version > SCHEMA_VERSION or flags:
            raise UnknownEventError(code, path, at + to_file, lsn)
        yield lsn, at + to_file, code, event_id, logged_at_ns, frame.buffer[at + RECORD_HEADER_BYTES : end]
        at = end
    if at != stop:
        raise LogCorruptError(path, at + to_file, first_lsn, "the frame holds more bytes than its records")


def check_records(frame: Frame, path: Path) -> None:
    """Check the structure of a frame's records, without decoding them.

    Raises:
        LogCorruptError: the records do not fill the frame.
        UnknownEventError: a type, schema version or flag of a later version.
    """
    buffer, at = frame.buffer, frame.body_at
    stop = at + frame.header.body_bytes
    for _ in range(frame.header.event_count):
        if at + RECORD_HEADER_BYTES > stop:
            break
        length, _, code, version, flags = _RECORD_PREFIX.unpack_from(buffer, at)
        if code not in EVENT_TYPES or version > SCHEMA_VERSION or flags:
            break
        at += RECORD_HEADER_BYTES + length
    else:
        if at == stop:
            return
    for _ in _records(frame, path):  # raises, with the place
        pass


def last_logged_at_ns(frame: Frame, path: Path) -> int:
    """When the frame's last record was logged; 0 for a frame without records."""
    logged_at_ns = 0
    for record in _records(frame, path):
        logged_at_ns = record[4]
    return logged_at_ns


def decode_records(frame: Frame, path: Path) -> list[StoredEvent]:
    """The events of an intact frame of the segment ``path``.

    Raises:
        LogCorruptError: the records do not fill the frame, or a payload is not what its type says.
        UnknownEventError: a type, schema version or flag of a later version.
    """
    events: list[StoredEvent] = []
    for lsn, byte_offset, code, event_id, logged_at_ns, payload in _records(frame, path):
        try:
            event = decode_event(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise LogCorruptError(path, byte_offset, lsn, f"the payload does not decode: {error}") from error
        if type(event) is not EVENT_TYPES[code]:
            raise LogCorruptError(path, byte_offset, lsn, f"type {code} holds a {type(event).__name__}")
        events.append(StoredEvent(lsn, event_id, logged_at_ns, event))
    return events


def transform_records(frame: Frame, path: Path, transform: Callable[[StoredEvent], Event]) -> tuple[list[Buffer], int]:
    """The records of an intact frame with what ``transform`` makes of each event, in pieces, and how many it changed.

    An event that it gives back as it is keeps its bytes; another one gets the same event id and time.

    Raises:
        LogCorruptError, UnknownEventError: as :func:`decode_records`.
    """
    changed: dict[int, bytes] = {}
    for stored in decode_records(frame, path):
        event = transform(stored)
        if event is not stored.event:
            payload = encode_event(event)
            changed[stored.lsn] = encode_records([type_code(event)], [payload], stored.event_id, stored.logged_at_ns)
    if not changed:
        return [frame.body], 0
    bodies: list[Buffer] = []
    at = frame.body_at
    for lsn, _, _, _, _, payload_view in _records(frame, path):
        end = at + RECORD_HEADER_BYTES + len(payload_view)
        bodies.append(changed.get(lsn, frame.buffer[at:end]))
        at = end
    return bodies, len(changed)
