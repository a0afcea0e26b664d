from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pixelmemory import InvalidArgumentError, LogCorruptError
from pixelmemory.log.file.file_log import FileLog
from pixelmemory.memory.events import Event
from tests.harness.log_tools import FailingFiles, added, opened, plain, sample_events
from tests.harness.logs import read_events, segment_paths


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[Event]]]:
    """A log of several segments, whose frames hold 1 to 5 events."""
    folder = tmp_path_factory.mktemp("written")
    events = sample_events(600)
    frames: list[list[Event]] = []
    while events:
        frames.append(events[: 1 + len(frames) % 5])
        del events[: len(frames[-1])]
    with opened(folder, segment_bytes_max=16 * 1024) as store:
        for frame in frames:
            store.append(*frame)
        assert store.log.stats().segments > 5
    return folder, frames


def bounds(frames: list[list[Event]], from_lsn: int, events_max: int, log: FileLog) -> list[int]:
    """The LSNs that a read bounded by ``events_max`` alone should give."""
    lsns: list[int] = []
    lsn = 1
    for frame in frames:
        own = [n for n in range(lsn, lsn + len(frame)) if n >= from_lsn]
        if lsns and len(lsns) + len(own) > events_max:
            break
        if own:
            lsns += own
        lsn += len(frame)
        if len(lsns) >= events_max:
            break
    return [n for n in lsns if n <= log.durable_lsn]


@pytest.mark.parametrize("tail_bytes_max", [0, 20_000, 1 << 25])
def test_any_read_gives_whole_frames_within_its_bounds(
    written: tuple[Path, list[list[Event]]], tmp_path: Path, tail_bytes_max: int
) -> None:
    _, frames = written
    flat = [event for frame in frames for event in frame]

    # rewritten, so that the tail has them
    with opened(tmp_path, segment_bytes_max=16 * 1024, tail_bytes_max=tail_bytes_max) as store:
        for frame in frames:
            store.append(*frame)
        log = store.log

        @given(st.integers(1, len(flat)), st.integers(1, 40))
        @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
        def check(from_lsn: int, events_max: int) -> None:
            got = log.read(from_lsn, events_max=events_max, bytes_max=1 << 30)
            assert [s.lsn for s in got] == bounds(frames, from_lsn, events_max, log)
            assert plain(got) == flat[from_lsn - 1 : from_lsn - 1 + len(got)]

        check()


def test_the_tail_and_the_segments_give_the_same(tmp_path: Path) -> None:
    events = sample_events(300)
    with opened(tmp_path, segment_bytes_max=8192) as store:
        for at in range(0, 300, 3):
            store.append(*events[at : at + 3])
        from_tail = read_events(store.log, events_max=7)
    for tail_bytes_max in (0, 1 << 20):
        with opened(tmp_path, epoch=2, tail_bytes_max=tail_bytes_max) as store:
            assert store.log.stats().tail_bytes == 0
            assert read_events(store.log, events_max=7) == from_tail
            assert read_events(store.log, events_max=1000, bytes_max=1) == from_tail
    assert plain(from_tail) == events


def test_bytes_bound_a_read_but_never_below_one_frame(tmp_path: Path) -> None:
    events = [added(n, "x" * 1000) for n in range(20)]
    for tail_bytes_max in (0, 1 << 20):
        with opened(tmp_path / str(tail_bytes_max), tail_bytes_max=tail_bytes_max) as store:
            size = max(store.append(event).byte_count for event in events)
            assert len(store.log.read(1, events_max=100, bytes_max=1)) == 1
            assert len(store.log.read(5, events_max=100, bytes_max=3 * size + 10)) == 3


