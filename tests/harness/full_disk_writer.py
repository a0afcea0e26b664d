"""Fills a disk with a log, frees space, goes on; run by the tests inside a small file system or under a size limit.

Says ``try``, ``ack`` and ``err`` as :mod:`log_writer` does, and ``read <events>`` after each failure. Everything it
asserts, it asserts in its own process: the exit status is 0 where all of it held.
"""

from __future__ import annotations

import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from pixelmemory.errors import LogError, LogWriteError, ManifestError
from pixelmemory.log.file.files import Files
from pixelmemory.options import Options
from tests.harness.log_harness import Book, Store, read_all
from tests.harness.log_writer import say

OPTIONS = Options(segment_bytes_max=32768, tail_bytes_max=0)
FAILURES = 12


def append(store: Store, count: int) -> bool:
    number = store.book.next_number
    say("try", number, count)
    acked = store.append(count)
    say(*(("ack", number) if acked else ("err", number, type(store.errors[-1]).__name__)))
    return acked


def fill(store: Store) -> None:
    """Append until the disk is full, and on: appends of any size, most of which cannot be written."""
    failures = 0
    while failures < FAILURES:
        if not append(store, 1 + store.book.next_number % 7):
            failures += 1
            assert isinstance(store.errors[-1], LogWriteError), store.errors[-1]
            assert store.log.failure is None, store.log.failure
            events = read_all(store.log)
            assert len(events) == store.log.durable_lsn
            say("read", len(events))


def fill_and_go_on(folder: Path, free_space: Callable[[], None], reopens: bool) -> None:
    book = Book()
    store = Store(book, folder, OPTIONS, Files())
    fill(store)
    if reopens:  # a store that was closed while the disk is full
        store.log.close()
        try:
            store = Store(book, folder, OPTIONS, Files())
        except (LogError, ManifestError) as error:
            say("refused", type(error).__name__)
        else:
            fill(store)
            store.log.close()
        free_space()
        store = Store(book, folder, OPTIONS, Files())
    else:
        free_space()
    say("open", store.log.durable_lsn)
    for _ in range(20):
        assert append(store, 3)
    store.log.close()


def main() -> None:
    kind, folder, copy_to, reopens = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] == "reopen"
    if kind == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

        def free_space() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    else:
        ballast = folder / "ballast"
        ballast.write_bytes(bytes(150_000))

        def free_space() -> None:
            ballast.unlink()

    fill_and_go_on(folder / "store", free_space, reopens)
    shutil.copytree(folder / "store", copy_to)


if __name__ == "__main__":
    main()
