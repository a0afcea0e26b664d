"""What the projection does not show yet: the memories that are changed, and the calls that wait for it.

Belongs to the event loop's thread.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence

import anyio

from pixelmemory.engine.memtable import Key, Memtable
from pixelmemory.errors import (
    ProjectionUnavailableError,
    StoreClosedError,
    UnavailableCause,
    UnknownOutcomeError,
    WaitTimeoutError,
)
from pixelmemory.memory.events import MemoryEvent
from pixelmemory.store.store import OpenStore

__all__ = ["Visibility"]

#: how often whoever waits is told how far the projection is
TICK_SECONDS = 0.1


class Visibility:
    """Waits for the watermark of one open store, and what lies beyond it.

    Attributes:
        memtable: the events beyond it since the store was opened.
        known_lsn: the last LSN that the event loop knows to be durable.
    """

    def __init__(self, store: OpenStore) -> None:
        self._log = store.log
        self._projector = store.projection.projector
        self._is_missing = store.projection.is_missing
        self._closed = False
        self.memtable = Memtable(store.options.memtable_bytes_max)
        self.known_lsn = store.log.durable_lsn
        #: (LSN, tie, event) of those who wait; a heap
        self._waiting: list[tuple[int, int, anyio.Event]] = []
        self._ties = itertools.count()

    @property
    def idle(self) -> bool:
        """Whether nobody waits, and nothing is unseen."""
        return not self._waiting and self.memtable.is_empty

    def committed(self, last_lsn: int, events: Sequence[MemoryEvent]) -> None:
        """A frame is durable: ``events`` are all of it, and ``last_lsn`` is of the last of them."""
        if self._is_missing:
            return  # nothing ever becomes visible, and nobody can ask
        self.memtable.add(last_lsn, events)
        self.known_lsn = last_lsn

    def exists(self, key: Key) -> bool | None:
        """Whether a memory exists after its last event; None where that event is visible, and its row tells."""
        return self.memtable.exists(key)

    def is_stuck(self, lsn: int) -> bool:
        """Whether a read that needs ``lsn`` has to be told that it does not become visible."""
        return self._projector.failure is not None or self._out_of_reach(lsn)

    def notify(self) -> None:
        """There are new events: let the projector know, and whether somebody waits."""
        self._projector.notify(urgent=bool(self._waiting))

    def advanced(self) -> None:
        """The watermark has moved, or the state of the log's or the projector's health."""
        watermark = self._projector.watermark
        self.memtable.forget(watermark)
        while self._waiting and (self._waiting[0][0] <= watermark or self._projector.failure is not None):
            heapq.heappop(self._waiting)[2].set()
        if self._log.failure is not None:
            for lsn, _, event in self._waiting:
                if self._out_of_reach(lsn):
                    event.set()

    def close(self) -> None:
        """The store is closed: nobody waits any longer."""
        self._closed = True
        while self._waiting:
            heapq.heappop(self._waiting)[2].set()

    async def wait(self, lsn: int, timeout_seconds: float, tick: Callable[[], None] | None = None) -> None:
        """Wait until the projection shows ``lsn``.

        Args:
            tick: called every :data:`TICK_SECONDS` of the wait; what it raises ends the wait.

        Raises:
            WaitTimeoutError: it did not within ``timeout_seconds``.
            ProjectionUnavailableError: the projector has stopped.
            StoreClosedError: the store was closed meanwhile.
            UnknownOutcomeError: it was acknowledged before its flush, as ``SyncMode.INTERVAL`` does, and that failed.
        """
        projector = self._projector
        if projector.watermark >= lsn:
            return
        entry = (lsn, next(self._ties), anyio.Event())
        heapq.heappush(self._waiting, entry)
        projector.notify(urgent=True)
        try:
            with anyio.move_on_after(timeout_seconds):
                if projector.failure is None and not self._out_of_reach(lsn):
                    while tick is not None and not entry[2].is_set():
                        tick()
                        with anyio.move_on_after(TICK_SECONDS):
                            await entry[2].wait()
                    await entry[2].wait()
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)
                heapq.heapify(self._waiting)
        if projector.watermark >= lsn:
            return
        if self._closed:
            raise StoreClosedError(f"the store was closed; LSN {lsn} is durable and not visible yet")
        if self._out_of_reach(lsn):
            raise UnknownOutcomeError(
                f"LSN {lsn} was acknowledged before its flush, and that failed ({self._log.failure}). Reopen the store "
                "to see whether it was recorded, or read with consistency='eventual'"
            )
        if projector.failure is not None:
            raise ProjectionUnavailableError(
                f"{projector.blocked}; LSN {lsn} is durable and not visible", UnavailableCause.PROJECTOR_STOPPED
            )
        raise WaitTimeoutError(lsn, projector.watermark, timeout_seconds, projector.blocked)

    def _out_of_reach(self, lsn: int) -> bool:
        """Whether the projection waits for a flush of ``lsn`` that does not come any more."""
        return self._log.failure is not None and lsn > self._projector.readable_lsn
