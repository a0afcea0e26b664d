"""Compaction: one event of each memory that lives is left in the log, and none of a deleted one."""

from __future__ import annotations

import time
from collections.abc import Collection
from hashlib import blake2b

from pixelmemory.log.contract import StoredEvent
from pixelmemory.memory.events import Event, EventRemoved, MemoryAdded, MemoryDeleted
from pixelmemory.memory.state import MemoryState
from pixelmemory.store.maintenance import Maintenance

__all__ = ["Compaction", "compact"]


def compact(maintenance: Maintenance, up_to_lsn: int) -> int:
    """Leave of each memory one event, and none of a deleted one, as far as ``up_to_lsn``, which is visible.

    What was superseded is gone afterwards, and the projection stays as it is. Takes about 200 bytes of memory for
    each memory, and the texts of those that were updated.

    Returns:
        By how many bytes the log has become smaller.

    Raises:
        LogWriteError: the log could not be rewritten, for want of room perhaps.
        LogPoisonedError: it failed half-way; reopen the store.
        StoreError: the log cannot be rewritten at all.
        ManifestError: up to where the log is rewritten could not be written down; nothing was changed.
    """
    with maintenance.lock:
        maintenance.check_open()
        maintenance.check_rewritable()
        dead = list(maintenance.projection.projector.dead_letters.values())
        compaction = Compaction(up_to_lsn, {(each.namespace, each.memory_id) for each in dead})
        for stored in maintenance.read(up_to_lsn):
            compaction.plan(stored)
        if not compaction.superseded:
            return 0
        maintenance.discard(text for stored in maintenance.read(up_to_lsn) for text in compaction.dropped_texts(stored))
        # from now on a projection that is older than this would miss deletes, and is rebuilt
        maintenance.save(rewritten_lsn=max(maintenance.manifest.rewritten_lsn, up_to_lsn))
        report = maintenance.rewrite(compaction.transform, "compacted")
    return report.bytes_before - report.bytes_after


class Compaction:
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
        #: what the events of a memory have come to whose last event is still to come
        self._growing: dict[bytes, MemoryState] = {}
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
        before = self._growing.get(key)
        after = self.transform(stored)
        if after is event:
            return set()
        left = self._growing.get(key) if after is self._removed else after
        texts = {_content(each) for each in (event, before)}
        return {text for text in texts - {_content(left)} if text}

    def transform(self, stored: StoredEvent) -> Event:
        """What stands at an event's LSN from now on."""
        event = stored.event
        if isinstance(event, EventRemoved) or stored.lsn > self._up_to_lsn:
            return event
        key = _digest(event.namespace, event.memory_id)
        if key in self._kept:
            return event
        last_lsn = self._last.get(key)
        state = MemoryState.evolve(self._growing.pop(key, None), event)
        if last_lsn is None or state is None:  # deleted, or of an earlier life
            return self._removed
        if stored.lsn < last_lsn:
            self._growing[key] = state
            return self._removed
        return event if isinstance(event, MemoryAdded) else state.added(event.namespace, event.memory_id)


def _content(state: Event | MemoryState | None) -> str | None:
    return None if state is None or isinstance(state, MemoryDeleted | EventRemoved) else state.content


def _digest(namespace: str, memory_id: str) -> bytes:
    # a namespace has no NUL
    return blake2b(f"{namespace}\0{memory_id}".encode(), digest_size=16).digest()
