"""After a write that failed: the log says so until one would succeed, and finds that out by itself."""

from __future__ import annotations

import errno
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pixelmemory import LogPoisonedError, LogWriteError, UnknownOutcomeError
from pixelmemory.log.file import active_segment as appender
from pixelmemory.log.file import group_commit as writer
from pixelmemory.log.file.files import Buffer, Files
from pixelmemory.options import SyncMode
from tests.harness.log_tools import WAIT_SECONDS, FailingFiles, added, opened, plain
from tests.harness.logs import read_events, segment_paths

ENOSPC = OSError(errno.ENOSPC, "No space left on device")
EIO = OSError(errno.EIO, "Input/output error")
EVENTS = [added(number, "x" * 1000) for number in range(12)]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PROBE_SECONDS", 0.01)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class SmallDisk(Files):
    """Real files of which each may grow to ``bytes_max`` and no further; what fits of a write is written."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        #: set by each write that fails
        self.failed = threading.Event()

    def write(self, fd: int, data: Buffer, byte_offset: int) -> int:
        count = min(len(data), self.bytes_max - byte_offset)
        if count <= 0:
            self.failed.set()
            raise ENOSPC
        return super().write(fd, memoryview(data)[:count], byte_offset)

    def wait_for_failure(self) -> None:
        """Until another write has failed."""
        self.failed.clear()
        assert self.failed.wait(WAIT_SECONDS)


@pytest.mark.parametrize("mode", SyncMode)
def test_the_problem_stands_until_there_is_room_and_goes_without_a_write(tmp_path: Path, mode: SyncMode) -> None:
    files = SmallDisk(4000)
    with opened(tmp_path, files=files, sync_mode=mode) as store:
        assert store.log.problem is None
        store.append_each(EVENTS[:3])
        for _ in range(2):
            refused = store.append(EVENTS[3])
            assert isinstance(refused.error, LogWriteError)
            assert store.log.problem is refused.error
            assert store.log.failure is None
        for _ in range(3):
            files.wait_for_failure()  # it is looked again and again
            assert "No space left" in str(store.log.problem)
        files.bytes_max = 1 << 30
        wait_until(lambda: store.log.problem is None)
        shutil.copytree(tmp_path, tmp_path.with_name(tmp_path.name + "-killed"))
        store.append_each(EVENTS[3:])
        assert store.log.problem is None
    with opened(tmp_path, epoch=2) as store:
        assert plain(read_events(store.log)) == EVENTS
    with opened(tmp_path.with_name(tmp_path.name + "-killed"), epoch=2) as store:  # with the zeros of the probe
        assert plain(read_events(store.log)) == EVENTS[:3]
        assert store.log.recovery.torn_bytes == 0


def test_a_later_write_that_succeeds_clears_the_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PROBE_SECONDS", 1e9)
    files = SmallDisk(4000)
    with opened(tmp_path, files=files) as store:
        store.append_each(EVENTS[:3])
        assert store.append(EVENTS[3]).error is not None
        assert store.log.problem is not None
        assert store.append(added(99)).error is None  # a small one finds its room
        assert store.log.problem is None


def test_room_for_less_than_what_failed_is_no_room(tmp_path: Path) -> None:
    files = SmallDisk(4000)
    with opened(tmp_path, files=files) as store:
        store.append_each(EVENTS[:3])
        big = added(3, "y" * 3_000_000)
        assert store.append(big).error is not None
        for bytes_max in (4500, 1_500_000, 2_999_000):
            files.bytes_max = bytes_max
            for _ in range(2):
                files.wait_for_failure()
            assert store.log.problem is not None
        files.bytes_max = 1 << 30
        wait_until(lambda: store.log.problem is None)
        assert store.append(big).error is None


def test_what_a_probe_could_not_fill_is_given_back(tmp_path: Path) -> None:
    files = SmallDisk(4000)
    with opened(tmp_path, files=files) as store:
        store.append_each(EVENTS[:3])
        assert store.append(added(3, "y" * 3_000_000)).error is not None
        (segment,) = segment_paths(tmp_path)
        files.bytes_max = 2_000_000
        files.wait_for_failure()
        wait_until(lambda: segment.stat().st_size < 4000)
        assert plain(read_events(store.log)) == EVENTS[:3]


@pytest.mark.parametrize("operation", ["open_new", "write"])
def test_a_rotation_that_failed_is_tried_again(tmp_path: Path, operation: str) -> None:
    files = FailingFiles()
    with opened(tmp_path, files=files, segment_bytes_max=4096) as store:
        store.append_each(EVENTS[:3])
        files.fail[operation] = ENOSPC
        assert store.append(EVENTS[3]).error is not None
        seen = len(files.calls)
        wait_until(lambda: len(files.calls) > seen + 5)
        assert store.log.problem is not None
        assert len(segment_paths(tmp_path)) == 1
        files.fail.clear()
        wait_until(lambda: store.log.problem is None)
        assert len(segment_paths(tmp_path)) == 2
        store.append_each(EVENTS[3:])
    with opened(tmp_path, epoch=2) as store:
        assert plain(read_events(store.log)) == EVENTS


@pytest.mark.parametrize("operation", ["sync", "rename", "sync_folder"])
def test_a_probe_that_leaves_the_log_broken_poisons_it(tmp_path: Path, operation: str) -> None:
    files = FailingFiles()
    with opened(tmp_path, files=files, segment_bytes_max=4096) as store:
        store.append_each(EVENTS[:3])
        files.fail["open_new"] = ENOSPC
        assert store.append(EVENTS[3]).error is not None
        files.fail[operation] = EIO
        del files.fail["open_new"]
        wait_until(lambda: store.log.failure is not None)
        assert "could not be made durable" in str(store.log.failure)
        files.fail.clear()
        files.calls.clear()
        with pytest.raises(LogPoisonedError):
            store.log.submit([EVENTS[3]])
        assert not [call for call in files.calls if call[0] in ("write", "sync", "truncate")]
    with opened(tmp_path, epoch=2) as store:
        assert plain(read_events(store.log)) == EVENTS[:3]


def test_a_failed_descriptor_is_not_probed(tmp_path: Path) -> None:
    files = FailingFiles()
    with opened(tmp_path, files=files) as store:
        store.append_each(EVENTS[:1])
        files.fail["write"] = files.fail["sync"] = EIO  # and so does the removal of what was written
        refused = store.append(EVENTS[1])
        assert isinstance(refused.error, UnknownOutcomeError)
        assert store.log.failure is refused.error
        assert store.log.problem is None
        files.fail.clear()
        files.calls.clear()
        time.sleep(0.1)
        assert not files.calls


def test_a_close_with_a_problem(tmp_path: Path) -> None:
    files = SmallDisk(4000)
    with opened(tmp_path, files=files) as store:
        store.append_each(EVENTS[:3])
        assert store.append(EVENTS[3]).error is not None
        files.wait_for_failure()
    with opened(tmp_path, epoch=2) as store:
        assert plain(read_events(store.log)) == EVENTS[:3]


def test_room_is_reserved_again(tmp_path: Path) -> None:
    """Zeros ahead of small frames make syncs fast; a disk that was full once must not end that."""
    files = SmallDisk(4000)
    with opened(tmp_path, files=files) as store:
        store.append_each(EVENTS[:3])
        assert store.append(EVENTS[3]).error is not None
        files.bytes_max = 1 << 30
        wait_until(lambda: store.log.problem is None)
        store.append_each(EVENTS[3:])
        (segment,) = segment_paths(tmp_path)
        assert segment.stat().st_size >= appender.RESERVE_BYTES
