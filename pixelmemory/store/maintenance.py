"""What rewrites an open store's log, and what it needs for that: the log, the manifest, the cache, one at a time.

An :class:`EventRemoved` stays at each LSN that is removed. Blocking; on a worker thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pixelmemory.embedding import VectorCache
from pixelmemory.errors import StoreClosedError, StoreError
from pixelmemory.log.contract import EventLog, LogCapability, RewriteReport, StoredEvent
from pixelmemory.log.file.files import Files
from pixelmemory.memory.events import Event
from pixelmemory.store.manifest import Manifest

if TYPE_CHECKING:
    from pixelmemory.projection.projection import Projection

__all__ = ["Maintenance"]

_logger = logging.getLogger("pixelmemory")

#: events in one read of the log, and the encoded bytes that end it
READ_EVENTS = 4096
READ_BYTES = 4 << 20
#: texts that are removed from the vector cache at once
DISCARDED_TEXTS = 1000


class Maintenance:
    """One open store, for what erases from it or compacts it.

    Attributes:
        lock: held by whoever does.
        manifest: as it stands on the disk.
        folder, log, projection, files: of the store.
        check_folder: raises an OSError where the folder is not the one that was opened.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        log: EventLog,
        projection: Projection,
        cache: VectorCache | None,
        files: Files | None = None,
        check_folder: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = folder
        self.check_folder = check_folder
        self.manifest = manifest
        self.log = log
        self.projection = projection
        self._cache = cache
        self.files = files or Files()
        self.lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """End what is under way, and wait for that; nothing begins afterwards. Idempotent.

        A compaction leaves the log as it was, and the next open finishes an erase. What it has asked of the database
        runs to its end.
        """
        self._closed = True
        with self.lock:
            pass

    def check_rewritable(self) -> None:
        """Raise StoreError where the log cannot be rewritten."""
        if (reason := self.log.lacks.get(LogCapability.REWRITE)) is not None:
            raise StoreError(reason)

    def check_open(self) -> None:
        """Raise StoreClosedError once the store is being closed."""
        if self._closed:
            raise StoreClosedError("the store is closed")

    def read(self, up_to_lsn: int) -> Iterator[StoredEvent]:
        """The events of the log up to ``up_to_lsn``, in LSN order."""
        next_lsn = self.log.first_lsn
        while next_lsn <= up_to_lsn:
            self.check_open()
            events = self.log.read(next_lsn, events_max=READ_EVENTS, bytes_max=READ_BYTES)
            if not events:
                return
            for stored in events:
                if stored.lsn > up_to_lsn:
                    return
                yield stored
            next_lsn = events[-1].lsn + 1

    def rewrite(self, transform: Callable[[StoredEvent], Event], what: str) -> RewriteReport:
        """Rewrite the log with what ``transform`` makes of its events; ``what`` became of them, for the log."""

        def while_open(stored: StoredEvent) -> Event:
            self.check_open()
            return transform(stored)

        report = self.log.rewrite(while_open)
        _logger.info(
            "%d events were %s: the log has %d bytes, and had %d",
            *(report.events_changed, what, report.bytes_after, report.bytes_before),
        )
        return report

    def discard(self, texts: Iterable[str]) -> None:
        """Take the vectors of ``texts`` out of the cache."""
        if self._cache is None:
            return
        remaining = iter(texts)
        while some := set(islice(remaining, DISCARDED_TEXTS)):
            try:
                self._cache.discard(list(some))
            except OSError as error:
                raise StoreError(f"vectors cannot be removed from the cache: {error}") from error

    def save(self, **changes: Any) -> None:
        """Write the manifest with ``changes``."""
        manifest = msgspec.structs.replace(self.manifest, **changes)
        manifest.save(self.folder, self.files, self.check_folder)
        self.manifest = manifest
