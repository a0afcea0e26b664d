"""Which events an erase removes."""

from __future__ import annotations

import msgspec

from pixelmemory.memory.events import Event, EventRemoved

__all__ = ["Erased", "Erasure"]


class Erasure(msgspec.Struct, frozen=True):
    """An erase that was begun; it stands in the MANIFEST until it is finished."""

    namespace: str
    #: of the namespace's memories, or None for all of them
    memory_ids: list[str] | None
    #: events after it stay: the memory may have been added again
    up_to_lsn: int


class Erased:
    """Whether an event is one that ``erasure`` takes out."""

    def __init__(self, erasure: Erasure) -> None:
        self._namespace = erasure.namespace
        self._ids = None if erasure.memory_ids is None else frozenset(erasure.memory_ids)
        self._up_to_lsn = erasure.up_to_lsn

    def __call__(self, lsn: int, event: Event) -> bool:
        return (
            not isinstance(event, EventRemoved)
            and event.namespace == self._namespace
            and lsn <= self._up_to_lsn
            and (self._ids is None or event.memory_id in self._ids)
        )
