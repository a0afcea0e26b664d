"""What an open makes of a log that was cut, damaged, mixed up, or left by a crash."""

from __future__ import annotations

import logging
import shutil
import struct
import uuid
from pathlib import Path
from typing import Any

import pytest

from pixelmemory import LogCorruptError, LogWriteError, UnknownEventError
from pixelmemory.log.file.files import Files
from pixelmemory.log.file.frame import Frame, FrameKind, build_frame, check_records, encode_records, type_code
from pixelmemory.log.file.runs import FrameRun
from pixelmemory.log.file.segment import Place, Segment, pack_header, parse_header
from pixelmemory.log.file.walk import BadFrameError, SegmentFile
from pixelmemory.memory.events import Event, encode_event
from pixelmemory.options import SyncMode
from tests.harness.log_tools import FailingFiles, added, opened, plain, sample_events
from tests.harness.logs import read_events, segment_paths

HEADER = 128


class Crashed:
    """A store as a kill left it: everything that was written is there, nothing was closed."""

    def __init__(self, folder: Path, events: list[Event], starts: list[int]) -> None:
        self.folder = folder
        self.events = events
        #: byte offset of each frame in the last segment, and of what comes after them
        self.starts = starts

    @property
    def last(self) -> Path:
        return segment_paths(self.folder)[-1]


def crash(folder: Path, frames: list[list[Event]], **options: Any) -> Crashed:
    """Write ``frames`` and copy the files away before anything is closed."""
    live = folder.with_name(folder.name + "-live")
    with opened(live, **options) as store:
        starts = [HEADER]
        for frame in frames:
            append = store.append(*frame)
            assert append.error is None
            path = segment_paths(live)[-1]
            end = store.log._segments[-1].end_bytes
            starts = [HEADER, end] if int(path.stem) == append.first_lsn else [*starts, end]
        shutil.copytree(live, folder)
    return Crashed(folder, [event for frame in frames for event in frame], starts)


def small(tmp_path: Path, **options: Any) -> Crashed:
    """Four frames of a few hundred bytes in one segment."""
    return crash(tmp_path / "store", [[added(n, chr(97 + n) * 700), added(n)] for n in range(4)], **options)


