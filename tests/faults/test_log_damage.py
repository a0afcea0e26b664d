"""trunc_every_byte, flip_every_bit, segment_mixups: damage is refused with its place, and changes nothing silently.

A log that was cut, or lost its last sectors, may look like one whose last write was cut off; then the whole frames
before it are there, all of them, and what was dropped is in quarantine.
"""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from pixelmemory.errors import LogCorruptError, LogError, ManifestError
from pixelmemory.log.file.file_log import FileLog
from pixelmemory.options import Options, SyncMode
from tests.harness.fault_report import LONG_FORM, FaultReport, Verdict
from tests.harness.independent_reader import CLOSE, DiskLog, read_log
from tests.harness.log_harness import STORE, Book, Recovered, Store, disk_log, read_all, recovered
from tests.harness.simulated_disk import DiskFiles, SimulatedDisk

LOG = STORE / "log"
STORE_ID = uuid.UUID(int=7)
EPOCH = 9

#: what the battery damages: about 16 KiB each
SUBJECTS = ("killed", "closed", "reopened", "relaxed", "segments")


class Subject(NamedTuple):
    """A log, and what it holds."""

    segments: dict[str, bytes]
    disk: DiskLog

    @property
    def events(self) -> list[Recovered]:
        return recovered(self.disk.events)

    def events_before(self, name: str, byte_count: int) -> int:
        """How many events are in whole frames of the segments before ``name`` and of its first bytes."""
        return sum(
            frame.event_count
            for frame in self.disk.frames
            if frame.segment < name or (frame.segment == name and frame.end <= byte_count)
        )


def _open(disk: SimulatedDisk, options: Options | None = None, files: DiskFiles | None = None) -> FileLog:
    return FileLog.open(
        STORE,
        store_id=STORE_ID,
        epoch=EPOCH,
        options=options or Options(tail_bytes_max=0),
        on_commit=lambda _: None,
        files=files or DiskFiles(disk),
        has_log=True,
    )


def _on_disk(segments: dict[str, bytes]) -> SimulatedDisk:
    return SimulatedDisk.holding({LOG / name: data for name, data in segments.items()})


def _write_log(
    options: Options, bytes_min: int, *, close: bool, seed: int = 0, store_id: uuid.UUID = STORE_ID
) -> dict[str, bytes]:
    """The segments of a log of at least so many bytes, written one append at a time; killed, or closed."""
    rng = random.Random(seed)
    disk, book = SimulatedDisk.holding({STORE / "other": b""}), Book()
    files = DiskFiles(disk)
    store = Store(book, STORE, options, files, store_id=store_id)
    while sum(frame.end - frame.start for frame in disk_log(disk).frames) < bytes_min:
        assert store.append(rng.choice((1, 1, 2, 4)))
    if close:
        store.log.close()
    files.stop()
    store.end_dead()
    return disk.contents(LOG)


@cache
def _subject(kind: str) -> Subject:
    sizes = {"segments": (4096, 15000), "relaxed": (1 << 16, 16000)}
    segment_bytes, bytes_min = sizes.get(kind, (16384, 14500))
    options = Options(segment_bytes_max=segment_bytes, sync_mode=SyncMode.OS if kind == "relaxed" else SyncMode.ALWAYS)
    segments = _write_log(options, bytes_min, close=kind in ("closed", "segments"))
    if kind == "reopened":  # and killed again at once
        disk = _on_disk(segments)
        log = _open(disk)
        segments = disk.contents(LOG)
        log.close()
    subject = Subject(segments, read_log(segments))
    assert subject.disk.stopped is None
    assert len(subject.events) > 20
    assert (len(segments) > 3) == (kind == "segments")
    assert (subject.disk.frames[-1].kind == CLOSE) == (kind in ("closed", "segments"))
    return subject


class Outcome(NamedTuple):
    """What an open made of a damaged log."""

    refused: LogCorruptError | None
    events: list[Recovered]
    quarantined: dict[str, bytes]
    torn_bytes: int


def _open_or_error(
    disk: SimulatedDisk, options: Options | None, files: DiskFiles | None = None
) -> tuple[FileLog | None, LogCorruptError | None]:
    try:
        return _open(disk, options, files), None
    except LogCorruptError as error:
        return None, error


