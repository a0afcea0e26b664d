"""powerloss_sim: the power goes at any operation, and any part of what was not flushed goes with it."""

from __future__ import annotations

import errno
import random

import pytest

from pixelmemory.errors import LogError, ManifestError
from pixelmemory.log.file import recovery as renewal
from pixelmemory.log.file.files import Files
from pixelmemory.options import Options, SyncMode
from tests.harness.fault_report import LONG_FORM, FaultReport, timed_rounds
from tests.harness.faulty_files import Fault, FaultyFiles
from tests.harness.log_harness import STORE, Book, Store, disk_log, judge, read_all, recovered
from tests.harness.simulated_disk import DiskFiles, SimulatedDisk


class _Life:
    """One process: it opens the store, works, and ends by a close, a kill or a power cut."""

    def __init__(self, disk: SimulatedDisk, book: Book, options: Options, rng: random.Random) -> None:
        self.disk = disk
        self.book = book
        self.rng = rng
        self.options = options
        self.device = DiskFiles(disk)
        self.device.last_write = rng.choice((0.0, rng.random()))
        self.files: Files = self.device
        self.fault: Fault | None = None

    def cut_at(self, operation: int) -> None:
        """The end comes at this operation."""

        def before(_: str) -> None:
            if self.device.operations == operation:
                self.device.stop()

        self.device.before = before

    def fail_a_sync(self, nth: int) -> None:
        """The nth sync fails, and the pages that it should have written count as clean."""
        self.fault = Fault("sync", nth, errno.EIO)
        self.files = FaultyFiles(self.device, self.fault, self.rng)

    def open(self) -> Store | None:
        """The open store; None if the end came, or a sync failed, while it was opened."""
        before = recovered(disk_log(self.disk).events)
        try:
            store = Store(self.book, STORE, self.options, self.files, lambda: self.device.stopped)
        except (LogError, ManifestError, OSError):
            if self.device.stopped or (self.fault is not None and self.fault.hits):
                return None
            raise  # what the disk holds after a power cut is never damage
        after = recovered(disk_log(self.disk).events)
        assert after == before
        self.book.settle(after)
        return store

    def work(self, store: Store) -> None:
        """Some appends and flushes, until the end comes."""
        for _ in range(self.rng.randint(0, 14)):
            if self.device.stopped or store.log.failure is not None:
                return
            if self.rng.random() < 0.2:
                self._flush(store)
            elif self.rng.random() < 0.4:
                for _ in range(self.rng.randint(2, 6)):
                    store.submit(self.rng.randint(1, 3))
                store.wait()
            else:
                store.append(self.rng.choice((1, 1, 2, 5, 12)))

    def _flush(self, store: Store) -> None:
        acked = set(self.book.acked)
        try:
            store.log.flush()
        except LogError:
            return
        self.book.promised |= acked

    def end(self, store: Store | None, kind: str) -> SimulatedDisk:
        """End it. Returns the disk that the next process finds."""
        if store is not None and kind == "close":
            try:
                store.log.close()
                if not self.device.stopped and store.log.failure is None:
                    self.book.promised |= self.book.acked
            except LogError:
                assert self.device.stopped or self.fault is not None
        self.device.stop()
        if store is not None:
            store.end_dead()
        if self.options.sync_mode is SyncMode.ALWAYS:
            self.book.promised |= self.book.acked
        return self.disk if kind == "kill" else self.disk.after_power_loss(self.rng)