def change(path: Path, byte_offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(byte_offset)
        file.write(data)


def cut(path: Path, length: int) -> None:
    with path.open("r+b") as file:
        file.truncate(length)


def flip(path: Path, byte_offset: int, bit: int = 0) -> None:
    data = path.read_bytes()
    change(path, byte_offset, bytes([data[byte_offset] ^ 1 << bit]))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(folder: Path, **options: Any) -> LogCorruptError:
    """The error of an open, which must change nothing."""
    before = snapshot(folder)
    with pytest.raises(LogCorruptError) as caught, opened(folder, epoch=5, **options):
        pass
    assert snapshot(folder) == before
    return caught.value


def recovered(folder: Path, events: list[Event], **options: Any) -> None:
    """Open twice: the events are these, then one more can be appended, and it stays."""
    with opened(folder, epoch=5, **options) as store:
        assert plain(read_events(store.log)) == events
        assert store.log.durable_lsn == len(events) == store.log.recovery.events
        assert store.append(added(999)).first_lsn == len(events) + 1
    with opened(folder, epoch=6) as store:
        assert plain(read_events(store.log)) == [*events, added(999)]
        assert store.log.recovery.clean


# -- ends that are no damage


def test_a_kill_loses_nothing_and_says_that_it_was_not_closed(tmp_path: Path) -> None:
    store = small(tmp_path)
    with opened(store.folder, epoch=2) as again:
        report = again.log.recovery
        assert (report.events, report.durable_lsn, report.frames, report.torn_bytes) == (8, 8, 4, 0)
        assert not report.clean
        assert report.quarantine_path is None
        assert report.copied_bytes > 0
    assert not (store.folder / "quarantine").exists()
    recovered(store.folder, store.events)


@pytest.mark.parametrize("mode", SyncMode)
def test_a_cut_leaves_whole_frames_and_keeps_the_rest_aside(
    tmp_path: Path, mode: SyncMode, caplog: pytest.LogCaptureFixture
) -> None:
    store = small(tmp_path, sync_mode=mode)
    data = store.last.read_bytes()
    name = store.last.name
    for length in (*range(0, store.starts[-1] + 1, 167), *store.starts, HEADER - 1, HEADER + 1):
        folder = tmp_path / f"cut-{length}"
        if folder.exists():
            continue
        (folder / "log").mkdir(parents=True)
        (folder / "log" / name).write_bytes(data[:length])
        whole = sum(end <= length for end in store.starts[1:])
        end = store.starts[whole] if length >= HEADER else 0
        caplog.clear()
        with opened(folder, epoch=2) as again, caplog.at_level(logging.WARNING):
            report = again.log.recovery
            assert plain(read_events(again.log)) == store.events[: 2 * whole], length
            assert report.torn_bytes == length - end
            if length > end:
                assert report.quarantine_path is not None
                assert report.quarantine_path.parent == folder / "quarantine"
                assert report.quarantine_path.read_bytes() == data[end:length]
                assert report.quarantine_path.stat().st_mode & 0o777 == 0o600
            elif length:
                assert report.quarantine_path is None
        recovered(folder, store.events[: 2 * whole])


def test_a_torn_tail_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = small(tmp_path)
    cut(store.last, store.starts[3] + 300)
    with caplog.at_level(logging.WARNING, logger="pixelmemory.log"):
        recovered(store.folder, store.events[:6])
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "LSN 7" in message
    assert f"byte {store.starts[3]}" in message


def test_a_zeroed_sector_in_the_last_batch_is_a_torn_tail(tmp_path: Path) -> None:
    store = small(tmp_path)
    start, end = store.starts[3], store.starts[4]
    sector = (start // 512 + 1) * 512
    assert start < sector
    assert sector + 512 < end
    change(store.last, sector, bytes(512))
    recovered(store.folder, store.events[:6])


def test_a_lost_first_sector_of_the_last_batch_is_a_torn_tail(tmp_path: Path) -> None:
    store = small(tmp_path)
    start = store.starts[3]
    change(store.last, start, bytes(512 - start % 512))
    recovered(store.folder, store.events[:6])


def test_zeros_of_its_own_do_not_make_a_damaged_batch_look_torn(tmp_path: Path) -> None:
    """A vector of zeros fills whole sectors: a flipped bit beside it is damage all the same."""
    frames: list[list[Event]] = [[added(1)], [added(2, "x" * 300, embedding=bytes(4 * 1024))]]
    store = crash(tmp_path / "store", frames)
    shutil.copytree(store.folder, tmp_path / "torn")
    flip(store.last, store.starts[1] + 64 + 100)
    error = refused(store.folder)
    assert (error.byte_offset, error.lsn) == (store.starts[1], 2)
    # one sector more than its own is lost
    torn = segment_paths(tmp_path / "torn")[-1]
    change(torn, store.starts[1], bytes(512 - store.starts[1] % 512))
    recovered(tmp_path / "torn", [added(1)])


# -- damage


@pytest.mark.parametrize("frame", [0, 1, 2])
@pytest.mark.parametrize("place", [0, 5, 30, 63, 64, 100, 700, 800])
def test_damage_before_an_intact_batch_is_refused(tmp_path: Path, frame: int, place: int) -> None:
    store = small(tmp_path)
    flip(store.last, store.starts[frame] + place, 3)
    error = refused(store.folder)
    assert error.path == store.last
    assert (error.byte_offset, error.lsn) == (store.starts[frame], 1 + 2 * frame)
    assert refused(store.folder, drop_damaged_final_frame=True).lsn == error.lsn


def test_a_zeroed_batch_before_an_intact_one_is_refused(tmp_path: Path) -> None:
    store = small(tmp_path)
    change(store.last, store.starts[2], bytes(store.starts[3] - store.starts[2]))
    assert refused(store.folder).lsn == 5


def test_damage_of_the_last_batch_but_one_is_seen_though_the_last_is_torn(tmp_path: Path) -> None:
    store = small(tmp_path)
    flip(store.last, store.starts[2] + 100)
    cut(store.last, store.starts[3] + 200)  # the header of the last is whole
    assert refused(store.folder).lsn == 5


def test_a_torn_sector_with_anything_after_it_is_damage(tmp_path: Path) -> None:
    """Each frame is synced before the next is written, so a frame that something follows was whole once."""
    store = small(tmp_path)
    sector = (store.starts[2] // 512 + 1) * 512
    change(store.last, sector, bytes(512))
    cut(store.last, store.starts[3] + 17)
    assert refused(store.folder).lsn == 5


@pytest.mark.parametrize("place", [0, 8, 40, 64, 300, 800])
def test_a_final_batch_of_full_length_with_a_bad_checksum_is_refused_unless_asked(tmp_path: Path, place: int) -> None:
    store = small(tmp_path)
    flip(store.last, store.starts[3] + place, 5)
    damaged = store.last.read_bytes()
    error = refused(store.folder)
    assert (error.path, error.byte_offset, error.lsn) == (store.last, store.starts[3], 7)
    assert "drop_damaged_final_frame" in str(error)
    recovered(store.folder, store.events[:6], drop_damaged_final_frame=True)
    (kept,) = (store.folder / "quarantine").iterdir()
    assert kept.read_bytes() == damaged[store.starts[3] :]


def test_a_properly_closed_log_has_no_torn_tail(tmp_path: Path) -> None:
    """The closing mark attests the last frame: whatever happens to it is damage."""
    events = [added(n, "x" * 900) for n in range(3)]
    with opened(tmp_path / "store") as store:
        store.append_each(events)
    path = segment_paths(tmp_path / "store")[0]
    size = path.stat().st_size
    change(path, size - 64 - 512 - size % 512, bytes(512))
    assert refused(tmp_path / "store").lsn == 3


def test_what_an_open_copied_was_synced_and_cannot_be_torn(tmp_path: Path) -> None:
    store = small(tmp_path)
    live = tmp_path / "live"
    shutil.copytree(store.folder, live)
    with opened(live, epoch=2):
        shutil.copytree(live, tmp_path / "again")
    path = segment_paths(tmp_path / "again")[-1]
    for length in (store.starts[3] + 100, store.starts[3]):
        cut(path, length)
        assert refused(tmp_path / "again").lsn == 7


def test_bytes_after_the_closing_mark_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as store:
        store.append(added(1))
    path = segment_paths(tmp_path / "store")[0]
    path.write_bytes(path.read_bytes() + b"\x01" * 64)
    assert refused(tmp_path / "store").lsn == 2


def test_a_batch_that_stands_twice_is_refused(tmp_path: Path) -> None:
    store = small(tmp_path)
    data = store.last.read_bytes()[: store.starts[4]]
    again = data[store.starts[3] : store.starts[4]]
    store.last.write_bytes(data + again)
    error = refused(store.folder, drop_damaged_final_frame=True)
    assert (error.byte_offset, error.lsn) == (store.starts[4], 9)


def test_two_frames_that_changed_places_are_refused(tmp_path: Path) -> None:
    store = small(tmp_path)
    data = store.last.read_bytes()
    a, b, c = store.starts[1:4]
    store.last.write_bytes(data[:a] + data[b:c] + data[a:b] + data[c:])
    assert refused(store.folder).lsn == 3


def test_a_batch_of_another_segment_is_refused(tmp_path: Path) -> None:
    one = small(tmp_path)
    two = crash(tmp_path / "two", [[added(n, chr(97 + n) * 700), added(n)] for n in range(4)])
    data = two.last.read_bytes()
    change(one.last, one.starts[3], data[one.starts[3] : one.starts[4]])
    assert refused(one.folder).lsn == 7


# -- the relaxed modes, where frames follow each other unsynced


def test_a_lost_sector_in_a_relaxed_mode_takes_what_follows_it(tmp_path: Path) -> None:
    store = small(tmp_path, sync_mode=SyncMode.OS)
    sector = (store.starts[1] // 512 + 1) * 512
    change(store.last, sector, bytes(512))
    recovered(store.folder, store.events[:2])
    (kept,) = (store.folder / "quarantine").iterdir()
    assert kept.stat().st_size == store.starts[4] - store.starts[1]


def test_a_flipped_bit_in_a_relaxed_mode_is_damage(tmp_path: Path) -> None:
    store = small(tmp_path, sync_mode=SyncMode.OS)
    flip(store.last, store.starts[1] + 100)
    assert refused(store.folder).lsn == 3


def test_what_a_flush_attested_cannot_be_torn_in_a_relaxed_mode(tmp_path: Path) -> None:
    live = tmp_path / "live"
    with opened(live, sync_mode=SyncMode.OS) as store:
        store.append(added(1, "a" * 900))
        store.append(added(2, "b" * 900))
        store.log.flush()
        store.append(added(3, "c" * 900))
        shutil.copytree(live, tmp_path / "store")
    path = segment_paths(tmp_path / "store")[0]
    change(path, 512, bytes(512))
    assert refused(tmp_path / "store").lsn == 1


# -- segments


@pytest.fixture
def several(tmp_path: Path) -> Crashed:
    store = crash(tmp_path / "store", [[event] for event in sample_events(120)], segment_bytes_max=8192)
    assert len(segment_paths(store.folder)) > 4
    return store


def test_several_segments_reopen(several: Crashed) -> None:
    recovered(several.folder, several.events)


@pytest.mark.parametrize("index", [0, 1, 2, -2])
def test_damage_in_a_segment_that_is_not_the_last_is_refused(several: Crashed, index: int) -> None:
    path = segment_paths(several.folder)[index]
    data = path.read_bytes()
    for place in (0, 60, HEADER, HEADER + 70, len(data) - 1, len(data) - 64):
        flip(path, place)
        error = refused(several.folder)
        assert error.path == path or place < HEADER
        flip(path, place)
    for length in (0, 100, HEADER, len(data) - 64, len(data) - 100, len(data) // 2):
        path.write_bytes(data[:length])
        assert refused(several.folder).path == path
    path.write_bytes(data + bytes(64))
    assert refused(several.folder).path == path
    sector = len(data) // 1024 * 512
    path.write_bytes(data[:sector] + bytes(512) + data[sector + 512 :])
    assert refused(several.folder).path == path


@pytest.mark.parametrize("index", [0, 1, 2, -2, -1])
def test_a_missing_segment_is_refused(several: Crashed, index: int) -> None:
    segment_paths(several.folder)[index].unlink()
    error = refused(several.folder)
    assert "missing" in str(error)


def test_swapped_doubled_and_misnamed_segments_are_refused(several: Crashed) -> None:
    paths = segment_paths(several.folder)
    one, two = paths[1].read_bytes(), paths[2].read_bytes()
    paths[1].write_bytes(two)
    assert refused(several.folder).path == paths[1]
    paths[2].write_bytes(one)
    assert refused(several.folder).path == paths[1]
    paths[1].write_bytes(one)
    assert refused(several.folder).path == paths[2]
    paths[2].write_bytes(two)
    doubled = paths[2].with_name(f"{int(paths[2].stem) + 1:020d}.log")
    doubled.write_bytes(two)
    assert refused(several.folder).path == doubled
    doubled.unlink()
    (paths[0].parent / "copy.log").write_bytes(two)
    assert refused(several.folder).path.name == "copy.log"


def test_a_segment_of_another_store_is_refused(several: Crashed, tmp_path: Path) -> None:
    events = [[event] for event in several.events]
    other = crash(tmp_path / "other", events, segment_bytes_max=8192, store_id=uuid.UUID(int=7))
    mine, foreign = segment_paths(several.folder), segment_paths(other.folder)
    assert [p.name for p in mine] == [p.name for p in foreign]
    mine[2].write_bytes(foreign[2].read_bytes())
    error = refused(several.folder)
    assert error.path == mine[2]
    assert "another store" in str(error)


def test_an_older_or_other_version_of_a_segment_is_refused(several: Crashed, tmp_path: Path) -> None:
    """Same store, same name, same events: the chain of checksums tells them apart."""
    other = crash(tmp_path / "other", [[event] for event in several.events], segment_bytes_max=8192)
    for index in (1, -1):
        mine, foreign = segment_paths(several.folder)[index], segment_paths(other.folder)[index]
        kept = mine.read_bytes()
        mine.write_bytes(foreign.read_bytes())
        refused(several.folder)
        mine.write_bytes(kept)
    recovered(several.folder, several.events)


def test_a_manifest_older_than_the_log_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path, epoch=3) as store:
        store.append(added(1))
    with pytest.raises(LogCorruptError, match="epoch 3"), opened(tmp_path, epoch=2):
        pass


def test_many_opens_leave_few_segments(tmp_path: Path) -> None:
    for epoch in range(1, 31):
        with opened(tmp_path, epoch=epoch) as store:
            store.append(added(epoch))
            assert store.log.stats().segments == 1
    with opened(tmp_path, epoch=31) as store:
        assert plain(read_events(store.log)) == [added(n) for n in range(1, 31)]


def test_a_large_last_segment_is_not_copied_again_at_each_open(tmp_path: Path) -> None:
    big = [added(n, "x" * 200_000) for n in range(8)]
    with opened(tmp_path) as store:
        store.append_each(big)
    for epoch in range(2, 6):
        with opened(tmp_path, epoch=epoch) as store:
            assert store.log.recovery.clean
            assert store.log.recovery.copied_bytes < 10_000
            assert store.log.stats().segments == 2
            store.append(added(epoch))
            assert len(read_events(store.log)) == 8 + epoch - 1


def test_the_unattested_end_of_a_large_segment_is_copied_and_cut_off(tmp_path: Path) -> None:
    store = crash(tmp_path / "store", [[added(n, "x" * 200_000)] for n in range(8)])
    cut(store.last, store.starts[8] - 1000)  # and the last is torn
    first = store.last
    with opened(store.folder, epoch=2) as again:
        assert first.stat().st_size == store.starts[6] + 64  # attested frames and the seal
        assert [p.stem for p in segment_paths(store.folder)] == [f"{1:020d}", f"{7:020d}"]
        assert again.log.recovery.copied_bytes == store.starts[7] - store.starts[6]
        assert plain(read_events(again.log)) == store.events[:7]
    recovered(store.folder, store.events[:7])


def test_leftovers_of_interrupted_opens_are_removed_and_other_files_left_alone(tmp_path: Path) -> None:
    store = small(tmp_path)
    temporary = store.folder / "log" / f"{5:020d}.log.tmp"
    temporary.write_bytes(b"half")
    other = store.folder / "log" / ".DS_Store"
    other.write_bytes(b"x")
    recovered(store.folder, store.events)
    assert not temporary.exists()
    assert other.exists()


# -- later versions


def rewrite(path: Path, frames: list[bytes], event_counts: list[int]) -> None:
    """A segment of these bodies, everything else in order: what a later version might have written."""
    header = parse_header(path.read_bytes(), path)
    data = bytearray(pack_header(header))
    checksum, lsn = header.checksum, header.first_lsn
    for body, event_count in zip(frames, event_counts, strict=True):
        frame, checksum = build_frame(
            [body],
            kind=1,
            flags=1,
            event_count=event_count,
            first_lsn=lsn,
            durable_lsn=lsn - 1,
            previous_checksum=checksum,
            salt=header.salt,
            byte_offset=len(data),
        )
        lsn += event_count
        data += frame
    path.write_bytes(data)


def test_an_unknown_event_type_stops_the_open_by_name(tmp_path: Path) -> None:
    store = small(tmp_path)
    event = added(1)
    known = encode_records([type_code(event)], [encode_event(event)], bytes(16), 1)
    unknown = encode_records([250], [b"\x80"], bytes(16), 1)
    rewrite(store.last, [known, known + unknown + known, known], [1, 3, 1])
    before = snapshot(store.folder)
    with pytest.raises(UnknownEventError, match="250") as caught, opened(store.folder, epoch=2):
        pass
    assert (caught.value.type_code, caught.value.lsn, caught.value.path) == (250, 3, store.last)
    data = store.last.read_bytes()
    assert data[caught.value.byte_offset + 8] == 250
    assert snapshot(store.folder) == before


def test_an_unknown_kind_of_frame_stops_the_open(tmp_path: Path) -> None:
    store = small(tmp_path)
    header = parse_header(store.last.read_bytes(), store.last)
    frame, _ = build_frame(
        [],
        kind=9,
        flags=0,
        event_count=0,
        first_lsn=1,
        durable_lsn=0,
        previous_checksum=header.checksum,
        salt=header.salt,
        byte_offset=HEADER,
    )
    store.last.write_bytes(pack_header(header) + frame)
    assert "kind 9" in str(refused(store.folder, drop_damaged_final_frame=True))


# -- opens that fail half-way


@pytest.mark.parametrize("operation", ["write", "sync", "rename", "sync_folder", "open_new", "truncate"])
def test_an_open_that_fails_can_be_tried_again(tmp_path: Path, operation: str) -> None:
    frames: list[list[Event]] = [[added(n, "x" * 300_000)] for n in range(6)]
    store = crash(tmp_path / "store", frames)
    cut(store.last, store.starts[6] - 100)
    files = FailingFiles()
    files.fail[operation] = OSError(5, "Input/output error")
    with pytest.raises(LogWriteError, match="cannot be opened"), opened(store.folder, epoch=2, files=files):
        pass
    recovered(store.folder, store.events[:5])


def test_an_open_interrupted_at_any_operation_can_be_repeated(tmp_path: Path) -> None:
    """Every write-side operation of a recovery fails in turn; each time the next open gives the same events."""
    frames: list[list[Event]] = [[added(n, "x" * 300_000)] for n in range(6)]
    store = crash(tmp_path / "store", frames)
    cut(store.last, store.starts[6] - 100)

    interrupted = 0
    for nth in range(1, 100):
        folder = tmp_path / f"copy-{nth}"
        shutil.copytree(store.folder, folder)
        files = FailingFiles()
        files.fail_nth = nth
        try:
            with opened(folder, epoch=2, files=files):
                pass
        except LogWriteError:
            interrupted += 1
        recovered(folder, store.events[:5])
        shutil.rmtree(folder)
        if interrupted < nth:
            break
    assert interrupted >= 12


def test_a_store_without_write_permission_is_refused_with_the_reason(tmp_path: Path) -> None:
    class ReadOnly(Files):
        def make_folder(self, path: Path) -> None:
            raise PermissionError(13, "Permission denied", str(path))

    with pytest.raises(LogWriteError, match="Permission denied"), opened(tmp_path / "new", files=ReadOnly()):
        pass


# ------------------------------------------------------------------------------------------ many small frames at once


def _small_frames(tmp_path: Path) -> tuple[Segment, list[Place]]:
    """A segment with a frame for each event but two, of every size, and where each frame starts."""
    frames: list[list[Event]] = [[added(n, chr(97 + n % 26) * (n % 300))] for n in range(60)]
    frames[40] = [added(n) for n in range(1000, 1003)]
    folder = crash(tmp_path / "store", frames).folder
    path = segment_paths(folder)[0]
    segment = Segment(path, parse_header(path.read_bytes()[:HEADER], path), path.stat().st_size)
    return segment, [
        Place(frame.header.first_lsn, frame.byte_offset, frame.header.previous_checksum) for frame in _walk(segment)[0]
    ]


def _walk(segment: Segment, *, in_runs: bool = False) -> tuple[list[Frame], list[FrameRun], tuple[Any, ...] | None]:
    """The frames, the runs of them, and the place and reason where it ends badly."""
    runs: list[FrameRun] = []
    frames: list[Frame] = []
    file = SegmentFile(Files(), segment.path)
    try:
        for frame in file.walk(segment, None, runs.append if in_runs else None):
            if frame is None:
                break
            check_records(frame, segment.path)
            frames.append(frame)
    except BadFrameError as error:
        return frames, runs, (error.byte_offset, error.lsn, error.reason, error.header, error.foreign)
    except (LogCorruptError, UnknownEventError) as error:
        return frames, runs, (type(error), str(error))
    finally:
        file.close()
    return frames, runs, None


def test_frames_that_are_verified_together_are_those_that_are_verified_one_by_one(tmp_path: Path) -> None:
    segment, places = _small_frames(tmp_path)
    one_by_one, _, bad = _walk(segment)
    rest, (run,), bad_in_runs = _walk(segment, in_runs=True)
    assert bad == bad_in_runs
    assert run.ends.tolist() == [
        frame.byte_offset + frame.total_bytes for frame in one_by_one[:39]
    ]  # no more: 3 events
    assert [run.place_after(n - 1) for n in range(40)] == places[:40]
    assert run.durable_lsns.tolist() == [frame.header.durable_lsn for frame in one_by_one[:39]]
    assert run.end == places[39]
    assert [frame[:3] for frame in rest] == [frame[:3] for frame in one_by_one[39:]]


def test_damage_among_frames_that_are_verified_together_is_found_where_it_is(tmp_path: Path) -> None:
    """In each byte of a header and of the record's own, some of the content and of the padding."""
    segment, places = _small_frames(tmp_path)
    start, stop = places[25].byte_offset, places[26].byte_offset
    good = segment.path.read_bytes()
    for byte_offset in (*range(start, start + 64 + 36), start + 64 + 50, stop - 1):
        for bit in (0, 7):
            flip(segment.path, byte_offset, bit)
            _, _, bad = _walk(segment)
            frames, (run,), bad_in_runs = _walk(segment, in_runs=True)
            assert bad is not None
            assert bad == bad_in_runs, byte_offset - start
            assert run.end == places[24]
            assert [frame.byte_offset for frame in frames] == [places[24].byte_offset]
            segment.path.write_bytes(good)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": FrameKind.CLOSE},
        {"kind": 9},
        {"event_count": 0},
        {"event_count": 2},
        {"first_lsn": 26 + 1},
        {"previous_checksum": 1},
        {"salt": 1},
        {"code": 99},
        {"schema_version": 2},
        {"flags": 1},
        {"length": 1},
        {"length": -1},
    ],
    ids=str,
)
def test_a_frame_whose_checksums_hold_and_that_is_wrong_is_not_verified_with_others(
    tmp_path: Path, wrong: dict[str, int]
) -> None:
    segment, places = _small_frames(tmp_path)
    record = bytearray(encode_records([1], [encode_event(added(25, "z" * 25))], bytes(16), 1))
    length, code, version, flags = struct.unpack_from("<I4xHBB", record)
    record[:4] = struct.pack("<I", length + wrong.get("length", 0))
    record[8:12] = struct.pack(
        "<HBB", wrong.get("code", code), wrong.get("schema_version", version), wrong.get("flags", flags)
    )
    header = {"kind": FrameKind.EVENTS, "event_count": 1, "first_lsn": 26, "salt": segment.header.salt}
    header |= {"previous_checksum": places[25].previous_checksum}
    data, checksum = build_frame(
        [record],
        **{name: wrong.get(name, value) for name, value in header.items()},
        flags=1,
        durable_lsn=25,
        byte_offset=places[25].byte_offset,
    )
    assert places[25].byte_offset + len(data) == places[26].byte_offset
    with segment.path.open("r+b") as file:
        file.seek(places[25].byte_offset)
        file.write(data)
    _, _, bad = _walk(segment)
    _, (run,), bad_in_runs = _walk(segment, in_runs=True)
    assert bad == bad_in_runs
    assert bad is not None
    assert run.end == places[24]
    assert checksum != places[26].previous_checksum  # so it ends there or at the next, with either
