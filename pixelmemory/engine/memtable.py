"""The events that are durable and that the tables do not show yet, by namespace and memory.

Belongs to the event loop's thread. Bounded: there are at most ``lag_events_max`` events, of which those beyond
``memtable_bytes_max``, or of one namespace beyond a quarter of that, are known without their content.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice

import msgspec

from pixelmemory.log.contract import EventLog, StoredEvent
from pixelmemory.memory.events import EventRemoved, MemoryAdded, MemoryDeleted, MemoryEvent, MemoryUpdated

__all__ = ["Key", "Memtable"]

#: (namespace, memory id)
Key = tuple[str, str]

#: a namespace keeps at most this part of the bytes, so that a load into one leaves room for the others
SPACE_SHARE = 4

#: what is read of the log at once
LOADED_EVENTS, LOADED_BYTES = 1000, 1 << 20

#: bytes that an event takes beside its texts and vector
_EVENT_BYTES = 300


class _Space(msgspec.Struct):
    """The events of one namespace."""

    #: memory id -> its events in LSN order, at least one
    memories: dict[str, list[StoredEvent]]
    last_lsn: int = 0
    #: events that are known without their content
    stripped: int = 0
    #: of the events that are known with it
    bytes: int = 0
    event_count: int = 0


class Memtable:
    """What lies between the watermark and the end of the log."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._spaces: dict[str, _Space] = {}
        #: (LSN, key, bytes; 0 for an event without its content), to forget them in their order
        self._events: deque[tuple[int, Key, int]] = deque()

    @property
    def is_empty(self) -> bool:
        """Whether the tables show everything."""
        return not self._events

    def add(self, last_lsn: int, events: Sequence[MemoryEvent]) -> None:
        """``events`` are durable; ``last_lsn`` is of the last of them."""
        for lsn, event in enumerate(events, last_lsn - len(events) + 1):
            self._add(lsn, event)

    def load(self, log: EventLog, first_lsn: int) -> None:
        """Every event of ``log`` from ``first_lsn`` on is durable. Blocking; before anything is added."""
        while first_lsn <= log.durable_lsn:
            read = log.read(first_lsn, events_max=LOADED_EVENTS, bytes_max=LOADED_BYTES)
            for stored in read:
                if not isinstance(stored.event, EventRemoved):
                    self._add(stored.lsn, stored.event)
            first_lsn = read[-1].lsn + 1

    def _add(self, lsn: int, event: MemoryEvent) -> None:
        namespace, memory_id = event.namespace, event.memory_id
        size = _size(event)
        held = event
        space = self._spaces.get(namespace)
        if space is None:
            space = self._spaces[namespace] = _Space({})
        if self._bytes + size > self._bytes_max or space.bytes + size > self._bytes_max // SPACE_SHARE:
            held, size = _stripped(event), 0
        stored = StoredEvent(lsn, b"", 0, held)
        before = space.memories.get(memory_id)
        if before is None:
            space.memories[memory_id] = [stored]
        else:
            before.append(stored)
        space.last_lsn = lsn
        space.event_count += 1
        space.stripped += not size
        space.bytes += size
        self._bytes += size
        self._events.append((lsn, (namespace, memory_id), size))

    def forget(self, watermark: int) -> None:
        """The tables show everything up to ``watermark``."""
        events = self._events
        while events and events[0][0] <= watermark:
            _, (namespace, memory_id), size = events.popleft()
            space = self._spaces[namespace]
            left = space.memories[memory_id]
            if len(left) == 1:
                del space.memories[memory_id]
                if not space.memories:
                    del self._spaces[namespace]
            else:
                del left[0]
            space.event_count -= 1
            space.stripped -= not size
            space.bytes -= size
            self._bytes -= size

    def exists(self, key: Key) -> bool | None:
        """Whether a memory exists after its last event; None where the tables show that event."""
        space = self._spaces.get(key[0])
        events = None if space is None else space.memories.get(key[1])
        return None if events is None else type(events[-1].event) is not MemoryDeleted

    def namespaces(self, count_max: int | None = None) -> list[str]:
        """Namespaces that have events here; all, or ``count_max`` of them at most."""
        return list(islice(self._spaces, count_max))

    def holders(self, memory_id: str, namespaces_max: int) -> dict[str, bool]:
        """Of namespaces in which the memory has events here: whether it exists there after the last of them."""
        found = {namespace: self.exists((namespace, memory_id)) for namespace in self.namespaces(namespaces_max)}
        return {namespace: exists for namespace, exists in found.items() if exists is not None}

    def last_lsn(self, namespace: str) -> int:
        """The last LSN of ``namespace`` that the tables do not show; 0 where they show everything."""
        space = self._spaces.get(namespace)
        return 0 if space is None else space.last_lsn

    def __len__(self) -> int:
        """How many events the tables do not show."""
        return len(self._events)

    def event_count(self, namespace: str) -> int:
        """How many events of ``namespace`` the tables do not show."""
        space = self._spaces.get(namespace)
        return 0 if space is None else space.event_count

    def events(self, namespaces: Iterable[str], events_max: int) -> list[StoredEvent] | None:
        """The events of ``namespaces``, those of a memory in LSN order.

        Returns:
            None where there are more than ``events_max``, or where some are known without their content.
        """
        found: list[StoredEvent] = []
        for namespace in namespaces:
            space = self._spaces.get(namespace)
            if space is None:
                continue
            if space.stripped or len(found) + space.event_count > events_max:
                return None
            found += [stored for memory in space.memories.values() for stored in memory]
        return found

    def events_of(self, key: Key) -> list[StoredEvent] | None:
        """The events of one memory in LSN order; None where some of its namespace are known without their content."""
        space = self._spaces.get(key[0])
        if space is None:
            return []
        return None if space.stripped else list(space.memories.get(key[1], ()))


def _size(event: MemoryEvent) -> int:
    if isinstance(event, MemoryDeleted):
        return _EVENT_BYTES
    size = _EVENT_BYTES
    for part in (event.content, event.metadata_json, event.embedding):
        if part is not None:
            size += len(part)
    return size


def _stripped(event: MemoryEvent) -> MemoryEvent:
    """The same kind of event without what it says."""
    if isinstance(event, MemoryAdded):
        return MemoryAdded(event.namespace, event.memory_id, "", 0)
    return MemoryUpdated(event.namespace, event.memory_id) if isinstance(event, MemoryUpdated) else event
