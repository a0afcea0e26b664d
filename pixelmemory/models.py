"""What reads return, and what the store says of itself."""

from __future__ import annotations

import datetime as dt
from typing import Any, NamedTuple, NotRequired, TypedDict

__all__ = ["Health", "MemoryPage", "MemoryRecord", "Stats"]


class MemoryRecord(TypedDict):
    """One memory, as ``get_memory`` and ``search`` return it."""

    memory_id: str
    #: when the memory was created, aware, UTC; None for a row that a user inserted into the table without one
    timestamp: dt.datetime | None
    content: str
    metadata: dict[str, Any]
    #: cosine similarity, -1 to 1; only in the results of a search by ``query`` or ``vector``
    similarity_score: NotRequired[float]
    #: the namespace that it is in; only in the results of a read of several
    namespace: NotRequired[str]


class MemoryPage(NamedTuple):
    """One page of a list, as ``list_memories`` returns it."""

    memories: list[MemoryRecord]
    #: what to pass as ``after`` for the next page; None at the end
    next: str | None


class Stats(NamedTuple):
    """Figures of an open store, taken without touching the disk or the database."""

    #: last LSN that is durable: every event up to it survives a crash
    durable_lsn: int
    #: last LSN whose event is visible to reads
    watermark: int
    #: events that are durable and not yet visible
    lag_events: int
    #: last LSN that this handle wrote
    last_lsn: int
    #: events in the log, and its size on disk
    log_events: int
    log_bytes: int
    log_segments: int
    #: flushes since the store was opened
    log_syncs: int
    #: transactions committed to the projection since then, and the events in them
    batches: int
    events_applied: int
    #: texts embedded since then (from the cache or by the model), and the seconds it took
    texts_embedded: int
    #: texts for which the model has no vector (an empty one, say): those memories are found by metadata and time only
    texts_unembeddable: int
    #: texts that are longer than the model reads, and so found by their beginning: ``truncated_memories()`` lists them
    texts_truncated: int
    embed_seconds: float
    apply_seconds: float
    #: events that could not be applied and wait for ``retry_dead_letters()``
    dead_letters: int


class Health(NamedTuple):
    """Whether the store does all of its work at the moment."""

    #: True if writes are accepted, the projection moves, and nothing is a dead letter
    ok: bool
    #: what is wrong, for a person; empty if ``ok``
    problems: tuple[str, ...]
