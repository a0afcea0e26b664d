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

from pixelmemory.log.contract import StoredEvent
from pixelmemory.memory.events import EventRemoved, MemoryAdded, MemoryEvent, MemoryUpdated
from pixelmemory.memory.state import UNKNOWN, MemoryState
from pixelmemory.readers import give_way

__all__ = ["Change", "fold"]

#: events that are folded before readers get their turn
EVENTS_A_TURN = 200


class Change(msgspec.Struct, gc=False):
    """What a batch does to one memory. Many at a time: the garbage collector need not look at them.

    ``state`` has the new values of the row: all of them for an insert, whose state is whole; for a patch None stands
    for what stays as it is.
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
    #: what the events come to; None after a delete
    state: MemoryState | None = None

    @property
    def lsns(self) -> list[int]:
        """LSNs of the events folded in, ascending."""
        return [*(self.earlier_lsns or ()), self.lsn]

    @property
    def key(self) -> tuple[str, str]:
        """(namespace, memory id)."""
        return self.namespace, self.memory_id

    @property
    def content(self) -> str | None:
        """The row's new content."""
        return None if self.state is None else self.state.content

    @property
    def metadata_json(self) -> bytes | None:
        """The row's new metadata."""
        return None if self.state is None else self.state.metadata_json

    @property
    def embedding(self) -> bytes | None:
        """The caller's vector of the new content."""
        return None if self.state is None else self.state.embedding

    def _apply(self, event: MemoryEvent) -> None:
        if isinstance(event, MemoryAdded):
            self.insert, self.patch = True, False
        elif isinstance(event, MemoryUpdated):
            self.patch = not self.insert
        else:
            # an insert of this batch that is deleted again leaves nothing, unless a row stood before it
            self.delete = self.delete or not self.insert
            self.insert = self.patch = False
        # of a memory that was there before the batch, or should have been, nothing else is known
        self.state = MemoryState.evolve(UNKNOWN if self.state is None else self.state, event)


def fold(events: Iterable[StoredEvent]) -> dict[tuple[str, str], Change]:
    """The changes of a run of events in LSN order, by (namespace, memory id), in order of first mention.

    Events that were removed from the log change nothing.
    """
    changes: dict[tuple[str, str], Change] = {}
    for place, stored in enumerate(events):
        if place % EVENTS_A_TURN == 0:
            give_way()
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
