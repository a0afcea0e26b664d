"""io_fault_loop: the Nth operation of a kind fails, N = 1, 2, ... until a run that it does not reach."""

from __future__ import annotations

import errno
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from pixelmemory.errors import LogError, LogWriteError, ManifestError, UnknownOutcomeError
from pixelmemory.log.file import recovery as renewal
from pixelmemory.log.file.files import Files
from pixelmemory.options import Options, SyncMode
from tests.harness.fault_report import LONG_FORM, FaultReport
from tests.harness.faulty_files import Fault, FaultyFiles
from tests.harness.independent_reader import read_log
from tests.harness.log_harness import STORE, Book, Store, judge, read_all, recovered
from tests.harness.simulated_disk import DiskFiles, SimulatedDisk

#: events of each append; they fill several segments of 4 KiB
APPENDS = (1, 3, 1, 2, 8, 1, 1, 4, 2, 1, 12, 1, 2, 3)
#: after so many appends the store is closed and opened again, or killed while it writes a frame
CLOSE_AFTER, KILL_AFTER = 4, 9
NEVER = 10**9


class Case(NamedTuple):
    """How the Nth operation fails."""

    operation: str
    error: int
    persistent: bool
    short: float | None = None
    sync_mode: SyncMode = SyncMode.ALWAYS

    def __str__(self) -> str:
        name = errno.errorcode.get(self.error, "no error")
        short = "" if self.short is None else "short write, "
        return f"{self.operation}: {short}{name}{', persistent' if self.persistent else ''}"

    @property
    def id(self) -> str:
        return f"{self}, {self.sync_mode.value}".replace(", ", "-").replace(": ", "-").replace(" ", "_")

    @property
    def is_full_disk(self) -> bool:
        """Nothing but writes fails, for want of space."""
        return self.operation == "write" and self.error in (errno.ENOSPC, errno.EDQUOT)


def _cases() -> list[Case]:
    cases = [
        Case("write", error, persistent)
        for error in (errno.EIO, errno.ENOSPC, errno.EDQUOT)
        for persistent in (False, True)
    ]
    cases += [Case("write", errno.ENOSPC, persistent, 0.6) for persistent in (False, True)]
    cases += [Case("write", errno.EIO, persistent=False, short=0.6), Case("write", 0, persistent=True, short=0.6)]
    cases += [Case("sync", error, persistent=False) for error in (errno.EIO, errno.ENOSPC, errno.EDQUOT)]
    cases += [Case("sync", errno.EIO, persistent=True)]
    others = ("open", "read", "truncate", "rename", "unlink", "sync_folder", "make_folder", "close")
    cases += [Case(operation, errno.EIO, persistent) for operation in others for persistent in (False, True)]
    cases += [Case("open", errno.EMFILE, persistent=False), Case("rename", errno.ENOSPC, persistent=True)]
    cases += [Case("any", errno.EIO, persistent) for persistent in (False, True)]
    relaxed = (("write", errno.ENOSPC), ("write", errno.EIO), ("sync", errno.EIO), ("any", errno.EIO))
    cases += [
        Case(operation, error, persistent, None, mode)
        for (operation, error), mode in itertools.product(relaxed, (SyncMode.INTERVAL, SyncMode.OS))
        for persistent in (False, True)
    ]
    return cases


