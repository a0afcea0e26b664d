"""clock_steps: the order is the LSN's, and the times that are recorded never go back."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import pytest
from fault_report import FaultReport, rounds
from log_harness import STORE, Book, Store, disk_log, judge, read_all, recovered
from simulated_disk import DiskFiles, SimulatedDisk

from pixelmemory.options import Options

DAY_NS = 86_400 * 10**9
STEPS_NS = (-DAY_NS, 365 * DAY_NS, -365 * DAY_NS, DAY_NS, -10_000 * DAY_NS, 0, 1, -1)


@pytest.mark.parametrize("seed", range(rounds(5, 100)))
def test_clock_steps(seed: int, fault_report: FaultReport, monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert all(a <= b for a, b in pairwise(times))
        assert times[-1] == latest_ns
        verdict = judge(book, found, book.acked)
        fault_report.judge(verdict)
        assert verdict.good
    store = Store(book, STORE, Options(), DiskFiles(disk))
    assert read_all(store.log) == recovered(disk_log(disk).events)
    store.log.close()
