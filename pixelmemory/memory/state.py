"""What a memory is: the fold of its events."""

from __future__ import annotations

from typing import Any

import msgspec

from pixelmemory.memory.events import MemoryAdded, MemoryEvent, MemoryUpdated

__all__ = ["UNKNOWN", "MemoryState"]


class MemoryState(msgspec.Struct, frozen=True, gc=False):
    """What the events of one memory have come to. Many at a time: the garbage collector need not look at them.

    Two ends of the same thing: folded from the memory's first event it is whole; folded from :data:`UNKNOWN` it is what
    the events of a part of the log say, and None stands for what they leave as it was.
    """

    content: str | None
    #: microseconds since the epoch, UTC
    created_at_us: int | None
    #: a JSON object as UTF-8 text
    metadata_json: bytes | None
    #: the caller's own vector of the content, little-endian float32; None where the model embeds it
    embedding: bytes | None

    @staticmethod
    def evolve(state: MemoryState | None, event: MemoryEvent) -> MemoryState | None:
        """What ``state`` becomes by ``event``. The one fold of the package.

        Args:
            state: None where there is no memory.

        Returns:
            None where there is none afterwards: it was deleted, or an update found none.
        """
        if isinstance(event, MemoryAdded):
            return MemoryState(event.content, event.created_at_us, event.metadata_json, event.embedding)
        if not isinstance(event, MemoryUpdated) or state is None:
            return None
        content, embedding, metadata_json = state.content, state.embedding, state.metadata_json
        if event.content is not None:  # a vector belongs to its text
            content, embedding = event.content, event.embedding
        if event.metadata_json is not None:
            metadata_json = event.metadata_json
        return MemoryState(content, state.created_at_us, metadata_json, embedding)

    def added(self, namespace: str, memory_id: str) -> MemoryAdded:
        """The one event that comes to this state, which is whole."""
        fields: dict[str, Any] = msgspec.structs.asdict(self)
        return MemoryAdded(namespace, memory_id, **fields)


#: of a memory that exists, and nothing else is known of it
UNKNOWN = MemoryState(None, None, None, None)