class _Run:
    """One store that lives through one fault: its process goes on, or starts again when the log asks for it."""

    def __init__(
        self, inner: Files, folder: Path, contents: Callable[[], dict[str, bytes]], case: Case, nth: int
    ) -> None:
        self.case = case
        self.folder = folder
        self.contents = contents
        self.rng = random.Random(nth)
        self.inner = inner
        self.fault = Fault(case.operation, nth, case.error, persistent=case.persistent, short=case.short)
        self.files = FaultyFiles(inner, self.fault, self.rng)
        self.violations: list[str] = []
        self.book = Book()
        self.options = Options(
            segment_bytes_max=4096, sync_mode=case.sync_mode, sync_interval_seconds=0.001, tail_bytes_max=0
        )
        #: of the outcomes that are not acknowledgements
        self.errors: list[Exception] = []
        self.disk: SimulatedDisk | None = None

    def open(self) -> Store:
        """Open it; an open that fails is tried again, the third time without the fault."""
        for attempt in range(4):
            if attempt == 2:
                self.fault.heal()
            before = recovered(read_log(self.contents()).events)
            hits = self.fault.hits
            try:
                store = Store(self.book, self.folder, self.options, self.files, self.is_dead(self.files))
            except (LogError, ManifestError, OSError) as error:
                assert self.fault.hits > hits, "an open failed of itself"
                self.errors.append(error)
                self.check_after_power_loss()
                continue
            after = recovered(read_log(self.contents()).events)
            assert after == before
            self.book.settle(after)
            return store
        raise AssertionError("no open succeeded without the fault")

    @staticmethod
    def is_dead(files: FaultyFiles) -> Callable[[], bool]:
        return lambda: files.stopped

    def run(self) -> None:
        """All appends, each once; then a last look."""
        store = self.open()
        refused_in_a_row = 0
        for index, count in enumerate(APPENDS):
            if index == KILL_AFTER:
                self.kill(store)
                store = self.open()
            elif index == CLOSE_AFTER or store.log.failure is not None:
                self.close(store)
                store = self.open()
            hits = self.fault.hits
            if store.append(count):
                refused_in_a_row = 0
                continue
            assert self.fault.hits > hits or store.log.failure is not None, "an append failed of itself"
            refused_in_a_row += 1
            self.look_after_a_failure(store)
            if refused_in_a_row == 2:
                self.fault.heal()
                if store.log.failure is None:
                    assert store.append(count), "writes did not resume"
        self.close(store)
        self.fault.heal()
        self.check_after_power_loss()
        store = self.open()
        assert read_all(store.log) == recovered(read_log(self.contents()).events)
        assert store.append(2)
        self.close(store)
        self.judge(self.contents())
        assert not self.violations + self.files.violations

    def look_after_a_failure(self, store: Store) -> None:
        """Reads go on, and what was refused is not there."""
        self.errors += store.errors[len(self.errors) :]
        if self.case.operation in ("write", "sync", "truncate", "rename", "sync_folder"):
            found = read_all(store.log)
            verdict = judge(self.book, found, self.book.acked)
            assert verdict.good, verdict
        if self.case.is_full_disk:
            assert store.log.failure is None, "a full disk is no reason to refuse writes until the store is reopened"
            assert isinstance(store.errors[-1], LogWriteError)
        self.check_after_power_loss()

    def close(self, store: Store) -> None:
        failed = store.log.failure
        try:
            store.log.close()
        except UnknownOutcomeError:
            assert self.fault.hits
            assert failed is None
        else:
            if failed is None:
                self.book.promised |= self.book.acked

    def kill(self, store: Store) -> None:
        """End the process while it writes a frame and makes a segment; nothing is closed."""
        self.files.dies_in_write = True
        store.submit(20)
        store.wait()
        self.files.stopped = True
        store.end_dead()
        self.violations += self.files.violations
        self.files = FaultyFiles(self.inner, self.fault, self.rng)
        self.inner.close(self.inner.open_new(self.folder / "log" / "99999999999999999999.log.tmp"))

    def check_after_power_loss(self) -> None:
        """Were the power to fail now: the log opens to what it should hold."""
        if self.case.sync_mode is SyncMode.ALWAYS:
            self.book.promised |= self.book.acked
        if self.disk is None:
            return
        after = self.disk.after_power_loss(self.rng)
        found = self.judge(after.contents(STORE / "log"), self.book.promised)
        if after.contents(STORE):
            store = Store(Book(), STORE, self.options, DiskFiles(after))
            assert read_all(store.log) == found
            store.log.close()

    def judge(self, contents: dict[str, bytes], promised: set[int] | None = None) -> list[object]:
        found = recovered(read_log(contents).events)
        verdict = judge(self.book, found, self.book.acked if promised is None else promised)
        self.report.judge(verdict)
        assert verdict.good, verdict
        return list(found)

    report: FaultReport


def _loop(case: Case, step: int, report: FaultReport, make: Callable[[int], _Run]) -> None:
    """N = 1, 1 + step, ... until a run that the fault does not reach."""
    for nth in itertools.count(1, step):
        run = make(nth)
        run.report = report
        try:
            run.run()
        except BaseException as error:
            error.add_note(f"{run.fault}, errors: {run.errors!r}")
            raise
        report.add(f"io_fault_loop: {case}", run.fault.hits)
        if not run.fault.hits:
            return


@pytest.mark.parametrize("case", _cases(), ids=lambda case: case.id)
def test_io_fault_loop(case: Case, fault_report: FaultReport, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a simulated disk, where a failed sync loses its pages; the power may fail after each error."""

    def make(nth: int) -> _Run:
        monkeypatch.setattr(renewal, "REWRITE_BYTES_MAX", 1 << 20 if nth % 2 else 1024)
        disk = SimulatedDisk.holding({STORE.parent / "other": b""})
        run = _Run(DiskFiles(disk), STORE, lambda: disk.contents(STORE / "log"), case, nth)
        run.disk = disk
        return run

    step = 1 if LONG_FORM else 3 if case.sync_mode is not SyncMode.ALWAYS or case.operation == "any" else 1
    _loop(case, step, fault_report, make)


@pytest.mark.parametrize(
    "case",
    [
        Case("write", errno.ENOSPC, persistent=False, short=0.6),
        Case("sync", errno.EIO, persistent=False),
        Case("rename", errno.EIO, persistent=False),
        Case("any", errno.EIO, persistent=True),
    ],
    ids=lambda case: case.id,
)
def test_io_fault_loop_on_real_files(case: Case, fault_report: FaultReport, tmp_path: Path) -> None:
    def make(nth: int) -> _Run:
        folder = tmp_path / str(nth)

        def contents() -> dict[str, bytes]:
            return {path.name: path.read_bytes() for path in (folder / "log").glob("*.log")}

        return _Run(Files(), folder, contents, case, nth)

    _loop(case, {"any": 67, "rename": 5}.get(case.operation, 17) if not LONG_FORM else 1, fault_report, make)
