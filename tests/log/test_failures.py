"""Writes, syncs and rotations that fail while the log is open."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from pixelmemory import LogPoisonedError, LogWriteError, UnknownOutcomeError
from pixelmemory.faults import LOG_FAULT_POINTS, set_fault_hook
from pixelmemory.log.contract import StoredEvent
from pixelmemory.log.file.files import Buffer, Files
from pixelmemory.memory.events import Event
from pixelmemory.options import SyncMode
from pixelmemory.store.manifest import Manifest
from tests.harness.log_tools import WAIT_SECONDS, FailingFiles, HeldFiles, added, opened, plain, sample_events
from tests.harness.logs import read_events

ENOSPC = OSError(errno.ENOSPC, "No space left on device")
EIO = OSError(errno.EIO, "Input/output error")


def reopened(folder: Path, epoch: int = 9) -> list[Event]:
    with opened(folder, epoch=epoch) as store:
        return plain(read_events(store.log))


@pytest.mark.parametrize("mode", [SyncMode.ALWAYS, SyncMode.INTERVAL])
@pytest.mark.parametrize("partial_bytes", [0, 1, 63, 64, 100, 10_000])
@pytest.mark.parametrize(
    "error", [ENOSPC, EIO, OSError(errno.EDQUOT, "Disk quota exceeded")], ids=["nospc", "io", "quota"]
)
def test_a_write_that_fails_records_nothing_and_later_writes_succeed(
    tmp_path: Path, mode: SyncMode, partial_bytes: int, error: OSError
) -> None:
    files = FailingFiles()
    files.partial_bytes = partial_bytes
    with opened(tmp_path, files=files, sync_mode=mode) as store:
        assert store.append(added(1)).error is None
        files.fail["write"] = error
        for number in (2, 3):
            failed = store.append(added(number, "x" * 300))
            assert isinstance(failed.error, LogWriteError)
            assert str(error.strerror) in str(failed.error)
            assert failed.first_lsn is None
        assert store.log.failure is None
        assert store.log.durable_lsn == 1
        assert plain(read_events(store.log)) == [added(1)]
        del files.fail["write"]
        assert store.append(added(4)).first_lsn == 2
        shutil.copytree(tmp_path, tmp_path.with_name(tmp_path.name + "-killed"))
    for folder in (tmp_path, tmp_path.with_name(tmp_path.name + "-killed")):
        assert reopened(folder) == [added(1), added(4)]


def test_a_short_write_is_continued(tmp_path: Path) -> None:
    class Short(Files):
        def write(self, fd: int, data: Buffer, byte_offset: int) -> int:
            return super().write(fd, memoryview(data)[:101], byte_offset)

    events = sample_events(40)
    with opened(tmp_path, files=Short(), segment_bytes_max=8192) as store:
        store.append_each(events)
    assert reopened(tmp_path) == events


def test_a_write_that_takes_nothing_is_an_error_and_no_endless_loop(tmp_path: Path) -> None:
    class Stuck(Files):
        stuck = False

        def write(self, fd: int, data: Buffer, byte_offset: int) -> int:
            return 0 if self.stuck else super().write(fd, data, byte_offset)

    files = Stuck()
    with opened(tmp_path, files=files) as store:
        files.stuck = True
        assert isinstance(store.append(added(1)).error, LogWriteError)
        files.stuck = False
        assert store.append(added(2)).error is None


def test_a_failed_sync_poisons_and_the_descriptor_is_never_synced_again(tmp_path: Path) -> None:
    files = FailingFiles()
    with opened(tmp_path, files=files) as store:
        assert store.append(added(1)).error is None
        files.fail["sync"] = EIO
        failed = store.append(added(2))
        assert isinstance(failed.error, UnknownOutcomeError)
        assert failed.first_lsn == 2
        files.fail.clear()  # the kernel would say that all is well now
        files.calls.clear()
        for call in (lambda: store.log.submit([added(3)]), store.log.flush):
            with pytest.raises(LogPoisonedError):
                call()
        assert store.log.failure is failed.error
        assert store.log.durable_lsn == 1
        assert plain(read_events(store.log)) == [added(1)]  # reads go on
        store.log.close()
        assert not [call for call in files.calls if call[0] in ("write", "sync", "truncate")]
    events = reopened(tmp_path)
    assert events in ([added(1)], [added(1), added(2)])


def test_those_that_wait_when_a_sync_fails_are_told_that_nothing_was_recorded(tmp_path: Path) -> None:
    class FailsHeld(HeldFiles):
        broken = False

        def sync(self, fd: int) -> None:
            super().sync(fd)
            if self.broken:
                raise EIO

    files = FailsHeld()
    with opened(tmp_path, files=files) as store:
        files.gate.clear()
        taken = store.log.submit([added(1)])
        assert files.waiting.wait(WAIT_SECONDS)
        waiting = [store.log.submit([added(n)]) for n in range(2, 6)]
        files.broken = True
        files.gate.set()
        store.outcomes.wait_for(5)
        assert isinstance(taken.error, UnknownOutcomeError)
        assert {type(a.error) for a in waiting} == {LogPoisonedError}
        assert {a.first_lsn for a in waiting} == {None}
        assert store.log.buffered_bytes == 0
    assert reopened(tmp_path) == [added(1)]


@pytest.mark.parametrize("operation", ["truncate", "sync"])
def test_a_write_that_cannot_be_undone_has_an_unknown_outcome(tmp_path: Path, operation: str) -> None:
    files = FailingFiles()
    files.partial_bytes = 1 << 20  # all of it gets through, and then the error
    with opened(tmp_path, files=files) as store:
        assert store.append(added(1)).error is None
        files.fail["write"] = EIO
        files.fail[operation] = EIO
        failed = store.append(added(2))
        assert isinstance(failed.error, UnknownOutcomeError)
        with pytest.raises(LogPoisonedError):
            store.log.submit([added(3)])
    assert reopened(tmp_path)[0] == added(1)


def test_a_failed_interval_sync_poisons_what_follows(tmp_path: Path) -> None:
    files = FailingFiles()
    with opened(tmp_path, files=files, sync_mode=SyncMode.INTERVAL, sync_interval_seconds=60) as store:
        store.append(added(1))
        files.fail["sync"] = EIO
        with pytest.raises(LogPoisonedError):
            store.log.flush()
        with pytest.raises(LogPoisonedError):
            store.log.submit([added(2)])
        assert isinstance(store.log.failure, UnknownOutcomeError)


def test_close_says_when_a_relaxed_mode_could_not_be_flushed(tmp_path: Path) -> None:
    files = FailingFiles()
    with opened(tmp_path, files=files, sync_mode=SyncMode.OS) as store:
        store.append(added(1))
        files.fail["sync"] = EIO
        with pytest.raises(UnknownOutcomeError):
            store.log.close()
        store.log.close()
    assert reopened(tmp_path) == [added(1)]


def test_close_without_its_mark_loses_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for operation in ("write", "sync", "truncate"):
        files = FailingFiles()
        folder = tmp_path / operation
        with opened(folder, files=files) as store:
            store.append(added(1))
            files.fail[operation] = EIO
            store.log.close()
        assert "closing mark" in caplog.text
        caplog.clear()
        assert reopened(folder) == [added(1)]


# -- rotation

BIG = [added(n, "x" * 3000) for n in range(8)]


@pytest.mark.parametrize("operation", ["open_new", "write"])
def test_a_rotation_that_finds_no_room_is_tried_again(tmp_path: Path, operation: str) -> None:
    files = FailingFiles()
    with opened(tmp_path, files=files, segment_bytes_max=4096) as store:
        store.append_each(BIG[:2])
        files.fail[operation] = ENOSPC
        for _ in range(2):
            assert isinstance(store.append(BIG[2]).error, LogWriteError)
        assert store.log.failure is None
        files.fail.clear()
        store.append_each(BIG[2:])
        assert store.log.durable_lsn == 8
        assert plain(read_events(store.log)) == BIG
        shutil.copytree(tmp_path, tmp_path.with_name(tmp_path.name + "-killed"))
    assert reopened(tmp_path) == BIG
    assert reopened(tmp_path.with_name(tmp_path.name + "-killed")) == BIG


@pytest.mark.parametrize("operation", ["sync", "rename", "sync_folder"])
def test_a_rotation_whose_name_may_be_there_or_not_poisons(tmp_path: Path, operation: str) -> None:
    files = FailingFiles()
    with opened(tmp_path, files=files, segment_bytes_max=4096) as store:
        store.append_each(BIG[:2])
        files.fail[operation] = EIO
        failed = store.append(BIG[2])
        assert isinstance(failed.error, LogWriteError)  # its own bytes were never written
        files.fail.clear()
        with pytest.raises(LogPoisonedError):
            store.log.submit([BIG[3]])
        assert plain(read_events(store.log)) == BIG[:2]
    assert reopened(tmp_path) == BIG[:2]


def test_every_operation_of_a_rotation_may_fail(tmp_path: Path) -> None:
    """The Nth operation after the open fails, once; what was acknowledged is there, what was refused is not."""
    struck = 0
    for nth in range(1, 200):
        files = FailingFiles()
        folder = tmp_path / str(nth)
        acked, unknown = [], []
        with opened(folder, files=files, segment_bytes_max=8192) as store:
            files.fail_nth = nth
            for event in [added(n, "x" * 2500) for n in range(7)]:
                try:
                    append = store.append(event)
                except LogPoisonedError:
                    continue
                if append.error is None:
                    acked.append(event)
                elif isinstance(append.error, UnknownOutcomeError):
                    unknown.append(event)
            hit = files.fail_nth <= 0
        events = reopened(folder)
        assert events[: len(acked)] == acked
        assert events[len(acked) :] in ([], unknown)
        struck += hit
        if not hit:
            break
    assert 20 < struck < 199


def test_a_file_size_limit_is_a_definite_error_and_reads_go_on(tmp_path: Path) -> None:
    """A real limit of the system, in a process of its own."""
    script = """
