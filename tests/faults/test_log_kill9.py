"""kill9: a real process, a real SIGKILL, at a random moment and at every named fault point."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from pixelmemory.faults import LOG_FAULT_POINTS
from pixelmemory.log.file.files import Files
from pixelmemory.options import Options
from pixelmemory.store.lock import StoreLock
from tests.harness.fault_report import LONG_FORM, FaultReport, timed_rounds
from tests.harness.independent_reader import read_folder
from tests.harness.log_harness import Book, Store, read_all, recovered
from tests.harness.writer_process import WriterProcess, judge_folder

KILLS_PER_STORE = 5


def _check_opens(book: Book, folder: Path) -> None:
    """The next owner gets the lock at once, and gives out what is on disk."""
    lock = StoreLock.acquire(folder / "LOCK")
    there = recovered(read_folder(folder).events)
    store = Store(book, folder, Options(tail_bytes_max=0), Files())
    assert read_all(store.log) == there
    book.settle(there)
    assert store.append(2)
    store.log.close()
    lock.release()


def test_kill9_at_random_moments(fault_report: FaultReport, tmp_path: Path) -> None:
    for number in timed_rounds("kill9", 2):
        _kill_at_random_moments(number, fault_report, tmp_path / str(number))


def _kill_at_random_moments(number: int, fault_report: FaultReport, folder: Path) -> None:
    """One store and a chain of writers, each killed while it opens or writes."""
    rng = random.Random(number)
    book = Book()
    folder.mkdir()
    for _ in range(KILLS_PER_STORE):
        arguments = (
            f"--sync-mode={rng.choice(('always', 'always', 'interval', 'os'))}",
            f"--segment-bytes={rng.choice((4096, 16384, 1 << 20))}",
            f"--rewrite-bytes={rng.choice((1024, 1 << 20))}",
        )
        with WriterProcess(book, folder, *arguments) as writer:
            assert writer.read_until("ready" if rng.random() < 0.25 else "ack")
            time.sleep(rng.uniform(0.0, 0.05))
            writer.kill()
        fault_report.add("kill9: SIGKILL at a random moment")
        judge_folder(book, folder, fault_report)
    assert book.acked
    _check_opens(book, folder)
    judge_folder(book, folder, fault_report)


@pytest.fixture(scope="module")
def killed_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose writer was killed while it wrote a frame: whole frames, then a part of one."""
    folder = tmp_path_factory.mktemp("killed") / "store"
    store = Store(Book(), folder, Options(segment_bytes_max=4096), Files())
    for count in (1, 3, 9, 2, 2):
        assert store.append(count)
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    store.log.close()
    last = max((copy / "log").glob("*.log"))
    whole = read_folder(copy).boundaries(last.name)[-1]
    last.write_bytes(last.read_bytes()[:whole] + b"\xb5PMF\x01\x01\x01")
    return copy


@pytest.mark.parametrize("hit", [1, 2, 3] if LONG_FORM else [1])
@pytest.mark.parametrize("point", [point for point in LOG_FAULT_POINTS if not point.startswith("rewrite.")])
def test_kill9_at_every_fault_point(
    point: str, hit: int, fault_report: FaultReport, killed_store: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    shutil.copytree(killed_store, folder)
    book = Book()
    for count in (1, 3, 9, 2, 2):
        book.acked.add(book.new(count))
    book.promised |= book.acked
    arguments: list[object] = ["--appends=60", "--segment-bytes=4096", "--rewrite-bytes=1024", "--one-by-one"]
    if point.startswith("undo."):
        arguments += ["--segment-bytes=65536", "--file-bytes-max=12000"]
    with WriterProcess(book, folder, *arguments, fault_point=f"{point}:{hit}") as writer:
        status = writer.end()
    if hit == 1 or status != 0:
        assert status == -signal.SIGKILL, f"{point} was not reached"
        fault_report.add("kill9: SIGKILL at a fault point")
    judge_folder(book, folder, fault_report)
    _check_opens(book, folder)
    judge_folder(book, folder, fault_report)


def test_kill9_of_a_reopen_at_fault_points_again_and_again(
    fault_report: FaultReport, killed_store: Path, tmp_path: Path
) -> None:
    """Opens that are killed, each at the next fault point of its life, one after the other on the same store."""
    folder = tmp_path / "store"
    shutil.copytree(killed_store, folder)
    book = Book()
    for count in (1, 3, 9, 2, 2):
        book.acked.add(book.new(count))
    points = [
        point for point in LOG_FAULT_POINTS if point.split(".")[0] in ("manifest", "quarantine", "segment", "seal")
    ]
    if not LONG_FORM:
        points = points[::4]
    for point in points:
        with WriterProcess(
            book, folder, "--appends=4", "--rewrite-bytes=1024", "--one-by-one", fault_point=point
        ) as writer:
            if writer.end() == -signal.SIGKILL:
                fault_report.add("kill9: SIGKILL at a fault point")
        judge_folder(book, folder, fault_report)
    _check_opens(book, folder)
    assert not list((folder / "log").glob("*.tmp"))
