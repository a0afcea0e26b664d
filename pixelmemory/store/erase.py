"""Erasing memories: out of the log, and out of everything that was made from it.

That is the vector cache, ``quarantine/``, the tables and what PostgreSQL keeps of their past. The intent stands in the
MANIFEST from before the first byte is changed until the last one is gone, so that a kill at any point leaves an erase
that the next open finishes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path

from pixelmemory.errors import PixelmemoryError, StoreError
from pixelmemory.faults import fault_point
from pixelmemory.log.file.files import Files
from pixelmemory.memory.erasure import Erased, Erasure
from pixelmemory.memory.events import EventRemoved, MemoryDeleted, MemoryEvent
from pixelmemory.store.maintenance import Maintenance

__all__ = ["Eraser"]

_logger = logging.getLogger("pixelmemory")

#: how often a wait looks whether the store was closed
CLOSED_SECONDS = 0.1


class Eraser:
    """Erases from one open store.

    Attributes:
        problem: why an erase that was begun is not finished, for a person; None if none is open.
    """

    def __init__(self, maintenance: Maintenance) -> None:
        self._maintenance = maintenance
        self.problem: str | None = None

    def resume(self) -> None:
        """Finish the erase that an earlier process began, if there is one. Before the projector is started.

        One that cannot be finished now does not keep the store shut: ``problem`` says why, and the next erase, or the
        next open, tries again.
        """
        with self._maintenance.lock:
            if self._maintenance.manifest.erasing is None:
                return
            _logger.warning("an erase was interrupted, and is finished now")
            try:
                self._erase(self._maintenance.manifest.erasing, self._maintenance.projection.erase)
            except PixelmemoryError as error:
                _logger.error("%s", self.problem, exc_info=error)

    def check_possible(self) -> None:
        """Raise StoreError or ProjectionError where the log or the tables cannot do what an erase needs."""
        self._maintenance.check_rewritable()
        self._maintenance.projection.check_erasable()

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
        with self._maintenance.lock:
            self._maintenance.check_open()
            self.check_possible()
            if self._maintenance.manifest.erasing is not None:
                self._erase(self._maintenance.manifest.erasing, self._on_projector)
            found = {event.memory_id for event in self._events_of(erasure)}
            # also where the log knows nothing any more: the tables keep versions that a compaction took out of it
            rewritten_lsn = max(self._maintenance.manifest.rewritten_lsn, erasure.up_to_lsn)
            self._maintenance.save(erasing=erasure, rewritten_lsn=rewritten_lsn)
            fault_point("erase.after_intent")
            self._erase(erasure, self._on_projector)
        return len(found)

    def _erase(self, erasure: Erasure, on_tables: Callable[[Erasure], None]) -> None:
        """Everything after the intent was written. Whatever was done before is done again."""
        try:
            self._discard_vectors(erasure)
            fault_point("erase.after_cache")
            if any(True for _ in self._events_of(erasure)):
                is_erased = Erased(erasure)
                removed = EventRemoved("erased", time.time_ns() // 1000)
                self._maintenance.rewrite(
                    lambda stored: removed if is_erased(stored.lsn, stored.event) else stored.event, "erased"
                )
            fault_point("erase.after_log")
            self._empty_quarantine()
            fault_point("erase.after_quarantine")
            on_tables(erasure)
            fault_point("erase.after_projection")
            self._maintenance.save(erasing=None)
        except BaseException as error:
            self.problem = (
                f"an erase is not finished: {type(error).__name__}: {error}. Erase again, or reopen the store"
            )
            raise
        self.problem = None

    def _on_projector(self, erasure: Erasure) -> None:
        """On the projector's thread: nothing is applied meanwhile."""
        done = self._maintenance.projection.projector.request(lambda: self._maintenance.projection.erase(erasure))
        while not wait([done], CLOSED_SECONDS).done:  # a projector that cannot reach the database comes to it late
            self._maintenance.check_open()
        done.result()

    def _discard_vectors(self, erasure: Erasure) -> None:
        self._maintenance.discard(
            event.content
            for event in self._events_of(erasure)
            if not isinstance(event, MemoryDeleted) and event.content is not None
        )

    def _events_of(self, erasure: Erasure) -> Iterator[MemoryEvent]:
        is_erased = Erased(erasure)
        for stored in self._maintenance.read(erasure.up_to_lsn):
            if is_erased(stored.lsn, stored.event):
                assert not isinstance(stored.event, EventRemoved)
                yield stored.event

    def _empty_quarantine(self) -> None:
        """Nobody can tell whose bytes stand there."""
        quarantine = self._maintenance.folder / "quarantine"
        try:
            self._maintenance.check_folder()
            if self._maintenance.files.is_folder(quarantine):
                _remove_inside(self._maintenance.files, quarantine)
        except OSError as error:
            raise StoreError(f"{quarantine} cannot be emptied: {error}") from error


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
