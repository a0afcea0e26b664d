"""File operations that fail on demand, in front of real ones or of a simulated disk."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from threading import RLock
from typing import TypeVar

from pixelmemory.log.file.files import Buffer, Files
from tests.harness.simulated_disk import SECTOR_BYTES, DiskFiles

__all__ = ["OPERATIONS", "Fault", "FaultyFiles"]

_T = TypeVar("_T")

#: what can fail, as the faults name it
OPERATIONS = (
    *("open", "read", "write", "sync", "truncate", "rename", "unlink", "sync_folder", "make_folder", "remove_folder"),
    "close",
)


class Fault:
    """Which operation fails, how, and for how long.

    Args:
        operation: one of :data:`OPERATIONS`, or "any".
        nth: the first one that fails, from 1.
        error: an errno.
        persistent: every later one fails too, until ``heal``.
        short: a write takes about this part of its bytes, and the next one fails; with ``error`` 0 nothing fails.
    """

    def __init__(
        self, operation: str, nth: int, error: int, *, persistent: bool = False, short: float | None = None
    ) -> None:
        self.operation = operation
        self.nth = nth
        self.error = error
        self.persistent = persistent
        self.short = short
        self.seen = 0
        self.hits = 0
        self.healed = False

    def __repr__(self) -> str:
        kind = errno.errorcode.get(self.error, "no error") + ("" if self.short is None else " after a short write")
        return f"<{kind} at {self.operation} {self.nth}{' and on' if self.persistent else ''}, {self.hits} hits>"

    def strikes(self, operation: str) -> bool:
        if self.operation not in (operation, "any"):
            return False
        self.seen += 1
        if self.healed or self.seen < self.nth or (self.seen > self.nth and not self.persistent):
            return False
        self.hits += 1
        return True

    def heal(self) -> None:
        """The fault is gone for good."""
        self.healed = True


class FaultyFiles(Files):
    """Passes everything on to ``inner``, but for what ``fault`` strikes.

    Attributes:
        violations: descriptors that were written, truncated or synced after a sync of them had failed.
        stopped: the process is dead: nothing reaches ``inner`` any more.
        dies_in_write: it dies in the next write of a frame, of which some sectors are taken.
    """

    def __init__(self, inner: Files, fault: Fault, rng: random.Random) -> None:
        self.inner = inner
        self.fault = fault
        self.violations: list[str] = []
        self.stopped = False
        self.dies_in_write = False
        self._rng = rng
        self._lock = RLock()
        self._failed_fds: set[int] = set()
        self._owed_error = 0

    def _do(self, operation: str, call: Callable[[], _T]) -> _T:
        self._check_alive()
        with self._lock:
            if self.fault.strikes(operation):
                raise OSError(self.fault.error, os.strerror(self.fault.error) + " (injected)")
        return call()

    def _check_alive(self) -> None:
        if self.stopped:
            raise OSError(errno.EIO, "the process is dead")

    def _check(self, fd: int, operation: str) -> None:
        if fd in self._failed_fds:
            self.violations.append(f"{operation} of a descriptor whose sync has failed")

    def open_new(self, path: Path) -> int:
        return self._do("open", lambda: self.inner.open_new(path))

    def open_read(self, path: Path) -> int:
        return self._do("open", lambda: self.inner.open_read(path))

    def open_write(self, path: Path) -> int:
        return self._do("open", lambda: self.inner.open_write(path))

    def close(self, fd: int) -> None:
        self._failed_fds.discard(fd)
        self.inner.close(fd)  # as in Linux: closed even where it reports an error
        if not self.stopped:
            self._do("close", lambda: None)

    def write(self, fd: int, data: Buffer, byte_offset: int) -> int:
        self._check_alive()
        self._check(fd, "write")
        if self.dies_in_write and any(data):
            end = (byte_offset + len(data) * 2 // 3) // SECTOR_BYTES * SECTOR_BYTES
            if end > byte_offset:
                self.inner.write(fd, memoryview(data)[: end - byte_offset], byte_offset)
            self.stopped = True
            self._check_alive()
        fault = self.fault
        with self._lock:
            owed, self._owed_error = self._owed_error, 0
            strikes = not owed and fault.strikes("write")
        if owed or (strikes and fault.short is None):
            raise OSError(owed or fault.error, os.strerror(owed or fault.error) + " (injected)")
        if not strikes:
            return self.inner.write(fd, data, byte_offset)
        assert fault.short is not None
        # a file system takes whole sectors; the error comes with the next write
        end = (byte_offset + int(len(data) * fault.short)) // SECTOR_BYTES * SECTOR_BYTES
        if end > byte_offset:
            self._owed_error = fault.error
            return self.inner.write(fd, memoryview(data)[: end - byte_offset], byte_offset)
        if fault.error:
            raise OSError(fault.error, os.strerror(fault.error) + " (injected)")
        return self.inner.write(fd, data, byte_offset)

    def read(self, fd: int, count: int, byte_offset: int) -> bytes:
        return self._do("read", lambda: self.inner.read(fd, count, byte_offset))

    def size(self, fd: int) -> int:
        return self._do("size", lambda: self.inner.size(fd))

    def sync(self, fd: int) -> None:
        self._check_alive()
        self._check(fd, "sync")
        with self._lock:
            strikes = self.fault.strikes("sync")
        if strikes:
            self._failed_fds.add(fd)
            if isinstance(self.inner, DiskFiles):
                self.inner.lose_dirty_pages(fd, self._rng)
            raise OSError(self.fault.error, os.strerror(self.fault.error) + " (injected)")
        self.inner.sync(fd)

    def truncate(self, fd: int, length: int) -> None:
        self._check_alive()
        self._check(fd, "truncate")
        self._do("truncate", lambda: self.inner.truncate(fd, length))

    def rename(self, source: Path, target: Path) -> None:
        self._do("rename", lambda: self.inner.rename(source, target))

    def unlink(self, path: Path) -> None:
        self._do("unlink", lambda: self.inner.unlink(path))

    def make_folder(self, path: Path) -> None:
        self._do("make_folder", lambda: self.inner.make_folder(path))

    def remove_folder(self, path: Path) -> None:
        self._do("remove_folder", lambda: self.inner.remove_folder(path))

    def sync_folder(self, path: Path) -> None:
        self._do("sync_folder", lambda: self.inner.sync_folder(path))

    def is_folder(self, path: Path) -> bool:
        return self.inner.is_folder(path)

    def names(self, path: Path) -> list[str]:
        return self.inner.names(path)