def test_beyond_the_end_there_is_nothing_and_before_the_start_an_error(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        assert store.log.read(1, events_max=1, bytes_max=1) == []
        store.append(added(1))
        assert store.log.read(2, events_max=1, bytes_max=1) == []
        with pytest.raises(InvalidArgumentError):
            store.log.read(0, events_max=1, bytes_max=1)


def test_the_tail_stays_within_its_bound(tmp_path: Path) -> None:
    with opened(tmp_path, tail_bytes_max=5000) as store:
        for number in range(300):
            store.append(added(number, "x" * (number % 400)))
            assert store.log.stats().tail_bytes <= 5000
        store.append(added(300, "x" * 6000))  # larger than the tail
        assert store.log.stats().tail_bytes == 0
        assert len(read_events(store.log)) == 301


def test_reading_on_searches_nothing_and_opens_no_file_again(
    written: tuple[Path, list[list[Event]]],
) -> None:
    folder, frames = written
    opens: list[Path] = []
    bytes_read: list[int] = []

    class Counting(FailingFiles):
        def open_read(self, path: Path) -> int:
            opens.append(path)
            return super().open_read(path)

        def read(self, fd: int, count: int, byte_offset: int) -> bytes:
            data = super().read(fd, count, byte_offset)
            bytes_read.append(len(data))
            return data

    with opened(folder, epoch=9, files=Counting()) as store:
        opens.clear()
        bytes_read.clear()
        assert len(read_events(store.log, events_max=3)) == sum(map(len, frames))
        assert len(opens) <= store.log.stats().segments + 1
        assert sum(bytes_read) <= 2 * store.log.stats().bytes


def test_a_reader_follows_the_writer_through_rotations(tmp_path: Path) -> None:
    """Two readers, from the segments and at the writer's heels, see every event once and in order."""
    events = sample_events(600)
    with opened(tmp_path, segment_bytes_max=8192, append_bytes_max=4096, tail_bytes_max=0) as store:
        seen: list[list[Event]] = [[], []]
        errors: list[BaseException] = []

        def follow(own: list[Event], events_max: int) -> None:
            try:
                while len(own) < len(events):
                    got = store.log.read(len(own) + 1, events_max=events_max, bytes_max=1 << 20)
                    own += plain(got)
                    if not got:
                        time.sleep(0.001)
            except BaseException as error:
                errors.append(error)
                raise

        readers = [threading.Thread(target=follow, args=(own, 1 + 10 * n)) for n, own in enumerate(seen)]
        for reader in readers:
            reader.start()
        for event in events:
            store.log.submit([event])
        for reader in readers:
            reader.join()
        assert not errors
        assert seen == [events, events]
        assert store.log.stats().rotations > 10


def test_damage_after_the_open_is_seen_when_it_is_read(tmp_path: Path) -> None:
    with opened(tmp_path, segment_bytes_max=8192) as store:
        store.append_each(sample_events(100))
    with opened(tmp_path, epoch=2) as store:
        path = segment_paths(tmp_path)[1]
        first_lsn = int(path.stem)
        with path.open("r+b") as file:
            file.seek(128 + 64 + 50)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 4]))
        assert len(store.log.read(1, events_max=first_lsn - 1, bytes_max=1 << 30)) == first_lsn - 1
        for _ in range(2):
            with pytest.raises(LogCorruptError) as caught:
                store.log.read(first_lsn, events_max=10, bytes_max=1 << 20)
            assert (caught.value.path, caught.value.byte_offset, caught.value.lsn) == (path, 128, first_lsn)


def test_a_segment_that_went_away_is_named(tmp_path: Path) -> None:
    with opened(tmp_path, segment_bytes_max=8192) as store:
        store.append_each(sample_events(100))
    with opened(tmp_path, epoch=2) as store:
        path = segment_paths(tmp_path)[1]
        path.unlink()
        with pytest.raises(LogCorruptError, match="cannot be opened") as caught:
            read_events(store.log)
        assert caught.value.path == path


def test_a_segment_that_was_cut_is_named(tmp_path: Path) -> None:
    with opened(tmp_path, segment_bytes_max=8192) as store:
        store.append_each(sample_events(100))
    with opened(tmp_path, epoch=2) as store:
        path = segment_paths(tmp_path)[0]
        with path.open("r+b") as file:
            file.truncate(1000)
        with pytest.raises(LogCorruptError) as caught:
            read_events(store.log)
        assert caught.value.path == path


def test_more_readers_than_positions_still_read_right(written: tuple[Path, list[list[Event]]]) -> None:
    folder, frames = written
    flat = [event for frame in frames for event in frame]
    with opened(folder, epoch=9) as store:
        starts = [1 + 40 * n for n in range(10)]
        nexts = list(starts)
        own: list[list[Event]] = [[] for _ in starts]
        for _ in range(10):
            for reader in range(10):
                got = store.log.read(nexts[reader], events_max=5, bytes_max=1 << 20)
                own[reader] += plain(got)
                nexts[reader] = got[-1].lsn + 1
        for start, events in zip(starts, own, strict=True):
            assert events == flat[start - 1 : start - 1 + len(events)]
            assert len(events) >= 10
