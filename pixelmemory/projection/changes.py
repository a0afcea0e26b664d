"""Folding a run of events into what has to be done to the tables. Pure: no table, no clock, no model.

Per memory, the events of a batch leave at most three steps, always applied in this order::

    delete the row   (a delete of a memory that may have existed before the batch)
    insert a row     (an add, with every later update of the batch in it)
    patch the row    (updates of a memory that was added before the batch)

so that add + update is one insert and add + delete is nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from pixelmemory.log.file.frame import StoredEvent
from pixelmemory.memory.events import EventRemoved, MemoryAdded, MemoryEvent, MemoryUpdated

__all__ = ["Change", "fold"]


class Change(msgspec.Struct, gc=False):
    """What a batch does to one memory. Many at a time: the garbage collector need not look at them.

    ``content``, ``metadata_json`` and ``embedding`` are the row's new values; None means "as it is" in a patch.
    """

    namespace: str
    memory_id: str
    #: the last LSN folded in
    lsn: int
    #: those before it, ascending; None where there are none
    earlier_lsns: list[int] | None = None
    delete: bool = False
    insert: bool = False
    patch: bool = False
    content: str | None = None
    metadata_json: bytes | None = None
    embedding: bytes | None = None
    created_at_us: int | None = None

    @property
    def lsns(self) -> list[int]:
        """LSNs of the events folded in, ascending."""
        return [*(self.earlier_lsns or ()), self.lsn]

    @property
    def key(self) -> tuple[str, str]:
        """(namespace, memory id)."""
        return self.namespace, self.memory_id

    def _apply(self, event: MemoryEvent) -> None:
        if isinstance(event, MemoryAdded):
            self.insert, self.patch = True, False
            self.content, self.metadata_json = event.content, event.metadata_json
            self.embedding, self.created_at_us = event.embedding, event.created_at_us
        elif isinstance(event, MemoryUpdated):
            self.patch = not self.insert
            if event.content is not None:
                self.content, self.embedding = event.content, event.embedding
            if event.metadata_json is not None:
                self.metadata_json = event.metadata_json
        else:
            # an insert of this batch that is deleted again leaves nothing, unless a row stood before it
            self.delete = self.delete or not self.insert
            self.insert = self.patch = False
            self.content = self.metadata_json = self.embedding = self.created_at_us = None


def fold(events: Iterable[StoredEvent]) -> dict[tuple[str, str], Change]:
    """The changes of a run of events in LSN order, by (namespace, memory id), in order of first mention.

    Events that were taken out of the log change nothing.
    """
    changes: dict[tuple[str, str], Change] = {}
    for stored in events:
        event = stored.event
        if isinstance(event, EventRemoved):
            continue
        key = (event.namespace, event.memory_id)
        change = changes.get(key)
        if change is None:
            change = changes[key] = Change(event.namespace, event.memory_id, stored.lsn)
        else:
            if change.earlier_lsns is None:
                change.earlier_lsns = []
            change.earlier_lsns.append(change.lsn)
            change.lsn = stored.lsn
        change._apply(event)
    return changes
