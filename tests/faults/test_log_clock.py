"""clock_steps: the order is the LSN's, and the times that are recorded never go back."""

from __future__ import annotations

import itertools
import random
import sys
import threading
import time

import pytest

from pixelmemory.options import Options
from tests.harness.fault_report import FaultReport, timed_rounds
from tests.harness.log_harness import STORE, Book, Store, disk_log, judge, make_events, read_all, recovered
from tests.harness.simulated_disk import DiskFiles, SimulatedDisk

DAY_NS = 86_400 * 10**9
THREADS, APPENDS_PER_THREAD, EVENTS_PER_APPEND = 4, 100, 30
STEPS_NS = (-DAY_NS, 365 * DAY_NS, -365 * DAY_NS, DAY_NS, -10_000 * DAY_NS, 0, 1, -1)


def test_clock_steps(fault_report: FaultReport) -> None:
    for seed in timed_rounds("clock", 5):
        with pytest.MonkeyPatch.context() as monkeypatch:
            _steps_of_the_clock(seed, fault_report, monkeypatch)


def _steps_of_the_clock(seed: int, fault_report: FaultReport, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    real_time_ns = time.time_ns
    shift_ns = 0
    latest_ns = 0

    def stepped_time_ns() -> int:
        return real_time_ns() + shift_ns

    monkeypatch.setattr(time, "time_ns", stepped_time_ns)
    disk, book = SimulatedDisk.holding({STORE / "other": b""}), Book()
    for _ in range(4):
        files = DiskFiles(disk)
        store = Store(book, STORE, Options(segment_bytes_max=4096), files)
        assert store.log.last_logged_at_ns == latest_ns
        for _ in range(8):
            shift_ns += rng.choice(STEPS_NS)
            fault_report.add("clock_steps: step")
            before_ns = stepped_time_ns()
            for _ in range(rng.randint(1, 3)):
                store.submit(rng.randint(1, 3))
            store.wait()
            expected_ns = max(before_ns, latest_ns)
            latest_ns = store.log.last_logged_at_ns
            assert expected_ns <= latest_ns <= max(stepped_time_ns(), expected_ns)
        if rng.random() < 0.5:
            store.log.close()
        files.stop()
        store.end_dead()
        found = recovered(disk_log(disk).events)
        times = [event.logged_at_ns for event in found]
        assert all(a <= b for a, b in itertools.pairwise(times))
        assert times[-1] == latest_ns
        verdict = judge(book, found, book.acked)
        fault_report.judge(verdict)
        assert verdict.good
    store = Store(book, STORE, Options(), DiskFiles(disk))
    assert read_all(store.log) == recovered(disk_log(disk).events)
    store.log.close()


def test_clock_steps_between_threads(fault_report: FaultReport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock shows another time, and the threads overtake each other between look and append."""
    rng = random.Random(0)
    looks = itertools.count(1000)
    monkeypatch.setattr(time, "time_ns", lambda: next(looks) * DAY_NS + rng.randrange(-2 * DAY_NS, 2 * DAY_NS))
    disk, book = SimulatedDisk.holding({STORE / "other": b""}), Book()
    store = Store(book, STORE, Options(), DiskFiles(disk))
    numbers = [[book.new(EVENTS_PER_APPEND) for _ in range(APPENDS_PER_THREAD)] for _ in range(THREADS)]

    def submit(own: list[int]) -> None:
        for number in own:
            store.log.submit(make_events(number, EVENTS_PER_APPEND), number)

    threads = [threading.Thread(target=submit, args=(own,)) for own in numbers]
    switch_interval_seconds = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch_interval_seconds)
    store.log.close()
    fault_report.add("clock_steps: step", THREADS * APPENDS_PER_THREAD)
    found = recovered(disk_log(disk).events)
    assert [event.lsn for event in found] == list(range(1, THREADS * APPENDS_PER_THREAD * EVENTS_PER_APPEND + 1))
    assert all(a.logged_at_ns <= b.logged_at_ns for a, b in itertools.pairwise(found))
    order = [event.number for event in found[::EVENTS_PER_APPEND]]
    for own in numbers:  # each thread's appends are in its order
        mine = set(own)
        assert [number for number in order if number in mine] == own