def _outcome(segments: dict[str, bytes], options: Options | None = None) -> Outcome:
    """Open a log of these segments, read it, append to it, and read that with the independent reader."""
    disk = _on_disk(segments)
    log, refused = _open_or_error(disk, options)
    if log is None:
        assert refused is not None
        assert refused.path.parent == LOG
        assert refused.byte_offset >= 0
        assert disk.contents(LOG) == segments  # nothing was changed
        assert not disk.contents(STORE / "quarantine")
        return Outcome(refused, [], {}, 0)
    events = read_all(log)
    assert recovered(disk_log(disk).events) == events
    torn_bytes = log.recovery.torn_bytes
    log.close()
    return Outcome(None, events, disk.contents(STORE / "quarantine"), torn_bytes)


def _judge(report: FaultReport, original: list[Recovered], found: list[Recovered], allowed_loss: int = 0) -> None:
    """``found`` is ``original`` without its last ``allowed_loss`` events."""
    wanted = original[: len(original) - allowed_loss]
    report.judge(
        Verdict(
            acknowledged=len(wanted),
            lost=max(0, len(wanted) - len(found)),
            silent_changes=sum(a != b for a, b in zip(original, found, strict=False))
            + max(0, len(found) - len(original)),
        )
    )
    assert found == wanted


# ------------------------------------------------------------------------------------------------ trunc_every_byte


def _lengths(data: bytes, boundaries: list[int]) -> list[int]:
    """Every length in the long form; in the short one a stride, and the neighbours of each boundary."""
    if LONG_FORM:
        return list(range(len(data)))
    near = {length + step for length in [0, 128, *boundaries] for step in (-1, 0, 1)}
    return sorted(length for length in near | set(range(0, len(data), 61)) if 0 <= length < len(data))


@pytest.mark.parametrize("kind", SUBJECTS)
def test_trunc_every_byte(kind: str, fault_report: FaultReport) -> None:
    subject = _subject(kind)
    last = max(subject.segments)
    for name, data in subject.segments.items():
        for length in _lengths(data, subject.disk.boundaries(name)):
            outcome = _outcome({**subject.segments, name: data[:length]})
            fault_report.add("trunc_every_byte: cut")
            kept = subject.events_before(name, length)
            if name != last:
                assert outcome.refused is not None
                assert outcome.refused.path.name in (name, min(n for n in subject.segments if n > name))
            elif outcome.refused is not None:
                # it says itself that it held more, or the manifest that there was a log
                assert kind == "reopened" or length < 128
                assert kept < len(subject.events)
            else:
                _judge(fault_report, subject.events, outcome.events, len(subject.events) - kept)
                end = max((end for end in [128, *subject.disk.boundaries(name)] if end <= length), default=0)
                rest = data[end:length] if any(data[end:length]) else b""
                assert b"".join(outcome.quarantined.values()) == rest
                assert outcome.torn_bytes == len(rest)


# -------------------------------------------------------------------------------------------------- flip_every_bit

FLIP_PARTS = 16 if LONG_FORM else 1
FLIP_STRIDE = 1 if LONG_FORM else 59


