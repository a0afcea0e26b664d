"""A disk in memory that keeps what was flushed apart from what was only written.

:class:`DiskFiles` gives it to the log in place of the operating system's files. The model is harsher than any one file
system, and allows what POSIX allows:

- Written data is cached by page (4 KiB) and reaches the device by sector (512 bytes), in any order, at any time before
  its sync; at a power loss each unsynced sector holds any of the contents that it had since the last sync.
- The file's length is flushed apart from its data; what was never written back reads as zeros.
- A file's sync does not flush its name. Creations, renames and removals are flushed by a sync of the folder alone, and
  a power loss keeps any subset of those that were not (a rename is one step).
- After a sync that failed, the pages count as clean though they are not on the device (as in Linux): a later sync
  "succeeds" without them, unless they were written again.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from threading import RLock
from typing import TypeAlias

from pixelmemory.log.file.files import Buffer, Files

__all__ = ["DiskFiles", "SimulatedDisk"]

SECTOR_BYTES = 512
PAGE_BYTES = 4096


class _File:
    """One inode. ``versions`` holds, for each sector of a dirty page, the contents that may be written back."""

    def __init__(self, content: bytes = b"") -> None:
        self.cache = bytearray(content)
        self.durable = bytearray(content)
        self.versions: dict[int, list[bytes]] = {}
        self.lengths: list[int] = [len(content)]

    def write(self, data: Buffer, start: int) -> None:
        end = start + len(data)
        if len(self.cache) < end:
            self.cache.extend(bytes(end - len(self.cache)))
            self.lengths.append(end)
        self.cache[start:end] = data
        self._dirty(start, end)

    def truncate(self, length: int) -> None:
        if length == len(self.cache):
            return
        old = len(self.cache)
        self.cache = self.cache[:length] + bytes(max(0, length - old))
        self.lengths.append(length)
        if length < old:  # what comes back later there reads as zeros
            self._dirty(length, old)

    def _dirty(self, start: int, end: int) -> None:
        """Note what the sectors hold now; the others of their pages are written back with them."""
        first, last = start // SECTOR_BYTES, (end - 1) // SECTOR_BYTES
        page_sectors = PAGE_BYTES // SECTOR_BYTES
        for sector in range(first // page_sectors * page_sectors, (last // page_sectors + 1) * page_sectors):
            if not first <= sector <= last and (
                sector in self.versions or self._on_device(sector) == self.sector(sector)
            ):
                continue
            self.versions.setdefault(sector, []).append(self.sector(sector))

    def sector(self, number: int) -> bytes:
        return bytes(self.cache[number * SECTOR_BYTES : (number + 1) * SECTOR_BYTES]).ljust(SECTOR_BYTES, b"\0")

    def _on_device(self, number: int) -> bytes:
        return bytes(self.durable[number * SECTOR_BYTES : (number + 1) * SECTOR_BYTES]).ljust(SECTOR_BYTES, b"\0")

    def sync(self) -> None:
        self.durable = bytearray(self._written_back(lambda _, versions: versions[-1], len(self.cache)))
        self.versions.clear()
        self.lengths = [len(self.cache)]

    def lose_dirty_pages(self, choose: Callable[[bytes, list[bytes]], bytes]) -> None:
        """A sync has failed: some sectors were written, the rest is forgotten, and all of them count as clean."""
        self.durable = bytearray(self._written_back(choose, max(self.lengths)))
        self.versions.clear()

    def after_power_loss(self, choose: Callable[[bytes, list[bytes]], bytes], length: int) -> _File:
        return _File(self._written_back(choose, length))

    def _written_back(self, choose: Callable[[bytes, list[bytes]], bytes], length: int) -> bytes:
        image = bytearray(self.durable)
        if self.versions:
            image.extend(bytes(max(0, (max(self.versions) + 1) * SECTOR_BYTES - len(image))))
        for sector, versions in self.versions.items():
            image[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES] = choose(self._on_device(sector), versions)
        return bytes(image[:length].ljust(length, b"\0"))


#: name -> what it names from now on, or None where it is gone; the names of one step are flushed together
_Step: TypeAlias = "dict[str, _File | _Folder | None]"


class _Folder:
    def __init__(self, entries: dict[str, _File | _Folder] | None = None) -> None:
        self.entries: dict[str, _File | _Folder] = dict(entries or {})
        self.durable: dict[str, _File | _Folder] = dict(self.entries)
        self.pending: list[_Step] = []

    def change(self, step: _Step) -> None:
        _apply(self.entries, step)
        self.pending.append(step)

    def sync(self) -> None:
        self.durable = dict(self.entries)
        self.pending.clear()


def _apply(entries: dict[str, _File | _Folder], step: _Step) -> None:
    for name, node in step.items():
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


class SimulatedDisk:
    """Files and folders by absolute path. Thread-safe."""

    def __init__(self, root: _Folder | None = None) -> None:
        self.root = root or _Folder()
        self.lock = RLock()

    @classmethod
    def holding(cls, files: dict[Path, bytes]) -> SimulatedDisk:
        """A disk on which ``files`` are durable."""
        disk = cls()
        for path, content in files.items():
            folder = disk.root
            for name in path.parts[1:-1]:
                child = folder.entries.setdefault(name, _Folder())
                folder.durable[name] = child
                assert isinstance(child, _Folder)
                folder = child
            folder.entries[path.name] = folder.durable[path.name] = _File(content)
        return disk

    def contents(self, folder: Path) -> dict[str, bytes]:
        """The files in ``folder`` as a process sees them: name -> bytes; empty if there is no such folder."""
        with self.lock:
            try:
                entries = self.folder(folder).entries
            except FileNotFoundError:
                return {}
            return {name: bytes(node.cache) for name, node in entries.items() if isinstance(node, _File)}

    def after_power_loss(self, rng: random.Random, keep: float | None = None) -> SimulatedDisk:
        """Another disk, which holds what the device kept: what was synced, and any part of what was not.

        ``keep`` is about how much of that: 0 is nothing, 1 everything, None any.
        """
        keep = rng.choice((0.0, 0.1, 0.3, 0.7, 0.95, 1.0)) if keep is None else keep
        ordered = rng.random() < 0.5
        with self.lock:
            return SimulatedDisk(_surviving(self.root, rng, keep, ordered=ordered))

    def node(self, path: Path) -> _File | _Folder:
        node: _File | _Folder = self.root
        for name in PurePosixPath(path).parts[1:]:
            if not isinstance(node, _Folder):
                raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(path))
            if name not in node.entries:
                raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
            node = node.entries[name]
        return node

    def file(self, path: Path) -> _File:
        node = self.node(path)
        if not isinstance(node, _File):
            raise IsADirectoryError(errno.EISDIR, "a folder", str(path))
        return node

    def folder(self, path: Path) -> _Folder:
        node = self.node(path)
        if not isinstance(node, _Folder):
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(path))
        return node


def _surviving(folder: _Folder, rng: random.Random, keep: float, *, ordered: bool) -> _Folder:
    entries = dict(folder.durable)
    steps = folder.pending
    if ordered:
        steps = steps[: len(steps) if rng.random() < keep else rng.randint(0, len(steps) if keep else 0)]
    else:
        steps = [step for step in steps if rng.random() < keep]
    for step in steps:
        _apply(entries, step)

    def choose(on_device: bytes, versions: list[bytes]) -> bytes:
        if keep == 0.0:
            return on_device
        return versions[-1] if rng.random() < keep else rng.choice([on_device, *versions])

    survivors: dict[str, _File | _Folder] = {}
    for name, node in entries.items():
        if isinstance(node, _Folder):
            survivors[name] = _surviving(node, rng, keep, ordered=ordered)
        else:
            length = node.lengths[-1] if rng.random() < keep else rng.choice(node.lengths)
            if keep == 0.0:
                length = node.lengths[0]
            survivors[name] = node.after_power_loss(choose, length)
    return _Folder(survivors)


class _Handle:
    def __init__(self, file: _File) -> None:
        self.file = file


class DiskFiles(Files):
    """One process's file operations on a :class:`SimulatedDisk`.

    ``before`` is called with each operation's name before it takes effect, under the disk's lock; what it raises is
    what the operation raises. ``stop`` makes every later operation fail: the process is dead. A write that it dies in
    takes about the part ``last_write`` of its bytes, whole sectors.
    """

    def __init__(self, disk: SimulatedDisk) -> None:
        self.disk = disk
        self.before: Callable[[str], None] = lambda _: None
        self.stopped = False
        self.operations = 0
        self.last_write = 0.0
        self._handles: dict[int, _Handle] = {}
        self._next_fd = 1000

    def stop(self) -> None:
        with self.disk.lock:
            self.stopped = True

    def _begin(self, name: str) -> None:
        if self.stopped:
            raise OSError(errno.EIO, "the power is off")
        self.operations += 1
        self.before(name)
        if self.stopped:
            raise OSError(errno.EIO, "the power is off")

    def _open(self, file: _File) -> int:
        self._next_fd += 1
        self._handles[self._next_fd] = _Handle(file)
        return self._next_fd

    def _file(self, fd: int) -> _File:
        if fd not in self._handles:
            raise OSError(errno.EBADF, "bad file descriptor")
        return self._handles[fd].file

    def open_new(self, path: Path) -> int:
        with self.disk.lock:
            self._begin("open_new")
            folder = self.disk.folder(path.parent)
            node = folder.entries.get(path.name)
            if node is None:
                node = _File()
                folder.change({path.name: node})
            assert isinstance(node, _File)
            node.truncate(0)
            return self._open(node)

    def open_read(self, path: Path) -> int:
        with self.disk.lock:
            self._begin("open_read")
            return self._open(self.disk.file(path))

    def open_write(self, path: Path) -> int:
        with self.disk.lock:
            self._begin("open_write")
            return self._open(self.disk.file(path))

    def close(self, fd: int) -> None:
        with self.disk.lock:
            self._file(fd)
            del self._handles[fd]
            if not self.stopped:  # the dead close nothing, and report nothing
                self._begin("close")

    def write(self, fd: int, data: Buffer, byte_offset: int) -> int:
        with self.disk.lock:
            alive = not self.stopped
            try:
                self._begin("write")
            except OSError:
                end = (byte_offset + int(len(data) * self.last_write)) // SECTOR_BYTES * SECTOR_BYTES
                if alive and self.stopped and end > byte_offset:
                    self._file(fd).write(memoryview(data)[: end - byte_offset], byte_offset)
                raise
            self._file(fd).write(data, byte_offset)
            return len(data)

    def read(self, fd: int, count: int, byte_offset: int) -> bytes:
        with self.disk.lock:
            self._begin("read")
            return bytes(self._file(fd).cache[byte_offset : byte_offset + count])

    def size(self, fd: int) -> int:
        with self.disk.lock:
            self._begin("size")
            return len(self._file(fd).cache)

    def sync(self, fd: int) -> None:
        with self.disk.lock:
            self._begin("sync")
            self._file(fd).sync()

    def lose_dirty_pages(self, fd: int, rng: random.Random) -> None:
        """What the device does when a sync of ``fd`` fails."""
        with self.disk.lock:
            keep = rng.choice((0.0, 0.5, 1.0))
            self._file(fd).lose_dirty_pages(lambda old, new: new[-1] if rng.random() < keep else old)

    def truncate(self, fd: int, length: int) -> None:
        with self.disk.lock:
            self._begin("truncate")
            self._file(fd).truncate(length)

    def rename(self, source: Path, target: Path) -> None:
        assert source.parent == target.parent
        with self.disk.lock:
            self._begin("rename")
            folder = self.disk.folder(source.parent)
            node = self.disk.node(source)
            folder.change({source.name: None, target.name: node})

    def unlink(self, path: Path) -> None:
        with self.disk.lock:
            self._begin("unlink")
            self.disk.file(path)
            self.disk.folder(path.parent).change({path.name: None})

    def make_folder(self, path: Path) -> None:
        with self.disk.lock:
            self._begin("make_folder")
            parent = self.disk.folder(path.parent)
            if path.name in parent.entries:
                raise FileExistsError(errno.EEXIST, "it exists", str(path))
            parent.change({path.name: _Folder()})

    def remove_folder(self, path: Path) -> None:
        with self.disk.lock:
            self._begin("remove_folder")
            if self.disk.folder(path).entries:
                raise OSError(errno.ENOTEMPTY, "it is not empty", str(path))
            self.disk.folder(path.parent).change({path.name: None})

    def sync_folder(self, path: Path) -> None:
        with self.disk.lock:
            self._begin("sync_folder")
            self.disk.folder(path).sync()

    def is_folder(self, path: Path) -> bool:
        with self.disk.lock:
            self._begin("is_folder")
            try:
                self.disk.folder(path)
            except OSError:
                return False
            return True

    def names(self, path: Path) -> list[str]:
        with self.disk.lock:
            self._begin("names")
            return sorted(self.disk.folder(path).entries)