import resource, signal, sys, threading, uuid
from pathlib import Path
from pixelmemory import LogWriteError, Options
from pixelmemory.memory.events import MemoryDeleted
from pixelmemory.log.file.file_log import FileLog

done, last = threading.Semaphore(0), []
def on_commit(appends):
    last[:] = appends
    done.release()
log = FileLog.open(Path(sys.argv[1]), store_id=uuid.UUID(int=1), epoch=1, options=Options(), on_commit=on_commit)
def append(number):
    log.submit([MemoryDeleted("n" * 1000, str(number))])
    done.acquire()
    return last[0].error
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
count, error = 0, None
while error is None:
    error = append(count)
    count += error is None
assert isinstance(error, LogWriteError), error
assert len(log.read(1, events_max=999, bytes_max=1 << 20)) == count > 5
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert append(count) is None
log.close()
log = FileLog.open(Path(sys.argv[1]), store_id=uuid.UUID(int=1), epoch=2, options=Options(), on_commit=on_commit)
assert [s.event.memory_id for s in log.read(1, events_max=999, bytes_max=1 << 20)] == [str(n) for n in range(count + 1)]
log.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], timeout=400, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# -- fault points


def test_every_fault_point_is_on_some_path(tmp_path: Path) -> None:
    seen: set[str] = set()
    set_fault_hook(seen.add)
    try:
        files = FailingFiles()
        with opened(tmp_path / "a", files=files, segment_bytes_max=4096) as store:
            store.append_each(BIG)
            store.log.rewrite(lambda stored: stored.event)
        with opened(tmp_path / "b", files=files) as store:
            files.fail["write"] = ENOSPC
            store.append(BIG[0])
            files.fail.clear()
        live = tmp_path / "live"
        with opened(live) as store:
            store.append_each([added(n, "x" * 600_000) for n in range(4)])
            shutil.copytree(live, tmp_path / "torn")
        segment = next((tmp_path / "torn" / "log").iterdir())
        os.truncate(segment, segment.stat().st_size - 700_000)
        with opened(tmp_path / "torn", epoch=2):
            pass
        Manifest(store_id=uuid.UUID(int=1)).save(tmp_path)
    finally:
        set_fault_hook(None)
    assert seen == set(LOG_FAULT_POINTS)


