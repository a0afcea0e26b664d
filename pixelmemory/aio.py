"""AsyncMemory: the public surface for asyncio and trio."""

from __future__ import annotations

import datetime as dt
import itertools
import sys
import tempfile
import uuid
import warnings
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

import anyio.lowlevel
import anyio.to_thread
import msgspec

from pixelmemory.engine.engine import Engine
from pixelmemory.errors import (
    EmbeddingError,
    InvalidArgumentError,
    InvalidTypeError,
    MemoryExistsError,
    StoreClosedError,
    type_name,
)
from pixelmemory.interrupts import uninterrupted
from pixelmemory.memory.arguments import (
    CheckedEntry,
    check_added,
    check_consistency,
    check_entry,
    check_if_exists,
    check_list,
    check_merge,
    check_progress,
    check_search,
    check_timeout,
    check_updated,
    id_list,
    schemaless,
)
from pixelmemory.memory.events import MemoryAdded, MemoryDeleted, MemoryEvent
from pixelmemory.memory.identity import new_memory_id
from pixelmemory.memory.namespaces import EVERYWHERE, Under
from pixelmemory.memory.paging import text_after
from pixelmemory.memory.search import Position, Search
from pixelmemory.memory.values import check_limit, check_memory_id, check_namespace
from pixelmemory.models import Health, MemoryPage, MemoryRecord, Stats, StoreRecord
from pixelmemory.options import Options
from pixelmemory.store.opening import check_name
from pixelmemory.store.store import OpenStore
from pixelmemory.store.stores import destroy_store, list_stores

if TYPE_CHECKING:
    import numpy as np
    import pixeltable as pxt

__all__ = ["AsyncMemory", "Consistency", "Namespaces"]

DEFAULT_NAMESPACE = "default_namespace"
DEFAULT_EMBEDDING = "intfloat/e5-large-v2"

_numbers = itertools.count()

#: memories that a delete by conditions finds and deletes at once
DELETED_PAGE = 1000

#: memories that :meth:`AsyncMemory.iterate` reads at once
ITERATED_PAGE = 500

#: entries of one call that are checked before other tasks get their turn
CHECKED_AT_ONCE = 200

#: what an add does where the id exists
IfExists = Literal["error", "ignore", "replace"]

#: one namespace, several, or those under a prefix
Namespaces = str | Sequence[str] | Under

#: what a read waits for: this handle's own acknowledged writes, nothing, all that is durable now, or an LSN
Consistency = Literal["session", "eventual", "strong"] | int


def no_copies(handle: object) -> InvalidTypeError:
    """The error for whoever pickles or copies a handle, perhaps by giving it to another process."""
    kind = type(handle).__name__
    return InvalidTypeError(
        kind,
        "cannot be pickled or copied: it holds the open files, threads and lock of its store. Give other processes the "
        "store's name and let each open it, one process at a time; within one process, share the handle itself",
    )


