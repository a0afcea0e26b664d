from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from pixelmemory import InvalidArgumentError, LimitExceededError, Options, StoreClosedError, WrongThreadError
from pixelmemory.log.file.append import Append
from pixelmemory.log.file.file_log import FileLog
from pixelmemory.options import SyncMode
from tests.harness.log_tools import WAIT_SECONDS, HeldFiles, Outcomes, added, opened, plain, sample_events
from tests.harness.logs import STORE_ID, read_events


def test_lsns_are_dense_from_one_and_reported_in_order(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        assert (store.log.first_lsn, store.log.durable_lsn) == (1, 0)
        first = store.append(added(1))
        batch = store.append(added(2), added(3), added(4))
        last = store.append(added(5))
        assert [(a.first_lsn, a.last_lsn) for a in (first, batch, last)] == [(1, 1), (2, 4), (5, 5)]
        assert store.log.durable_lsn == 5
        assert store.outcomes.appends == [first, batch, last]


def test_the_context_comes_back(tmp_path: Path) -> None:
    context = object()
    with opened(tmp_path) as store:
        append = store.log.submit([added(1)], context)
        assert append.first_lsn is None or append.first_lsn == 1
        store.outcomes.wait_for(1)
        assert append.context is context
        assert append.error is None
        assert append.event_count == 1


def test_what_arrives_during_a_sync_becomes_one_frame_with_one_sync(tmp_path: Path) -> None:
    files = HeldFiles()
    with opened(tmp_path, files=files) as store:
        files.gate.clear()
        first = store.log.submit([added(0)])
        assert files.waiting.wait(WAIT_SECONDS)
        waiting = [store.log.submit([added(n), added(n)]) for n in range(1, 51)]
        assert store.log.buffered_bytes == sum(a.byte_count for a in waiting)
        assert store.log.durable_lsn == 0
        syncs = files.syncs
        files.gate.set()
        store.outcomes.wait_for(51)
        assert store.outcomes.commits == [[first], waiting]
        assert files.syncs == syncs + 2
        assert store.log.stats().frames == 2
        assert store.log.buffered_bytes == 0
        assert store.log.durable_lsn == 101


def test_on_commit_sees_the_durable_lsn_moved_and_the_events_readable(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    logs: list[FileLog] = []
    done = threading.Event()

    def on_commit(appends: Sequence[Append]) -> None:
        last = appends[-1].last_lsn
        assert last is not None
        seen.append((logs[0].durable_lsn, logs[0].read(last, events_max=1, bytes_max=1)[-1].lsn))
        done.set()

    logs.append(FileLog.open(tmp_path, store_id=STORE_ID, epoch=1, options=Options(), on_commit=on_commit))
    logs[0].submit([added(1), added(2)])
    assert done.wait(WAIT_SECONDS)
    logs[0].close()
    assert seen == [(2, 2)]


def test_many_threads_lose_double_and_reorder_nothing(tmp_path: Path) -> None:
    with opened(tmp_path, segment_bytes_max=64 * 1024) as store:
        submitted: list[list[Append]] = [[] for _ in range(8)]

        def work(thread: int) -> None:
            for number in range(150):
                events = [added(thread * 100_000 + number * 10 + i) for i in range(1 + number % 3)]
                submitted[thread].append(store.log.submit(events))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        appends = store.outcomes.wait_for(8 * 150)
        by_lsn = {append.first_lsn: append for append in appends}
        assert len(by_lsn) == 8 * 150
        assert [a.first_lsn for a in appends] == sorted(lsn for lsn in by_lsn if lsn is not None)
        for own in submitted:
            assert [a.first_lsn for a in own] == sorted(a.first_lsn for a in own if a.first_lsn is not None)
        stored = read_events(store.log)
        assert plain(stored) == [event for append in appends for event in append.events]
        assert [s.lsn for s in stored] == list(range(1, len(stored) + 1))
        assert len({s.event_id for s in stored}) == len(stored)
        times = [s.logged_at_ns for s in stored]
        assert times == sorted(times)
        assert store.log.stats().rotations > 0


def test_a_withdrawn_append_leaves_no_trace(tmp_path: Path) -> None:
    files = HeldFiles()
    with opened(tmp_path, files=files) as store:
        files.gate.clear()
        first = store.log.submit([added(0)])
        assert files.waiting.wait(WAIT_SECONDS)
        appends = [store.log.submit([added(n)]) for n in range(1, 6)]
        assert not store.log.withdraw(first)
        assert store.log.withdraw(appends[1])
        assert not store.log.withdraw(appends[1])
        assert store.log.withdraw(appends[4])
        kept = [appends[0], appends[2], appends[3]]
        assert store.log.buffered_bytes == sum(a.byte_count for a in kept)
        files.gate.set()
        store.outcomes.wait_for(4)
        assert not store.log.withdraw(first)
        assert store.log.durable_lsn == 4
    assert store.outcomes.appends == [first, *kept]
    with opened(tmp_path, epoch=2) as store:
        assert plain(read_events(store.log)) == [added(n) for n in (0, 1, 3, 4)]


def test_a_call_over_the_limit_is_refused_before_the_log(tmp_path: Path) -> None:
    with opened(tmp_path, append_bytes_max=4096) as store:
        with pytest.raises(LimitExceededError, match="4096"):
            store.log.submit([added(n) for n in range(100)])
        with pytest.raises(InvalidArgumentError):
            store.log.submit([])
        assert store.append(added(1)).first_lsn == 1


def test_a_full_buffer_is_cut_into_frames_between_appends(tmp_path: Path) -> None:
    files = HeldFiles()
    with opened(tmp_path, files=files, append_bytes_max=4096) as store:
        files.gate.clear()
        store.log.submit([added(0)])
        assert files.waiting.wait(WAIT_SECONDS)
        appends = [store.log.submit([added(n, "x" * 1000), added(n)]) for n in range(1, 12)]
        files.gate.set()
        store.outcomes.wait_for(12)
        for commit in store.outcomes.commits[1:]:
            assert sum(a.byte_count for a in commit) <= 4096
            assert len(commit) == (3 if commit is not store.outcomes.commits[-1] else 2)
        assert store.outcomes.appends[1:] == appends


def test_close_writes_what_waits_and_is_idempotent(tmp_path: Path) -> None:
    files = HeldFiles()
    with opened(tmp_path, files=files) as store:
        files.gate.clear()
        store.log.submit([added(0)])
        assert files.waiting.wait(WAIT_SECONDS)
        appends = [store.log.submit([added(n)]) for n in range(1, 20)]
        opener = threading.Timer(0.05, files.gate.set)
        opener.start()
        store.log.close()
        assert [a.first_lsn for a in appends] == list(range(2, 21))
        store.log.close()
        with pytest.raises(StoreClosedError):
            store.log.submit([added(1)])
        with pytest.raises(StoreClosedError):
            store.log.read(1, events_max=1, bytes_max=1)
        with pytest.raises(StoreClosedError):
            store.log.flush()
        opener.join()
    with opened(tmp_path, epoch=2) as store:
        assert store.log.recovery.clean
        assert store.log.durable_lsn == 20


def test_an_on_commit_that_raises_is_logged_and_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outcomes = Outcomes()

    def on_commit(appends: Sequence[Append]) -> None:
        outcomes(appends)
        raise RuntimeError("the loop is closed")

    log = FileLog.open(tmp_path, store_id=STORE_ID, epoch=1, options=Options(), on_commit=on_commit)
    with caplog.at_level(logging.ERROR, logger="pixelmemory.log"):
        log.submit([added(1)])
        outcomes.wait_for(1)
        log.submit([added(2)])
        outcomes.wait_for(2)
        log.close()
    assert [r.getMessage() for r in caplog.records] == ["on_commit failed for 1 appends"] * 2
    assert log.failure is None


def test_close_and_flush_from_on_commit_say_that_they_would_wait_for_themselves(tmp_path: Path) -> None:
    caught: list[BaseException] = []
    done = threading.Event()
    logs: list[FileLog] = []

    def on_commit(_appends: Sequence[Append]) -> None:
        for call in (logs[0].flush, logs[0].close):
            try:
                call()
            except WrongThreadError as error:
                caught.append(error)
        done.set()

    logs.append(FileLog.open(tmp_path, store_id=STORE_ID, epoch=1, options=Options(), on_commit=on_commit))
    logs[0].submit([added(1)])
    assert done.wait(WAIT_SECONDS)
    logs[0].close()
    assert len(caught) == 2


@pytest.mark.parametrize("step_seconds", [-86_400, 366 * 86_400])
def test_time_in_the_log_never_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_seconds: int) -> None:
    real = time.time_ns
    shift = 0
    monkeypatch.setattr(time, "time_ns", lambda: real() + shift)
    with opened(tmp_path) as store:
        store.append_each([added(1), added(2)])
        shift = step_seconds * 10**9
        store.append_each([added(3), added(4)])
        shift = 0
        store.append(added(5))
        last = store.log.last_logged_at_ns
    shift = -abs(step_seconds) * 10**9
    with opened(tmp_path, epoch=2) as store:
        assert store.log.last_logged_at_ns == last
        store.append(added(6))
        times = [s.logged_at_ns for s in read_events(store.log)]
    assert len(times) == 6
    assert times == sorted(times)
    assert times[5] == last


def test_times_stay_ordered_when_a_slow_thread_is_overtaken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Append.encode
    overtaken = threading.Event()
    encoding = threading.Event()

    def encode(self: Append, logged_at_ns: int) -> None:
        if self.context == "slow" and not encoding.is_set():
            encoding.set()
            assert overtaken.wait(WAIT_SECONDS)
        original(self, logged_at_ns)

    with opened(tmp_path) as store:
        monkeypatch.setattr(Append, "encode", encode)
        slow = threading.Thread(target=store.log.submit, args=([added(1)], "slow"))
        slow.start()
        assert encoding.wait(WAIT_SECONDS)
        fast = store.append(added(2))
        overtaken.set()
        slow.join()
        both = store.outcomes.wait_for(2)
        assert both[0] is fast
        assert both[1].logged_at_ns >= fast.logged_at_ns
    with opened(tmp_path, epoch=2) as store:
        assert [s.logged_at_ns for s in read_events(store.log)] == [a.logged_at_ns for a in both]


# -- sync modes


def test_interval_acknowledges_before_the_sync_and_syncs_by_itself(tmp_path: Path) -> None:
    files = HeldFiles()
    with opened(tmp_path, files=files, sync_mode=SyncMode.INTERVAL, sync_interval_seconds=0.01) as store:
        files.gate.clear()
        store.append(added(1))  # returns although no sync can
        assert store.log.durable_lsn == 1
        assert files.waiting.wait(WAIT_SECONDS)
        assert store.log.synced_lsn == 0
        files.gate.set()
        deadline = time.monotonic() + WAIT_SECONDS
        while store.log.synced_lsn < 1 and time.monotonic() < deadline:
            time.sleep(0.005)
        assert store.log.synced_lsn == 1


def test_os_never_syncs_until_asked(tmp_path: Path) -> None:
    files = HeldFiles()
    with opened(tmp_path, files=files, sync_mode=SyncMode.OS) as store:
        at_open = files.syncs
        store.append_each(added(n) for n in range(20))
        assert store.log.synced_lsn == 0
        assert files.syncs == at_open
        store.log.flush()
        assert store.log.synced_lsn == 20
        assert files.syncs == at_open + 1
        store.log.flush()
        assert files.syncs == at_open + 1


@pytest.mark.parametrize("mode", SyncMode)
def test_flush_waits_for_all_that_was_submitted_before(tmp_path: Path, mode: SyncMode) -> None:
    with opened(tmp_path, sync_mode=mode, sync_interval_seconds=60) as store:
        for round_number in range(5):
            for number in range(40):
                store.log.submit([added(number)])
            store.log.flush()
            assert store.log.synced_lsn == store.log.durable_lsn == 40 * (round_number + 1)


@pytest.mark.parametrize("mode", SyncMode)
def test_every_mode_reopens_to_the_same_events(tmp_path: Path, mode: SyncMode) -> None:
    events = sample_events(120)
    with opened(tmp_path, sync_mode=mode, segment_bytes_max=8192) as store:
        store.append_each(events)
        assert store.log.stats().segments > 2
    with opened(tmp_path, epoch=2) as store:
        assert store.log.recovery.clean
        assert plain(read_events(store.log)) == events


# -- processes


def test_a_child_of_a_fork_gets_an_error_and_cannot_close_the_parents_log(tmp_path: Path) -> None:
    script = """
import os, sys, uuid
from pathlib import Path
from pixelmemory import Options, StoreForkedError
from pixelmemory.memory.events import MemoryDeleted
from pixelmemory.log.file.file_log import FileLog

log = FileLog.open(Path(sys.argv[1]), store_id=uuid.UUID(int=1), epoch=1, options=Options(), on_commit=lambda a: None)
log.submit([MemoryDeleted("n", "1")])
log.flush()
if os.fork() == 0:
    refused = 0
    calls = [
        lambda: log.submit([MemoryDeleted("n", "2")]),
        lambda: log.read(1, events_max=1, bytes_max=1),
        log.flush,
    ]
    for call in calls:
        try:
            call()
        except StoreForkedError:
            refused += 1
    log.close()
    os._exit(refused)
status = os.waitstatus_to_exitcode(os.wait()[1])
log.submit([MemoryDeleted("n", "3")])
log.flush()
assert [s.event.memory_id for s in log.read(1, events_max=9, bytes_max=999)] == ["1", "3"]
log.close()
sys.exit(0 if status == 3 else 1)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], timeout=400, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_files_are_the_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "home" / "store"
    old = os.umask(0)
    try:
        with opened(folder) as store:
            store.append(added(1))
    finally:
        os.umask(old)
    for path in [folder, folder / "log"]:
        assert path.stat().st_mode & 0o777 == 0o700
    for path in (folder / "log").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


def test_the_writer_never_dies_silently(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(HeldFiles):
        def sync(self, fd: int) -> None:
            super().sync(fd)
            if self.syncs > 3:
                raise MemoryError("no error of the operating system")

    from pixelmemory import LogPoisonedError, UnknownOutcomeError

    files = Broken()
    with opened(tmp_path, files=files) as store, caplog.at_level(logging.ERROR, logger="pixelmemory.log"):
        files.gate.clear()
        appends = [store.log.submit([added(0)])]
        assert files.waiting.wait(WAIT_SECONDS)
        appends += [store.log.submit([added(n)]) for n in (1, 2)]
        files.syncs = 3
        files.gate.set()
        store.outcomes.wait_for(3)
        assert isinstance(appends[0].error, UnknownOutcomeError)
        assert [type(a.error) for a in appends[1:]] == [LogPoisonedError] * 2
        assert isinstance(store.log.failure, UnknownOutcomeError)
        with pytest.raises(LogPoisonedError):
            store.log.submit([added(3)])
        with pytest.raises(LogPoisonedError):
            store.log.flush()
    assert "writer stopped" in caplog.text
    with opened(tmp_path, epoch=2) as store:
        assert plain(read_events(store.log)) == [added(0)]
