"""An open on a thread of its own: an open takes seconds, and its task may be cancelled meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable

import anyio

from pixelmemory.errors import StoreClosedError
from pixelmemory.store.store import OpenStore

__all__ = ["Opening"]


class Opening:
    """An open on a thread of its own, for a task that may be gone before it is done. What nobody takes is closed again.

    A daemon thread: loading a model cannot be interrupted, and must not keep the process from ending.

    Args:
        run: opens; calls its argument between steps, which raises once nobody waits any more.
        post: runs a function in the event loop.
        abandoned: called on the thread once an open that nobody waited for has left nothing behind.
    """

    def __init__(
        self,
        run: Callable[[Callable[[], None]], OpenStore],
        post: Callable[..., None],
        abandoned: Callable[[], None],
    ) -> None:
        self._run = run
        self._post = post
        self._when_abandoned = abandoned
        self._lock = threading.Lock()
        self._store: OpenStore | None = None
        self._error: BaseException | None = None
        self._abandoned = False
        self._done = anyio.Event()

    async def result(self) -> OpenStore:
        """Open, and wait for it; a cancelled wait leaves it to end by itself."""
        threading.Thread(target=self._work, name="pixelmemory-open", daemon=True).start()
        try:
            await self._done.wait()
        except BaseException:
            with self._lock:
                self._abandoned = True
                is_over = self._store is not None or self._error is not None
            if is_over:
                threading.Thread(target=self._clear, name="pixelmemory-close", daemon=True).start()
            raise
        if self._error is not None:
            raise self._error
        assert self._store is not None
        return self._store

    def _check(self) -> None:
        if self._abandoned:
            raise StoreClosedError("the task that opened the store was cancelled")

    def _work(self) -> None:
        store = error = None
        try:
            store = self._run(self._check)
        except BaseException as caught:  # noqa: BLE001 - it is the task's
            error = caught
        with self._lock:
            self._store, self._error = store, error
            abandoned = self._abandoned
        if abandoned:
            self._clear()
        self._post(self._done.set)

    def _clear(self) -> None:
        try:
            if self._store is not None:
                self._store.close()
        finally:
            self._when_abandoned()
