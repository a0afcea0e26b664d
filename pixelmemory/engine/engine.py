"""The engine: opens, runs, drains and closes the parts, and carries a call from its event to its result.

Runs in one event loop, asyncio's or trio's. The log's writer thread and the projector's threads report into the loop
with one call each a commit or a batch; everything below that is marked "loop" is touched by the loop's thread alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec

from pixelmemory.embedding import parse_embedding_config
from pixelmemory.engine.event_loop import Signal, poster_of, running_loop_of, signals_of
from pixelmemory.engine.health import health_of, stats_of
from pixelmemory.engine.hints import Hints
from pixelmemory.engine.key_locks import KeyLocks
from pixelmemory.engine.opening import Opening
from pixelmemory.engine.progress import Progress, Report
from pixelmemory.engine.room import Room
from pixelmemory.engine.together import EmbeddedTogether
from pixelmemory.engine.visibility import Visibility
from pixelmemory.errors import (
    EmbeddingError,
    LogError,
    ProjectionUnavailableError,
    StoreClosedError,
    StoreForkedError,
    StoreLockedError,
    UnavailableCause,
    WaitTimeoutError,
    WrongThreadError,
    copy_of,
)
from pixelmemory.forks import forks
from pixelmemory.interrupts import launch, start_new_thread
from pixelmemory.log.contract import Append, StoredEvent
from pixelmemory.memory.erasure import Erasure
from pixelmemory.memory.events import MemoryEvent
from pixelmemory.memory.schema import parse_schema
from pixelmemory.memory.search import Search
from pixelmemory.models import Health, Stats
from pixelmemory.options import Options
from pixelmemory.readers import reading
from pixelmemory.store.compaction import compact
from pixelmemory.store.opening import open_store
from pixelmemory.store.store import OpenStore

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Engine"]

_logger = logging.getLogger("pixelmemory")
T = TypeVar("T")


#: events that a read lays over the tables; with more it waits for them
OVERLAID_MAX = 100
#: the same where it would wait for more events of other namespaces than of its own
OVERLAID_BEHIND_OTHERS_MAX = 1000

#: how long a close takes before it shows how far it is
CLOSE_BAR_SECONDS = 2.0

#: how long a close goes on where its task was cancelled; afterwards it ends in the background
CANCELLED_CLOSE_SECONDS = 0.5

#: by the store's folder, without symbolic links: those that are opened, open or being closed in this process
_engines: dict[str, Engine] = {}
_engines_lock = threading.Lock()


def _after_fork_in_child() -> None:
    global _engines_lock
    _engines_lock = threading.Lock()
    _engines.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


class _Arguments(NamedTuple):
    """What a store was opened with; a second handle on it must be opened with the same."""

    schema: str | None
    embedding: object
    options: Options

    @classmethod
    def of(cls, schema: object, embedding_config: object, options: Options) -> _Arguments:
        parsed = parse_schema(schema)
        same = msgspec.structs.replace(options, home=None, progress=True)
        return cls(None if parsed is None else parsed.fingerprint, parse_embedding_config(embedding_config), same)

    def difference(self, other: _Arguments) -> str:
        """The names of what differs, for a person."""
        names = {"schema": "schema", "embedding": "embedding_config", "options": "options"}
        return ", ".join(name for field, name in names.items() if getattr(self, field) != getattr(other, field))


class Engine:
    """One open store. Made by :meth:`open`; every method belongs to the event loop it was opened in.

    Attributes:
        options: as opened.
        dimensions: of a vector, or None without semantic search.
        last_lsn: the last LSN that a call on this engine was acknowledged with; at first the last of the log.
    """

    def __init__(self, name: str, options: Options, arguments: _Arguments, handle: int) -> None:
        self.options = options
        self.last_lsn = 0
        self._folder = options.home_path() / name
        self._key = os.path.realpath(self._folder)
        self._arguments = arguments
        #: the handles that share it
        self._handles = {handle}
        self._forks = forks()
        #: asyncio's loop, or trio's token
        self._loop: Any = anyio.lowlevel.current_token().native_token
        self._running_loop = running_loop_of(self._loop)
        self._post = poster_of(self._loop)
        self._new_signal = signals_of(self._loop)
        self._readers = anyio.CapacityLimiter(options.reader_threads_max)
        self._store: OpenStore | None = None
        self._closing = False
        #: set once it is open, or could not be opened
        self._opened = anyio.Event()
        self._closed = anyio.Event()
        #: of a store with a model
        self._queries: EmbeddedTogether | None = None
        self._contents: EmbeddedTogether | None = None
        #: what waits for the projection, once the store is open; loop
        self._visibility: Visibility | None = None
        #: what is said of calls that find nothing, once the store is open; loop
        self._hints: Hints | None = None
        #: holds writers back; loop
        self._room = Room(options)
        #: of the memories that are being checked and changed; loop
        self._locks = KeyLocks()
        self._last_created_us = 0
        #: what is durable up to there and not visible is in the log alone, and every read waits for it
        self._opened_lsn = 0

    # -- life cycle

    @classmethod
    async def open(
        cls,
        name: str,
        schema: object,
        embedding_config: object,
        options: Options,
        *,
        handle: int,
        temporary: bool = False,
    ) -> Engine:
        """Open the store ``name``; see :class:`pixelmemory.AsyncMemory` for the arguments and errors.

        A store that is open in this event loop is shared: each handle calls :meth:`release`.

        Args:
            handle: the number of the handle that opens it, which no other handle of the process has.
            temporary: the close removes its home and its tables.
        """
        made = cls(name, options, _Arguments.of(schema, embedding_config, options), handle)
        self = await made._or_who_has_it(handle)
        if self is not made:
            return self
        try:
            await self._open(name, schema, embedding_config, temporary)
        finally:
            self._opened.set()
        return self

    async def _or_who_has_it(self, handle: int) -> Engine:
        """This engine; or the one in this event loop that has the store open, which is then shared.

        Raises:
            StoreLockedError: the store is open in another event loop, or with other arguments.
        """
        deadline = time.monotonic() + self.options.close_timeout_seconds
        while True:
            with _engines_lock:
                other = _engines.setdefault(self._key, self)
            if other is self:
                return self
            if other._loop is self._loop:
                await other._opened.wait()
                if other._share(handle, self._folder, self._arguments):
                    return other
                await other._closed.wait()
            elif other._closing and time.monotonic() < deadline:
                await anyio.sleep(0.02)
            else:
                raise StoreLockedError(self._folder / "LOCK", os.getpid(), "in another event loop")

    def _share(self, handle: int, folder: Path, arguments: _Arguments) -> bool:
        """Whether ``handle`` has the store now: it is open, and not being closed."""
        if self._closing or self._store is None:
            return False
        if difference := self._arguments.difference(arguments):
            raise StoreLockedError(folder / "LOCK", os.getpid(), f"with another {difference}")
        self._handles.add(handle)
        if self._closing:  # a finalizer of the last handle came in between
            self._handles.discard(handle)
            return False
        return True

    async def _open(self, name: str, schema: object, embedding_config: object, temporary: bool) -> None:
        options = self.options
        opening = Opening(
            lambda check: open_store(
                name,
                schema,
                embedding_config,
                options,
                on_commit=lambda appends: self._post(self._committed, appends),
                on_watermark=lambda _lsn: self._post(self._advanced),
                folder=self._folder,
                check=check,
                temporary=temporary,
            ),
            self._post,
            self._over,
        )
        try:
            store = await opening.result()
        except anyio.get_cancelled_exc_class():
            self._closing = True  # until the thread has ended, another open waits
            raise
        except BaseException:
            self._over()
            raise
        self._store = store
        self._visibility = Visibility(store)
        self._hints = Hints(store, self._visibility, self.read)
        self._opened_lsn = self.last_lsn = store.log.durable_lsn
        self._last_created_us = store.last_logged_us
        if store.embedder is not None:
            self._queries = EmbeddedTogether(store.embedder.embed_queries, self.read)
        if store.contents is not None:
            self._contents = EmbeddedTogether(store.contents.embed_ahead, self.read)
        try:
            await self._take_up(store, self._visibility)
            store.projection.projector.start()
            if store.projection.rebuilding:
                await self._watch_rebuild(store)
        except BaseException as error:
            self._closing = True
            await self._close_parts(_close_seconds(error))
            raise

    async def _take_up(self, store: OpenStore, visibility: Visibility) -> None:
        """Let reads see what the life before this one left unprojected, unless that is a rebuild's work."""
        watermark = store.projection.projector.watermark
        events_max = self.options.lag_events_max
        if store.projection.is_missing or not 0 < store.log.durable_lsn - watermark <= events_max or not watermark:
            return
        await anyio.to_thread.run_sync(visibility.memtable.load, store.log, watermark + 1)
        self._opened_lsn = watermark

    async def _watch_rebuild(self, store: OpenStore) -> None:
        """Wait until the tables are built, and show how far they are.

        Raises:
            ProjectionUnavailableError: nothing has moved for ``wait_timeout_seconds`` because of an error; not with
                ``open_without_tables``.
        """
        from tqdm import tqdm

        goal = store.log.durable_lsn
        projector = store.projection.projector
        _logger.info("rebuilding the projection of %s from %d events", store.name, goal)
        moved_at = time.monotonic()
        with tqdm(
            total=goal,
            desc=f"rebuilding {store.name}",
            unit=" events",
            file=sys.stderr,
            disable=not self.options.progress,
        ) as bar:
            while (seen := projector.watermark) < goal:
                if seen > bar.n or projector.blocked is None:
                    moved_at = time.monotonic()
                bar.update(seen - bar.n)
                if projector.blocked is not None:
                    bar.set_postfix_str(projector.blocked[:120])
                failure, blocked = projector.failure, projector.blocked
                if failure is not None or time.monotonic() - moved_at > self.options.wait_timeout_seconds:
                    reason = f"the tables of {store.name} could not be built: {blocked or failure}"
                    if not self.options.open_without_tables:
                        raise ProjectionUnavailableError(
                            f"{reason}. The log is whole; mend the cause and open the store again, or open it with "
                            "Options(open_without_tables=True) to write",
                            UnavailableCause.NOT_BUILT,
                        ) from failure
                    _logger.error("%s", reason)
                    return
                await anyio.sleep(0.05)
            bar.update(goal - bar.n)

    async def release(self, handle: int) -> None:
        """Close the store, if no other handle has it open."""
        if self.owned:
            self._handles.discard(handle)
            if not self._handles:
                await self.aclose()

    def check_loop(self) -> None:
        """Raise WrongThreadError in another event loop; nothing in a child of a fork."""
        if self.owned:
            self._check_loop("the store was opened in another event loop; close it there")

    async def aclose(self) -> None:
        """Drain what is durable into the projection (bounded by ``wait_timeout_seconds``), then close. Idempotent.

        A cancelled close does not drain. What of it does not end soon then ends in the background.

        Raises:
            WrongThreadError: in another event loop.
        """
        if not self.owned:
            return
        self._check_loop("the store was opened in another event loop; close it there")
        store = self._store
        if self._closing or store is None:
            if store is not None:
                await self._closed.wait()
            return
        self._closing = True
        try:
            await anyio.to_thread.run_sync(store.log.flush, abandon_on_cancel=True)
            await self._drain(store)
        except (LogError, ProjectionUnavailableError, WaitTimeoutError) as error:
            _logger.warning("closed before everything was visible (the next open goes on from there): %s", error)
        except BaseException as error:
            await self._close_parts(_close_seconds(error))
            raise
        await self._close_parts(None)

    async def _drain(self, store: OpenStore) -> None:
        """Wait until the tables show everything; with a bar, where a person sees it wait for long."""
        if store.is_temporary:
            return
        lsn, projector = store.log.durable_lsn, store.projection.projector
        is_seen = self.options.progress and sys.stderr is not None and sys.stderr.isatty()
        with Progress(f"closing {store.name}", projector, lsn, is_seen, after_seconds=CLOSE_BAR_SECONDS) as shown:
            await self._visible.wait(lsn, self.options.wait_timeout_seconds, shown.tick if is_seen else None)

    async def _close_parts(self, at_most_seconds: float | None) -> None:
        """Close the store on a thread, and wait for it; None: as long as it takes, or until this is cancelled."""
        store, errors = self._store, list[BaseException]()
        assert store is not None
        #: nobody waits any more: an error has nobody to go to but the log
        unattended = threading.Event()

        def close() -> None:
            try:
                store.close()
            except BaseException as error:
                errors.append(error)
                if unattended.is_set():
                    _logger.exception("the store was not closed cleanly")
            self._over()

        threading.Thread(target=close, name="pixelmemory-close", daemon=True).start()
        try:
            if at_most_seconds is None:
                await self._closed.wait()
        finally:
            try:
                with anyio.move_on_after(at_most_seconds or CANCELLED_CLOSE_SECONDS, shield=True):
                    await self._closed.wait()
            finally:  # asyncio's own cancellation passes the shield
                unattended.set()
        if errors:
            raise errors[0]

    def _over(self) -> None:
        """Nothing of the store is open any more: the next open makes another engine. On any thread."""

        def tell() -> None:
            self._closing = True
            self._closed.set()
            if self._visibility is not None:
                self._visibility.close()

        with _engines_lock:
            if _engines.get(self._key) is self:
                del _engines[self._key]
        self._post(tell)

    def _check_loop(self, otherwise: str) -> None:
        if self._running_loop() is not self._loop:
            raise WrongThreadError(otherwise)

    def abandon(self, handle: int | None = None) -> None:
        """As :meth:`release`, without a drain, and not waited for; None: for every handle. Loses nothing durable.

        For a handle that was dropped: on any thread, takes no lock, and may be done again where Ctrl-C has ended it.
        """
        if self._store is None or not self.owned:
            return
        if handle is None:
            self._handles.clear()
        else:
            self._handles.discard(handle)
        if not self._handles and not self._closing:
            # from here to the thread's start no step that Ctrl-C or another thread could come into
            self._closing = True
            try:
                start_new_thread(launch, (self._close_now, "pixelmemory-close"))
            except RuntimeError:  # the system gives no thread
                self._close_now()

    def _close_now(self) -> None:
        assert self._store is not None
        try:
            self._store.close()
        except BaseException:
            _logger.exception("the store was not closed cleanly")
        self._over()

    async def abandoned(self, handle: int) -> None:
        """:meth:`abandon`, and wait for a moment for the end of it."""
        self.abandon(handle)
        if self._closing and self._store is not None:
            with anyio.move_on_after(CANCELLED_CLOSE_SECONDS):
                await self._closed.wait()

    def store(self) -> OpenStore:
        """The open parts.

        Raises:
            StoreClosedError: after close.
            StoreForkedError: in a child process.
            WrongThreadError: in another event loop.
        """
        if forks() != self._forks:
            raise StoreForkedError(
                "the store was opened before a fork; only the parent may use it. Open stores after the fork"
            )
        if self._closing or self._store is None:
            raise StoreClosedError("the store is closed")
        self._check_loop("the store was opened in another event loop; open one store in one loop")
        return self._store

    @property
    def closed(self) -> bool:
        """Whether closing has begun."""
        return self._closing

    @property
    def owned(self) -> bool:
        """Whether this process opened the store, and not one that it was forked from."""
        return forks() == self._forks

    # -- what the threads report; loop

    def _committed(self, appends: Sequence[Append]) -> None:
        visibility = self._visible
        for append in appends:
            done: Signal = append.context
            done.set()
        last_lsn = appends[-1].last_lsn
        if appends[0].error is None and last_lsn is not None:  # a frame's appends share their fate
            events = [event for append in appends for event in append.events]
            visibility.committed(last_lsn, cast("list[MemoryEvent]", events))  # as append() takes them
            self.last_lsn = max(self.last_lsn, last_lsn)
        self._room.made(sum(append.event_count for append in appends))
        visibility.notify()
        visibility.advanced()

    def _advanced(self) -> None:
        if self._visibility is not None:
            self._visibility.advanced()

    @property
    def _visible(self) -> Visibility:
        assert self._visibility is not None
        return self._visibility

    @property
    def hints(self) -> Hints:
        """What is said of calls that find nothing."""
        assert self._hints is not None
        return self._hints

    # -- waiting

    async def wait_for(
        self,
        consistency: str | int,
        timeout_seconds: float | None = None,
        namespaces: Collection[str] | None = None,
    ) -> None:
        """Wait until the tables show what ``consistency`` asks for (checked by the facade).

        Args:
            namespaces: the only ones that are read; None for the whole store. An LSN is waited for in any case.
        """
        store = self.store()
        if consistency == "eventual":
            return
        lsn = consistency if isinstance(consistency, int) else self.last_lsn
        if consistency == "strong":
            lsn = store.log.durable_lsn
        if namespaces is not None and isinstance(consistency, str) and lsn <= self._visible.known_lsn:
            # of what came before the store was opened, it is not known whose it is
            lsn = max([self._opened_lsn, *map(self._visible.memtable.last_lsn, namespaces)])
        timeout = self.options.wait_timeout_seconds if timeout_seconds is None else timeout_seconds
        await self._visible.wait(lsn, timeout)

    async def unseen(
        self, search: Search, consistency: str | int, timeout_seconds: float | None = None
    ) -> tuple[Search, list[StoredEvent]]:
        """Wait for what ``search`` has to wait for, and for nothing else.

        Args:
            consistency: as :meth:`wait_for`.

        Returns:
            ``search`` with its namespaces, and their events that it has to see and the tables may not show yet.
        """
        memtable = self._visible.memtable
        if await self._may_overlay(consistency, timeout_seconds):
            search = self._resolved(search)
            unseen = [] if memtable.is_empty else [each for each in search.namespaces if memtable.last_lsn(each)]
            if unseen and not self._visible.is_stuck(max(map(memtable.last_lsn, unseen))):
                own = sum(map(memtable.event_count, unseen))
                is_behind_others = len(memtable) > 2 * own
                events = memtable.events(unseen, OVERLAID_BEHIND_OTHERS_MAX if is_behind_others else OVERLAID_MAX)
                if events is not None:
                    return search, events
        await self.wait_for(consistency, timeout_seconds, search.namespaces)
        return self._resolved(search), []

    async def unseen_of(
        self, namespace: str, memory_id: str, consistency: str | int, timeout_seconds: float | None = None
    ) -> list[StoredEvent]:
        """As :meth:`unseen`, of one memory."""
        visible = self._visible
        if await self._may_overlay(consistency, timeout_seconds):
            unseen_lsn = visible.memtable.last_lsn(namespace)
            if unseen_lsn and not visible.is_stuck(unseen_lsn):
                events = visible.memtable.events_of((namespace, memory_id))
                if events is not None:
                    return events
        await self.wait_for(consistency, timeout_seconds, (namespace,))
        return []

    async def _may_overlay(self, consistency: str | int, timeout_seconds: float | None) -> bool:
        """Whether a read can be answered without waiting for the tables. Waits for what only the log knows of."""
        last_lsn = self.store().log.durable_lsn if consistency == "strong" else self.last_lsn
        if isinstance(consistency, int) or consistency == "eventual" or last_lsn > self._visible.known_lsn:
            return False
        await self.wait_for(self._opened_lsn, timeout_seconds)
        return True

    def _resolved(self, search: Search) -> Search:
        """``search`` with the namespaces that there are under its prefix."""
        if (under := search.under) is None:
            return search
        known = dict.fromkeys([*self.store().query.known(), *self._visible.memtable.namespaces()])
        return msgspec.structs.replace(search, namespaces=tuple(filter(under.holds, known)))

    async def flush(self, timeout_seconds: float | None = None, progress: Report | bool = False) -> int:
        """Make everything acknowledged durable and visible.

        Returns:
            The LSN up to which it is.
        """
        store = self.store()
        await anyio.to_thread.run_sync(store.log.flush, abandon_on_cancel=True)
        lsn = store.log.durable_lsn
        timeout = self.options.wait_timeout_seconds if timeout_seconds is None else timeout_seconds
        with Progress(f"flushing {store.name}", store.projection.projector, lsn, progress) as shown:
            await self._visible.wait(lsn, timeout, shown.tick if progress else None)
        return lsn

    # -- writing

    def created_now_us(self) -> int:
        """Now, in microseconds since the epoch, later than every time given before: the clock may step back."""
        self._last_created_us = max(time.time_ns() // 1000, self._last_created_us + 1)
        return self._last_created_us

    async def append(self, events: Sequence[MemoryEvent]) -> int:
        """Append ``events`` as one atomic frame and return the last LSN, once they are durable.

        A cancelled call whose events still wait in the buffer is withdrawn: nothing is recorded. After that the
        append runs to its end, and the caller, who sees only the cancellation, does not learn whether it was recorded.

        Raises:
            LogWriteError: definitely nothing was recorded.
            UnknownOutcomeError: it may or may not have been.
            LogPoisonedError: refused after an earlier failure.
        """
        store = self._store
        if self._closing or store is None:  # the call has asked for the store before, and may have waited since
            store = self.store()
        if not self._room.has(store, len(events)):
            await self._room.wait(store, self._visible, len(events))
            store = self.store()
        done = self._new_signal()
        # the next open learns from the log which times were given: after a step back of the clock they are ahead of it
        append = store.log.submit(events, done, not_before_ns=self._last_created_us * 1000)
        self._room.in_flight += len(events)
        try:
            await done.wait()
        except anyio.get_cancelled_exc_class():
            if store.log.withdraw(append):
                self._room.made(len(events))
                raise
            # the caller holds the memory's lock, and nobody may check the memory before the outcome is known: asyncio's
            # own cancellation passes the shield, and may come twice
            while not done.is_set():
                with contextlib.suppress(anyio.get_cancelled_exc_class()), anyio.CancelScope(shield=True):
                    await done.wait()
            raise
        if append.error is not None:
            raise copy_of(append.error) from append.error  # one error, many waiters
        assert append.last_lsn is not None
        return append.last_lsn

    def locked(self, namespace: str, memory_ids: Collection[str]) -> AbstractAsyncContextManager[None]:
        """Hold ``memory_ids`` of ``namespace`` against other checks and changes: one at a time per memory."""
        return self._locks.held(namespace, memory_ids)

    async def existing(self, namespace: str, memory_ids: Collection[str]) -> set[str]:
        """Which of ``memory_ids`` exist after every durable event; the caller holds them by :meth:`locked`."""
        store = self.store()
        await self._visible.wait(self._opened_lsn, self.options.wait_timeout_seconds)
        found: set[str] = set()
        unknown: list[str] = []
        for memory_id in memory_ids:
            exists = self._visible.exists((namespace, memory_id))
            if exists is None:
                unknown.append(memory_id)
            elif exists:
                found.add(memory_id)
        if unknown:
            # no unseen event: all of the memory's events were visible, or dead letters, before this read begins
            found |= await self.read(lambda: _existing(store, namespace, unknown))
        return found

    # -- reading

    async def embed_query(self, text: str) -> np.ndarray:
        """The vector of a query, float32, ``(dimensions,)``; the store has a model.

        Raises:
            EmbeddingError: the model failed on it.
        """
        assert self._queries is not None
        return (await self._queries.vectors([text]))[0]

    async def embed_unseen(self, events: Sequence[StoredEvent]) -> None:
        """Embed the contents of ``events``, which a read by meaning is about to lay over the tables."""
        changes = self.store().projection.changes(events)
        texts = [change.content for change in changes if change.content is not None and change.embedding is None]
        if texts and self._contents is not None:
            with contextlib.suppress(EmbeddingError):  # the read comes to it, and says what is wrong
                await self._contents.vectors(texts)

    async def read(self, run: Callable[[], T]) -> T:
        """Run a blocking read on one of the reader threads. It changes nothing: nobody waits for a cancelled one.

        Raises:
            ProjectionUnavailableError: it does not end within ``read_timeout_seconds``.
        """
        seconds = self.options.read_timeout_seconds
        with anyio.move_on_after(seconds), reading():
            return await anyio.to_thread.run_sync(run, limiter=self._readers, abandon_on_cancel=True)
        raise ProjectionUnavailableError(
            f"the read has not ended within {seconds:g} s: the database does not answer (is its server stopped or "
            "overloaded?), or the table is too large for it; raise Options.read_timeout_seconds",
            UnavailableCause.TIMEOUT,
        )

    async def retry_dead_letters(self) -> int:
        """Apply every dead letter again; returns how many events were applied.

        The projector comes to it once the batch in hand is applied, and goes on with it where the call is cancelled.
        """
        projector = self.store().projection.projector
        future = projector.request(projector.retry_dead_letters)
        return await anyio.to_thread.run_sync(future.result, abandon_on_cancel=True)

    async def erase(self, namespace: str, memory_ids: list[str] | None) -> int:
        """Take deleted memories off the disk, all of the namespace's if no ids are given; returns how many there were.

        Goes on to its end where the call is cancelled.
        """
        erasure = Erasure(namespace, memory_ids, await self.flush())
        return await anyio.to_thread.run_sync(self.store().eraser.erase, erasure)

    async def compact(self) -> int:
        """Leave one event of each memory; returns by how many bytes the log shrank. Goes on as :meth:`erase` does."""
        lsn = await self.flush()
        return await anyio.to_thread.run_sync(compact, self.store().maintenance, lsn)

    # -- how it is

    def stats(self) -> Stats:
        """Figures of the store, from memory."""
        return stats_of(self.store(), self.last_lsn)

    def health(self) -> Health:
        """What is wrong at the moment, if anything."""
        return health_of(self.store())


def _close_seconds(error: BaseException) -> float | None:
    """How long to wait for a close because of ``error``; None: to its end."""
    return CANCELLED_CLOSE_SECONDS if isinstance(error, anyio.get_cancelled_exc_class()) else None


def _existing(store: OpenStore, namespace: str, memory_ids: Sequence[str]) -> set[str]:
    """Which of ``memory_ids`` exist; blocking. Dead letters first: a retry that comes between makes its rows visible
    before it forgets them."""
    dead = {each: store.projection.projector.exists_after_dead_letters(namespace, each) for each in memory_ids}
    by_row = [memory_id for memory_id, exists in dead.items() if exists is None]
    found = store.query.existing(namespace, by_row) if by_row else set()
    return found | {memory_id for memory_id, exists in dead.items() if exists}
