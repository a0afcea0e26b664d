"""LOCK: one process, and one handle in it, owns a store.

``flock`` and not POSIX record locks: those vanish when any descriptor of the file closes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from pathlib import Path

from pixelmemory.errors import StoreLockedError

__all__ = ["StoreLock"]

_held: weakref.WeakSet[StoreLock]


class StoreLock:
    """The held lock. The file stays when it is released: removing it would race with the next owner.

    A child of a fork inherits the descriptor; it is closed there at once, which does not release the parent's lock, so
    that the lock lives exactly as long as its owner.
    """

    __slots__ = ("__weakref__", "_fd", "_pid", "path")

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd: int | None = fd
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"<StoreLock {self.path} {'held' if self._fd is not None else 'released'}>"

    @classmethod
    def acquire(cls, path: Path) -> StoreLock:
        """Take the lock at ``path``; its folder must exist.

        Raises:
            StoreLockedError: another process, or another handle of this one, holds it; with its pid.
            OSError: the file cannot be opened or written.
        """
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                raise StoreLockedError(path, _read_pid(fd)) from None
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        except BaseException:
            os.close(fd)
            raise
        lock = cls(path, fd)
        _held.add(lock)
        return lock

    def release(self) -> None:
        """Let go. Idempotent; in a child of the owner it does nothing to the owner's lock."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        _held.discard(self)
        if os.getpid() == self._pid:
            # explicitly: a child that was forked and has not run yet may still hold the descriptor
            fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)

    def _close_in_child(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


_held = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for lock in list(_held):
        lock._close_in_child()
    _held.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _read_pid(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None
