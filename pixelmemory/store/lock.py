"""LOCK: one process, and one handle in it, owns a store.

``flock`` and not POSIX record locks: those vanish when any descriptor of the file closes.

The held descriptors also say which folder was opened, whatever its path leads to later.
"""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from pathlib import Path

from pixelmemory.errors import StoreLockedError, shortened

__all__ = ["FolderMovedError", "StoreLock"]

_held: weakref.WeakSet[StoreLock]


class FolderMovedError(OSError):
    """The path of an open store does not lead to the folder that was opened any more.

    An OSError, so that whoever maps failures of the disk to an error of ours maps this one as well.
    """

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(errno.ESTALE, reason)
        self._folder = folder
        self._reason = reason

    def __str__(self) -> str:
        return (
            f"the store's folder {shortened(str(self._folder), 300)} was moved, replaced or unmounted while the store "
            f"was open ({self._reason}). Put it back, or close the store and open it where it is now"
        )


class StoreLock:
    """The held lock. The file stays when it is released: removing it would race with the next owner.

    A child of a fork inherits the descriptor; it is closed there at once, which does not release the parent's lock, so
    that the lock lives exactly as long as its owner.

    Attributes:
        path: of the file.
        folder_fd: descriptor of its folder, for :meth:`pixelmemory.log.file.files.Files.hold_folder`; open while the
            lock is held.
    """

    __slots__ = ("__weakref__", "_fd", "_identity", "_pid", "folder_fd", "path")

    def __init__(self, path: Path, fd: int, folder_fd: int) -> None:
        self.path = path
        self.folder_fd = folder_fd
        self._fd: int | None = fd
        self._identity = _identity(os.fstat(fd))
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"<StoreLock {self.path} {'held' if self._fd is not None else 'released'}>"

    @classmethod
    def acquire(cls, path: Path) -> StoreLock:
        """Take the lock at ``path``; its folder must exist.

        Raises:
            StoreLockedError: another process, or another handle of this one, holds it; with its pid.
            OSError: the file cannot be opened or written, or is replaced at this moment.
        """
        path = path.absolute()
        folder_fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = os.open(path.name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=folder_fd)
        except BaseException:
            os.close(folder_fd)
            raise
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                raise StoreLockedError(path, _read_pid(fd)) from None
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
            lock = cls(path, fd, folder_fd)
            lock.check_place()
        except BaseException:
            os.close(fd)
            os.close(folder_fd)
            raise
        _held.add(lock)
        return lock

    def check_place(self) -> None:
        """Check that the path still leads to the file that is held: one ``stat``.

        Raises:
            FolderMovedError: the folder was moved, replaced, unmounted or deleted, or a link in its path leads
                elsewhere.
        """
        try:
            there = os.stat(self.path)
        except OSError as error:
            raise FolderMovedError(self.path.parent, f"its LOCK: {error.strerror}") from error
        if _identity(there) != self._identity:
            raise FolderMovedError(self.path.parent, "another LOCK is there")

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
        os.close(self.folder_fd)

    def _close_in_child(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)
            os.close(self.folder_fd)


_held = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for lock in list(_held):
        lock._close_in_child()
    _held.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _read_pid(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None
