"""The arguments of a call, checked against the store that it is made on. Nothing here waits or is logged."""

from __future__ import annotations

import datetime as dt
import math
from typing import NamedTuple

import numpy as np

from pixelmemory.errors import InvalidArgumentError, InvalidTypeError, brief, type_name
from pixelmemory.memory.events import MemoryUpdated
from pixelmemory.memory.filters import Filter, parse_filter
from pixelmemory.memory.values import (
    CheckedEntry,
    check_content,
    check_entry,
    check_limit,
    check_namespace,
    check_time_range,
    check_values,
    check_vector,
    decode_metadata,
    encode_metadata,
    from_timestamp,
)
from pixelmemory.store.opening import OpenStore

__all__ = [
    "CheckedSearch",
    "check_added",
    "check_added_entry",
    "check_consistency",
    "check_search",
    "check_timeout",
    "check_updated",
]

NEEDS_VECTOR = "is required: this store has no model, so its vectors are always given"


class CheckedSearch(NamedTuple):
    """The conditions of one search; ``query`` or ``vector`` or neither."""

    namespace: str
    limit: int
    query: str | None
    #: float32, (dimensions,)
    vector: np.ndarray | None
    filter: Filter | None
    #: inclusive bounds, aware
    start: dt.datetime | None
    end: dt.datetime | None
    min_score: float | None


def check_added(
    store: OpenStore, content: object, metadata: object, memory_id: object, timestamp: object, embedding: object
) -> CheckedEntry:
    """The memory of a single add."""
    checked = check_values(
        content, metadata, memory_id, timestamp, embedding, store.options, store.dimensions, "", store.schema
    )
    return _with_vector(store, checked, "")


def check_added_entry(store: OpenStore, entry: object, field: str) -> CheckedEntry:
    """One entry of an add of several; ``field`` is how errors name it."""
    return _with_vector(store, check_entry(entry, store.options, store.dimensions, field, store.schema), f"{field}.")


def _with_vector(store: OpenStore, checked: CheckedEntry, prefix: str) -> CheckedEntry:
    if store.dimensions is not None and store.embedder is None and checked.embedding is None:
        raise InvalidArgumentError(f"{prefix}embedding", NEEDS_VECTOR)
    return checked


def check_updated(
    store: OpenStore, namespace: str, memory_id: str, content: object, metadata: object, embedding: object
) -> MemoryUpdated:
    """The event of an update; ``namespace`` and ``memory_id`` are checked."""
    text = None if content is None else check_content(content, store.options)
    metadata_json: bytes | None = None
    if metadata is not None:
        metadata_json = encode_metadata(metadata, store.options)
        if store.schema is not None:
            store.schema.check(decode_metadata(metadata_json))
    vector: bytes | None = None
    if embedding is not None:
        if store.dimensions is None:
            raise InvalidArgumentError("embedding", "was given, and this store has no semantic search")
        if text is None:
            raise InvalidArgumentError("embedding", "needs content: a vector belongs to a text")
        vector = check_vector(embedding, store.dimensions)
    elif text is not None and store.dimensions is not None and store.embedder is None:
        raise InvalidArgumentError("embedding", NEEDS_VECTOR)
    return MemoryUpdated(namespace, memory_id, text, metadata_json, vector)


def check_search(
    store: OpenStore,
    namespace: object,
    query: object,
    limit: object,
    metadata_filter: object,
    start_time: object,
    end_time: object,
    vector: object,
    min_score: object,
) -> CheckedSearch:
    """The conditions of a search."""
    options = store.options
    checked_namespace = check_namespace(namespace, options)
    checked_limit = check_limit(limit)
    parsed = parse_filter(metadata_filter, options)
    start_us, end_us = check_time_range(start_time, end_time)
    if query is not None and vector is not None:
        raise InvalidArgumentError("vector", "and query exclude each other")
    text: str | None = None
    if query is not None:
        text = check_content(query, options, "query")
        if store.embedder is None:
            why = "this store has no semantic search" if store.dimensions is None else "this store has no model"
            raise InvalidArgumentError("query", f"was given, and {why}; pass metadata_filter, times or vector")
    checked_vector: np.ndarray | None = None
    if vector is not None:
        if store.dimensions is None:
            raise InvalidArgumentError("vector", "was given, and this store has no semantic search")
        checked_vector = np.frombuffer(check_vector(vector, store.dimensions, "vector"), dtype="<f4")
    if min_score is not None:
        if isinstance(min_score, bool) or not isinstance(min_score, (int, float)):
            raise InvalidTypeError("min_score", f"must be a number, not {type_name(min_score)}")
        if not -1 <= min_score <= 1:
            raise InvalidArgumentError("min_score", f"must be from -1 to 1, not {brief(min_score)}")
        if query is None and vector is None:
            raise InvalidArgumentError("min_score", "needs query or vector")
        min_score = float(min_score)
    return CheckedSearch(
        checked_namespace,
        checked_limit,
        text,
        checked_vector,
        parsed,
        None if start_us is None else from_timestamp(start_us),
        None if end_us is None else from_timestamp(end_us),
        min_score,
    )


def check_consistency(value: object) -> str | int:
    """``"session"``, ``"eventual"``, ``"strong"`` or an LSN."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise InvalidTypeError("consistency", f"must be a str or an LSN, not {type_name(value)}")
    if isinstance(value, str) and value not in ("session", "eventual", "strong"):
        reason = f"must be 'session', 'eventual', 'strong' or an LSN, not {brief(value)}"
        raise InvalidArgumentError("consistency", reason)
    if isinstance(value, int) and value < 0:
        raise InvalidArgumentError("consistency", f"must be an LSN from 0, not {brief(value)}")
    return value


def check_timeout(value: object) -> float | None:
    """Seconds from 0, or None for the default."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidTypeError("timeout", f"must be a number of seconds, not {type_name(value)}")
    if not value >= 0:
        raise InvalidArgumentError("timeout", f"must not be negative, not {brief(value)}")
    try:
        return float(value)
    except OverflowError:  # an integer that no float holds
        return math.inf
