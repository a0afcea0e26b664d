"""A store's folder that is renamed, replaced or deleted while it is open: noticed, and nothing else is touched."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pixelmemory import LogWriteError, ManifestError, StoreError
from pixelmemory.log.contract import StoredEvent
from pixelmemory.log.file import group_commit as writer
from pixelmemory.log.file.files import Files
from pixelmemory.memory.events import Event
from pixelmemory.store.lock import FolderMovedError, StoreLock
from pixelmemory.store.manifest import Manifest
from tests.harness.log_tools import WAIT_SECONDS, OpenLog, added, opened, plain
from tests.harness.logs import STORE_ID, read_events

EVENTS = [added(number, "x" * 1000) for number in range(12)]
#: what another store holds; none of it may ever be given out
FOREIGN = [added(number, "somebody else's") for number in range(12)]
MOVED = "was moved, replaced or unmounted while the store was open"


@pytest.fixture(autouse=True)
def _only_by_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """No look at the folder because a second has passed."""
    monkeypatch.setattr(writer, "FOLDER_CHECK_SECONDS", 1e9)
    monkeypatch.setattr(writer, "PROBE_SECONDS", 0.01)


@contextmanager
def held(folder: Path, **options: Any) -> Iterator[OpenLog]:
    """A log as the engine opens it: with the lock, and through its folder's descriptor."""
    folder.mkdir(exist_ok=True)
    lock, files = StoreLock.acquire(folder / "LOCK"), Files()
    files.hold_folder(folder, lock.folder_fd)
    try:
        with opened(
            folder, files=files, check_folder=lock.check_place, **{"segment_bytes_max": 4096, **options}
        ) as store:
            yield store
    finally:
        files.release_folder()
        lock.release()


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything below ``folder``: name -> bytes, None for a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def _renamed(folder: Path) -> None:
    folder.rename(folder.with_name("away"))


def _replaced_by_a_store(folder: Path) -> None:
    _renamed(folder)
    shutil.copytree(folder.with_name("other"), folder)


def _replaced_by_an_empty_folder(folder: Path) -> None:
    _renamed(folder)
    folder.mkdir()


def _replaced_by_a_link(folder: Path) -> None:
    _renamed(folder)
    folder.symlink_to(folder.with_name("other"))


def _replaced_by_a_copy_of_itself(folder: Path) -> None:
    _renamed(folder)
    shutil.copytree(folder.with_name("away"), folder)


MOVES = {
    move.__name__.strip("_"): move
    for move in (
        _renamed,
        _replaced_by_a_store,
        _replaced_by_an_empty_folder,
        _replaced_by_a_link,
        _replaced_by_a_copy_of_itself,
    )
}


def put_back(folder: Path) -> None:
    """The folder that was opened has its path again."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)
    folder.with_name("away").rename(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of the store under test; beside it a closed store, ``other``."""
    with opened(tmp_path / "other", store_id=uuid.UUID(int=7), segment_bytes_max=4096) as store:
        store.append_each(FOREIGN)
    (tmp_path / "other" / "LOCK").touch()
    return tmp_path / "store"


