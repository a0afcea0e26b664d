"""rewrite: kills, power cuts and failing operations while a log is rewritten: all old or all new, nothing lost."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pixelmemory.errors import LogError, LogPoisonedError, LogWriteError, UnknownOutcomeError
from pixelmemory.faults import LOG_FAULT_POINTS, set_fault_hook
from pixelmemory.log.file import recovery as renewal
from pixelmemory.log.file.files import Files
from pixelmemory.options import Options
from pixelmemory.store.manifest import Manifest
from tests.harness.fault_report import LONG_FORM, FaultReport, rounds
from tests.harness.faulty_files import Fault, FaultyFiles
from tests.harness.independent_reader import DiskLog, read_folder, read_log
from tests.harness.log_harness import STORE
from tests.harness.rewrite_tools import CANARY, STORE_ID, Ledger, Life, erase, folders_of
from tests.harness.simulated_disk import DiskFiles, SimulatedDisk

HERE = Path(__file__).parent.parent / "harness"
OPTIONS = Options(segment_bytes_max=4096, tail_bytes_max=0)
POINTS = [point for point in LOG_FAULT_POINTS if point.startswith("rewrite.")]
TIMEOUT_SECONDS = 60.0
#: operations of an open between two at which its power is cut
STRIDE = 3 if LONG_FORM else 16


def _disk_log(disk: SimulatedDisk) -> DiskLog:
    """What the next open should find: the log, or, in the middle of a switch, the new one."""
    names = folders_of(sorted(disk.folder(STORE).entries))
    return read_log(disk.contents(STORE / ("log" if "log" in names else "log.new")))


def _judge(ledger: Ledger, log: DiskLog, report: FaultReport, states: tuple[str, ...] = ("old", "new")) -> None:
    verdict = ledger.judge(log, states=states)
    report.judge(verdict)
    assert verdict.good, (verdict, log.stopped)


# -- simulated disk


def _new_disk(ledger: Ledger) -> SimulatedDisk:
    """A log of several segments, closed."""
    disk = SimulatedDisk.holding({STORE / "other": b""})
    life = Life(ledger, STORE, DiskFiles(disk), 1, OPTIONS)
    life.fill()
    life.log.close()
    return disk


def _copy(disk: SimulatedDisk) -> SimulatedDisk:
    """The disk after everything in its caches came to the device."""
    return disk.after_power_loss(random.Random(0), keep=1.0)


def _open_again(ledger: Ledger, disk: SimulatedDisk, report: FaultReport, *, rewrite: bool = True) -> None:
    """The log opens to what is there, nothing is left over, and it goes on."""
    before = _disk_log(disk)
    life = Life(Ledger(), STORE, DiskFiles(disk), 9, OPTIONS)
    there = [(event.lsn, event.event_id) for event in life.read()]
    assert there == [(event.lsn, event.event_id) for event in before.events]
    assert folders_of(sorted(disk.folder(STORE).entries)) == ["log"]
    _judge(ledger, _disk_log(disk), report)
    if not rewrite:
        life.log.close()
        return
    life.log.rewrite(erase)
    assert life.append(2)
    life.log.close()
    assert not any(CANARY.encode() in data for data in disk.contents(STORE / "log").values())


@pytest.mark.parametrize("rewrite_bytes", [1024, 1 << 20])
def test_a_kill_or_a_power_cut_at_every_operation(
    rewrite_bytes: int, fault_report: FaultReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process, which finds what is left, loses its power as well, at any of its operations."""
    monkeypatch.setattr(renewal, "REWRITE_BYTES_MAX", rewrite_bytes)
    whole = Ledger()
    clean = _new_disk(whole)
    for stop_at in itertools.count(1):
        ledger = Ledger()
        ledger.entries, ledger.acked = list(whole.entries), set(whole.acked)
        disk, rng = _copy(clean), random.Random(stop_at)
        ledger.judge(_disk_log(disk))
        device = DiskFiles(disk)
        life = Life(ledger, STORE, device, 2, OPTIONS)
        first, done = device.operations, False

        def before(_: str, device: DiskFiles = device, last: int = first + stop_at, life: Life = life) -> None:
            if device.operations == last:
                life.dead = True
                device.stop()

        def append_meanwhile(point: str, life: Life = life) -> None:
            if point in ("rewrite.after_create", "rewrite.before_rest", "rewrite.before_removal"):
                life.append(2)

        device.before = before
        set_fault_hook(append_meanwhile)
        try:
            life.log.rewrite(erase)
            done = not device.stopped
        except (LogError, OSError):
            assert device.stopped
        finally:
            set_fault_hook(None)
        device.stop()
        life.end_dead()
        if done:
            return
        fault_report.add("rewrite: kill at an operation")
        _judge(ledger, _disk_log(disk), fault_report)
        for keep in (0.0, None, None, None) if LONG_FORM else (0.0, None):
            after = disk.after_power_loss(rng, keep)
            fault_report.add("rewrite: power cut at an operation")
            _judge(ledger, _disk_log(after), fault_report)
            _cut_the_next_one(ledger, after, stop_at, rng, fault_report)
            _open_again(ledger, after, fault_report)
        _cut_the_next_one(ledger, disk, stop_at, rng, fault_report)
        _open_again(ledger, disk, fault_report)