def _power_loss_round(seed: int, report: FaultReport) -> None:
    rng = random.Random(seed)
    options = Options(
        sync_mode=rng.choice((SyncMode.ALWAYS, SyncMode.ALWAYS, SyncMode.INTERVAL, SyncMode.OS)),
        sync_interval_seconds=0.001,
        segment_bytes_max=rng.choice((4096, 8192, 1 << 16)),
    )
    disk, book = SimulatedDisk.holding({STORE.parent / "other": b""}), Book()
    for _ in range(rng.randint(1, 5)):
        life = _Life(disk, book, options, rng)
        if rng.random() < 0.25:
            life.fail_a_sync(rng.randint(1, 12))
        if rng.random() < 0.9:
            life.cut_at(rng.randint(1, rng.choice((40, 120))))
        store = life.open()
        if store is not None:
            life.work(store)
        kind = rng.choice(("close", "kill", "power cut", "power cut"))
        report.add(f"powerloss_sim: {kind}")
        if life.fault is not None and life.fault.hits:
            report.add("powerloss_sim: failed sync")
        disk = life.end(store, kind)
        # a kill takes nothing in any mode; the power may yet take what the relaxed ones only wrote
        found = recovered(disk_log(disk).events)
        verdict = judge(book, found, book.acked if kind == "kill" else book.promised)
        report.judge(verdict)
        assert verdict.good, verdict
        book.acked &= {event.number for event in found}
    _check_usable(disk, book, options)


def _check_usable(disk: SimulatedDisk, book: Book, options: Options) -> None:
    """The log opens, gives out what is there, takes more, and closes cleanly."""
    there = recovered(disk_log(disk).events)
    store = Store(book, STORE, options, DiskFiles(disk))
    assert read_all(store.log) == there
    book.settle(there)
    assert store.append(3)
    store.log.close()
    book.promised |= book.acked
    disk = disk.after_power_loss(random.Random(0))
    assert judge(book, recovered(disk_log(disk).events)).good
    store = Store(book, STORE, options, DiskFiles(disk))
    assert store.log.recovery.clean
    assert store.log.durable_lsn == len(there) + 3
    store.log.close()


def test_powerloss_sim(fault_report: FaultReport, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in timed_rounds("powerloss", 150):
        # small logs take the path of large ones in half of the rounds: their last segment stays, and is sealed
        monkeypatch.setattr(renewal, "REWRITE_BYTES_MAX", 1 << 20 if seed % 2 else 1024)
        try:
            _power_loss_round(seed, fault_report)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


def _kill_then_cut(kill_at: int, cut_at: int, seed: int, report: FaultReport) -> tuple[bool, bool]:
    """One process is killed at one operation, the next loses its power at another. Returns whether each was reached."""
    rng = random.Random(seed)
    options = Options(segment_bytes_max=4096)
    disk, book = SimulatedDisk.holding({STORE.parent / "other": b""}), Book()
    reached = []
    for operation, appends in ((kill_at, (1, 4, 9, 2, 12, 1, 9)), (cut_at, (2, 8))):
        life = _Life(disk, book, options, rng)
        life.cut_at(operation)
        store = life.open()
        if store is not None:
            for count in appends:
                if not life.device.stopped:
                    store.append(count)
        reached.append(life.device.stopped)
        if operation == kill_at:
            life.end(store, "kill")
        else:
            life.device.stop()
            if store is not None:
                store.end_dead()
    book.promised |= book.acked
    for keep in (0.0, None):
        after = disk.after_power_loss(rng, keep)
        found = recovered(disk_log(after).events)
        verdict = judge(book, found)
        report.judge(verdict)
        assert verdict.good, verdict
        store = Store(Book(), STORE, options, DiskFiles(after))
        assert read_all(store.log) == found
        store.log.close()
    return reached[0], reached[1]


@pytest.mark.parametrize("offset", range(4))
def test_powerloss_sim_a_kill_and_then_a_power_cut_at_every_pair_of_operations(
    offset: int, fault_report: FaultReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "REWRITE_BYTES_MAX", 1 << 20 if offset % 2 else 1024)
    kill_at, killed = 1 + (offset // 2 if LONG_FORM else offset), True
    while killed:
        cut_at, cut = 1 if LONG_FORM else 1 + kill_at // 2 % 5, True
        while cut:
            try:
                killed, cut = _kill_then_cut(kill_at, cut_at, kill_at * 1000 + cut_at, fault_report)
            except BaseException as error:
                error.add_note(f"killed at operation {kill_at}, cut at {cut_at}")
                raise
            fault_report.add("powerloss_sim: kill, then power cut")
            cut_at += 1 if LONG_FORM else 5
        kill_at += 2 if LONG_FORM else 4
