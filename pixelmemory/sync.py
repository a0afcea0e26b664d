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
        """A throw-away store, for tests: nothing of it is left once it is closed.

        ::

            with Memory.temporary() as mem:
                mem.add_entry("Ada prefers tea")

        Its home is a folder of its own among the temporary files. Its tables are in the Pixeltable that this process
        uses (``PIXELTABLE_HOME``), which starts with the first store, so later ones open in a fraction of a second. A
        close waits for nothing. Where the process is killed, the folder and the tables are left.

        Args:
            schema, options: as for :class:`Memory`; the options name no ``home``.
            embedding_config: as for :class:`Memory`. Default: no semantic search, since a model takes seconds to
                load.

        Returns:
            The store, open.

        Raises:
            As :meth:`open`; InvalidArgumentError for options with a ``home``.
        """
        self = cls.__new__(cls)
        self._begin(AsyncMemory.temporary(schema, embedding_config, options=options))
        return self

    @classmethod
    def stores(cls, *, options: Options | None = None) -> list[StoreRecord]:
        """The stores of a home, by name. Opens none of them.

        Args:
            options: say which home. Default: as for :class:`Memory`.

        Returns:
            Dicts with ``name``, ``path`` and ``bytes``, the size of the files in the folder ``path``.

        Raises:
            StoreError: the home cannot be read.
        """
        return _in_a_loop(AsyncMemory.stores, options=options)

    @classmethod
    def destroy(cls, name: str, *, confirm: str, options: Options | None = None) -> None:
        """Remove a store for good: its log, its tables with what users added to them, and its vector cache.

        ::

            Memory.destroy("agent", confirm="agent")

        Starts Pixeltable, to drop the tables. A destroy that was interrupted is finished by the next one; until then
        the store cannot be opened. To have what a store held leave PostgreSQL's
        files at once, call :meth:`erase_namespace` before.

        Args:
            name: of the store.
            confirm: the name once more.
            options: say which home. Default: as for :class:`Memory`.

        Raises:
            InvalidArgumentError, InvalidTypeError: a bad argument, or ``confirm`` is not ``name``.
            StoreLockedError: the store is open, here or in another process.
            StoreError: there is no such store, or a file of it cannot be removed.
            ManifestError: its manifest, which says which tables are its, cannot be read.
            ProjectionUnavailableError: Pixeltable does not start.
        """
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
        """Add one memory; durable when this returns.

        Args:
            content: the text that is stored and embedded.
            namespace: 1 to 255 characters.
            metadata: a JSON object: comes back exactly, key order included. Default: ``{}``.
            memory_id: an id of the caller's; makes a retry safe. Default: a new UUIDv7.
            timestamp: when the memory was created; naive means local time. Default: now.
            embedding: a vector of the caller's, ``(dimensions,)``. Default: the model's.
            if_exists: where ``memory_id`` exists: ``"error"`` raises, ``"ignore"`` keeps what is there, ``"replace"``
                puts the new memory in its place, with a new time unless ``timestamp`` is given.

        Returns:
            The memory's id.

        Raises:
            InvalidArgumentError, InvalidTypeError: a bad argument; nothing was logged.
            MemoryExistsError: ``memory_id`` exists in ``namespace``.
            LogError: the write failed; the class says whether it may have been recorded.
            WaitTimeoutError: the projection is too far behind and made no room in time.
        """
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
        """Add several memories as one atomic batch: all of them or, with one bad entry, none.

        Args:
            entries: dicts with ``content`` and optionally ``metadata``, ``memory_id``, ``timestamp``, ``embedding``,
                as in :meth:`add_entry`.
            namespace: of all of them.
            if_exists: as in :meth:`add_entry`, for each of them. Of entries with the same id in one call ``"ignore"``
                keeps the first and ``"replace"`` the last. An import that is run again is one call with either.

        Returns:
            Their ids, in order.

        Raises:
            LimitExceededError: the batch is larger than ``append_bytes_max`` encoded; split it. Otherwise as
                :meth:`add_entry`; errors name the entry, such as ``entries[3].content``.
        """
        return self._call(self._memory.add_entries, entries, namespace, if_exists=if_exists)

    def get_memory(
        self,
        memory_id: str,
        namespace: str = DEFAULT_NAMESPACE,
        *,
        consistency: Consistency = "session",
        timeout: float | None = None,
    ) -> MemoryRecord | None:
        """One memory by its id, or None if ``namespace`` does not hold it.

        Args:
            consistency: what to wait for; see :meth:`search`.
            timeout: seconds to wait at most. Default: ``options.wait_timeout_seconds``.

        Raises:
            WaitTimeoutError: what was waited for did not become visible in time.
            ProjectionUnavailableError: the database cannot be read.
        """
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
        """Memories by meaning, by metadata and by time; all conditions hold before ``limit`` is applied.

        Args:
            namespace: where to search: one namespace, a list of several, or ``Under("users/ann")`` for all under a
                prefix of whole labels. All are ranked together, and each result of several says its ``namespace``.
                Where nothing is found, a namespace that was never written is warned of, once for an open store, and so
                is a question that stands here by mistake.
            query: a text, not an empty one; results are ordered by its cosine similarity. Default: none, and the newest
                come first.
            limit: how many at most, any integer from 0.
            metadata_filter: the filter language, such as ``{"tags": "x", "year": {"$gte": 2020}}``.
            start_time, end_time: inclusive bounds of the creation time; naive means local time.
            vector: a query vector of the caller's, ``(dimensions,)``, in place of ``query``.
            min_score: the least similarity, -1 to 1; needs ``query`` or ``vector``.
            distinct: leave out results whose cosine similarity to a better one is at least this, -1 to 1, such as 0.95
                for near duplicates; needs ``query`` or ``vector``. Looks at the 10,000 best at most.
            diversity: how much the difference of the results counts beside their similarity to the query, 0 to 1, such
                as 0.3: they are chosen by maximal marginal relevance, out of four times ``limit`` or 50. Needs
                ``query`` or ``vector``.
            offset: how many of the first results to leave out. To go through all of a namespace, use
                :meth:`list_memories`: an offset skips and repeats where memories are added meanwhile.
            consistency: ``"session"`` sees every write to ``namespace`` that this handle has acknowledged;
                ``"eventual"`` sees what is in the tables; ``"strong"`` sees all that is durable now; an integer waits
                until the tables show that LSN. None of the first three waits for writes to other namespaces.
            timeout: seconds to wait at most. Default: ``options.wait_timeout_seconds``.

        Returns:
            Dicts with ``memory_id``, ``timestamp``, ``content``, ``metadata`` and, with ``query`` or ``vector``,
            ``similarity_score``.

        Raises:
            InvalidArgumentError, InvalidTypeError: a bad argument; ``InvalidFilterError`` for the filter.
            WaitTimeoutError: what was waited for did not become visible in time.
            ProjectionUnavailableError: the database cannot be read.
            EmbeddingError: the query could not be embedded.
        """
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
        """One page of the memories of a namespace, or of several, by the time they were created.

        ::

            page = mem.list_memories("ann")
            while page.next is not None:
                page = mem.list_memories("ann", after=page.next)

        No memory comes twice, and none that exists from the first page to the last is skipped, also where several have
        the same time and while others write. :meth:`iterate` goes through all pages.

        Args:
            namespace: see :meth:`search`.
            limit: memories of a page at most, from 1.
            after: the ``next`` of the page before, in the same order and with the same conditions. Default: the first
                page.
            order: which come first.
            metadata_filter, start_time, end_time, consistency, timeout: see :meth:`search`.

        Returns:
            ``memories``, as :meth:`search` without a query gives them, and ``next``: None at the end.

        Raises:
            As :meth:`search`; InvalidArgumentError for an ``after`` that is no ``next`` of such a list.
        """
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
        """Every memory of a namespace, by the time they were created: the pages of :meth:`list_memories` in turn.

        Args:
            namespace, order, metadata_filter, start_time, end_time, consistency, timeout: see :meth:`list_memories`.

        Raises:
            As :meth:`list_memories`, at the first step.
        """
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
        """The memories whose content is longer than the model reads, newest first: it is found by its beginning.

        Looks at the contents as they are now, with the model that the store is open with. A memory with a vector of the
        caller's is among them if its content is too long: the tables do not say where a vector came from. Reads every
        content of the namespace that may be too long, until there are ``limit``, and tokenizes it.

        Args:
            limit: how many at most, any integer from 0.
            consistency, timeout: see :meth:`search`.

        Returns:
            As :meth:`search` without a query. Empty where the model reads all of a text or does not say how much, and
            without a model of its own: with a function, with vectors that are always given, without semantic search.

        Raises:
            As :meth:`get_memory`.
        """
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
        """Replace the content, the metadata or both of a memory; None leaves a field as it is.

        New content is embedded again; the creation time stays. With neither given, nothing is logged.

        Args:
            embedding: a vector of the caller's for the new content.
            merge: keep the keys of the metadata that ``metadata`` does not name. Goes one level deep: a value that is
                an object is replaced.

        Returns:
            True if the memory exists and was updated, False if it does not exist.

        Raises:
            As :meth:`add_entry`.
        """
        return self._call(
            self._memory.update_memory, memory_id, namespace, content, metadata, embedding=embedding, merge=merge
        )

    def delete_memory(self, memory_id: str, namespace: str = DEFAULT_NAMESPACE) -> bool:
        """Delete a memory.

        Returns:
            True if it existed, False otherwise.

        Raises:
            As :meth:`add_entry`.
        """
        return self._call(self._memory.delete_memory, memory_id, namespace)

    def delete_memories(self, memory_ids: Sequence[str], namespace: str = DEFAULT_NAMESPACE) -> int:
        """Delete several memories as one atomic batch.

        Returns:
            How many of them existed; an id given twice counts once.

        Raises:
            As :meth:`add_entry`.
        """
        return self._call(self._memory.delete_memories, memory_ids, namespace)

    def delete_where(
        self,
        namespace: str = DEFAULT_NAMESPACE,
        metadata_filter: Mapping[str, Any] | None = None,
        start_time: dt.datetime | None = None,
        end_time: dt.datetime | None = None,
    ) -> int:
        """Delete the memories of a namespace that satisfy every condition, at least one of which is given.

        Deletes them in batches: where the call fails or is interrupted, those of some are deleted, and others are not.

        Args:
            metadata_filter, start_time, end_time: see :meth:`search`.

        Returns:
            How many there were.

        Raises:
            InvalidArgumentError, InvalidTypeError: a bad argument, or no condition; for all of a namespace there is
                :meth:`delete_namespace`. Otherwise as :meth:`search` and :meth:`delete_memories`.
        """
        return self._call(self._memory.delete_where, namespace, metadata_filter, start_time, end_time)

    def delete_namespace(self, namespace: str) -> int:
        """Delete every memory of ``namespace``, in batches as :meth:`delete_where` does. What it held is erased by
        :meth:`erase_namespace` alone.

        Returns:
            How many there were.
        """
        return self._call(self._memory.delete_namespace, namespace)

    def erase_memory(self, memory_id: str, namespace: str = DEFAULT_NAMESPACE) -> bool:
        """Delete a memory, and remove everything that it ever held from the disk. See :meth:`erase_memories`.

        Returns:
            True if the store knew of it, deleted or not.
        """
        return self._call(self._memory.erase_memory, memory_id, namespace)

    def erase_memories(self, memory_ids: Sequence[str], namespace: str = DEFAULT_NAMESPACE) -> int:
        """Delete memories, and remove everything that they ever held from the disk.

        Their content, metadata, vectors and ids leave the log, the vector cache, ``quarantine/`` (which is emptied),
        the tables with all their past versions, and what PostgreSQL keeps of them; each event leaves an entry that says
        that something was erased there, and when. An id may be added again.

        It rewrites the whole log and the namespace's table, so it takes as long as that, and as much room on the
        disk: erase many at once. Adds go on meanwhile; reads of the namespace wait for its table. An erase that was
        interrupted is finished when the store is opened again; ``health()`` reports one that could not be
        finished.

        Args:
            memory_ids: of memories that exist, or that did.

        Returns:
            How many of them the store knew of.

        Raises:
            WaitTimeoutError, ProjectionUnavailableError: the projection is behind; nothing is erased yet.
            LogWriteError: there was no room to rewrite the log; nothing is erased yet, but the vectors.
            ProjectionError: the tables could not be purged; erase again, or reopen the store.
        """
        return self._call(self._memory.erase_memories, memory_ids, namespace)

    def erase_namespace(self, namespace: str) -> int:
        """Erase every memory that ``namespace`` holds or ever held, as :meth:`erase_memories` does.

        The name of the namespace itself stays: in the registry, and in the name of its table.

        Returns:
            How many there were.
        """
        return self._call(self._memory.erase_namespace, namespace)

    def compact(self) -> int:
        """Make the log smaller: of each memory one event is left, of deleted ones none. No memory changes.

        What stood in the log of earlier contents is gone afterwards. It rewrites the log, which takes as much room
        on the disk; adds and reads go on meanwhile. Takes about 200 bytes of memory for each memory of the store, and
        the texts of those that were updated.

        Returns:
            By how many bytes the log has become smaller; a small one may grow by the header of a segment.

        Raises:
            WaitTimeoutError, ProjectionUnavailableError: the projection is behind; nothing has changed.
            LogWriteError: there was no room; nothing has changed.
        """
        return self._call(self._memory.compact)

    def get_namespace_table(self, namespace: str) -> pxt.Table:
        """The Pixeltable table that holds ``namespace``: created if missing, with all that this handle has written.

        Columns, indexes, views and rows that are added to it stay and are left alone by Pixelmemory, except that a
        rebuild of the projection rebuilds the table.
        """
        return self._call(self._memory.get_namespace_table, namespace)

    def namespaces(self, *, consistency: Consistency = "session", timeout: float | None = None) -> list[str]:
        """The namespaces that hold at least one memory, in code-point order. For ``consistency`` see :meth:`search`."""
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
        """How many memories satisfy the conditions.

        Args:
            namespace: see :meth:`search`. Default: the whole store.
            metadata_filter, start_time, end_time, consistency, timeout: see :meth:`search`.
        """
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
        """Wait until everything acknowledged is flushed to the device and visible to every reader.

        Args:
            timeout: seconds. Default: ``options.wait_timeout_seconds``.
            progress: True for a bar on stderr; or a function that is called about ten times a second, and once at the
                end, with the number of events that have become visible since the call and the number that will. It is
                called in another thread. What it raises ends the wait.

        Returns:
            The LSN up to which it is.

        Raises:
            WaitTimeoutError: it was not in time; the error says how far behind the projection is.
        """
        return self._call(self._memory.flush, timeout, progress=progress)

    def retry_dead_letters(self) -> int:
        """Apply the dead letters again: events that could not be applied, once their cause is mended.

        Returns:
            How many were applied; the others stay dead letters, as ``health()`` says.
        """
        return self._call(self._memory.retry_dead_letters)

    def stats(self) -> Stats:
        """Figures of the store, taken without touching the disk or the database."""
        return self._call(self._memory.stats)

    def health(self) -> Health:
        """Whether the store does all of its work at the moment, and if not, what is wrong."""
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