def _cut_the_next_one(ledger: Ledger, disk: SimulatedDisk, start: int, rng: random.Random, report: FaultReport) -> None:
    """Opens of this disk as it is, each of which loses its power at another operation."""
    for cut_at in itertools.count(1 + start % STRIDE, STRIDE):
        copy = _copy(disk)
        device = DiskFiles(copy)

        def before(_: str, device: DiskFiles = device, cut_at: int = cut_at) -> None:
            if device.operations == cut_at:
                device.stop()

        device.before = before
        try:
            life = Life(Ledger(), STORE, device, 3, OPTIONS)
        except (LogError, OSError):
            assert device.stopped
        else:
            reached = device.stopped
            device.stop()
            life.end_dead()
            if not reached:
                return
        report.add("rewrite: power cut in the open after it")
        after = copy.after_power_loss(rng)
        _judge(ledger, _disk_log(after), report)
        _open_again(ledger, after, report, rewrite=False)


@pytest.mark.parametrize("point", POINTS)
def test_a_power_cut_keeps_any_of_the_names(point: str, fault_report: FaultReport) -> None:
    """Of the names that a moment leaves unsynced the device may have kept any, a later one without an earlier one."""
    ledger = Ledger()
    disk = _new_disk(ledger)
    ledger.judge(_disk_log(disk))
    device = DiskFiles(disk)
    life = Life(ledger, STORE, device, 2, OPTIONS)

    def stop(here: str) -> None:
        if here == point:
            life.dead = True
            device.stop()

    set_fault_hook(stop)
    try:
        with contextlib.suppress(LogError, OSError):
            life.log.rewrite(erase)
    finally:
        set_fault_hook(None)
    assert device.stopped, f"{point} was not reached"
    life.end_dead()
    for seed in range(rounds(40, 1000)):
        fault_report.add("rewrite: power cut at a fault point")
        _judge(ledger, _disk_log(disk.after_power_loss(random.Random(seed))), fault_report)


CASES = [
    (operation, error, persistent)
    for operation, error in (
        *(("write", errno.ENOSPC), ("write", errno.EIO), ("sync", errno.EIO), ("rename", errno.EIO)),
        *(("sync_folder", errno.EIO), ("open", errno.EMFILE), ("read", errno.EIO), ("unlink", errno.EIO)),
        *(("make_folder", errno.ENOSPC), ("remove_folder", errno.EIO), ("close", errno.EIO), ("any", errno.EIO)),
    )
    for persistent in (False, True)
]