KILLED = """
import sys, uuid
from pathlib import Path
from pixelmemory import Options
from pixelmemory.memory.events import MemoryAdded
from pixelmemory.log.file.file_log import FileLog
from pixelmemory.store.manifest import Manifest

folder = Path(sys.argv[1])
def on_commit(appends):
    for append in appends:
        sys.stdout.write(f"{append.last_lsn}\\n")
    sys.stdout.flush()
log = FileLog.open(folder, store_id=uuid.UUID(int=1), epoch=int(sys.argv[2]),
               options=Options(segment_bytes_max=4096), on_commit=on_commit)
Manifest(store_id=uuid.UUID(int=1)).save(folder)
for number in range(6):
    log.submit([MemoryAdded("n", str(log.last_logged_at_ns), "x" * 1500, 1)])
    log.flush()
log.close()
"""


KILL_POINTS = """
    frame.before_write frame.after_write:2 frame.after_sync:3 segment.after_sync:2 segment.after_rename:2
    seal.before_write seal.after_write seal.after_sync close.after_write
""".split()


@pytest.mark.parametrize("point", KILL_POINTS)
def test_a_kill_at_a_fault_point_loses_nothing_acknowledged(tmp_path: Path, point: str) -> None:
    def run(epoch: int, **environment: str) -> tuple[int, list[int]]:
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path), str(epoch)],
            env={**os.environ, **environment},
            timeout=400,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done.returncode, [int(line) for line in done.stdout.split()]

    status, acked = run(1, PIXELMEMORY_FAULT_POINT=point)
    assert status == -9
    status, later = run(2)
    assert status == 0
    assert acked == list(range(1, len(acked) + 1))
    assert len(later) == 6
    assert later == list(range(later[0], later[0] + 6))
    assert later[0] - 1 in (len(acked), len(acked) + 1)  # what was written and not acknowledged may be there
    with opened(tmp_path, epoch=3, store_id=uuid.UUID(int=1)) as store:
        stored: list[StoredEvent] = read_events(store.log)
    assert [s.lsn for s in stored] == list(range(1, later[-1] + 1))
