"""Memory: the public surface for code without an event loop.

One :class:`AsyncMemory` in an event loop on a thread of its own (:mod:`pixelmemory.loop_thread`). Written by hand; a
test holds its methods against those of :class:`AsyncMemory`.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, TypeVar

from pixelmemory.aio import (
    DEFAULT_EMBEDDING,
    DEFAULT_NAMESPACE,
    ITERATED_PAGE,
    AsyncMemory,
    Consistency,
    IfExists,
    Namespaces,
    no_copies,
)
from pixelmemory.errors import StoreClosedError, StoreForkedError, WrongThreadError
from pixelmemory.interrupts import uninterrupted
from pixelmemory.loop_thread import LoopThread, Place
from pixelmemory.models import Health, MemoryPage, MemoryRecord, Stats, StoreRecord
from pixelmemory.options import Options

if TYPE_CHECKING:
    import numpy as np
    import pixeltable as pxt

__all__ = ["Memory"]

T = TypeVar("T")

#: how long a call that Ctrl-C ends still waits for the store to be closed; it is closed in the background afterwards
INTERRUPTED_SECONDS = 0.8
#: how long the last close waits for the thread of the loop, which has nothing left to do
THREAD_END_SECONDS = 5.0

_warned_of_running_loop = False


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
        self._begin(AsyncMemory(name, schema, embedding_config, options=options))

    def _begin(self, memory: AsyncMemory) -> None:
        self._memory = memory
        self._pid = os.getpid()
        self._close_lock = threading.Lock()
        self._place = Place()
        store = os.path.realpath(self._memory._options.home_path() / self._memory._name)
        try:
            self._loop: LoopThread | None = LoopThread.borrow(store, self._place)
            self._call(self._memory._open)
        except BaseException as error:
            self._leave(INTERRUPTED_SECONDS if isinstance(error, KeyboardInterrupt) else None)
            raise

    @classmethod
    def temporary(
        cls, schema: object = None, embedding_config: object = None, *, options: Options | None = None
    ) -> Self:
        """A throw-away store, for tests, open. See :meth:`AsyncMemory.temporary`."""
        self = cls.__new__(cls)
        self._begin(AsyncMemory.temporary(schema, embedding_config, options=options))
        return self

    @classmethod
    def stores(cls, *, options: Options | None = None) -> list[StoreRecord]:
        """The stores of a home. See :meth:`AsyncMemory.stores`."""
        return _in_a_loop(AsyncMemory.stores, options=options)

    @classmethod
    def destroy(cls, name: str, *, confirm: str, options: Options | None = None) -> None:
        """Remove a store for good. See :meth:`AsyncMemory.destroy`."""
        _in_a_loop(AsyncMemory.destroy, name, confirm=confirm, options=options)

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
        return loop.call(self._place, method, *args, **kwargs)

    def _leave(self, at_most_seconds: float | None) -> None:
        """Let go of the loop and, without a drain, of what is still open; None: wait for the end of that."""
        loop: LoopThread | None = getattr(self, "_loop", None)
        if loop is None:
            return
        left = loop.leave(self._place, self._memory._abandon, cancel=at_most_seconds is not None)
        self._loop = None
        if left.wait(at_most_seconds) and left.outcome() is not False:
            loop.wait_for_end(THREAD_END_SECONDS if at_most_seconds is None else at_most_seconds)

    def close(self) -> None:
        """Close the store, once what is durable is visible (for at most ``wait_timeout_seconds``). Idempotent.

        Shows a progress bar where that takes longer than two seconds; see :meth:`AsyncMemory.aclose`. Ctrl-C ends the
        wait; what is not visible yet becomes so after the next open.
        """
        self._close(drain=True)

    def _close(self, *, drain: bool) -> None:
        if os.getpid() != self._pid:
            return
        if self._loop is not None and self._loop.is_here():
            raise WrongThreadError("close() from the store's own event loop would wait for itself for ever")
        with self._close_lock:
            try:
                if drain and self._loop is not None:
                    self._call(self._memory.aclose)
            except StoreClosedError:  # two times Ctrl-C in an earlier close: it was let go of, and that was not noted
                pass
            except KeyboardInterrupt:
                self._leave(INTERRUPTED_SECONDS)
                raise
            except BaseException:
                self._leave(None)
                raise
            self._leave(None if drain else INTERRUPTED_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the store; after Ctrl-C without waiting for what is not visible yet."""
        self._close(drain=kind is None or not issubclass(kind, KeyboardInterrupt))

    def __del__(self) -> None:
        uninterrupted(self._drop)

    def _drop(self) -> None:
        """Let go of the store in a finalizer, which may be called anywhere: waits for nothing and takes no lock."""
        loop: LoopThread | None = getattr(self, "_loop", None)
        if loop is None or os.getpid() != self._pid:
            return
        text = f"{self!r} was dropped without close(); nothing acknowledged is lost"
        if not sys.is_finalizing():  # no thread runs any more that could do it
            self._memory._let_go()
            loop.leave(self._place, self._memory._abandon, cancel=True)
        self._memory._engine = None
        self._loop = None
        warnings.warn(text, ResourceWarning, stacklevel=4)

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
        if_exists: IfExists = "error",
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
            if_exists=if_exists,
        )

    def add_entries(
        self,
        entries: Sequence[Mapping[str, Any]],
        namespace: str = DEFAULT_NAMESPACE,
        *,
        if_exists: IfExists = "error",
    ) -> list[str]:
        """Add several memories as one atomic batch. See :meth:`AsyncMemory.add_entries`."""
        return self._call(self._memory.add_entries, entries, namespace, if_exists=if_exists)

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
        namespace: Namespaces = DEFAULT_NAMESPACE,
        query: str | None = None,
        limit: int = 5,
        metadata_filter: Mapping[str, Any] | None = None,
        start_time: dt.datetime | None = None,
        end_time: dt.datetime | None = None,
        *,
        vector: Sequence[float] | np.ndarray | None = None,
        min_score: float | None = None,
        distinct: float | None = None,
        diversity: float | None = None,
        offset: int = 0,
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
            distinct=distinct,
            diversity=diversity,
            offset=offset,
            consistency=consistency,
            timeout=timeout,
        )

    def list_memories(
        self,
        namespace: Namespaces = DEFAULT_NAMESPACE,
        *,
        limit: int = 100,
        after: str | None = None,
        order: Literal["newest", "oldest"] = "newest",
        metadata_filter: Mapping[str, Any] | None = None,
        start_time: dt.datetime | None = None,
        end_time: dt.datetime | None = None,
        consistency: Consistency = "session",
        timeout: float | None = None,
    ) -> MemoryPage:
        """One page of the memories of a namespace. See :meth:`AsyncMemory.list_memories`."""
        return self._call(
            self._memory.list_memories,
            namespace,
            limit=limit,
            after=after,
            order=order,
            metadata_filter=metadata_filter,
            start_time=start_time,
            end_time=end_time,
            consistency=consistency,
            timeout=timeout,
        )

    def iterate(
        self,
        namespace: Namespaces = DEFAULT_NAMESPACE,
        *,
        order: Literal["newest", "oldest"] = "newest",
        metadata_filter: Mapping[str, Any] | None = None,
        start_time: dt.datetime | None = None,
        end_time: dt.datetime | None = None,
        consistency: Consistency = "session",
        timeout: float | None = None,
    ) -> Iterator[MemoryRecord]:
        """Every memory of a namespace, page by page. See :meth:`AsyncMemory.iterate`."""
        after: str | None = None
        while True:
            page = self.list_memories(
                namespace,
                limit=ITERATED_PAGE,
                after=after,
                order=order,
                metadata_filter=metadata_filter,
                start_time=start_time,
                end_time=end_time,
                consistency=consistency,
                timeout=timeout,
            )
            yield from page.memories
            if (after := page.next) is None:
                return

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
        merge: bool = False,
    ) -> bool:
        """Replace content, metadata or both; False if there is none. See :meth:`AsyncMemory.update_memory`."""
        return self._call(
            self._memory.update_memory, memory_id, namespace, content, metadata, embedding=embedding, merge=merge
        )

    def delete_memory(self, memory_id: str, namespace: str = DEFAULT_NAMESPACE) -> bool:
        """Delete a memory; False if there is none. See :meth:`AsyncMemory.delete_memory`."""
        return self._call(self._memory.delete_memory, memory_id, namespace)

    def delete_memories(self, memory_ids: Sequence[str], namespace: str = DEFAULT_NAMESPACE) -> int:
        """Delete several memories as one atomic batch; how many existed. See :meth:`AsyncMemory.delete_memories`."""
        return self._call(self._memory.delete_memories, memory_ids, namespace)

    def delete_where(
        self,
        namespace: str = DEFAULT_NAMESPACE,
        metadata_filter: Mapping[str, Any] | None = None,
        start_time: dt.datetime | None = None,
        end_time: dt.datetime | None = None,
    ) -> int:
        """Delete the memories that satisfy conditions; how many there were. See :meth:`AsyncMemory.delete_where`."""
        return self._call(self._memory.delete_where, namespace, metadata_filter, start_time, end_time)

    def delete_namespace(self, namespace: str) -> int:
        """Delete every memory of a namespace; how many there were. See :meth:`AsyncMemory.delete_namespace`."""
        return self._call(self._memory.delete_namespace, namespace)

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
        self,
        namespace: Namespaces | None = None,
        *,
        metadata_filter: Mapping[str, Any] | None = None,
        start_time: dt.datetime | None = None,
        end_time: dt.datetime | None = None,
        consistency: Consistency = "session",
        timeout: float | None = None,
    ) -> int:
        """How many memories there are. See :meth:`AsyncMemory.count`."""
        return self._call(
            self._memory.count,
            namespace,
            metadata_filter=metadata_filter,
            start_time=start_time,
            end_time=end_time,
            consistency=consistency,
            timeout=timeout,
        )

    def flush(
        self, timeout: float | None = None, *, progress: bool | Callable[[int, int], object] | None = None
    ) -> int:
        """Wait until everything acknowledged is on the device and visible. See :meth:`AsyncMemory.flush`."""
        return self._call(self._memory.flush, timeout, progress=progress)

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


def _in_a_loop(method: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any) -> T:
    """Run ``method``, which needs no open store, in an event loop of its own; Ctrl-C leaves it to its end there."""

    async def nothing() -> None:
        pass

    place = Place()
    loop = LoopThread.borrow(f"call {place.number}", place)
    seconds = THREAD_END_SECONDS
    try:
        return loop.call(place, method, *args, **kwargs)
    except KeyboardInterrupt:
        seconds = 0.0
        raise
    finally:
        if loop.leave(place, nothing, cancel=True).wait(seconds):
            loop.wait_for_end(seconds)


def _is_in_notebook() -> bool:
    """Whether an IPython kernel runs the caller's code: its loop waits for each cell anyway."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get_ipython is not None and getattr(get_ipython(), "kernel", None) is not None


def _warn_of_running_loop() -> None:
    global _warned_of_running_loop
    if _warned_of_running_loop or _is_in_notebook():
        return
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    _warned_of_running_loop = True
    warnings.warn(
        "Memory is used inside a running event loop and blocks it; AsyncMemory does not", RuntimeWarning, stacklevel=4
    )
