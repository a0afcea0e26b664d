"""two_openers: races of processes, a kill of the owner, and a fork."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pixelmemory.errors import StoreLockedError
from pixelmemory.store.lock import StoreLock
from tests.harness.fault_report import FaultReport, timed_rounds
from tests.harness.log_harness import Book
from tests.harness.writer_process import HERE, WriterProcess, judge_folder

OPENERS = 4


def test_two_openers_of_many_that_race_one_owns_the_store(fault_report: FaultReport, tmp_path: Path) -> None:
    for number in timed_rounds("owners", 2):
        book, folder = Book(), tmp_path / str(number)
        folder.mkdir()
        with contextlib.ExitStack() as stack:
            racers = [
                stack.enter_context(WriterProcess(book, folder, "--segment-bytes=16384", "--one-by-one"))
                for _ in range(OPENERS)
            ]
            results = {racer: racer.read_until("open", "locked") for racer in racers}
            (owner,) = [racer for racer, words in results.items() if words[0] == "open"]
            owner_pid = int(results[owner][2])
            for racer, words in results.items():
                if racer is not owner:
                    assert racer.end() == 3
                    # one that was faster than the owner's note of its pid cannot name it
                    assert words == ["locked", str(owner_pid)] or words == ["locked", "None"]
            assert owner.read_until("ack")
            with pytest.raises(StoreLockedError) as refused:
                StoreLock.acquire(folder / "LOCK")
            assert refused.value.pid == owner_pid
            owner.kill()
        fault_report.add("two_openers: processes that raced", OPENERS)
        judge_folder(book, folder, fault_report)
        StoreLock.acquire(folder / "LOCK").release()


_FORKING = """
import os, signal, sys
from pathlib import Path
from tests.harness.log_harness import Book, Store, make_events
from tests.harness.log_writer import say
from pixelmemory.errors import StoreForkedError, StoreLockedError
from pixelmemory.log.file.files import Files
from pixelmemory.store.lock import StoreLock
from pixelmemory.options import Options

signal.alarm(30)  # nothing here may wait for ever
folder = Path(sys.argv[1])
lock = StoreLock.acquire(folder / "LOCK")
store = Store(Book(), folder, Options(segment_bytes_max=4096), Files())
for count in (1, 2, 3):
    assert store.append(count)
done_read, done_write = os.pipe()
if os.fork() == 0:
    signal.alarm(30)
    for call in (lambda: store.log.submit(make_events(9, 1)), lambda: store.log.read(1, events_max=1, bytes_max=1),
                 store.log.flush):
        try:
            call()
        except StoreForkedError:
            say("refused")
    store.log.close()
    lock.release()
    try:
        StoreLock.acquire(folder / "LOCK")
    except StoreLockedError as error:
        say("locked", error.pid == os.getppid())
    say("child", os.getpid())
    os.write(done_write, b".")
    signal.pause()
os.read(done_read, 1)
for count in (4, 5):
    assert store.append(count)
say("parent", store.log.durable_lsn)
signal.pause()
"""


def test_two_openers_after_a_fork(fault_report: FaultReport, tmp_path: Path) -> None:
    """The child can neither write nor read, nor does it hold the lock when its parent is gone."""
    folder = tmp_path / "store"
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent)}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _FORKING, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    child = None
    try:
        assert process.stdout is not None
        said = [process.stdout.readline().split() for _ in range(6)]
        assert said[:4] == [*[["refused"]] * 3, ["locked", "True"]]
        assert said[4][0] == "child"
        child = int(said[4][1])
        assert said[5] == ["parent", "15"]
        process.kill()
        process.wait()
        os.kill(child, 0)  # it lives, and the store is free
        StoreLock.acquire(folder / "LOCK").release()
    finally:
        process.kill()
        process.wait()
        if child is not None:
            os.kill(child, signal.SIGKILL)
        if process.stdout is not None:
            process.stdout.close()
    fault_report.add("two_openers: fork")
    book = Book()
    for count in (1, 2, 3, 4, 5):
        book.acked.add(book.new(count))
    judge_folder(book, folder, fault_report)