@pytest.mark.parametrize(
    ("operation", "error", "persistent"),
    CASES,
    ids=[f"{o}-{errno.errorcode[e]}{'-persistent' if p else ''}" for o, e, p in CASES],
)
def test_the_nth_operation_fails(operation: str, error: int, persistent: bool, fault_report: FaultReport) -> None:
    """Of a rewrite, N = 1, 2, ... until one that the fault does not reach; the power may fail after each."""
    whole = Ledger()
    clean = _new_disk(whole)
    for nth in itertools.count(1):
        ledger = Ledger()
        ledger.entries, ledger.acked = list(whole.entries), set(whole.acked)
        disk, rng = _copy(clean), random.Random(nth)
        ledger.judge(_disk_log(disk))
        fault = Fault("none", nth, error, persistent=persistent)
        files = FaultyFiles(DiskFiles(disk), fault, rng)
        life = Life(ledger, STORE, files, 2, OPTIONS)
        assert life.append(2)
        try:
            _fail_once(life, disk, fault, operation, fault_report)
        except BaseException as problem:
            problem.add_note(f"{fault}")
            raise
        after = disk.after_power_loss(rng)
        _judge(ledger, _disk_log(after), fault_report)
        _open_again(ledger, after, fault_report)
        files.stopped = True
        life.end_dead()
        _open_again(ledger, disk, fault_report)
        assert not files.violations
        fault_report.add(f"rewrite: {operation} fails", fault.hits)
        if not fault.hits:
            return


def _fail_once(life: Life, disk: SimulatedDisk, fault: Fault, operation: str, report: FaultReport) -> None:
    """A rewrite that the fault may strike: its error is definite, and says what holds."""
    before = [event.event_id for event in life.read()]
    fault.operation = operation
    try:
        life.log.rewrite(erase)
        state = "new"
    except UnknownOutcomeError:
        assert life.log.failure is not None
        state = "unknown"
    except LogWriteError as refused:
        state = "new" if "could not be removed" in str(refused) else "old"
    assert fault.hits or state == "new"
    fault.heal()
    assert [event.event_id for event in life.read()] == before
    if state == "unknown":
        with pytest.raises(LogPoisonedError):
            life.log.rewrite(erase)
        assert not life.append()
        return
    assert life.log.failure is None
    shown = [erase(event) is not event.event for event in life.read()]
    assert any(shown) == (state == "old")
    assert life.append(3)
    _judge(life.ledger, _disk_log(disk), report, (state,))
    if operation in ("write", "sync", "make_folder") and state == "old":
        assert folders_of(sorted(disk.folder(STORE).entries)) == ["log"]


# -- real processes


