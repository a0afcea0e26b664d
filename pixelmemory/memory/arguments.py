"""A call's arguments, checked against the rules of its store: in come a caller's values, out go events and searches.

Nothing here waits or is logged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import cast

import msgspec
import numpy as np

from pixelmemory.errors import InvalidArgumentError, InvalidTypeError, brief, type_name
from pixelmemory.memory.events import MemoryUpdated
from pixelmemory.memory.filters import parse_filter
from pixelmemory.memory.metadata import decode_metadata, encode_metadata
from pixelmemory.memory.namespaces import check_namespaces
from pixelmemory.memory.paging import check_after, check_order
from pixelmemory.memory.rules import Rules
from pixelmemory.memory.search import Ranking, Search
from pixelmemory.memory.values import (
    check_content,
    check_limit,
    check_memory_id,
    check_time_range,
    check_timestamp,
    check_vector,
    from_timestamp,
)

__all__ = [
    "CheckedEntry",
    "check_added",
    "check_consistency",
    "check_entry",
    "check_if_exists",
    "check_list",
    "check_merge",
    "check_progress",
    "check_search",
    "check_timeout",
    "check_updated",
    "id_list",
    "schemaless",
]

NEEDS_VECTOR = "is required: this store has no model, so its vectors are always given"


class CheckedEntry(msgspec.Struct, frozen=True, gc=False):
    """One entry of ``add_entries`` in the form the log holds; None where the caller gave nothing."""

    memory_id: str | None
    content: str
    metadata_json: bytes
    #: microseconds since the epoch, UTC
    created_at_us: int | None
    #: float32, little-endian
    embedding: bytes | None


#: what an entry may have, in the order of :func:`check_added`
_ENTRY_KEYS = ("content", "metadata", "memory_id", "timestamp", "embedding")


def check_entry(rules: Rules, entry: object, field: str) -> CheckedEntry:
    """One entry of an add of several: a dict with ``content`` and optionally the others of :func:`check_added`.

    Args:
        entry: what the caller gave; an optional key with the value None counts as absent.
        field: how errors name the entry, such as ``entries[3]``.

    Raises:
        InvalidTypeError, InvalidArgumentError, LimitExceededError, SchemaViolationError: as the single checks.
    """
    if not isinstance(entry, Mapping):
        raise InvalidTypeError(field, f"must be a dict with 'content', not {type_name(entry)}")
    if unknown := [key for key in entry if key not in _ENTRY_KEYS]:
        names, known = ", ".join(map(brief, unknown[:5])), ", ".join(sorted(_ENTRY_KEYS))
        raise InvalidArgumentError(field, f"has unknown keys: {names}; known are {known}")
    if "content" not in entry:
        raise InvalidArgumentError(field, "has no 'content'")
    content, metadata, memory_id, timestamp, embedding = map(entry.get, _ENTRY_KEYS)
    return check_added(rules, content, metadata, memory_id, timestamp, embedding, prefix=f"{field}.")


def check_added(
    rules: Rules,
    content: object,
    metadata: object,
    memory_id: object,
    timestamp: object,
    embedding: object,
    *,
    prefix: str = "",
) -> CheckedEntry:
    """A memory to add; ``prefix`` stands before the names of the values in errors."""
    options, schema, dimensions = rules.options, rules.schema, rules.dimensions
    checked_content = check_content(content, options, f"{prefix}content")
    metadata_json = encode_metadata(metadata, options, f"{prefix}metadata")
    if schema is not None:
        schema.check(decode_metadata(metadata_json), f"{prefix}metadata")
    if embedding is not None and dimensions is None:
        raise InvalidArgumentError(f"{prefix}embedding", "was given, and this store has no vectors")
    checked = CheckedEntry(
        None if memory_id is None else check_memory_id(memory_id, options, f"{prefix}memory_id"),
        checked_content,
        metadata_json,
        None if timestamp is None else check_timestamp(timestamp, f"{prefix}timestamp"),
        None if embedding is None or dimensions is None else check_vector(embedding, dimensions, f"{prefix}embedding"),
    )
    if dimensions is not None and not rules.has_model and checked.embedding is None:
        raise InvalidArgumentError(f"{prefix}embedding", NEEDS_VECTOR)
    return checked


def check_updated(
    rules: Rules, namespace: str, memory_id: str, content: object, metadata: object, embedding: object
) -> MemoryUpdated:
    """The event of an update; ``namespace`` and ``memory_id`` are checked."""
    text = None if content is None else check_content(content, rules.options)
    metadata_json: bytes | None = None
    if metadata is not None:
        metadata_json = encode_metadata(metadata, rules.options)
        if rules.schema is not None:
            rules.schema.check(decode_metadata(metadata_json))
    vector: bytes | None = None
    if embedding is not None:
        if rules.dimensions is None:
            raise InvalidArgumentError("embedding", "was given, and this store has no semantic search")
        if text is None:
            raise InvalidArgumentError("embedding", "needs content: a vector belongs to a text")
        vector = check_vector(embedding, rules.dimensions)
    elif text is not None and rules.dimensions is not None and not rules.has_model:
        raise InvalidArgumentError("embedding", NEEDS_VECTOR)
    return MemoryUpdated(namespace, memory_id, text, metadata_json, vector)


def check_search(
    rules: Rules,
    namespace: object,
    query: object,
    limit: object,
    metadata_filter: object,
    start_time: object,
    end_time: object,
    vector: object,
    min_score: object,
    *,
    offset: object = 0,
    distinct: object = None,
    diversity: object = None,
) -> Search:
    """The conditions of a search."""
    if isinstance(query, str) and not query.strip():
        raise InvalidArgumentError("query", "is empty: pass a text, or no query to get the newest memories")
    options = rules.options
    namespaces, under = check_namespaces(namespace, options)
    checked_limit = check_limit(limit)
    parsed = parse_filter(metadata_filter, options)
    start_us, end_us = check_time_range(start_time, end_time)
    if query is not None and vector is not None:
        raise InvalidArgumentError("vector", "and query exclude each other")
    text: str | None = None
    if query is not None:
        text = check_content(query, options, "query")
        if not rules.has_model:
            why = "this store has no semantic search" if rules.dimensions is None else "this store has no model"
            raise InvalidArgumentError("query", f"was given, and {why}; pass metadata_filter, times or vector")
    checked_vector: np.ndarray | None = None
    if vector is not None:
        if rules.dimensions is None:
            raise InvalidArgumentError("vector", "was given, and this store has no semantic search")
        checked_vector = np.frombuffer(check_vector(vector, rules.dimensions, "vector"), dtype="<f4")
    has_score = query is not None or vector is not None
    least = _check_of_score("min_score", min_score, -1, has_score=has_score)
    similarity_max = _check_of_score("distinct", distinct, -1, has_score=has_score)
    difference = _check_of_score("diversity", diversity, 0, has_score=has_score)
    return Search(
        namespaces,
        under=under,
        named=not isinstance(namespace, str),
        limit=checked_limit,
        ranking=Ranking.NEWEST if text is None and checked_vector is None else Ranking.SIMILARITY,
        query=text,
        vector=checked_vector,
        filter=parsed,
        start=None if start_us is None else from_timestamp(start_us),
        end=None if end_us is None else from_timestamp(end_us),
        min_score=least,
        distinct=similarity_max,
        diversity=difference,
        offset=check_limit(offset, "offset"),
    )


def _check_of_score(field: str, value: object, minimum: int, *, has_score: bool) -> float | None:
    """A number from ``minimum`` to 1 that only a search with a score can have."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidTypeError(field, f"must be a number, not {type_name(value)}")
    if not minimum <= value <= 1:
        raise InvalidArgumentError(field, f"must be from {minimum} to 1, not {brief(value)}")
    if not has_score:
        raise InvalidArgumentError(field, "needs query or vector")
    return float(value)


