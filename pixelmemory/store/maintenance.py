"""What takes events out of the log: erasing memories, and compacting history.

Both rewrite the log with :meth:`pixelmemory.log.file.file_log.Log.rewrite`; an :class:`EventRemoved` stays at each LSN
that was taken out. An erase also goes through everything that was made from the log: the vector cache, ``quarantine/``,
the tables and what PostgreSQL keeps of their past. Its intent stands in the MANIFEST from before the first byte is
changed until the last one is gone, so that a kill at any point leaves an erase that the next open finishes.

Blocking; on a worker thread, one at a time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import wait
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pixelmemory.embedding import VectorCache
from pixelmemory.errors import PixelmemoryError, StoreClosedError, StoreError
from pixelmemory.faults import fault_point
from pixelmemory.log.file.file_log import Log
from pixelmemory.log.file.files import Files
from pixelmemory.log.file.frame import StoredEvent
from pixelmemory.log.file.rewrite import RewriteReport
from pixelmemory.memory.events import Event, EventRemoved, MemoryAdded, MemoryDeleted, MemoryEvent, MemoryUpdated
from pixelmemory.store.manifest import Erasure, Manifest

if TYPE_CHECKING:
    from pixelmemory.projection.projection import Projection

__all__ = ["Maintenance"]

_logger = logging.getLogger("pixelmemory")

#: events in one read of the log, and the encoded bytes that end it
READ_EVENTS = 4096
READ_BYTES = 4 << 20
#: how often a wait looks whether the store was closed
CLOSED_SECONDS = 0.1
#: texts that are taken out of the vector cache at once
DISCARDED_TEXTS = 1000


class Maintenance:
    """Erases from, and compacts, one open store.

    Attributes:
        problem: why an erase that was begun is not finished, for a person; None if none is open.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        log: Log,
        projection: Projection,
        cache: VectorCache | None,
        files: Files | None = None,
        check_folder: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder = folder
        #: raises an OSError where the folder is not the one that was opened
        self._check_folder = check_folder
        self._manifest = manifest
        self._log = log
        self._projection = projection
        self._cache = cache
        self._files = files or Files()
        self._lock = threading.Lock()
        self._closed = False
        self.problem: str | None = None

    def close(self) -> None:
        """End what is under way, and wait for that; nothing begins afterwards. Idempotent.

        A compaction leaves the log as it was, and the next open finishes an erase. What it has asked of the database
        runs to its end.
        """
        self._closed = True
        with self._lock:
            pass

    def resume(self) -> None:
        """Finish the erase that an earlier process began, if there is one. Before the projector is started.

        One that cannot be finished now does not keep the store shut: ``problem`` says why, and the next erase, or the
        next open, tries again.
        """
        with self._lock:
            if self._manifest.erasing is None:
                return
            _logger.warning("an erase was interrupted, and is finished now")
            try:
                self._erase(self._manifest.erasing, self._projection.erase)
            except PixelmemoryError as error:
                _logger.error("%s", self.problem, exc_info=error)

    def erase(self, erasure: Erasure) -> int:
        """Take what ``erasure`` names out of everything that the store keeps.

        The caller has deleted the memories and waited until ``erasure.up_to_lsn`` is visible.

        Returns:
            How many memories with events up to that LSN there were.

        Raises:
            LogWriteError: the log could not be rewritten, for want of room perhaps.
            LogPoisonedError: it failed half-way; reopen the store.
            ManifestError: the intent could not be written; nothing was changed.
            ProjectionError: the tables could not be purged. ``problem`` says what is left, and the next erase or open
                goes on with it. Without ``direct_sql`` nothing is begun.
        """
        with self._lock:
            self._check_open()
            self._projection.check_erasable()
            if self._manifest.erasing is not None:
                self._erase(self._manifest.erasing, self._on_projector)
            found = {event.memory_id for event in self._events_of(erasure)}
            # also where the log knows nothing any more: the tables keep versions that a compaction took out of it
            self._save(erasing=erasure, rewritten_lsn=max(self._manifest.rewritten_lsn, erasure.up_to_lsn))
            fault_point("erase.after_intent")
            self._erase(erasure, self._on_projector)
        return len(found)

    def compact(self, up_to_lsn: int) -> int:
        """Leave of each memory one event, and none of a deleted one, as far as ``up_to_lsn``, which is visible.

        What was superseded is gone afterwards, and the projection stays as it is. Takes about 200 bytes of memory for
        each memory, and the texts of those that were updated.

        Returns:
            By how many bytes the log has become smaller.

        Raises:
            As :meth:`erase`.
        """
        with self._lock:
            self._check_open()
            kept = {(each.namespace, each.memory_id) for each in list(self._projection.projector.dead_letters.values())}
            compaction = _Compaction(up_to_lsn, kept)
            for stored in self._read(up_to_lsn):
                compaction.plan(stored)
            if not compaction.superseded:
                return 0
            self._discard(text for stored in self._read(up_to_lsn) for text in compaction.dropped_texts(stored))
            # from now on a projection that is older than this would miss deletes, and is rebuilt
            self._save(rewritten_lsn=max(self._manifest.rewritten_lsn, up_to_lsn))
            report = self._rewrite(compaction.transform, "compacted")
        return report.bytes_before - report.bytes_after

    # -- one erase

    def _erase(self, erasure: Erasure, on_tables: Callable[[Erasure], None]) -> None:
        """Everything after the intent was written. Whatever was done before is done again."""
        try:
            self._discard_vectors(erasure)
            fault_point("erase.after_cache")
            if any(True for _ in self._events_of(erasure)):
                wanted = _Wanted(erasure)
                removed = EventRemoved("erased", time.time_ns() // 1000)
                self._rewrite(lambda stored: removed if wanted(stored) else stored.event, "erased")
            fault_point("erase.after_log")
            self._empty_quarantine()
            fault_point("erase.after_quarantine")
            on_tables(erasure)
            fault_point("erase.after_projection")
            self._save(erasing=None)
        except BaseException as error:
            self.problem = (
                f"an erase is not finished: {type(error).__name__}: {error}. Erase again, or reopen the store"
            )
            raise
        self.problem = None

    def _on_projector(self, erasure: Erasure) -> None:
        """On the projector's thread: nothing is applied meanwhile."""
        done = self._projection.projector.request(lambda: self._projection.erase(erasure))
        while not wait([done], CLOSED_SECONDS).done:  # a projector that cannot reach the database comes to it late
            self._check_open()
        done.result()

    def _discard_vectors(self, erasure: Erasure) -> None:
        self._discard(
            event.content
            for event in self._events_of(erasure)
            if not isinstance(event, MemoryDeleted) and event.content is not None
        )

    def _discard(self, texts: Iterable[str]) -> None:
        """Take the vectors of ``texts`` out of the cache."""
        if self._cache is None:
            return
        remaining = iter(texts)
        while some := set(islice(remaining, DISCARDED_TEXTS)):
            try:
                self._cache.discard(list(some))
            except OSError as error:
                raise StoreError(f"vectors cannot be taken out of the cache: {error}") from error

    def _events_of(self, erasure: Erasure) -> Iterator[MemoryEvent]:
        wanted = _Wanted(erasure)
        for stored in self._read(erasure.up_to_lsn):
            if wanted(stored):
                assert not isinstance(stored.event, EventRemoved)
                yield stored.event

    def _empty_quarantine(self) -> None:
        """Nobody can tell whose bytes stand there."""
        quarantine = self._folder / "quarantine"
        try:
            self._check_folder()
            if self._files.is_folder(quarantine):
                _remove_inside(self._files, quarantine)
        except OSError as error:
            raise StoreError(f"{quarantine} cannot be emptied: {error}") from error

    # -- the log and the manifest

    def _read(self, up_to_lsn: int) -> Iterator[StoredEvent]:
        next_lsn = self._log.first_lsn
        while next_lsn <= up_to_lsn:
            self._check_open()
            events = self._log.read(next_lsn, events_max=READ_EVENTS, bytes_max=READ_BYTES)
            if not events:
                return
            for stored in events:
                if stored.lsn > up_to_lsn:
                    return
                yield stored
            next_lsn = events[-1].lsn + 1

    def _rewrite(self, transform: Callable[[StoredEvent], Event], what: str) -> RewriteReport:
        def while_open(stored: StoredEvent) -> Event:
            self._check_open()
            return transform(stored)

        report = self._log.rewrite(while_open)
        _logger.info(
            "%d events were %s: the log has %d bytes, and had %d",
            *(report.events_changed, what, report.bytes_after, report.bytes_before),
        )
        return report

    def _save(self, **changes: Any) -> None:
        manifest = msgspec.structs.replace(self._manifest, **changes)
        manifest.save(self._folder, self._files, self._check_folder)
        self._manifest = manifest

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError("the store is closed")


def _remove_inside(files: Files, folder: Path) -> None:
    """Remove everything in ``folder``, durably."""
    for name in files.names(folder):
        path = folder / name
        if files.is_folder(path):
            _remove_inside(files, path)
            files.remove_folder(path)
        else:
            files.unlink(path)
    files.sync_folder(folder)


class _Wanted:
    """Whether an event is one that an erasure names."""

    def __init__(self, erasure: Erasure) -> None:
        self._namespace = erasure.namespace
        self._ids = None if erasure.memory_ids is None else frozenset(erasure.memory_ids)
        self._up_to_lsn = erasure.up_to_lsn

    def __call__(self, stored: StoredEvent) -> bool:
        event = stored.event
        return (
            not isinstance(event, EventRemoved)
            and event.namespace == self._namespace
            and stored.lsn <= self._up_to_lsn
            and (self._ids is None or event.memory_id in self._ids)
        )


class _Compaction:
    """One event for each memory that lives: what its events come to, at the LSN of the last.

    Passes over the log: :meth:`plan`, then :meth:`transform` in each of the others.

    Args:
        up_to_lsn: later events stay.
        kept: (namespace, memory id) of memories whose events all stay, because one of them is a dead letter.
    """

    def __init__(self, up_to_lsn: int, kept: Collection[tuple[str, str]]) -> None:
        self._up_to_lsn = up_to_lsn
        #: digest of a memory's key, so that a key takes as much room whatever its length -> LSN of its last event
        self._last: dict[bytes, int] = {}
        self._kept = {_digest(*key) for key in kept}
        self._growing: dict[bytes, MemoryAdded] = {}
        self._removed = EventRemoved("compacted", time.time_ns() // 1000)
        #: events that go
        self.superseded = 0

    def plan(self, stored: StoredEvent) -> None:
        """Take note of an event."""
        event = stored.event
        if isinstance(event, EventRemoved):
            return
        key = _digest(event.namespace, event.memory_id)
        if isinstance(event, MemoryAdded):
            self._last[key] = stored.lsn
            return
        if key not in self._last:  # a row that the user inserted
            self._kept.add(key)
        elif key not in self._kept:
            self.superseded += 1
            if isinstance(event, MemoryDeleted):
                self.superseded += 1
                del self._last[key]
            else:
                self._last[key] = stored.lsn

    def dropped_texts(self, stored: StoredEvent) -> set[str]:
        """:meth:`transform`, for the texts that the memory does not have any more; in a pass of its own."""
        event = stored.event
        if isinstance(event, EventRemoved):
            return set()
        key = _digest(event.namespace, event.memory_id)
        known = (event, self._growing.get(key))
        texts = {each.content for each in known if isinstance(each, MemoryAdded | MemoryUpdated) and each.content}
        after = self.transform(stored)
        if after is event:
            return set()
        left = self._growing.get(key) if after is self._removed else after
        return texts - {left.content} if isinstance(left, MemoryAdded) else texts

    def transform(self, stored: StoredEvent) -> Event:
        """What stands at an event's LSN from now on."""
        event = stored.event
        if isinstance(event, EventRemoved) or stored.lsn > self._up_to_lsn:
            return event
        key = _digest(event.namespace, event.memory_id)
        if key in self._kept:
            return event
        last_lsn = self._last.get(key)
        old = self._growing.pop(key, None)
        if last_lsn is None or isinstance(event, MemoryDeleted):
            return self._removed
        if isinstance(event, MemoryAdded):
            grown = event
        elif old is not None:
            grown = _updated(old, event)
        else:  # of an earlier life
            return self._removed
        if stored.lsn < last_lsn:
            self._growing[key] = grown
            return self._removed
        return grown


def _updated(added: MemoryAdded, event: MemoryUpdated) -> MemoryAdded:
    if event.content is not None:
        added = msgspec.structs.replace(added, content=event.content, embedding=event.embedding)
    if event.metadata_json is not None:
        added = msgspec.structs.replace(added, metadata_json=event.metadata_json)
    return added


def _digest(namespace: str, memory_id: str) -> bytes:
    # a namespace has no NUL
    return blake2b(f"{namespace}\0{memory_id}".encode(), digest_size=16).digest()
