from __future__ import annotations

import re
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pixelmemory.log.file
from pixelmemory import LogCorruptError, UnknownEventError
from pixelmemory.log.contract import StoredEvent
from pixelmemory.log.file.frame import (
    FRAME_HEADER_BYTES,
    RECORD_HEADER_BYTES,
    Frame,
    build_frame,
    check_records,
    count_zero_sectors,
    decode_records,
    encode_records,
    frame_bytes,
    parse_frame_header,
    type_code,
)
from pixelmemory.log.file.segment import (
    SEGMENT_HEADER_BYTES,
    SegmentHeader,
    new_header,
    pack_header,
    parse_header,
    segment_name,
)
from pixelmemory.memory.events import Event, MemoryAdded, MemoryDeleted, MemoryUpdated, encode_event
from tests.harness.log_tools import added
from tests.harness.logs import STORE_ID

PATH = Path("00000000000000000001.log")
SALT = 0x0123456789ABCDEF

_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
_vectors = st.none() | st.binary(max_size=64).map(lambda data: data * 64)
_events: st.SearchStrategy[Event] = st.one_of(
    st.builds(MemoryAdded, _texts, _texts, _texts, st.integers(-(2**63), 2**63 - 1), st.binary(max_size=50), _vectors),
    st.builds(MemoryUpdated, _texts, _texts, st.none() | _texts, st.none() | st.binary(max_size=50), _vectors),
    st.builds(MemoryDeleted, _texts, _texts),
)


def frame_of(data: bytes | bytearray, byte_offset: int = SEGMENT_HEADER_BYTES) -> Frame:
    header = parse_frame_header(data, 0, SALT)
    assert header is not None
    return Frame(byte_offset, header, frame_bytes(header.body_bytes), memoryview(data), FRAME_HEADER_BYTES)


def build(
    body: bytes, *, event_count: int = 1, first_lsn: int = 1, byte_offset: int = SEGMENT_HEADER_BYTES
) -> bytearray:
    data, _ = build_frame(
        [body],
        kind=1,
        flags=1,
        event_count=event_count,
        first_lsn=first_lsn,
        durable_lsn=0,
        previous_checksum=0x11223344,
        salt=SALT,
        byte_offset=byte_offset,
    )
    return data


def body_of(events: list[Event], event_ids: bytes, logged_at_ns: int) -> bytes:
    return encode_records([type_code(e) for e in events], [encode_event(e) for e in events], event_ids, logged_at_ns)


def test_the_example_in_the_docstring_is_what_is_written() -> None:
    doc = pixelmemory.log.file.__doc__
    assert doc is not None
    rows = re.findall(r"^    ([0-9a-f]{2})  ((?:[0-9a-f]{2} ){15}[0-9a-f]{2})", doc, re.MULTILINE)
    documented = b"".join(bytes.fromhex(row) for _, row in rows)
    body = body_of([MemoryDeleted("work", "m1")], bytes(range(16)), 1_700_000_000_000_000_000)
    data = build(body)
    assert [int(start, 16) for start, _ in rows] == list(range(0, 144, 16))
    assert documented == data[:144]
    assert data[144:] == b"\xff" * 48
    assert len(data) == 192


@given(st.lists(_events, min_size=1, max_size=8), st.integers(1, 2**63), st.integers(0, 2**63 - 1))
def test_events_come_back_from_a_frame(events: list[Event], first_lsn: int, logged_at_ns: int) -> None:
    event_ids = bytes(i % 251 for i in range(16 * len(events)))
    body = body_of(events, event_ids, logged_at_ns)
    frame = frame_of(build(body, event_count=len(events), first_lsn=first_lsn))
    assert len(frame.buffer) == frame.total_bytes
    assert frame.total_bytes % 64 == 0
    check_records(frame, PATH)
    assert decode_records(frame, PATH) == [
        StoredEvent(first_lsn + i, event_ids[16 * i : 16 * i + 16], logged_at_ns, event)
        for i, event in enumerate(events)
    ]


def test_every_flipped_bit_of_a_frame_is_seen() -> None:
    data = build(body_of([added(1, "some content")], bytes(16), 7))
    good = frame_of(data).header
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        header = parse_frame_header(flipped, 0, SALT)
        if bit < 8 * FRAME_HEADER_BYTES:
            assert header is None, bit
        else:
            assert header == good
            assert crc32(flipped[FRAME_HEADER_BYTES:]) != good.body_checksum, bit


def test_every_flipped_bit_of_a_segment_header_is_seen() -> None:
    data = pack_header(new_header(store_id=STORE_ID, number=3, first_lsn=9, durable_lsn=8, epoch=2, previous_bytes=512))
    parse_header(data, PATH)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(LogCorruptError):
            parse_header(bytes(flipped), PATH)