@pytest.fixture(params=MOVES)
def move(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    return MOVES[request.param]


def test_the_next_segment_is_refused_and_writes_go_on_when_the_folder_is_back(
    folder: Path, move: Callable[[Path], None]
) -> None:
    with held(folder) as store:
        store.append_each(EVENTS[:3])  # the fourth needs a new segment
        move(folder)
        before = {name: contents(folder.with_name(name)) for name in ("store", "other", "away")}
        for _ in range(2):
            refused = store.append(EVENTS[3])
            assert isinstance(refused.error, LogWriteError)
            assert refused.first_lsn is None
            assert MOVED in str(refused.error)
            assert str(folder) in str(refused.error)
        assert store.log.failure is None
        assert isinstance(store.log.problem, LogWriteError)
        for name, known in before.items():
            assert contents(folder.with_name(name)) == known
        put_back(folder)
        store.append_each(EVENTS[3:])
        assert store.log.problem is None
        assert plain(read_events(store.log)) == EVENTS
    with opened(folder, epoch=2) as store:
        assert plain(read_events(store.log)) == EVENTS


def test_it_is_noticed_by_itself_that_the_folder_is_back(folder: Path) -> None:
    with held(folder) as store:
        store.append_each(EVENTS[:3])
        _replaced_by_a_store(folder)
        assert store.append(EVENTS[3]).error is not None
        assert store.log.problem is not None
        put_back(folder)
        wait_until(lambda: store.log.problem is None)
        store.append_each(EVENTS[3:])


def test_appends_that_need_no_segment_are_recorded_where_the_store_is(folder: Path) -> None:
    with held(folder) as store:
        store.append_each(EVENTS[:1])
        _replaced_by_a_store(folder)
        known = contents(folder)
        store.append_each(EVENTS[1:3])
        assert contents(folder) == known
    assert contents(folder) == known  # nor does a close touch it
    put_back(folder)
    with opened(folder, epoch=2) as store:
        assert plain(read_events(store.log)) == EVENTS[:3]


def test_while_writes_come_it_is_noticed_without_a_segment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FOLDER_CHECK_SECONDS", 0.0)
    with held(folder) as store:
        store.append_each(EVENTS[:1])
        store.append_each(EVENTS[1:2])  # from now on the folder is looked after
        _renamed(folder)
        assert MOVED in str(store.append(EVENTS[2]).error)
        put_back(folder)
        store.append_each(EVENTS[2:])


@pytest.mark.parametrize("tail_bytes_max", [0, 1 << 20])
def test_reads_go_on_and_never_give_out_another_stores_events(
    folder: Path, move: Callable[[Path], None], tail_bytes_max: int
) -> None:
    with held(folder, tail_bytes_max=tail_bytes_max) as store:
        store.append_each(EVENTS)
        move(folder)
        for lsn in range(1, len(EVENTS) + 1):
            assert plain(store.log.read(lsn, events_max=1, bytes_max=1)) == [EVENTS[lsn - 1]]
        assert plain(read_events(store.log)) == EVENTS
        put_back(folder)


def test_a_folder_that_was_deleted_is_no_damage(folder: Path) -> None:
    with held(folder, tail_bytes_max=0) as store:
        store.append_each(EVENTS)
        shutil.rmtree(folder)
        with pytest.raises(StoreError, match=MOVED):
            store.log.read(1, events_max=1, bytes_max=1)
        assert MOVED in str(store.append(added(99, "x" * 5000)).error)


def test_a_rewrite_does_not_begin(folder: Path, move: Callable[[Path], None]) -> None:
    with held(folder) as store:
        store.append_each(EVENTS)
        move(folder)
        known, log = contents(folder), contents(folder.with_name("away"))
        copied: list[StoredEvent] = []

        def transform(stored: StoredEvent) -> Event:
            copied.append(stored)
            return stored.event

        with pytest.raises(LogWriteError, match=MOVED):
            store.log.rewrite(transform)
        assert not copied
        assert contents(folder) == known
        assert contents(folder.with_name("away")) == log
        put_back(folder)
        store.log.rewrite(lambda stored: stored.event)
        assert plain(read_events(store.log)) == EVENTS


def test_a_rewrite_does_not_switch(folder: Path, move: Callable[[Path], None]) -> None:
    known: dict[str, bytes | None] = {}

    def transform(stored: StoredEvent) -> Event:
        if stored.lsn == 6:
            move(folder)
            known.update(contents(folder))
        return added(0, "rewritten")

    with held(folder) as store:
        store.append_each(EVENTS)
        with pytest.raises(LogWriteError, match=MOVED):
            store.log.rewrite(transform)
        assert contents(folder) == known
        put_back(folder)
        assert sorted(os.listdir(folder)) == ["LOCK", "log"]  # the new one was removed where it was made
        assert plain(read_events(store.log)) == EVENTS
        store.append_each(EVENTS)
    with opened(folder, epoch=2) as store:
        assert plain(read_events(store.log)) == EVENTS * 2


def test_a_manifest_is_not_written(folder: Path, move: Callable[[Path], None]) -> None:
    folder.mkdir()
    lock = StoreLock.acquire(folder / "LOCK")
    move(folder)
    known = contents(folder)
    with pytest.raises(ManifestError, match=MOVED):
        Manifest(store_id=STORE_ID).save(folder, check_folder=lock.check_place)
    assert contents(folder) == known
    put_back(folder)
    Manifest(store_id=STORE_ID).save(folder, check_folder=lock.check_place)
    lock.release()
    assert Manifest.load(folder) == Manifest(store_id=STORE_ID)


class _MovesWhileRead(Files):
    """The folder is replaced once ``reads`` files in it were opened."""

    def __init__(self, folder: Path, reads: int) -> None:
        self.folder = folder
        self.reads = reads

    def open_read(self, path: Path) -> int:
        fd = super().open_read(path)
        self.reads -= 1
        if self.reads == 0:
            _replaced_by_a_store(self.folder)
        return fd


@pytest.mark.parametrize("reads", [0, 1, 2])
def test_a_folder_that_is_moved_during_an_open_gets_no_quarantine(folder: Path, reads: int) -> None:
    with opened(folder.with_name("life")) as store:
        store.append_each(EVENTS)
        shutil.copytree(folder.with_name("life"), folder)
    (segment,) = (folder / "log").iterdir()
    os.truncate(segment, 9000)  # a torn tail
    lock, files = StoreLock.acquire(folder / "LOCK"), _MovesWhileRead(folder, reads)
    files.hold_folder(folder, lock.folder_fd)
    if reads == 0:
        _replaced_by_a_store(folder)
    other = contents(folder.with_name("other"))
    with (
        pytest.raises(LogWriteError, match=MOVED),
        opened(folder, epoch=2, files=files, check_folder=lock.check_place),
    ):
        pass
    assert files.reads <= 0
    assert contents(folder) == other
    assert sorted(contents(folder.with_name("away"))) == ["LOCK", "log", f"log/{segment.name}"]
    put_back(folder)
    with opened(folder, epoch=2, files=files, check_folder=lock.check_place) as store:
        assert store.log.recovery.torn_bytes > 0
        assert plain(read_events(store.log)) == EVENTS[: store.log.durable_lsn]
    assert (folder / "quarantine").is_dir()
    files.release_folder()
    lock.release()


# -- the lock


def test_a_lock_knows_its_place(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    lock = StoreLock.acquire(folder / "LOCK")
    lock.check_place()
    _renamed(folder)
    with pytest.raises(FolderMovedError, match="No such file"):
        lock.check_place()
    folder.mkdir()
    with pytest.raises(FolderMovedError, match="No such file"):
        lock.check_place()
    (folder / "LOCK").touch()
    with pytest.raises(FolderMovedError, match="another LOCK"):
        lock.check_place()
    put_back(folder)
    lock.check_place()
    (folder / "LOCK").unlink()
    with pytest.raises(FolderMovedError, match="No such file"):
        lock.check_place()
    lock.release()
    lock = StoreLock.acquire(folder / "LOCK")
    lock.check_place()
    lock.release()


def test_a_lock_at_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lock = StoreLock.acquire(Path("LOCK"))
    monkeypatch.chdir("/")
    lock.check_place()
    assert lock.path == tmp_path / "LOCK"
    lock.release()


def test_a_held_lock_leaks_no_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        lock = StoreLock.acquire(tmp_path / "LOCK")
        lock.release()
        lock.release()
    (tmp_path / "folder").mkdir()
    for _ in range(3):
        with pytest.raises(OSError, match=r"directory"):
            StoreLock.acquire(tmp_path / "folder")
    assert len(os.listdir("/proc/self/fd")) == before


# -- files


def test_held_files_do_everything_in_the_held_folder(tmp_path: Path) -> None:
    """Each operation, with the folder renamed and another in its place."""
    folder, beside = tmp_path / "store", tmp_path / "store-2"
    folder.mkdir()
    beside.mkdir()
    files, fd = Files(), os.open(folder, os.O_RDONLY)
    files.hold_folder(folder, fd)
    folder.rename(tmp_path / "away")
    folder.mkdir()
    files.make_folder(folder / "log")
    new = files.open_new(folder / "log" / "a.tmp")
    files.write(new, b"a", 0)
    files.rename(folder / "log" / "a.tmp", folder / "log" / "a")
    files.sync_folder(folder / "log")
    files.sync_folder(folder)
    assert files.is_folder(folder)
    assert files.is_folder(folder / "log")
    assert not files.is_folder(folder / "log" / "a")
    assert not files.is_folder(folder / "log" / "a" / "b")
    assert files.names(folder) == ["log"]
    assert files.names(folder / "log") == ["a"]
    for opens in (files.open_read, files.open_write):
        other = opens(folder / "log" / "a")
        assert files.read(other, 9, 0) == b"a"
        files.close(other)
    files.close(new)
    assert contents(tmp_path) == {"store": None, "store-2": None, "away": None, "away/log": None, "away/log/a": b"a"}
    files.unlink(folder / "log" / "a")
    files.remove_folder(folder / "log")
    assert contents(tmp_path / "away") == {}
    files.make_folder(beside / "x")  # a name that only begins alike
    assert (beside / "x").is_dir()
    files.release_folder()
    os.close(fd)
    files.make_folder(folder / "x")
    assert (folder / "x").is_dir()


def wait_until(holds: Callable[[], bool]) -> None:
    """Until something that a thread does by itself is done."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)
