"""Memory: the public surface for code without an event loop.

One :class:`AsyncMemory` in an event loop on a thread of its own, behind an anyio blocking portal. Written by hand; a
test holds its methods against those of :class:`AsyncMemory`.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from pixelmemory.aio import DEFAULT_EMBEDDING, DEFAULT_NAMESPACE, AsyncMemory, Consistency, no_copies
from pixelmemory.errors import StoreClosedError, StoreForkedError, WrongThreadError
from pixelmemory.models import Health, MemoryRecord, Stats
from pixelmemory.options import Options

if TYPE_CHECKING:
    import numpy as np
    import pixeltable as pxt

__all__ = ["Memory"]

T = TypeVar("T")

_warned_of_running_loop = False

#: how long Ctrl-C waits for the loop's end
CANCELLED_STOP_SECONDS = 1.0


class _Loop:
    """An event loop on a thread of its own, with a portal into it.

    In place of anyio's ``start_blocking_portal``, a generator, which waits for its thread when it is collected.
    In the child of a fork, and as the interpreter ends, that is for ever. The handles of one store share a loop.
    """

    @classmethod
    def borrow(cls, store: str) -> _Loop:
        """The loop of ``store``, a path; each borrower gives it back once."""
        with _loops_lock:
            loop = _loops.get(store)
            if loop is None:
                loop = _loops[store] = cls(store)
            loop._borrowers += 1
            return loop

    def give_back(self, *, cancel: bool = False) -> None:
        """The last borrower stops it; ``cancel``: with what it does."""
        with _loops_lock:
            self._borrowers -= 1
            if self._borrowers:
                return
            if _loops.get(self._store) is self:
                del _loops[self._store]
        if self.is_here():  # a handle that was collected there: it cannot wait for its own end
            threading.Thread(target=self.stop, daemon=True).start()
        else:
            self.stop(cancel=cancel)

    def __init__(self, store: str) -> None:
        self._store = store
        self._borrowers = 0
        started: Future[BlockingPortal] = Future()
        self.thread = threading.Thread(target=self._run, args=(started,), name="pixelmemory-loop", daemon=True)
        self.thread.start()
        self.portal = started.result()

    @staticmethod
    def _run(started: Future[BlockingPortal]) -> None:
        async def serve() -> None:
            async with BlockingPortal() as portal:
                started.set_result(portal)
                await portal.sleep_until_stopped()

        try:
            anyio.run(serve)
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    def is_here(self) -> bool:
        """Whether the calling thread is the loop's own."""
        return threading.get_ident() == self.thread.ident

    def stop(self, *, cancel: bool = False) -> None:
        """Let the calls in hand end, or cancel them, then stop. From another thread."""
        with suppress(RuntimeError):  # it is stopped
            self.portal.call(self.portal.stop, cancel)
        # after Ctrl-C: what cannot be cancelled (an erase, say) ends in the background
        self.thread.join(CANCELLED_STOP_SECONDS if cancel else None)


#: by the path of the store
_loops: dict[str, _Loop] = {}
_loops_lock = threading.Lock()


def _after_fork_in_child() -> None:
    global _loops_lock
    _loops_lock = threading.Lock()
    _loops.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


