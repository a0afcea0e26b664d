"""The one door to the disk: every file operation of the log and the manifest goes through :class:`Files`.

Tests pass a subclass that fails the Nth operation, writes short, or forgets what was not synced. The named fault points
(:data:`FAULT_POINTS`) stand around each write, sync, rename and truncate; they do nothing unless a hook is set, or the
environment variable ``PIXELMEMORY_FAULT_POINT=name[:n]`` asks for a SIGKILL at the nth hit.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

__all__ = [
    "FAULT_POINTS",
    "Buffer",
    "Files",
    "ensure_folder",
    "fault_point",
    "read_file",
    "set_fault_hook",
    "sync_parents",
    "write_all",
    "write_file",
]

Buffer: TypeAlias = bytes | bytearray | memoryview

#: the fault points of this package, in the order of a life; the projector has its own
FAULT_POINTS = (
    "frame.before_write",
    "frame.after_write",
    "frame.after_sync",
    "undo.before_truncate",
    "undo.after_truncate",
    "undo.after_sync",
    "segment.before_create",
    "segment.after_write",
    "segment.after_sync",
    "segment.after_rename",
    "segment.after_folder_sync",
    "seal.before_truncate",
    "seal.before_write",
    "seal.after_write",
    "seal.after_sync",
    "close.before_write",
    "close.after_write",
    "close.after_sync",
    "quarantine.before_write",
    "quarantine.after_write",
    "quarantine.after_sync",
    "quarantine.after_folder_sync",
    "manifest.before_write",
    "manifest.after_write",
    "manifest.after_sync",
    "manifest.after_rename",
    "manifest.after_folder_sync",
    "rewrite.before_create",
    "rewrite.after_create",
    "rewrite.after_write",
    "rewrite.before_seal",
    "rewrite.after_segment_sync",
    "rewrite.before_rest",
    "rewrite.after_sync",
    "rewrite.after_folder_sync",
    "rewrite.before_switch",
    "rewrite.after_old_rename",
    "rewrite.after_old_sync",
    "rewrite.after_new_rename",
    "rewrite.after_new_sync",
    "rewrite.before_removal",
    "rewrite.after_unlink",
    "rewrite.after_removal",
    "rewrite.after_removal_sync",
)

_hook: Callable[[str], None] | None = None


def set_fault_hook(hook: Callable[[str], None] | None) -> None:
    """Call ``hook(name)`` at every fault point of this process; None removes it. For tests."""
    global _hook
    _hook = hook


def fault_point(name: str) -> None:
    """A named place where a test may stop the process. Does nothing otherwise."""
    if _hook is not None:
        _hook(name)


def _hook_from_environment(setting: str) -> Callable[[str], None]:
    wanted, _, count = setting.partition(":")
    hits_left = int(count or 1)

    def hook(name: str) -> None:
        nonlocal hits_left
        if name == wanted:
            hits_left -= 1
            if hits_left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


if _setting := os.environ.get("PIXELMEMORY_FAULT_POINT"):
    set_fault_hook(_hook_from_environment(_setting))


def _sync_file(fd: int) -> None:
    """Flush the file's data and length to the device.

    macOS's ``fsync`` stops at the drive's cache; ``F_FULLFSYNC`` does not (Apple, fsync(2)).
    """
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(fd)


class Files:
    """The operating system's file operations, one method each, so that a test can put a faulty one in their place.

    Every method raises OSError as the system call does. Files are created 0600, folders 0700.

    Invariant: after :meth:`hold_folder`, whatever is in the held folder is reached through the folder's descriptor,
    never by its path: a folder that is renamed, replaced or unmounted meanwhile is still the one that is written to.
    """

    #: of the held folder, its path with a separator at the end, and its descriptor; None while none is held
    _held: tuple[str, int] | None = None

    def hold_folder(self, folder: Path, fd: int) -> None:
        """Reach ``folder`` through ``fd``, the caller's, until :meth:`release_folder`."""
        self._held = (os.path.join(folder, ""), fd)

    def release_folder(self) -> None:
        """Go by paths again: the descriptor is about to be closed. Idempotent."""
        self._held = None

    def _at(self, path: Path) -> tuple[str, int | None]:
        """``path`` as a name and the descriptor of the folder that it is relative to, None for the process's own."""
        name = os.fspath(path)
        if self._held is not None:
            prefix, fd = self._held
            if name.startswith(prefix):
                return name[len(prefix) :], fd
            if name == prefix[:-1]:
                return ".", fd
        return name, None

    def _open_at(self, path: Path, flags: int, mode: int = 0) -> int:
        name, folder_fd = self._at(path)
        return os.open(name, flags | os.O_CLOEXEC, mode, dir_fd=folder_fd)

    def open_new(self, path: Path) -> int:
        """Create an empty file (an old one of that name is emptied) and open it for reading and writing."""
        return self._open_at(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)

    def open_read(self, path: Path) -> int:
        return self._open_at(path, os.O_RDONLY)

    def open_write(self, path: Path) -> int:
        """Open an existing file for reading and writing."""
        return self._open_at(path, os.O_RDWR)

    def close(self, fd: int) -> None:
        os.close(fd)

    def write(self, fd: int, data: Buffer, byte_offset: int) -> int:
        """Write ``data`` at ``byte_offset``; returns how many bytes were taken, which may be fewer."""
        return os.pwrite(fd, data, byte_offset)

    def read(self, fd: int, count: int, byte_offset: int) -> bytes:
        """Up to ``count`` bytes from ``byte_offset``; fewer at the end of the file."""
        return os.pread(fd, count, byte_offset)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def sync(self, fd: int) -> None:
        """Flush the file's data and length to the device."""
        _sync_file(fd)

    def truncate(self, fd: int, length: int) -> None:
        os.ftruncate(fd, length)

    def rename(self, source: Path, target: Path) -> None:
        """Give ``source``, a file or a folder, the name ``target``; a file of that name is replaced."""
        (old, old_fd), (new, new_fd) = self._at(source), self._at(target)
        os.replace(old, new, src_dir_fd=old_fd, dst_dir_fd=new_fd)

    def unlink(self, path: Path) -> None:
        name, folder_fd = self._at(path)
        os.unlink(name, dir_fd=folder_fd)

    def make_folder(self, path: Path) -> None:
        name, folder_fd = self._at(path)
        os.mkdir(name, 0o700, dir_fd=folder_fd)

    def remove_folder(self, path: Path) -> None:
        """Remove an empty folder."""
        name, folder_fd = self._at(path)
        os.rmdir(name, dir_fd=folder_fd)

    def sync_folder(self, path: Path) -> None:
        """Flush the folder's entries: creations, renames and removals in it."""
        fd = self._open_at(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def is_folder(self, path: Path) -> bool:
        name, folder_fd = self._at(path)
        try:
            return stat.S_ISDIR(os.stat(name, dir_fd=folder_fd).st_mode)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return False
            raise

    def names(self, path: Path) -> list[str]:
        """The names in a folder, sorted."""
        fd = self._open_at(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)


def write_all(files: Files, fd: int, data: Buffer, byte_offset: int) -> None:
    """Write all of ``data``: a short write is continued.

    Raises:
        OSError: the first error, or EIO where the system takes nothing and reports no error.
    """
    view = memoryview(data)
    while view:
        count = files.write(fd, view, byte_offset)
        if count <= 0:
            raise OSError(errno.EIO, "the system wrote nothing and reported no error")
        view = view[count:]
        byte_offset += count


def write_file(files: Files, path: Path, data: Buffer, point: str) -> None:
    """Write a whole new file and sync it (not its folder). ``point`` prefixes the fault points."""
    fd = files.open_new(path)
    try:
        fault_point(point + ".before_write")
        write_all(files, fd, data, 0)
        fault_point(point + ".after_write")
        files.sync(fd)
        fault_point(point + ".after_sync")
    finally:
        files.close(fd)


def read_file(files: Files, path: Path, byte_offset: int = 0) -> bytes:
    """The whole file, from ``byte_offset`` on.

    Raises:
        OSError: FileNotFoundError among others.
    """
    fd = files.open_read(path)
    try:
        parts: list[bytes] = []
        while part := files.read(fd, 1 << 20, byte_offset):
            parts.append(part)
            byte_offset += len(part)
        return b"".join(parts)
    finally:
        files.close(fd)


def ensure_folder(files: Files, path: Path) -> None:
    """Create the folder and any missing parent, each synced into its own parent."""
    if files.is_folder(path):
        return
    ensure_folder(files, path.parent)
    try:
        files.make_folder(path)
    except FileExistsError:
        if not files.is_folder(path):  # a file; otherwise another process was faster
            raise
    files.sync_folder(path.parent)


def sync_parents(files: Files, path: Path) -> None:
    """Sync every folder above ``path``: whoever made them may have been killed first, or did not think of it."""
    for parent in path.absolute().parents:
        try:
            files.sync_folder(parent)
        except OSError as error:
            # one that we may not open, or that is read-only, was not made by us
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL):
                raise
