"""``pixelmemory verify``, of the log."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from pixelmemory import LogCorruptError, Options
from pixelmemory.log.file.file_log import FileLog
from pixelmemory.log.file.frame import FrameKind, build_frame, encode_records
from pixelmemory.memory.events import Event, MemoryAdded
from pixelmemory.store.manifest import Manifest
from tests.harness.cli_tools import SEGMENT_BYTES, Program, append, contents, flip, frames, make_log, open_log, sample
from tests.harness.logs import STORE_ID, segment_paths
from tests.harness.mishaps import MISHAPS, later_manifest, later_version


def verify(program: Program, store: Path) -> tuple[int, dict[str, object]]:
    before = contents(store)
    run = program("verify", store, "--log-only", "--json")
    assert run.err == ""
    assert contents(store) == before
    report = json.loads(run.out)
    assert report["status"] == run.status
    return run.status, report


def damage(report: dict[str, object]) -> list[tuple[str, str, int, int | None, int | None]]:
    found = msgspec.convert(report["log"], dict[str, object])["damage"]
    assert isinstance(found, list)
    return [(d["kind"], Path(d["path"]).name, d["byte_offset"], d["first_lsn"], d["last_lsn"]) for d in found]


def test_a_clean_store(program: Program, store: Path, events: list[Event]) -> None:
    status, report = verify(program, store)
    assert status == 0
    assert report["log"] == {
        "segments": len(segment_paths(store)),
        "batches": len(events),
        "events": len(events),
        "placeholders": 0,
        "removed": 0,
        "bytes": sum(path.stat().st_size for path in segment_paths(store)),
        "first_lsn": 1,
        "last_lsn": len(events),
        "torn_bytes": 0,
        "closed": True,
        "readable_behind_damage": 0,
        "damage": [],
        "later_version": [],
    }
    assert (report["store_id"], report["open_in_process"], report["findings"]) == (str(STORE_ID), None, 0)
    text = program("verify", "notes", "--home", store.parent, "--log-only").out
    assert f"LSN 1 to {len(events)}; closed properly\n" in text
    assert text.endswith("result       clean\n")


def test_a_store_that_is_open(program: Program, store: Path, events: list[Event]) -> None:
    from pixelmemory.store.lock import StoreLock

    lock = StoreLock.acquire(store / "LOCK")
    try:
        with open_log(store) as log:
            append(log, sample(40))
            status, report = verify(program, store)
            append(log, sample(1))
    finally:
        lock.release()
    assert status == 0
    log_report = report["log"]
    assert isinstance(log_report, dict)
    assert (log_report["last_lsn"], log_report["closed"]) == (len(events) + 40, False)


def test_a_store_that_is_being_written_to(program: Program, tmp_path: Path) -> None:
    """Frames that are half written, and segments that begin, are no findings."""
    store = tmp_path / "notes"
    stop = threading.Event()
    with open_log(store) as log:

        def write() -> None:
            while not stop.wait(0.005):  # a pause, or verifying never catches up with a fast disk
                log.submit([MemoryAdded("work", "id", "x" * 3000, 0)] * 20)
                log.flush()

        writer = threading.Thread(target=write)
        writer.start()
        try:
            last_lsns = []
            for _ in range(12):
                report = json.loads(program("verify", store, "--log-only", "--json").out)
                assert (report["status"], report["log"]["damage"]) == (0, [])
                last_lsns.append(report["log"]["last_lsn"] or 0)
        finally:
            stop.set()
            writer.join()
    assert last_lsns == sorted(last_lsns)
    assert last_lsns[-1] > last_lsns[0]


def test_an_empty_store(program: Program, tmp_path: Path) -> None:
    status, report = verify(program, make_log(tmp_path / "notes", []))
    assert (status, damage(report)) == (0, [])


def test_a_torn_tail_is_no_finding(program: Program, store: Path, events: list[Event]) -> None:
    path = segment_paths(store)[-1]
    path.write_bytes(path.read_bytes()[: frames(path)[-2] + 70])
    status, report = verify(program, store)
    log_report = report["log"]
    assert isinstance(log_report, dict)
    assert status == 0
    assert (log_report["torn_bytes"], log_report["last_lsn"], log_report["damage"]) == (70, len(events) - 1, [])


def test_a_flipped_byte(program: Program, store: Path, events: list[Event]) -> None:
    path = segment_paths(store)[1]
    frame = frames(path)[1]
    lsn = int(path.stem) + 1
    flip(path, frame + 80)
    status, report = verify(program, store)
    assert (status, damage(report)) == (1, [("events", path.name, frame, lsn, lsn)])
    log_report = report["log"]
    assert isinstance(log_report, dict)
    assert (log_report["events"], log_report["readable_behind_damage"]) == (len(events) - 1, len(events) - lsn)
    text = program("verify", store, "--log-only").out
    assert f"damage       {path.name}, byte {frame} (" in text
    assert f"), LSN {lsn}: the frame fails its checksum\n" in text
    assert text.endswith("result       1 finding\n")


def test_several_damages(program: Program, store: Path) -> None:
    paths = segment_paths(store)
    for path in paths[:3]:
        flip(path, frames(path)[1] + 80)
    _, report = verify(program, store)
    assert [(found[1], found[3]) for found in damage(report)] == [(path.name, int(path.stem) + 1) for path in paths[:3]]


@pytest.mark.parametrize("mishap", MISHAPS)
def test_mishaps(program: Program, store: Path, mishap: str) -> None:
    break_it, kinds = MISHAPS[mishap]
    break_it(store)
    status, report = verify(program, store)
    assert (status, [found[0] for found in damage(report)]) == (1, kinds)
    text = program("verify", store, "--log-only")
    assert text.status == 1
    assert f"result       {len(kinds)} finding" in text.out


@pytest.mark.parametrize("break_it", [later_version, later_manifest])
def test_a_store_of_alater_version_is_not_damaged(
    program: Program, store: Path, break_it: Callable[[Path], None]
) -> None:
    break_it(store)
    status, report = verify(program, store)
    assert (status, damage(report)) == (2, [])
    assert "result       not everything could be checked" in program("verify", store, "--log-only").out


@pytest.mark.parametrize(
    ("code", "payload", "status", "message"),
    [
        (1, b"\xc1", 1, "the payload does not decode"),
        (2, msgspec.msgpack.encode(MemoryAdded("n", "i", "c", 0)), 1, "type 2 holds a MemoryAdded"),
        (1, b"\x81\xa1x" + b"\x91" * 100_000, 1, "the payload is nested too deeply"),
        (77, b"\x80", 2, "unknown event type 77"),
    ],
)
def test_intact_frames_with_events_that_do_not_decode(
    program: Program, tmp_path: Path, code: int, payload: bytes, status: int, message: str
) -> None:
    store = make_log(tmp_path / "notes", sample(3))
    path = segment_paths(store)[-1]
    data = path.read_bytes()
    close = frames(path)[-1]
    body = encode_records([code], [payload], bytes(16), 0)
    frame, _ = build_frame(
        [body],
        kind=FrameKind.EVENTS,
        flags=0,
        event_count=1,
        first_lsn=4,
        durable_lsn=3,
        previous_checksum=int.from_bytes(data[close + 60 : close + 64], "little"),
        salt=int.from_bytes(data[72:80], "little"),
        byte_offset=close + 64,
    )
    path.write_bytes(data + frame)
    run = program("verify", store, "--log-only")
    assert run.status == status
    assert f"{path.name}, byte {close + 64} (" in run.out
    assert message in run.out


def _refused(store: Path) -> bool:
    """Whether an open refuses the log."""
    manifest = Manifest.load(store)
    assert manifest is not None
    try:
        FileLog.open(
            store,
            store_id=manifest.store_id,
            epoch=manifest.epoch,
            options=Options(segment_bytes_max=SEGMENT_BYTES),
            on_commit=lambda _: None,
            has_log=True,
        ).close()
    except LogCorruptError:
        return True
    return False


def test_any_flipped_bit_or_cut_is_found_if_an_open_refuses_it(program: Program, tmp_path: Path) -> None:
    clean = make_log(tmp_path / "clean", sample(24))
    chance = random.Random(7)
    outcomes = set()
    for number in range(60):
        store = tmp_path / f"store-{number}"
        shutil.copytree(clean, store)
        path = chance.choice(segment_paths(store))
        data = bytearray(path.read_bytes())
        at = chance.randrange(len(data))
        if number % 4:
            data[at] ^= 1 << chance.randrange(8)
            path.write_bytes(data)
        else:
            path.write_bytes(data[:at])
        status, report = verify(program, store)
        refused = _refused(store)
        assert (status == 1) == refused, (path.name, at)
        assert bool(damage(report)) == refused
        outcomes.add(refused)
    assert outcomes == {True, False}
