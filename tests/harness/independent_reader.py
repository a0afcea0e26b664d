"""A second reader of the log's format: the oracle of the battery.

Written from the layout alone, sharing no code with the package's log and importing none of it. It is as strict as can
be and decides nothing: it reads whole, chained frames for as long as there are any, and says where and why it stopped.

Segment header, 128 bytes, little-endian::

    0  magic "PXMEMLOG"   8  format version u16   10  algorithm u8   12  flags u32   16  store id, 16 bytes
    32 number u64         40 first LSN u64        48  durable LSN u64                56  epoch u64
    64 created ns i64     72 salt u64             80  previous bytes u64             88  previous checksum u32
    124 CRC-32 of bytes 0 to 123

Frame, at multiples of 64: a header of 64 bytes, the records, 0xff up to the next multiple of 64::

    0  magic b5 "PMF"     4  kind u8 (1 events, 2 close, 3 seal)   5 algorithm u8   6 flags u16
    8  event count u32    12 body bytes u32       16  first LSN u64                  24  durable LSN u64
    32 previous checksum u32                      36  checksum of the records and their padding u32
    40 salt u64           48 zero sectors u32     60  CRC-32 of bytes 0 to 59

Record: payload bytes u32, CRC-32 of everything after it u32, type u16, schema version u8, flags u8, event id of 16
bytes, logged at i64 (ns), payload (msgpack). Types: 1 added, 2 updated, 3 deleted, 4 removed: an event stood here and
was taken out, and the payload says why and when.

The previous checksum of a frame is the header checksum of the frame before it, and of a segment's first frame that of
its segment header. A segment that has a successor ends where the successor's header says, and then comes its seal.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

__all__ = ["DiskEvent", "DiskFrame", "DiskLog", "read_folder", "read_log"]

EVENTS, CLOSE, SEAL = 1, 2, 3


class DiskEvent(NamedTuple):
    """One record as its bytes say."""

    lsn: int
    event_id: bytes
    logged_at_ns: int
    type_code: int
    #: of the msgpack payload
    fields: dict[str, Any]

    @property
    def removed(self) -> bool:
        """Whether it only stands for an event that was taken out."""
        return self.type_code == 4


class DiskFrame(NamedTuple):
    """One whole frame."""

    segment: str
    start: int
    end: int
    kind: int
    first_lsn: int
    event_count: int
    durable_lsn: int


class DiskLog(NamedTuple):
    """What a log holds."""

    events: list[DiskEvent]
    frames: list[DiskFrame]
    #: why reading ended before the last segment's bytes did, with the segment and the byte; None where it did not
    stopped: str | None
    #: of every segment that was read
    epochs: list[int]

    @property
    def last_lsn(self) -> int:
        return self.events[-1].lsn if self.events else 0

    def boundaries(self, segment: str) -> list[int]:
        """Where whole frames end in ``segment``."""
        return [frame.end for frame in self.frames if frame.segment == segment]


def read_folder(folder: Path) -> DiskLog:
    """The log in the store's ``folder``."""
    return read_log({path.name: path.read_bytes() for path in (folder / "log").glob("*.log")})


def read_log(segments: Mapping[str, bytes]) -> DiskLog:
    """The log in ``segments``: file name -> bytes."""
    log = DiskLog([], [], None, [])
    next_lsn = 1
    names = sorted(name for name in segments if name.endswith(".log"))
    headers = [_segment_header(segments[name]) for name in names]
    for index, (name, header) in enumerate(zip(names, headers, strict=True)):
        if header is None:
            return log._replace(stopped=f"{name} byte 0: its header")
        if header["first_lsn"] != int(name[:20]) or header["number"] != index + 1:
            return log._replace(stopped=f"{name} byte 0: it does not belong there")
        following = headers[index + 1] if index + 1 < len(names) else None
        data = segments[name]
        end = len(data) if following is None else following["previous_bytes"]
        log.epochs.append(header["epoch"])
        if header["first_lsn"] != next_lsn:
            return log._replace(stopped=f"{name} byte 0: LSN {header['first_lsn']} instead of {next_lsn}")
        at, checksum, why = _read_segment(log, name, data[:end], header, next_lsn)
        next_lsn = log.last_lsn + 1
        if why is not None and (following is not None or any(data[at:])):
            return log._replace(stopped=f"{name} byte {at}: {why}")
        if following is not None and (at != end or checksum != following["previous_checksum"]):
            return log._replace(stopped=f"{name} byte {at}: the next segment says {end}")
    return log


def _segment_header(data: bytes) -> dict[str, int] | None:
    if len(data) < 128 or data[:8] != b"PXMEMLOG" or _u32(data, 124) != zlib.crc32(data[:124]):
        return None
    names = ("number", "first_lsn", "durable_lsn", "epoch")
    header = dict(zip(names, struct.unpack_from("<4Q", data, 32), strict=True))
    return header | {
        "salt": _u64(data, 72),
        "previous_bytes": _u64(data, 80),
        "previous_checksum": _u32(data, 88),
        "checksum": _u32(data, 124),
    }


def _read_segment(
    log: DiskLog, name: str, data: bytes, header: dict[str, int], lsn: int
) -> tuple[int, int, str | None]:
    """Add the frames of one segment to ``log``. Returns where they end, the last checksum, and why they end."""
    at, checksum = 128, header["checksum"]
    while at < len(data):
        head = data[at : at + 64]
        if len(head) < 64 or head[:4] != b"\xb5PMF" or _u32(head, 60) != zlib.crc32(head[:60]):
            return at, checksum, "no frame header"
        kind, count, size = head[4], _u32(head, 8), _u32(head, 12)
        if _u64(head, 40) != header["salt"] or _u32(head, 32) != checksum or _u64(head, 16) != lsn:
            return at, checksum, "a frame of another place"
        end = at + 64 + (size + 63) // 64 * 64
        body = data[at + 64 : end]
        if end > len(data):
            return at, checksum, "a short frame"
        if zlib.crc32(body) != _u32(head, 36):
            return at, checksum, "a frame that fails its checksum"
        events = _records(body[:size], lsn) if kind == EVENTS else []
        if events is None or len(events) != count or any(byte != 0xFF for byte in body[size:]):
            return at, checksum, "records that do not add up"
        log.events.extend(events)
        log.frames.append(DiskFrame(name, at, end, kind, lsn, count, _u64(head, 24)))
        lsn += count
        checksum = _u32(head, 60)
        at = end
    return at, checksum, None


def _records(body: bytes, lsn: int) -> list[DiskEvent] | None:
    """The events of a frame; None where they do not fill it."""
    events: list[DiskEvent] = []
    at = 0
    while at < len(body):
        if at + 36 > len(body):
            return None
        size, checksum = struct.unpack_from("<II", body, at)
        rest = body[at + 8 : at + 36 + size]
        if len(rest) != 28 + size or zlib.crc32(rest) != checksum:
            return None
        fields = msgspec.msgpack.decode(rest[28:])
        if fields.pop("t") != struct.unpack_from("<H", rest)[0] or not 1 <= rest[0] <= 4:
            return None
        events.append(DiskEvent(lsn, rest[4:20], struct.unpack_from("<q", rest, 20)[0], rest[0] | rest[1] << 8, fields))
        lsn += 1
        at += 36 + size
    return events


def _u32(data: bytes, at: int) -> int:
    value: int = struct.unpack_from("<I", data, at)[0]
    return value


def _u64(data: bytes, at: int) -> int:
    value: int = struct.unpack_from("<Q", data, at)[0]
    return value