class Rewriters:
    """The parent of the processes that rewrite."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent)}
        environment.pop("PIXELMEMORY_FAULT_POINT", None)
        command = [sys.executable, str(HERE / "rewrite_process.py")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self._ledger = Ledger()
        self.pid = 0

    def start(self, folder: Path, ledger: Ledger, point: str = "-") -> None:
        """A process that opens the store and rewrites it, until it is killed at the fault point."""
        self._ledger = ledger
        assert self._process.stdin is not None
        self._process.stdin.write(f"{point} {len(ledger.entries)} {folder}\n".encode())
        self._process.stdin.flush()

    def hear(self, wanted: str) -> list[str]:
        """Write down what it says up to a line."""
        assert self._process.stdout is not None
        while words := self._process.stdout.readline().decode().split():
            if words[0] == "pid":
                self.pid = int(words[1])
            elif words[0] == "try":
                assert self._ledger.new(1).number == int(words[1])
            elif words[0] == "ack":
                self._ledger.acked.add(int(words[1]))
            if words[0] == wanted:
                return words
        raise AssertionError(f"it never said {wanted}")

    def status(self) -> int:
        """How it ended."""
        return int(self.hear("ended")[1])

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(TIMEOUT_SECONDS)


@pytest.fixture(scope="module")
def rewriters() -> Iterator[Rewriters]:
    made = Rewriters()
    yield made
    made.close()


@pytest.fixture(scope="module")
def closed_store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ledger]:
    folder, ledger = tmp_path_factory.mktemp("rewrite") / "store", Ledger()
    folder.mkdir()
    Manifest(store_id=STORE_ID, epoch=1, has_log=True).save(folder)
    life = Life(ledger, folder, Files(), 1, OPTIONS)
    life.fill()
    life.log.close()
    ledger.judge(read_folder(folder))
    return folder, ledger


def _copy_of(closed_store: tuple[Path, Ledger], folder: Path) -> Ledger:
    source, known = closed_store
    shutil.copytree(source, folder)
    ledger = Ledger()
    ledger.entries, ledger.acked = list(known.entries), set(known.acked)
    ledger.judge(read_folder(folder))
    return ledger


def _reopen_and_judge(ledger: Ledger, folder: Path, report: FaultReport) -> None:
    """What a kill left: the next open finds the old log or the new one, and leaves nothing else there."""
    found = read_log({path.name: path.read_bytes() for path in _log_of(folder).glob("*.log")})
    _judge(ledger, found, report)
    life = Life(Ledger(), folder, Files(), 9, OPTIONS)
    assert [event.event_id for event in life.read()] == [event.event_id for event in found.events]
    life.log.close()
    assert folders_of(sorted(os.listdir(folder))) == ["log"]
    log = read_folder(folder)
    _judge(ledger, log, report)
    hits = [path for path in folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert bool(hits) == (not any(event.removed for event in log.events))


def _log_of(folder: Path) -> Path:
    return folder / ("log" if (folder / "log").is_dir() else "log.new")


@pytest.mark.parametrize("hit", [1, 2, 3] if LONG_FORM else [1])
@pytest.mark.parametrize("point", POINTS)
def test_kill9_at_every_fault_point(
    point: str,
    hit: int,
    closed_store: tuple[Path, Ledger],
    rewriters: Rewriters,
    fault_report: FaultReport,
    tmp_path: Path,
) -> None:
    ledger = _copy_of(closed_store, tmp_path / "store")
    rewriters.start(tmp_path / "store", ledger, f"{point}:{hit}")
    assert rewriters.status() == -signal.SIGKILL, f"{point} was not reached"
    fault_report.add("rewrite: SIGKILL at a fault point")
    _reopen_and_judge(ledger, tmp_path / "store", fault_report)


def test_kill9_of_the_opens_that_follow(
    closed_store: tuple[Path, Ledger], rewriters: Rewriters, fault_report: FaultReport, tmp_path: Path
) -> None:
    """A rewrite that is killed in the middle of its switch, and then each open that goes on from there."""
    folder = tmp_path / "store"
    ledger = _copy_of(closed_store, folder)
    points = ("after_old_sync", "after_new_rename", "before_removal", "after_unlink", "after_unlink:3", "after_removal")
    for point in points:
        rewriters.start(folder, ledger, f"rewrite.{point}")
        assert rewriters.status() == -signal.SIGKILL
        fault_report.add("rewrite: SIGKILL at a fault point")
        found = read_log({path.name: path.read_bytes() for path in _log_of(folder).glob("*.log")})
        _judge(ledger, found, fault_report, ("new",))
    _reopen_and_judge(ledger, folder, fault_report)


@pytest.mark.parametrize("seed", range(rounds(5, 120)))
def test_kill9_at_a_random_moment(
    seed: int, closed_store: tuple[Path, Ledger], rewriters: Rewriters, fault_report: FaultReport, tmp_path: Path
) -> None:
    ledger = _copy_of(closed_store, tmp_path / "store")
    rewriters.start(tmp_path / "store", ledger)
    rewriters.hear("rewriting")
    time.sleep(random.Random(seed).uniform(0.0, 0.05))
    os.kill(rewriters.pid, signal.SIGKILL)
    assert rewriters.status() == -signal.SIGKILL
    fault_report.add("rewrite: SIGKILL at a random moment")
    _reopen_and_judge(ledger, tmp_path / "store", fault_report)