def check_list(
    rules: Rules,
    namespace: object,
    limit: object,
    after: object,
    order: object,
    metadata_filter: object,
    start_time: object,
    end_time: object,
) -> Search:
    """The conditions of a page of a list."""
    ranking = check_order(order)
    search = check_search(rules, namespace, None, limit, metadata_filter, start_time, end_time, None, None)
    if search.limit == 0:
        raise InvalidArgumentError("limit", "must be at least 1: a page of none has no end")
    return msgspec.structs.replace(search, ranking=ranking, after=check_after(after, ranking))


def check_if_exists(value: object) -> None:
    """``"error"``, ``"ignore"`` or ``"replace"``."""
    if not isinstance(value, str):
        raise InvalidTypeError("if_exists", f"must be 'error', 'ignore' or 'replace', not {type_name(value)}")
    if value not in ("error", "ignore", "replace"):
        raise InvalidArgumentError("if_exists", f"must be 'error', 'ignore' or 'replace', not {brief(value)}")


def check_merge(value: object, metadata: object) -> None:
    """A bool, and True only with metadata."""
    if not isinstance(value, bool):
        raise InvalidTypeError("merge", f"must be a bool, not {type_name(value)}")
    if value and metadata is None:
        raise InvalidArgumentError("merge", "needs metadata")


def check_progress(value: object) -> Callable[[int, int], object] | bool:
    """A function, or whether to show a bar; None is False."""
    if value is None or isinstance(value, bool):
        return bool(value)
    if not callable(value):
        raise InvalidTypeError("progress", f"must be a bool or a function of two integers, not {type_name(value)}")
    return cast("Callable[[int, int], object]", value)


def schemaless(rules: Rules) -> Rules:
    """``rules`` for a part of the metadata: the schema holds for the whole."""
    return msgspec.structs.replace(rules, schema=None)


def id_list(memory_ids: object) -> list[str]:
    """What was given as several ids, none of them checked yet."""
    if isinstance(memory_ids, (str, bytes)) or not isinstance(memory_ids, Iterable):
        raise InvalidTypeError("memory_ids", f"must be a list of str, not {type_name(memory_ids)}")
    return list(memory_ids)


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
