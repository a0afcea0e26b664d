"""What the rows about the ground a store stands on share: a store that is held as the engine holds it, and neighbours.

Scripts that run in another process import it too.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pixelmemory.errors import LogWriteError
from pixelmemory.log.file.files import Files
from pixelmemory.options import Options
from pixelmemory.store.lock import StoreLock
from tests.harness.log_harness import Book, Store, read_all

__all__ = ["MOVED", "MOVES", "append_until_refused", "contents", "held_store", "make_store", "put_back"]

MOVED = "was moved, replaced or unmounted while the store was open"
#: more appends than a segment of ``OPTIONS`` takes
APPENDS_MAX = 400
OPTIONS = Options(segment_bytes_max=8192, tail_bytes_max=0)


@contextmanager
def held_store(book: Book, folder: Path, options: Options = OPTIONS) -> Iterator[Store]:
    """An open log, with the store's lock, through the folder's descriptor."""
    folder.mkdir(exist_ok=True)
    lock, files = StoreLock.acquire(folder / "LOCK"), Files()
    files.hold_folder(folder, lock.folder_fd)
    try:
        store = Store(book, folder, options, files, check_folder=lock.check_place)
        try:
            yield store
        finally:
            store.log.close()
    finally:
        files.release_folder()
        lock.release()


def make_store(folder: Path, appends: int = 40) -> None:
    """A closed store of several segments, whose events have nothing to do with any other's."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with held_store(Book(), folder) as store:
        for _ in range(appends):
            assert store.append(2)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything in ``folder``: name -> bytes, None for a folder; nothing where there is no folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def append_until_refused(store: Store) -> int:
    """Append until a segment is needed that must not be made; returns how many were acknowledged before."""
    for acknowledged in range(APPENDS_MAX):
        if not store.append():
            error = store.errors[-1]
            assert isinstance(error, LogWriteError), error
            assert MOVED in str(error)
            assert store.log.failure is None
            assert store.log.problem is not None
            return acknowledged
    raise AssertionError(f"{APPENDS_MAX} appends were acknowledged by a store whose folder was moved")


def check_reads(store: Store) -> None:
    """Reads go on, and give out what was acknowledged and nothing else."""
    found = {event.number for event in read_all(store.log)}
    assert found == store.book.acked


# -- what happens to the folder; its own files are in ``away`` beside it afterwards


def _renamed(folder: Path) -> None:
    folder.rename(folder.with_name("away"))


def _replaced_by_another_store(folder: Path) -> None:
    _renamed(folder)
    shutil.copytree(folder.with_name("other"), folder)


def _replaced_by_an_empty_folder(folder: Path) -> None:
    _renamed(folder)
    folder.mkdir()


def _replaced_by_a_copy(folder: Path) -> None:
    _renamed(folder)
    shutil.copytree(folder.with_name("away"), folder)


def _replaced_by_a_link(folder: Path) -> None:
    _renamed(folder)
    folder.symlink_to(folder.with_name("other"))


MOVES: dict[str, Callable[[Path], None]] = {
    "renamed": _renamed,
    "replaced by another store": _replaced_by_another_store,
    "replaced by an empty folder": _replaced_by_an_empty_folder,
    "replaced by a copy of itself": _replaced_by_a_copy,
    "replaced by a link to another store": _replaced_by_a_link,
}


def put_back(folder: Path) -> None:
    """The folder that was opened has its path again; what stood there is deleted."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)
    folder.with_name("away").rename(folder)