class Memory:
    """A memory store, for synchronous code; ready when constructed. Thread-safe.

    ::

        with Memory("agent") as mem:
            memory_id = mem.add_entry("Ada prefers tea", metadata={"kind": "preference"})
            found = mem.search(query="what does Ada drink?")

    Every method blocks until its :class:`AsyncMemory` counterpart returns, and has its arguments, results and errors.
    Ctrl-C cancels the call in hand: an append that has begun is finished, never torn. Called inside a running event
    loop (a notebook, say) it works and blocks that loop; it warns of that once. A child process made by a fork gets
    ``StoreForkedError``. A store that is opened again in the same process, with the same arguments, is the same store:
    it is closed with the last of its handles.

    Args:
        name, schema, embedding_config, options: as for :class:`AsyncMemory`.

    Raises:
        As :meth:`AsyncMemory.open`.
    """

    def __init__(
        self,
        name: str = "default_memory",
        schema: object = None,
        embedding_config: object = DEFAULT_EMBEDDING,
        *,
        options: Options | None = None,
    ) -> None:
        self._memory = AsyncMemory(name, schema, embedding_config, options=options)
        self._pid = os.getpid()
        self._close_lock = threading.Lock()
        loop = _Loop.borrow(os.path.realpath(self._memory._options.home_path() / self._memory._name))
        self._loop: _Loop | None = loop
        try:
            self._call(self._memory._open)
        except BaseException:
            self._loop = None
            loop.give_back(cancel=True)
            if (engine := self._memory._engine) is not None:  # Ctrl-C came as the store was open already
                engine.abandon()
            raise

    def _call(self, method: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any) -> T:
        """Run ``method`` in the store's loop and wait for it."""
        if os.getpid() != self._pid:
            raise StoreForkedError(
                "the store was opened before a fork; only the parent may use it. Open stores after the fork"
            )
        loop = self._loop
        if loop is None:
            raise StoreClosedError("the store is closed")
        if loop.is_here():
            raise WrongThreadError("a call from the store's own event loop would wait for itself for ever")
        _warn_of_running_loop()
        try:
            future: Future[T] = loop.portal.start_task_soon(lambda: method(*args, **kwargs))
        except RuntimeError as error:  # the portal was stopped between the check and here
            raise StoreClosedError("the store is closed") from error
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def close(self) -> None:
        """Close the store, once what is durable is visible (for at most ``wait_timeout_seconds``). Idempotent.

        Ctrl-C ends the wait; what is not visible yet becomes so after the next open.
        """
        if os.getpid() != self._pid:
            return
        if self._loop is not None and self._loop.is_here():
            raise WrongThreadError("close() from the store's own event loop would wait for itself for ever")
        with self._close_lock:
            if (loop := self._loop) is None:
                return
            try:
                self._call(self._memory.aclose)
            except KeyboardInterrupt:
                self._loop = None
                loop.give_back(cancel=True)
                engine = self._memory._engine
                if engine is not None and not self._memory._closed:  # its task had not begun
                    threading.Thread(target=engine.abandon, name="pixelmemory-close", daemon=True).start()
                raise
            except BaseException:
                self._loop = None
                loop.give_back()
                raise
            self._loop = None
            loop.give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        loop: _Loop | None = getattr(self, "_loop", None)
        if loop is None or os.getpid() != self._pid:
            return
        try:
            warnings.warn(
                f"{self!r} was dropped without close(); nothing acknowledged is lost", ResourceWarning, stacklevel=2
            )
        finally:  # also where warnings are errors
            self._loop = None
            engine, self._memory._engine = self._memory._engine, None
            if not sys.is_finalizing():  # threads that could be waited for do not run any more
                if engine is not None:
                    engine.abandon()
                loop.give_back()

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise no_copies(self)

    def __repr__(self) -> str:
        return repr(self._memory).replace("AsyncMemory", "Memory", 1)

    def add_entry(
        self,
        content: str,
        namespace: str = DEFAULT_NAMESPACE,
        metadata: Mapping[str, Any] | None = None,
        *,
        memory_id: str | None = None,
        timestamp: dt.datetime | None = None,
        embedding: Sequence[float] | np.ndarray | None = None,
    ) -> str:
        """Add one memory; durable when this returns. See :meth:`AsyncMemory.add_entry`."""
        return self._call(
            self._memory.add_entry,
            content,
            namespace,
            metadata,
            memory_id=memory_id,
            timestamp=timestamp,
            embedding=embedding,
        )

    def add_entries(self, entries: Sequence[Mapping[str, Any]], namespace: str = DEFAULT_NAMESPACE) -> list[str]:
        """Add several memories as one atomic batch. See :meth:`AsyncMemory.add_entries`."""
        return self._call(self._memory.add_entries, entries, namespace)

    def get_memory(
        self,
        memory_id: str,
        namespace: str = DEFAULT_NAMESPACE,
        *,
        consistency: Consistency = "session",
        timeout: float | None = None,
    ) -> MemoryRecord | None:
        """One memory by its id, or None. See :meth:`AsyncMemory.get_memory`."""
        return self._call(self._memory.get_memory, memory_id, namespace, consistency=consistency, timeout=timeout)

    def search(
        self,
        namespace: str = DEFAULT_NAMESPACE,
        query: str | None = None,
        limit: int = 5,
        metadata_filter: Mapping[str, Any] | None = None,
        start_time: dt.datetime | None = None,
        end_time: dt.datetime | None = None,
        *,
        vector: Sequence[float] | np.ndarray | None = None,
        min_score: float | None = None,
        consistency: Consistency = "session",
        timeout: float | None = None,
    ) -> list[MemoryRecord]:
        """Memories by meaning, by metadata and by time. See :meth:`AsyncMemory.search`."""
        return self._call(
            self._memory.search,
            namespace,
            query,
            limit,
            metadata_filter,
            start_time,
            end_time,
            vector=vector,
            min_score=min_score,
            consistency=consistency,
            timeout=timeout,
        )

    def truncated_memories(
        self,
        namespace: str = DEFAULT_NAMESPACE,
        limit: int = 100,
        *,
        consistency: Consistency = "session",
        timeout: float | None = None,
    ) -> list[MemoryRecord]:
        """The memories whose content is longer than the model reads. See :meth:`AsyncMemory.truncated_memories`."""
        return self._call(self._memory.truncated_memories, namespace, limit, consistency=consistency, timeout=timeout)

    def update_memory(
        self,
        memory_id: str,
        namespace: str = DEFAULT_NAMESPACE,
        content: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        embedding: Sequence[float] | np.ndarray | None = None,
    ) -> bool:
        """Replace content, metadata or both; False if there is none. See :meth:`AsyncMemory.update_memory`."""
        return self._call(self._memory.update_memory, memory_id, namespace, content, metadata, embedding=embedding)

    def delete_memory(self, memory_id: str, namespace: str = DEFAULT_NAMESPACE) -> bool:
        """Delete a memory; False if there is none. See :meth:`AsyncMemory.delete_memory`."""
        return self._call(self._memory.delete_memory, memory_id, namespace)

    def delete_memories(self, memory_ids: Sequence[str], namespace: str = DEFAULT_NAMESPACE) -> int:
        """Delete several memories as one atomic batch; how many existed. See :meth:`AsyncMemory.delete_memories`."""
        return self._call(self._memory.delete_memories, memory_ids, namespace)

    def erase_memory(self, memory_id: str, namespace: str = DEFAULT_NAMESPACE) -> bool:
        """Delete a memory, and take all it ever held off the disk. See :meth:`AsyncMemory.erase_memory`."""
        return self._call(self._memory.erase_memory, memory_id, namespace)

    def erase_memories(self, memory_ids: Sequence[str], namespace: str = DEFAULT_NAMESPACE) -> int:
        """Delete memories, and take all they ever held off the disk. See :meth:`AsyncMemory.erase_memories`."""
        return self._call(self._memory.erase_memories, memory_ids, namespace)

    def erase_namespace(self, namespace: str) -> int:
        """Erase every memory that a namespace holds or ever held. See :meth:`AsyncMemory.erase_namespace`."""
        return self._call(self._memory.erase_namespace, namespace)

    def compact(self) -> int:
        """Make the log smaller; no memory changes. See :meth:`AsyncMemory.compact`."""
        return self._call(self._memory.compact)

    def get_namespace_table(self, namespace: str) -> pxt.Table:
        """The Pixeltable table that holds ``namespace``. See :meth:`AsyncMemory.get_namespace_table`."""
        return self._call(self._memory.get_namespace_table, namespace)

    def namespaces(self, *, consistency: Consistency = "session", timeout: float | None = None) -> list[str]:
        """The namespaces that hold a memory. See :meth:`AsyncMemory.namespaces`."""
        return self._call(self._memory.namespaces, consistency=consistency, timeout=timeout)

    def count(
        self, namespace: str | None = None, *, consistency: Consistency = "session", timeout: float | None = None
    ) -> int:
        """How many memories there are. See :meth:`AsyncMemory.count`."""
        return self._call(self._memory.count, namespace, consistency=consistency, timeout=timeout)

    def flush(self, timeout: float | None = None) -> int:
        """Wait until everything acknowledged is on the device and visible. See :meth:`AsyncMemory.flush`."""
        return self._call(self._memory.flush, timeout)

    def retry_dead_letters(self) -> int:
        """Apply anew what could not be applied. See :meth:`AsyncMemory.retry_dead_letters`."""
        return self._call(self._memory.retry_dead_letters)

    def stats(self) -> Stats:
        """Figures of the store. See :meth:`AsyncMemory.stats`."""
        return self._call(self._memory.stats)

    def health(self) -> Health:
        """Whether the store does all of its work at the moment. See :meth:`AsyncMemory.health`."""
        return self._call(self._memory.health)

    @property
    def last_lsn(self) -> int:
        """The last LSN that is acknowledged to this handle (when it was opened: the last of the log)."""
        return self._memory.last_lsn


def _warn_of_running_loop() -> None:
    global _warned_of_running_loop
    if _warned_of_running_loop:
        return
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    _warned_of_running_loop = True
    warnings.warn(
        "Memory is used inside a running event loop and blocks it; AsyncMemory does not", RuntimeWarning, stacklevel=4
    )
