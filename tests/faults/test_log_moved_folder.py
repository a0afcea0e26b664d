"""moved_folder: the folder of an open store is renamed, replaced, mounted over, unmounted.

No byte lands anywhere but in the store that was opened, an error comes at the latest with the next segment, and nothing
that was acknowledged is lost once the folder is back.
"""

from __future__ import annotations

import functools
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pixelmemory.errors import LogWriteError
from tests.harness.engine_tools import script_environment
from tests.harness.fault_report import FaultReport, rounds, timed_rounds
from tests.harness.ground_tools import (
    MOVED,
    MOVES,
    append_until_refused,
    check_reads,
    contents,
    held_store,
    make_store,
    put_back,
)
from tests.harness.independent_reader import read_folder
from tests.harness.log_harness import Book, Store, judge, recovered

HERE = Path(__file__).parent.parent / "harness"
TIMEOUT_SECONDS = 200.0


def _judge(book: Book, folder: Path, report: FaultReport) -> None:
    log = read_folder(folder)
    assert log.stopped is None, log.stopped
    verdict = judge(book, recovered(log.events), book.acked)
    report.judge(verdict)
    assert verdict.good, verdict


def test_moved_folder(fault_report: FaultReport, tmp_path: Path) -> None:
    for seed in timed_rounds("moved_folder", 4):
        _moves(tmp_path / str(seed), random.Random(seed), fault_report)
        shutil.rmtree(tmp_path / str(seed))


def _moves(home: Path, rng: random.Random, report: FaultReport) -> None:
    """Lives of one store whose folder is moved between and during appends and rewrites."""
    make_store(home / "other")
    book, folder, other = Book(), home / "store", contents(home / "other")
    for _ in range(2):
        with held_store(book, folder) as store:
            for _ in range(rng.randint(2, 5)):
                for _ in range(rng.randrange(30)):
                    store.submit(rng.randint(1, 3))
                if rng.random() < 0.5:
                    store.wait()
                kind = rng.choice(list(MOVES))
                _move_and_check(store, folder, kind, rng)
                report.add(f"moved_folder: {kind}")
                assert contents(home / "other") == other
                assert store.append()
                assert store.log.problem is None
        _judge(book, folder, report)
        assert not folder.with_name("away").exists()


def _move_and_check(store: Store, folder: Path, kind: str, rng: random.Random) -> None:
    rewriting = _Rewriting(store) if rng.random() < 0.5 else None
    if kind == "replaced by a copy of itself":
        store.wait()  # what is being written while it is copied would be half there
        if rewriting is not None:
            rewriting.join()
    MOVES[kind](folder)
    standing = contents(folder)
    append_until_refused(store)
    with pytest.raises(LogWriteError, match=MOVED):
        store.log.rewrite(lambda stored: stored.event)
    if rewriting is not None:
        rewriting.join()
    check_reads(store)
    assert contents(folder) == standing
    put_back(folder)


class _Rewriting:
    """A rewrite in a thread of its own: it ends well, or as one that saw the folder move."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._thread = threading.Thread(target=self._run)
        self._error: BaseException | None = None
        self._thread.start()

    def _run(self) -> None:
        try:
            self._store.log.rewrite(lambda stored: stored.event)
        except BaseException as error:  # noqa: BLE001 - for join
            self._error = error

    def join(self) -> None:
        self._thread.join()
        if self._error is not None:
            assert isinstance(self._error, LogWriteError), self._error
            assert MOVED in str(self._error)


def test_moved_folder_at_any_moment(fault_report: FaultReport, tmp_path: Path) -> None:
    """The folder goes to and fro between its place and another while appends and rewrites run."""
    make_store(tmp_path / "other")
    other = contents(tmp_path / "other")
    book, folder = Book(), tmp_path / "store"
    stopping = threading.Event()
    moves = 0

    def move_to_and_fro() -> None:
        nonlocal moves
        rng = random.Random(0)
        while not stopping.wait(rng.random() * 0.002):
            folder.rename(tmp_path / "away")
            (tmp_path / "other").rename(folder)
            stopping.wait(rng.random() * 0.002)
            folder.rename(tmp_path / "other")
            (tmp_path / "away").rename(folder)
            moves += 1

    refused = 0
    with held_store(book, folder) as store:
        mover = threading.Thread(target=move_to_and_fro)
        mover.start()
        try:
            for number in range(rounds(600, 6000)):
                if not store.append(1 + number % 3):
                    refused += 1
                    assert MOVED in str(store.errors[-1])
                if number % 100 == 0:
                    try:
                        store.log.rewrite(lambda stored: stored.event)
                    except LogWriteError as error:
                        assert MOVED in str(error)  # noqa: PT017 - it may succeed as well
        finally:
            stopping.set()
            mover.join()
        check_reads(store)
    fault_report.add("moved_folder: to and fro", moves)
    assert moves > 20
    assert refused < len(book.counts)
    assert contents(tmp_path / "other") == other
    _judge(book, folder, fault_report)


@functools.cache
def _why_no_mounts() -> str | None:
    if shutil.which("unshare") is None:
        return "unshare is not installed"
    script = "mount --bind /tmp /mnt && umount --lazy /mnt"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"nothing can be mounted: {done.stderr.strip()}"


def test_moved_folder_mounts(fault_report: FaultReport, tmp_path: Path) -> None:
    if (why := _why_no_mounts()) is not None:
        pytest.skip(why)
    make_store(tmp_path / "mounted" / "store")
    make_store(tmp_path / "decoy" / "store")
    (tmp_path / "real").mkdir()
    before = {name: contents(tmp_path / name) for name in ("mounted", "decoy")}
    script = [sys.executable, HERE / "mounted_folder_writer.py", tmp_path / "real", tmp_path / "mounted"]
    done = subprocess.run(
        ["unshare", "-rm", *map(str, script), str(rounds(2, 20))],
        capture_output=True,
        text=True,
        env=script_environment(),
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    book = Book()
    for word, number, *rest in map(str.split, done.stdout.splitlines()):
        if word == "try":
            assert book.new(int(rest[0])) == int(number)
        elif word == "moved":
            fault_report.add(f"moved_folder: {' '.join((number, *rest))}")
        else:
            (book.acked if word == "ack" else book.gone).add(int(number))
    assert book.acked | book.gone == set(book.counts)
    for name, known in before.items():
        assert contents(tmp_path / name) == known
    _judge(book, tmp_path / "real" / "store", fault_report)
