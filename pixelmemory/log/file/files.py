"""The one door to the disk: every file operation of the log and the manifest goes through :class:`Files`.

Tests pass a subclass that fails the Nth operation, writes short, or forgets what was not synced. A fault point stands
around each write, sync, rename and truncate (:mod:`pixelmemory.faults`).
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path
from typing import TypeAlias

from pixelmemory.faults import fault_point

__all__ = [
    "Buffer",
    "Files",
    "ensure_folder",
    "read_file",
    "sync_parents",
    "write_all",
    "write_file",
]

Buffer: TypeAlias = bytes | bytearray | memoryview


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
