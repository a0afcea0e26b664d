"""Backpressure: how many events may be on their way from a call to the tables, and who waits until there is room."""

from __future__ import annotations

import time

import anyio

from pixelmemory.engine.visibility import Visibility
from pixelmemory.options import Options
from pixelmemory.store.store import OpenStore

__all__ = ["Room"]


class Room:
    """Belongs to the loop of its engine.

    Attributes:
        in_flight: events that were submitted and are not committed yet.
    """

    def __init__(self, options: Options) -> None:
        self.in_flight = 0
        self._options = options
        #: set, and replaced, after each commit and each withdrawal
        self._was_made = anyio.Event()

    def made(self, event_count: int) -> None:
        """``event_count`` events are committed, or withdrawn; wakes everybody who waits."""
        self.in_flight -= event_count
        self._was_made.set()
        self._was_made = anyio.Event()

    def has(self, store: OpenStore, event_count: int) -> bool:
        """Whether neither too much is durable and not yet visible, nor too much waits to become durable."""
        log = store.log
        if log.buffered_bytes >= self._options.buffer_bytes_max:
            return False
        if store.projection.is_missing:
            return True
        lag = log.durable_lsn + self.in_flight - store.projection.projector.watermark
        return lag == 0 or lag + event_count <= self._options.lag_events_max

    async def wait(self, store: OpenStore, visibility: Visibility, event_count: int) -> None:
        """Hold a writer back until there is room for its events.

        Raises:
            WaitTimeoutError: the projection made none within ``lag_timeout_seconds``.
        """
        log, projector = store.log, store.projection.projector
        deadline = time.monotonic() + self._options.lag_timeout_seconds
        while log.failure is None and not self.has(store, event_count):
            if log.buffered_bytes >= self._options.buffer_bytes_max:
                await self._was_made.wait()
                continue
            goal = log.durable_lsn + self.in_flight + event_count - self._options.lag_events_max
            goal = min(max(goal, projector.watermark + 1), log.durable_lsn)
            if goal <= projector.watermark:
                await self._was_made.wait()
                continue
            await visibility.wait(goal, max(0.0, deadline - time.monotonic()))
