"""One lock a memory that is being checked and changed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import anyio

from pixelmemory.engine.memtable import Key

__all__ = ["KeyLocks"]


class KeyLocks:
    """Locks that exist while somebody uses them. Belongs to the event loop's thread."""

    def __init__(self) -> None:
        #: key -> (lock, users)
        self._locks: dict[Key, tuple[anyio.Lock, int]] = {}

    def __len__(self) -> int:
        return len(self._locks)

    @asynccontextmanager
    async def held(self, namespace: str, memory_ids: Collection[str]) -> AsyncIterator[None]:
        """Hold ``memory_ids`` of ``namespace`` against other checks and changes: one at a time per memory."""
        held: list[Key] = []
        try:
            for memory_id in sorted(set(memory_ids)):
                key = (namespace, memory_id)
                lock, users = self._locks.get(key, (None, 0))
                lock = lock or anyio.Lock(fast_acquire=True)
                self._locks[key] = (lock, users + 1)
                try:
                    await lock.acquire()
                except BaseException:
                    self._leave(key, release=False)
                    raise
                held.append(key)
            yield
        finally:
            for key in held:
                self._leave(key, release=True)

    def _leave(self, key: Key, *, release: bool) -> None:
        lock, users = self._locks[key]
        if release:
            lock.release()
        if users == 1:
            del self._locks[key]
        else:
            self._locks[key] = (lock, users - 1)
