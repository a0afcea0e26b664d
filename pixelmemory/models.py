"""What reads return, what the store says of itself, and all of that as JSON."""

from __future__ import annotations

import datetime as dt
from typing import Any, NamedTuple, NotRequired, TypedDict

import msgspec

from pixelmemory.errors import InvalidArgumentError, InvalidTypeError, type_name

__all__ = ["Health", "MemoryPage", "MemoryRecord", "Stats", "StoreRecord", "to_json"]


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


class StoreRecord(TypedDict):
    """One store of a home, as ``stores`` returns it."""

    name: str
    #: of its folder, absolute
    path: str
    #: of the files in that folder: the log, the vector cache and the rest. Its tables in Pixeltable are not counted
    bytes: int


def to_json(value: object) -> bytes:
    """Anything that the public methods return, as JSON text.

    ::

        to_json(mem.search(query="tea"))  # b'[{"memory_id":"...","timestamp":"2024-05-01T12:00:00Z",...}]'
        to_json(mem.health())  # b'{"ok":true,"problems":[]}'

    Times are ISO 8601 with their offset from UTC, ``Z`` for UTC, to the microsecond. :class:`Health`, :class:`Stats`
    and :class:`MemoryPage` become objects with a key for each field. Metadata comes out exactly as it was given,
    integers of any size included. A value of NumPy's becomes a number or a list.

    Args:
        value: a result, or a dict, list or tuple of results.

    Returns:
        UTF-8, without line breaks.

    Raises:
        InvalidTypeError: a value, or something in it, that is none of these and not JSON.
        InvalidArgumentError: a text in it has a lone surrogate, or it is nested too deeply or in itself.
    """
    try:
        return msgspec.json.encode(_fields_named(value), enc_hook=_from_numpy)
    except UnicodeEncodeError:
        raise InvalidArgumentError("value", "has a text with a lone surrogate, which UTF-8 cannot hold") from None
    except RecursionError:
        raise InvalidArgumentError("value", "is nested too deeply, or contains itself") from None


def _fields_named(value: Any) -> Any:
    """``value`` with each named tuple as a dict; msgspec writes one as a list."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: _fields_named(item) for key, item in value.items()}
    return [_fields_named(item) for item in value] if isinstance(value, (list, tuple)) else value


def _from_numpy(value: Any) -> Any:
    if not hasattr(value, "tolist"):
        raise InvalidTypeError("value", f"must be what a method of Memory returns; JSON has no {type_name(value)}")
    return value.tolist()