def _flips(subject: Subject, part: int) -> Iterator[tuple[str, int, bytes]]:
    """Segment, byte and the segment's bytes with one bit of it flipped."""
    for name, data in subject.segments.items():
        bits = len(data) * 8
        for bit in range(bits * part // FLIP_PARTS, bits * (part + 1) // FLIP_PARTS, FLIP_STRIDE):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            yield name, bit // 8, bytes(flipped)


@pytest.mark.parametrize("part", range(FLIP_PARTS))
@pytest.mark.parametrize("kind", SUBJECTS)
def test_flip_every_bit(kind: str, part: int, fault_report: FaultReport) -> None:
    subject = _subject(kind)
    refused = 0
    for name, byte, flipped in _flips(subject, part):
        outcome = _outcome({**subject.segments, name: flipped})
        fault_report.add("flip_every_bit: bit flipped before the open")
        if outcome.refused is None:  # only zeros that were written ahead may be dropped: every event is there
            assert byte >= subject.disk.boundaries(name)[-1]
            assert any(flipped[byte : byte + 1] in kept for kept in outcome.quarantined.values())
            _judge(fault_report, subject.events, outcome.events)
        else:
            refused += 1
            assert outcome.refused.path.name in (name, max(n for n in ["", *subject.segments] if n < name))
            fault_report.judge(Verdict(len(subject.events)))
    assert refused


def test_flip_every_bit_of_the_final_frame_when_it_may_be_dropped(fault_report: FaultReport) -> None:
    """``drop_damaged_final_frame`` drops that frame, keeps its bytes, and lets nothing else through."""
    subject = _subject("killed")
    ((name, data),) = subject.segments.items()
    *others, final = subject.disk.frames
    options = Options(tail_bytes_max=0, drop_damaged_final_frame=True)
    for bit in range(others[-1].start * 8, final.end * 8, 1 if LONG_FORM else 7):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        outcome = _outcome({name: bytes(flipped)}, options)
        fault_report.add("flip_every_bit: bit flipped before the open")
        if bit < final.start * 8:
            assert outcome.refused is not None
            continue
        _judge(fault_report, subject.events, outcome.events, final.event_count)
        (kept,) = outcome.quarantined.values()
        assert kept == bytes(flipped[final.start :])


class _LyingFiles(DiskFiles):
    """One read gives a flipped bit, once; the device holds the right one."""

    def __init__(self, disk: SimulatedDisk, nth: int, rng: random.Random) -> None:
        super().__init__(disk)
        self.reads_left = nth
        self._rng = rng

    def read(self, fd: int, count: int, byte_offset: int) -> bytes:
        data = super().read(fd, count, byte_offset)
        if data:
            self.reads_left -= 1
            if self.reads_left == 0:
                bit = self._rng.randrange(len(data) * 8)
                wrong = bytearray(data)
                wrong[bit // 8] ^= 1 << bit % 8
                return bytes(wrong)
        return data


@pytest.mark.parametrize("kind", SUBJECTS)
def test_flip_every_bit_by_a_read_that_lies(kind: str, fault_report: FaultReport) -> None:
    """Nothing that was read wrongly is written down, or given out."""
    subject = _subject(kind)
    for seed in range(400 if LONG_FORM else 12):
        for nth in itertools.count(1):
            disk = _on_disk(subject.segments)
            files = _LyingFiles(disk, nth, random.Random(seed))
            log, refused = _open_or_error(disk, None, files)
            found = refused if log is None else _read_or_error(log)
            lied = files.reads_left <= 0
            fault_report.add("flip_every_bit: bit flipped in a read", int(lied))
            if not isinstance(found, LogCorruptError):
                assert found == subject.events
            if log is not None:
                log.close()
            _judge(fault_report, subject.events, recovered(disk_log(disk).events))
            if not lied:
                break


def _read_or_error(log: FileLog) -> list[Recovered] | LogCorruptError:
    try:
        return read_all(log)
    except LogCorruptError as error:
        return error


@pytest.mark.parametrize("kind", ["killed", "segments"])
def test_flip_every_bit_under_a_running_reader(kind: str, fault_report: FaultReport) -> None:
    subject = _subject(kind)
    disk = _on_disk(subject.segments)
    log = _open(disk)
    opened = disk.contents(LOG)
    refused = 0
    stride = 1999 if not LONG_FORM else 17
    for name, data in opened.items():
        for bit in range(0, len(data) * 8, stride):
            disk.file(LOG / name).cache[bit // 8] ^= 1 << bit % 8
            fault_report.add("flip_every_bit: bit flipped under a reader")
            found = _read_or_error(log)
            if isinstance(found, LogCorruptError):
                refused += 1
                assert found.path == LOG / name
                assert found.byte_offset <= bit // 8
            else:
                _judge(fault_report, subject.events, found)
            disk.file(LOG / name).cache[bit // 8] ^= 1 << bit % 8
    assert refused > 20
    assert read_all(log) == subject.events
    log.close()


# ------------------------------------------------------------------------------------------------- segment_mixups

SECTOR_BYTES = 512


@pytest.mark.parametrize("count", range(1, 6))
def test_segment_mixups_delete(count: int, fault_report: FaultReport) -> None:
    subject = _subject("segments")
    for names in itertools.combinations(sorted(subject.segments), count):
        outcome = _outcome({name: data for name, data in subject.segments.items() if name not in names})
        fault_report.add("segment_mixups: segments deleted")
        assert outcome.refused is not None


def test_segment_mixups_swap_and_duplicate(fault_report: FaultReport) -> None:
    subject = _subject("segments")
    for one, other in itertools.permutations(sorted(subject.segments), 2):
        swapped = {**subject.segments, one: subject.segments[other], other: subject.segments[one]}
        doubled = {**subject.segments, one: subject.segments[other]}
        beyond = {**subject.segments, f"{len(subject.events) + 1:020d}.log": subject.segments[other]}
        stray = {**subject.segments, "copy.log": subject.segments[other]}
        between = {**subject.segments, f"{int(one[:20]) + 1:020d}.log": subject.segments[other]}
        for kind, segments in {
            "swapped": swapped,
            "copied over another": doubled,
            "copied to the end": beyond,
            "copied to another name": stray,
            "copied between others": between,
        }.items():
            outcome = _outcome(segments)
            fault_report.add(f"segment_mixups: {kind}")
            assert outcome.refused is not None


@pytest.mark.parametrize("seed", [0, 1])
def test_segment_mixups_foreign(seed: int, fault_report: FaultReport) -> None:
    """Segments of another store, or of another log of the same store (a restored backup that went on by itself)."""
    subject = _subject("segments")
    options = Options(segment_bytes_max=4096)
    store_id = uuid.UUID(int=8) if seed == 0 else STORE_ID
    foreign = _write_log(options, 15000, close=True, seed=seed, store_id=store_id)
    if seed == 0:  # the whole log of another store
        assert _outcome(foreign).refused is not None
    for name, data in foreign.items():
        for target in {name, *subject.segments}:
            segments = {**subject.segments, target: data}
            outcome = _outcome(segments)
            fault_report.add("segment_mixups: foreign segment")
            if target == max(segments) and seed == 1 and outcome.refused is None:
                # the other history of the last segment: every event is one that the store wrote
                assert outcome.events == recovered(read_log(segments).events)
            else:
                assert outcome.refused is not None


@pytest.mark.parametrize("kind", SUBJECTS)
@pytest.mark.parametrize("fill", [b"\0", b"\xff", None], ids=["zeroed", "ones", "stale"])
def test_segment_mixups_sector(kind: str, fill: bytes | None, fault_report: FaultReport) -> None:
    """A sector that was lost, or holds what stood in the sector before it."""
    subject = _subject(kind)
    last = max(subject.segments)
    for name, data in subject.segments.items():
        final = [frame for frame in subject.disk.frames if frame.segment == name][-1]
        for start in range(0, len(data), SECTOR_BYTES):
            count = len(data[start : start + SECTOR_BYTES])
            sector = fill * count if fill is not None else data[max(0, start - SECTOR_BYTES) :][:count]
            damaged = data[:start] + sector + data[start + count :]
            outcome = _outcome({**subject.segments, name: damaged})
            fault_report.add("segment_mixups: sector overwritten")
            if outcome.refused is None and damaged != data:
                # a legal torn tail: nothing intact stood behind it
                assert name == last
                assert start + count > final.start or kind == "relaxed"
                kept = subject.events_before(name, start)
                allowed = sum(
                    frame.event_count for frame in subject.disk.frames if frame.segment == name and frame.end > start
                )
                assert kind != "reopened" or not allowed
                assert not any(sector) or start >= final.end or not allowed
                _judge(fault_report, subject.events, outcome.events, len(subject.events) - kept)


@pytest.mark.parametrize("kind", SUBJECTS)
def test_segment_mixups_frames(kind: str, fault_report: FaultReport) -> None:
    """Whole frames at the wrong place: swapped, left out, there twice. Each of them is intact."""
    subject = _subject(kind)
    for name, data in subject.segments.items():
        frames = [frame for frame in subject.disk.frames if frame.segment == name]
        for first, second in itertools.pairwise(frames):
            one, other = data[first.start : first.end], data[second.start : second.end]
            before, after = data[: first.start], data[second.end :]
            for what, middle in {
                "swapped": other + one,
                "left out": other,
                "doubled": one + one + other,
                "over the next": one + one,
            }.items():
                outcome = _outcome({**subject.segments, name: before + middle + after})
                fault_report.add(f"segment_mixups: frame {what}")
                assert outcome.refused is not None, what


@pytest.mark.parametrize("garbage", [b"\0" * 64, b"x" * 7, b"x" * 64, b"x" * 700], ids=["zeros", "7", "64", "700"])
def test_segment_mixups_appended_bytes(garbage: bytes, fault_report: FaultReport) -> None:
    for kind in SUBJECTS:
        subject = _subject(kind)
        for name, data in subject.segments.items():
            outcome = _outcome({**subject.segments, name: data + garbage})
            fault_report.add("segment_mixups: bytes appended")
            if outcome.refused is None:
                assert name == max(subject.segments)
                _judge(fault_report, subject.events, outcome.events)


def test_segment_mixups_old_copy_put_back(fault_report: FaultReport) -> None:
    """Every state that a segment was in while the log grew, and after it was closed and opened again."""
    disk, book = SimulatedDisk.holding({STORE / "other": b""}), Book()
    options = Options(segment_bytes_max=4096)
    copies: dict[str, set[bytes]] = {}

    def copy() -> None:
        for name, data in disk.contents(LOG).items():
            if name.endswith(".log"):
                copies.setdefault(name, set()).add(data)

    for _ in range(3):
        store = Store(book, STORE, options, DiskFiles(disk), store_id=STORE_ID)
        copy()
        for count in (1, 2, 4, 1, 3, 2, 5, 4):
            assert store.append(count)
            copy()
        store.log.close()
        copy()
    segments = {name: data for name, data in disk.contents(LOG).items() if name.endswith(".log")}
    events = recovered(read_log(segments).events)
    last = max(segments)
    assert len(segments) > 3
    for name, old_copies in copies.items():
        for data in old_copies - {segments.get(name, b"")}:
            outcome = _outcome({**segments, name: data})
            fault_report.add("segment_mixups: old copy put back")
            if outcome.refused is None:
                # the log as it was then: only what is outside the log can know that it went on
                assert name == last
                assert outcome.events == events[: len(outcome.events)]
                assert outcome.events == recovered(read_log({**segments, name: data}).events)


@pytest.mark.parametrize("what", ["folder", "name", "case"])
def test_segment_mixups_strange_files(what: str, fault_report: FaultReport, tmp_path: Path) -> None:
    """On real files: what no writer of ours leaves there."""
    subject = _subject("segments")
    (tmp_path / "log").mkdir()
    for name, data in subject.segments.items():
        (tmp_path / "log" / name).write_bytes(data)
    strange = tmp_path / "log" / (f"{10**6:020d}.log" if what == "folder" else "x.log")
    if what == "folder":
        strange.mkdir()
    elif what == "case":
        strange = tmp_path / "log" / sorted(subject.segments)[1]
        strange.rename(strange.with_suffix(".LOG"))
    else:
        strange.touch()
    before = sorted(path.name for path in (tmp_path / "log").iterdir())
    with pytest.raises(LogError):
        FileLog.open(tmp_path, store_id=STORE_ID, epoch=EPOCH, options=Options(), on_commit=lambda _: None)
    fault_report.add("segment_mixups: strange file")
    assert sorted(path.name for path in (tmp_path / "log").iterdir()) == before


def test_segment_mixups_a_manifest_without_its_log_and_a_log_without_its_manifest(fault_report: FaultReport) -> None:
    disk, book, options = SimulatedDisk.holding({STORE / "other": b""}), Book(), Options()
    store = Store(book, STORE, options, DiskFiles(disk))
    assert store.append(3)
    store.log.close()
    (name,) = disk.contents(LOG)
    for lost, error in ((LOG / name, LogCorruptError), (STORE / "MANIFEST", ManifestError)):
        content = bytes(disk.file(lost).cache)
        DiskFiles(disk).unlink(lost)
        before = disk.contents(LOG)
        for _ in range(2):
            with pytest.raises(error):
                Store(book, STORE, options, DiskFiles(disk))
        fault_report.add(f"segment_mixups: {lost.name if lost.parent == STORE else 'whole log'} deleted")
        assert disk.contents(LOG) == before
        disk.folder(lost.parent).change({lost.name: SimulatedDisk.holding({lost: content}).file(lost)})
    store = Store(book, STORE, options, DiskFiles(disk))
    assert len(read_all(store.log)) == 3
    store.log.close()