class AsyncMemory:
    """A memory store, for async agents.

    ::

        async with AsyncMemory("agent") as mem:
            memory_id = await mem.add_entry("Ada prefers tea", metadata={"kind": "preference"})
            found = await mem.search(query="what does Ada drink?")

    When a write returns, its event is durable: it survives a crash of the process and, on a device that honours
    flushes, power loss. Reads come from a projection that follows the log; by default a read shows every write that
    this handle has acknowledged, also one that the projection does not have yet.

    Args:
        name: the store's name: 1 to 64 ASCII letters, digits, ``_``, ``-``, ``.``.
        schema: metadata fields that are checked before a write and become typed, indexed columns: a mapping from name
            to a Python or Pixeltable type, or a :class:`msgspec.Struct` class. Default: none.
        embedding_config: a model id or path; a dict (``model_id``, ``device``, ``dtype``, ``batch_size``,
            ``query_prompt``, ``document_prompt``, ``normalize``, ``dimensions``, ``trust_remote_code``, ``function``);
            a dict with ``dimensions`` alone for vectors of one's own; None for no semantic search.
        options: limits and tunables.

    Constructing the object opens nothing: use ``async with``, or ``await AsyncMemory.open(...)``.

    Raises:
        InvalidArgumentError, InvalidTypeError: a bad argument.
    """

    def __init__(
        self,
        name: str = "default_memory",
        schema: object = None,
        embedding_config: object = DEFAULT_EMBEDDING,
        *,
        options: Options | None = None,
    ) -> None:
        self._name = check_name(name)
        self._schema = schema
        self._embedding_config = embedding_config
        self._options = _checked(options)
        self._engine: Engine | None = None
        #: what the engine knows this handle by
        self._number = next(_numbers)
        self._closed = False
        #: whether its close removes its home and its tables
        self._temporary = False

    @classmethod
    async def open(
        cls,
        name: str = "default_memory",
        schema: object = None,
        embedding_config: object = DEFAULT_EMBEDDING,
        *,
        options: Options | None = None,
    ) -> Self:
        """Open the store; the caller closes it with :meth:`aclose`.

        Raises:
            PackageConflictError: another package of the import name is installed.
            StoreLockedError: it is open elsewhere.
            ModelLoadError, ModelMismatchError: the model cannot be loaded, or is not the store's.
            ManifestError, LogError: the store's files are damaged; nothing was changed.
            ProjectionError: Pixeltable does not start, or the projection does not fit.
        """
        self = cls(name, schema, embedding_config, options=options)
        await self._open()
        return self

    @classmethod
    def temporary(
        cls, schema: object = None, embedding_config: object = None, *, options: Options | None = None
    ) -> Self:
        """A throw-away store, for tests: nothing of it is left once it is closed.

        ::

            async with AsyncMemory.temporary() as mem:
                await mem.add_entry("Ada prefers tea")

        Its home is a folder of its own among the temporary files. Its tables are in the Pixeltable that this process
        uses (``PIXELTABLE_HOME``), which starts with the first store, so later ones open in a fraction of a second. A
        close waits for nothing. Where the process is killed, the folder and the tables are left.

        Args:
            schema, options: as for :class:`AsyncMemory`; the options name no ``home``.
            embedding_config: as for :class:`AsyncMemory`. Default: no semantic search, since a model takes seconds to
                load.

        Returns:
            The store; ``async with`` opens it.

        Raises:
            As :meth:`open`; InvalidArgumentError for options with a ``home``.
        """
        given = _checked(options)
        if given.home is not None:
            raise InvalidArgumentError("options", "has a home, and a temporary store has one of its own")
        home = Path(tempfile.gettempdir(), f"pixelmemory-{uuid.uuid4().hex}")  # made by the open, for this user alone
        self = cls("temporary", schema, embedding_config, options=msgspec.structs.replace(given, home=home))
        self._temporary = True
        return self

    @classmethod
    async def stores(cls, *, options: Options | None = None) -> list[StoreRecord]:
        """The stores of a home, by name. Opens none of them.

        Args:
            options: say which home. Default: as for :class:`AsyncMemory`.

        Returns:
            Dicts with ``name``, ``path`` and ``bytes``, the size of the files in the folder ``path``.

        Raises:
            StoreError: the home cannot be read.
        """
        checked = _checked(options)
        return await anyio.to_thread.run_sync(list_stores, checked)

    @classmethod
    async def destroy(cls, name: str, *, confirm: str, options: Options | None = None) -> None:
        """Remove a store for good: its log, its tables with what users added to them, and its vector cache.

        ::

            await AsyncMemory.destroy("agent", confirm="agent")

        Starts Pixeltable, to drop the tables. A destroy that was interrupted is finished by the next one; until then
        the store cannot be opened. A cancelled call goes on to its end. To have what a store held leave PostgreSQL's
        files at once, call :meth:`erase_namespace` before.

        Args:
            name: of the store.
            confirm: the name once more.
            options: say which home. Default: as for :class:`AsyncMemory`.

        Raises:
            InvalidArgumentError, InvalidTypeError: a bad argument, or ``confirm`` is not ``name``.
            StoreLockedError: the store is open, here or in another process.
            StoreError: there is no such store, or a file of it cannot be removed.
            ManifestError: its manifest, which says which tables are its, cannot be read.
            ProjectionUnavailableError: Pixeltable does not start.
        """
        checked_name, checked = check_name(name), _checked(options)
        await anyio.to_thread.run_sync(destroy_store, checked_name, confirm, checked)

    async def _open(self) -> None:
        if self._engine is not None:
            raise StoreClosedError("this handle was opened before; make a new one")
        self._engine = await Engine.open(
            *(self._name, self._schema, self._embedding_config, self._options),
            handle=self._number,
            temporary=self._temporary,
        )

    async def __aenter__(self) -> Self:
        if self._engine is None:
            await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the store, once what is durable is visible (for at most ``wait_timeout_seconds``). Idempotent.

        Shows a progress bar where that takes longer than two seconds and stderr is a terminal, unless
        ``Options(progress=False)``. A store that was opened several times in this event loop is closed with its last
        handle.
        """
        if (engine := self._engine) is None:
            return
        if self._closed:
            if engine.closed:
                await engine.aclose()  # waits for its end
            return
        engine.check_loop()
        self._closed = True
        await engine.release(self._number)

    async def _abandon(self) -> None:
        """Let go of the store without a drain, if it is open, and see for a moment whether that ends."""
        if (engine := self._engine) is not None:
            self._closed = True
            await engine.abandoned(self._number)

    def _let_go(self) -> None:
        """As :meth:`_abandon`, at once, on any thread."""
        if (engine := self._engine) is not None:
            engine.abandon(self._number)

    def __del__(self) -> None:
        uninterrupted(self._drop)

    def _drop(self) -> None:
        """Let go of the store in a finalizer, which may be called anywhere: waits for nothing and takes no lock."""
        engine: Engine | None = getattr(self, "_engine", None)
        if engine is None or self._closed or engine.closed or not engine.owned:
            return
        text = f"{self!r} was dropped without close(); nothing acknowledged is lost"
        if not sys.is_finalizing():  # no thread runs any more that could do it
            engine.abandon(self._number)
        self._engine = None
        warnings.warn(text, ResourceWarning, stacklevel=4)

    def __repr__(self) -> str:
        state = "not open" if self._engine is None else "closed" if self._closed or self._engine.closed else "open"
        return f"<{type(self).__name__} {self._name!r} {state}>"

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise no_copies(self)

    def _running(self) -> tuple[Engine, OpenStore]:
        if self._engine is None:
            raise StoreClosedError(
                "the store is not open: use 'async with AsyncMemory(...)' or 'await AsyncMemory.open(...)'"
            )
        if self._closed and self._engine.owned:
            raise StoreClosedError("the store is closed")
        return self._engine, self._engine.store()

    # -- adding

    async def add_entry(
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
        engine, store = self._running()
        checked_namespace = check_namespace(namespace, engine.options)
        check_if_exists(if_exists)
        checked = check_added(store.rules, content, metadata, memory_id, timestamp, embedding)
        if checked.memory_id is not None:
            return (await self._add([checked], checked_namespace, engine, ["memory_id"], if_exists))[0]
        event = _added(checked, checked_namespace, engine)
        await engine.append((event,))
        return event.memory_id

    async def add_entries(
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
        engine, store = self._running()
        checked_namespace = check_namespace(namespace, engine.options)
        check_if_exists(if_exists)
        if isinstance(entries, (str, bytes, Mapping)) or not hasattr(entries, "__iter__"):
            raise InvalidTypeError("entries", f"must be a list of dicts, not {type_name(entries)}")
        checked: list[CheckedEntry] = []
        for i, entry in enumerate(entries):
            checked.append(check_entry(store.rules, entry, f"entries[{i}]"))
            if i % CHECKED_AT_ONCE == CHECKED_AT_ONCE - 1:
                await anyio.lowlevel.checkpoint()  # a thousand entries take 10 ms, and others want their turn
        if not checked:
            return []
        fields = [f"entries[{i}].memory_id" for i in range(len(checked))]
        return await self._add(checked, checked_namespace, engine, fields, if_exists)

    async def _add(
        self, entries: list[CheckedEntry], namespace: str, engine: Engine, fields: Sequence[str], if_exists: IfExists
    ) -> list[str]:
        """Add ``entries``; ``fields`` is how errors name the id of each."""
        #: id that the caller gave -> the place of its entry
        given: dict[str, int] = {}
        for place, (entry, field) in enumerate(zip(entries, fields, strict=True)):
            if entry.memory_id is None:
                continue
            if entry.memory_id in given and if_exists == "error":
                raise MemoryExistsError(entry.memory_id, namespace, f"{field} (given twice in one call)")
            if entry.memory_id not in given or if_exists == "replace":
                given[entry.memory_id] = place
        added = [_added(entry, namespace, engine) for entry in entries]
        ids = [event.memory_id for event in added]
        if not given:
            await engine.append(added)
            return ids
        async with engine.locked(namespace, given):
            existing = await engine.existing(namespace, given)
            if existing and if_exists == "error":
                first, *others = [memory_id for memory_id in given if memory_id in existing]
                raise MemoryExistsError(first, namespace, fields[given[first]], [first, *others])
            events: list[MemoryEvent] = []
            for place, event in enumerate(added):
                if given.get(event.memory_id, place) != place:
                    continue  # another entry of the call has its id
                if event.memory_id in existing:
                    if if_exists == "ignore":
                        continue
                    events.append(MemoryDeleted(namespace, event.memory_id))
                events.append(event)
            if events:
                await engine.append(events)
        return ids

    # -- reading

    async def get_memory(
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
        engine, store = self._running()
        checked_namespace = check_namespace(namespace, engine.options)
        checked_id = check_memory_id(memory_id, engine.options)
        lsn, seconds = check_consistency(consistency), check_timeout(timeout)
        events = await engine.unseen_of(checked_namespace, checked_id, lsn, seconds)
        found = await engine.read(
            lambda: store.query.get(checked_namespace, checked_id, store.projection.changes(events))
        )
        if found is None:
            await engine.hints.missing(checked_namespace, [checked_id])
        return found

    async def search(
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
        engine, store = self._running()
        wanted = check_search(
            store.rules,
            namespace,
            query,
            limit,
            metadata_filter,
            start_time,
            end_time,
            vector,
            min_score,
            offset=offset,
            distinct=distinct,
            diversity=diversity,
        )
        lsn = check_consistency(consistency)
        seconds = check_timeout(timeout)
        if wanted.query is not None and store.embedder is not None:
            wanted = msgspec.structs.replace(wanted, vector=await engine.embed_query(wanted.query))
        wanted, events = await engine.unseen(wanted, lsn, seconds)
        if wanted.vector is not None and events:
            await engine.embed_unseen(events)
        try:
            found = await engine.read(lambda: store.query.search(wanted, store.projection.changes(events)))
        except EmbeddingError:  # of a text that is not applied yet: the projector tries again, and says what is wrong
            await engine.wait_for(lsn, seconds, wanted.namespaces)
            found = await engine.read(lambda: store.query.search(wanted))
        if not found:
            await engine.hints.nothing_found(wanted, is_search=True)
        return found

    async def list_memories(
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

            page = await mem.list_memories("ann")
            while page.next is not None:
                page = await mem.list_memories("ann", after=page.next)

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
        engine, store = self._running()
        wanted = check_list(store.rules, namespace, limit, after, order, metadata_filter, start_time, end_time)
        lsn, seconds = check_consistency(consistency), check_timeout(timeout)
        one_more = msgspec.structs.replace(wanted, limit=wanted.limit + 1)
        found = await self._page(engine, store, one_more, lsn, seconds)
        if not found:
            await engine.hints.nothing_found(wanted)
        memories = found[: wanted.limit]
        if len(found) == len(memories):
            return MemoryPage(memories, None)
        return MemoryPage(memories, text_after(wanted.ranking, _place_of(memories[-1], wanted)))

    async def _page(
        self, engine: Engine, store: OpenStore, wanted: Search, consistency: str | int, timeout: float | None
    ) -> list[MemoryRecord]:
        found, events = await engine.unseen(wanted, consistency, timeout)
        return await engine.read(lambda: store.query.search(found, store.projection.changes(events)))

    async def iterate(
        self,
        namespace: Namespaces = DEFAULT_NAMESPACE,
        *,
        order: Literal["newest", "oldest"] = "newest",
        metadata_filter: Mapping[str, Any] | None = None,
        start_time: dt.datetime | None = None,
        end_time: dt.datetime | None = None,
        consistency: Consistency = "session",
        timeout: float | None = None,
    ) -> AsyncIterator[MemoryRecord]:
        """Every memory of a namespace, by the time they were created: the pages of :meth:`list_memories` in turn.

        Args:
            namespace, order, metadata_filter, start_time, end_time, consistency, timeout: see :meth:`list_memories`.

        Raises:
            As :meth:`list_memories`, at the first step.
        """
        after: str | None = None
        while True:
            page = await self.list_memories(
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
            for memory in page.memories:
                yield memory
            if (after := page.next) is None:
                return

    async def truncated_memories(
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
        engine, store = self._running()
        checked_namespace = check_namespace(namespace, engine.options)
        checked_limit = check_limit(limit)
        await engine.wait_for(check_consistency(consistency), check_timeout(timeout), (checked_namespace,))
        embedder = store.embedder
        if embedder is None:
            return []
        return await engine.read(lambda: store.query.truncated(checked_namespace, checked_limit, embedder))

    # -- changing

    async def update_memory(
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
        engine, store = self._running()
        checked_namespace = check_namespace(namespace, engine.options)
        checked_id = check_memory_id(memory_id, engine.options)
        check_merge(merge, metadata)
        rules = schemaless(store.rules) if merge else store.rules
        event = check_updated(rules, checked_namespace, checked_id, content, metadata, embedding)
        async with engine.locked(checked_namespace, [checked_id]):
            exists = bool(await engine.existing(checked_namespace, [checked_id]))
            if exists and merge:
                before = await self.get_memory(checked_id, checked_namespace)
                if before is None:
                    raise InvalidArgumentError("merge", "needs the memory's metadata, and it is a dead letter")
                whole = {**before["metadata"], **(metadata or {})}
                event = check_updated(store.rules, checked_namespace, checked_id, content, whole, embedding)
            if exists and (event.content is not None or event.metadata_json is not None):
                await engine.append([event])
        if not exists:
            await engine.hints.missing(checked_namespace, [checked_id])
        return exists

    async def delete_memory(self, memory_id: str, namespace: str = DEFAULT_NAMESPACE) -> bool:
        """Delete a memory.

        Returns:
            True if it existed, False otherwise.

        Raises:
            As :meth:`add_entry`.
        """
        return await self._delete([memory_id], namespace, "memory_id") == 1

    async def delete_memories(self, memory_ids: Sequence[str], namespace: str = DEFAULT_NAMESPACE) -> int:
        """Delete several memories as one atomic batch.

        Returns:
            How many of them existed; an id given twice counts once.

        Raises:
            As :meth:`add_entry`.
        """
        return await self._delete(id_list(memory_ids), namespace, "memory_ids")

    async def delete_where(
        self,
        namespace: str = DEFAULT_NAMESPACE,
        metadata_filter: Mapping[str, Any] | None = None,
        start_time: dt.datetime | None = None,
        end_time: dt.datetime | None = None,
    ) -> int:
        """Delete the memories of a namespace that satisfy every condition, at least one of which is given.

        Deletes them in batches: where the call fails or is cancelled, those of some are deleted, and others are not.

        Args:
            metadata_filter, start_time, end_time: see :meth:`search`.

        Returns:
            How many there were.

        Raises:
            InvalidArgumentError, InvalidTypeError: a bad argument, or no condition; for all of a namespace there is
                :meth:`delete_namespace`. Otherwise as :meth:`search` and :meth:`delete_memories`.
        """
        if metadata_filter is None and start_time is None and end_time is None:
            reason = "is required, or start_time or end_time; to delete all of a namespace use delete_namespace()"
            raise InvalidArgumentError("metadata_filter", reason)
        return await self._delete_listed(namespace, metadata_filter, start_time, end_time)

    async def delete_namespace(self, namespace: str) -> int:
        """Delete every memory of ``namespace``, in batches as :meth:`delete_where` does. What it held is erased by
        :meth:`erase_namespace` alone.

        Returns:
            How many there were.
        """
        return await self._delete_listed(namespace, None, None, None)

    async def _delete_listed(self, namespace: object, metadata_filter: object, start: object, end: object) -> int:
        engine, store = self._running()
        checked_namespace = check_namespace(namespace, engine.options)
        wanted = check_list(store.rules, checked_namespace, DELETED_PAGE, None, "oldest", metadata_filter, start, end)
        deleted = 0
        while True:
            page = await self._page(engine, store, wanted, "session", None)
            ids = [memory["memory_id"] for memory in page]
            deleted += await self._delete(ids, checked_namespace, "memory_ids")
            if len(page) < DELETED_PAGE:
                if not deleted:
                    await engine.hints.nothing_found(wanted)
                return deleted
            wanted = msgspec.structs.replace(wanted, after=_place_of(page[-1], wanted))

    async def erase_memory(self, memory_id: str, namespace: str = DEFAULT_NAMESPACE) -> bool:
        """Delete a memory, and remove everything that it ever held from the disk. See :meth:`erase_memories`.

        Returns:
            True if the store knew of it, deleted or not.
        """
        return await self._erase([memory_id], namespace, "memory_id") == 1

    async def erase_memories(self, memory_ids: Sequence[str], namespace: str = DEFAULT_NAMESPACE) -> int:
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
        return await self._erase(id_list(memory_ids), namespace, "memory_ids")

    async def erase_namespace(self, namespace: str) -> int:
        """Erase every memory that ``namespace`` holds or ever held, as :meth:`erase_memories` does.

        The name of the namespace itself stays: in the registry, and in the name of its table.

        Returns:
            How many there were.
        """
        engine, store = self._running()
        checked_namespace = check_namespace(namespace, engine.options)
        store.eraser.check_possible()
        await self._delete_listed(checked_namespace, None, None, None)
        return await engine.erase(checked_namespace, None)

    async def _erase(self, memory_ids: list[str], namespace: str, field: str) -> int:
        engine, store = self._running()
        store.eraser.check_possible()
        await self._delete(memory_ids, namespace, field)
        ids = list(dict.fromkeys(memory_ids))
        return await engine.erase(check_namespace(namespace, engine.options), ids) if ids else 0

    async def compact(self) -> int:
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
        engine, _ = self._running()
        return await engine.compact()

    async def _delete(self, memory_ids: list[str], namespace: str, field: str) -> int:
        engine, _ = self._running()
        checked_namespace = check_namespace(namespace, engine.options)
        ids = {
            check_memory_id(memory_id, engine.options, field if field == "memory_id" else f"{field}[{i}]")
            for i, memory_id in enumerate(memory_ids)
        }
        if not ids:
            return 0
        async with engine.locked(checked_namespace, ids):
            existing = await engine.existing(checked_namespace, ids)
            if existing:
                ordered = [i for i in dict.fromkeys(memory_ids) if i in existing]
                await engine.append([MemoryDeleted(checked_namespace, memory_id) for memory_id in ordered])
        if not existing:
            await engine.hints.missing(checked_namespace, memory_ids)
        return len(existing)

    # -- the table beneath

    async def get_namespace_table(self, namespace: str) -> pxt.Table:
        """The Pixeltable table that holds ``namespace``: created if missing, with all that this handle has written.

        Columns, indexes, views and rows that are added to it stay and are left alone by Pixelmemory, except that a
        rebuild of the projection rebuilds the table.
        """
        engine, store = self._running()
        checked_namespace = check_namespace(namespace, engine.options)
        await engine.wait_for("session", namespaces=(checked_namespace,))
        return await engine.read(lambda: store.projection.namespace_table(checked_namespace))

    # -- the store as a whole

    async def namespaces(self, *, consistency: Consistency = "session", timeout: float | None = None) -> list[str]:
        """The namespaces that hold at least one memory, in code-point order. For ``consistency`` see :meth:`search`."""
        engine, store = self._running()
        _, events = await engine.unseen(
            Search((), under=EVERYWHERE), check_consistency(consistency), check_timeout(timeout)
        )
        return await engine.read(lambda: store.query.namespaces(store.projection.changes(events)))

    async def count(
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
        engine, store = self._running()
        where = EVERYWHERE if namespace is None else namespace
        wanted = check_search(store.rules, where, None, 0, metadata_filter, start_time, end_time, None, None)
        wanted, events = await engine.unseen(wanted, check_consistency(consistency), check_timeout(timeout))
        count = await engine.read(lambda: store.query.count(wanted, store.projection.changes(events)))
        if not count:
            await engine.hints.nothing_found(wanted)
        return count

    async def flush(
        self, timeout: float | None = None, *, progress: bool | Callable[[int, int], object] | None = None
    ) -> int:
        """Wait until everything acknowledged is flushed to the device and visible to every reader.

        Args:
            timeout: seconds. Default: ``options.wait_timeout_seconds``.
            progress: True for a bar on stderr; or a function that is called about ten times a second, and once at the
                end, with the number of events that have become visible since the call and the number that will. It is
                called in the event loop. What it raises ends the wait.

        Returns:
            The LSN up to which it is.

        Raises:
            WaitTimeoutError: it was not in time; the error says how far behind the projection is.
        """
        engine, _ = self._running()
        return await engine.flush(check_timeout(timeout), check_progress(progress))

    async def retry_dead_letters(self) -> int:
        """Apply the dead letters again: events that could not be applied, once their cause is mended.

        Returns:
            How many were applied; the others stay dead letters, as ``health()`` says.
        """
        engine, _ = self._running()
        return await engine.retry_dead_letters()

    async def stats(self) -> Stats:
        """Figures of the store, taken without touching the disk or the database."""
        engine, _ = self._running()
        return engine.stats()

    async def health(self) -> Health:
        """Whether the store does all of its work at the moment, and if not, what is wrong."""
        engine, _ = self._running()
        return engine.health()

    @property
    def last_lsn(self) -> int:
        """The last LSN that is acknowledged to this handle (when it was opened: the last of the log)."""
        return 0 if self._engine is None else self._engine.last_lsn


def _added(entry: CheckedEntry, namespace: str, engine: Engine) -> MemoryAdded:
    """The event of ``entry``, with an id and a time of ours where the caller gave none."""
    memory_id = entry.memory_id if entry.memory_id is not None else new_memory_id()
    created_at_us = entry.created_at_us if entry.created_at_us is not None else engine.created_now_us()
    return MemoryAdded(namespace, memory_id, entry.content, created_at_us, entry.metadata_json, entry.embedding)


def _place_of(memory: MemoryRecord, search: Search) -> Position:
    """Where ``memory``, a result of ``search``, stands in its list."""
    namespace = memory["namespace"] if search.named else search.namespaces[0]
    return Position(memory["timestamp"], memory["memory_id"], namespace)


def _checked(options: Options | None) -> Options:
    if options is not None and not isinstance(options, Options):
        raise InvalidTypeError("options", f"must be pixelmemory.Options, not {type_name(options)}")
    return options or Options()
