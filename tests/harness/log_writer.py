"""A process that appends to a log and says what it is told, one line each, until it is killed. Run by the tests.

``ready``; ``locked <pid>``; ``failed <error>``; ``open <durable LSN> <pid>``; ``try <number> <count>``;
``ack <number>``; ``err <number> <error>``; ``closed``. Appends are numbered from ``--number``.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Semaphore

from pixelmemory.errors import LogError, ManifestError, StoreLockedError
from pixelmemory.log.file import recovery as renewal
from pixelmemory.log.file.append import Append
from pixelmemory.options import Options, SyncMode
from pixelmemory.store.lock import StoreLock
from tests.harness.log_harness import make_events
from tests.harness.logs import open_next_epoch

#: appends that wait for their outcome at a time
OUTSTANDING_MAX = 8


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Writer:
    """The open log."""

    def __init__(self, folder: Path, options: Options) -> None:
        self.lock = StoreLock.acquire(folder / "LOCK")
        self._room = Semaphore(OUTSTANDING_MAX)
        self.log = open_next_epoch(folder, options, self._on_commit)
        say("open", self.log.durable_lsn, os.getpid())

    def _on_commit(self, appends: Sequence[Append]) -> None:
        for append in appends:
            if append.error is None:
                say("ack", append.context)
            else:
                say("err", append.context, type(append.error).__name__)
            self._room.release()

    def append(self, number: int, count: int) -> None:
        """Submit one append; waits while too many are under way."""
        self._room.acquire()
        say("try", number, count)
        try:
            self.log.submit(make_events(number, count), number)
        except LogError as error:
            say("err", number, type(error).__name__)
            self._room.release()

    def wait(self) -> None:
        """Until every append has its outcome."""
        for _ in range(OUTSTANDING_MAX):
            self._room.acquire()
        for _ in range(OUTSTANDING_MAX):
            self._room.release()

    def close(self) -> None:
        self.log.close()
        self.lock.release()
        say("closed")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--number", type=int, default=1)
    parser.add_argument("--appends", type=int, default=10**9)
    parser.add_argument("--sync-mode", default="always")
    parser.add_argument("--segment-bytes", type=int, default=8192)
    parser.add_argument("--rewrite-bytes", type=int, default=renewal.REWRITE_BYTES_MAX)
    parser.add_argument("--file-bytes-max", type=int, default=None)
    parser.add_argument("--one-by-one", action="store_true")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    renewal.REWRITE_BYTES_MAX = given.rewrite_bytes
    if given.file_bytes_max is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (given.file_bytes_max, resource.RLIM_INFINITY))
    options = Options(
        segment_bytes_max=given.segment_bytes, sync_mode=SyncMode(given.sync_mode), sync_interval_seconds=0.005
    )
    say("ready")
    try:
        writer = Writer(given.folder, options)
    except StoreLockedError as error:
        say("locked", error.pid)
        return 3
    except (LogError, ManifestError) as error:
        say("failed", type(error).__name__)
        return 4
    rng = random.Random(given.number)
    for number in range(given.number, given.number + given.appends):
        writer.append(number, rng.choice((1, 1, 1, 2, 5, 20)))
        if given.one_by_one:
            writer.wait()
    writer.wait()
    try:
        writer.close()
    except LogError as error:
        say("failed", type(error).__name__)
    return 0


if __name__ == "__main__":
    sys.exit(main())