def test_a_segment_header_comes_back() -> None:
    header = new_header(
        store_id=STORE_ID,
        number=2**40,
        first_lsn=2**50,
        durable_lsn=2**50 - 1,
        epoch=77,
        previous_bytes=2**33,
        previous_checksum=0xFFFFFFFF,
        flags=1,
    )
    data = pack_header(header)
    assert len(data) == SEGMENT_HEADER_BYTES == 128
    assert parse_header(data, PATH) == header
    assert header.recovered


@pytest.mark.parametrize("field", ["format version", "algorithm", "flags"])
def test_a_segment_of_a_later_format_is_refused(field: str) -> None:
    data = bytearray(pack_header(new_header(store_id=STORE_ID, number=1, first_lsn=1, durable_lsn=0, epoch=1)))
    data[{"format version": 8, "algorithm": 10, "flags": 12}[field]] = 2
    data[124:] = crc32(data[:124]).to_bytes(4, "little")
    with pytest.raises(LogCorruptError, match="later pixelmemory"):
        parse_header(bytes(data), PATH)


def test_a_frame_of_another_segment_is_not_taken_for_one_of_its_own() -> None:
    data = build(body_of([added(1)], bytes(16), 7))
    assert parse_frame_header(data, 0, SALT) is not None
    assert parse_frame_header(data, 0, SALT + 1) is None


@pytest.mark.parametrize(
    ("position", "value", "what"),
    [(8, 99, "type"), (10, 2, "schema version"), (11, 1, "flags")],
    ids=["type", "version", "flags"],
)
def test_a_record_of_a_later_version_is_refused_by_name(position: int, value: int, what: str) -> None:
    one = body_of([added(1)], bytes(16), 7)
    two = bytearray(one)
    two[position] = value
    frame = frame_of(build(one + bytes(two), event_count=2, first_lsn=41), byte_offset=1024)
    for read in (check_records, decode_records):
        with pytest.raises(UnknownEventError) as caught:
            read(frame, PATH)
        assert caught.value.lsn == 42, what
        assert caught.value.byte_offset == 1024 + FRAME_HEADER_BYTES + len(one)
        assert caught.value.type_code == (99 if what == "type" else 1)


@pytest.mark.parametrize("event_count", [1, 3])
def test_a_wrong_event_count_is_damage(event_count: int) -> None:
    body = body_of([added(1), added(2)], bytes(32), 7)
    frame = frame_of(build(body, event_count=event_count))
    for read in (check_records, decode_records):
        with pytest.raises(LogCorruptError):
            read(frame, PATH)


def test_a_record_longer_than_its_batch_is_damage() -> None:
    body = bytearray(body_of([added(1)], bytes(16), 7))
    body[0] += 1
    frame = frame_of(build(bytes(body)))
    with pytest.raises(LogCorruptError, match="beyond its frame"):
        check_records(frame, PATH)


def test_a_payload_that_is_not_what_its_type_says_is_damage() -> None:
    deleted = encode_event(MemoryDeleted("work", "m"))
    frame = frame_of(build(encode_records([1], [deleted], bytes(16), 7)))
    with pytest.raises(LogCorruptError, match="type 1 holds a MemoryDeleted"):
        decode_records(frame, PATH)
    frame = frame_of(build(encode_records([1], [b"\xc1 not msgpack"], bytes(16), 7)))
    with pytest.raises(LogCorruptError, match="does not decode"):
        decode_records(frame, PATH)


@given(st.integers(0, 40), st.integers(0, 60), st.integers(0, 40), st.integers(0, 15))
def test_zero_sectors_are_counted_as_they_fall_on_the_disk(before: int, zeros: int, after: int, start: int) -> None:
    byte_offset = SEGMENT_HEADER_BYTES + 64 * start
    data = build(b"\x01" * (64 * before) + bytes(64 * zeros) + b"\x02" * (64 * after), byte_offset=byte_offset)
    on_disk = b"\x55" * byte_offset + bytes(data)
    expected = 0
    for sector in range(0, len(on_disk), 512):
        piece = on_disk[max(sector, byte_offset) : sector + 512] if sector + 512 > byte_offset else b""
        expected += bool(piece) and not any(piece)
    assert count_zero_sectors(data, byte_offset) == expected
    header = parse_frame_header(data, 0, SALT)
    assert header is not None
    assert header.zero_sectors == expected


def test_segment_names_sort_as_their_lsns() -> None:
    lsns = [1, 9, 10, 99, 10**12, 2**63]
    assert sorted(map(segment_name, reversed(lsns))) == [segment_name(lsn) for lsn in lsns]


def test_sizes_of_the_format() -> None:
    assert RECORD_HEADER_BYTES == 36
    assert FRAME_HEADER_BYTES == 64
    assert [frame_bytes(n) for n in (0, 1, 64, 65)] == [64, 128, 128, 192]
    assert SegmentHeader._fields[0] == "store_id"
