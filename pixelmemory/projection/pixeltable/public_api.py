"""The same reads through Pixeltable's public API alone: slower, and right with any version of Pixeltable.

Filters are evaluated here in Python, before the limit: the public API has no way to send them to the database.
"""

from __future__ import annotations

import functools
import operator
import uuid
from collections import defaultdict
from collections.abc import Collection, Generator, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import pixeltable as pxt

from pixelmemory.embedding.window import Window
from pixelmemory.memory.filters import equal, matches
from pixelmemory.memory.identity import memory_key
from pixelmemory.memory.metadata import decode_metadata
from pixelmemory.memory.search import Search, is_past
from pixelmemory.projection.contract import PAGE_ROWS
from pixelmemory.projection.pixeltable import internals
from pixelmemory.projection.pixeltable.tables import INDEX_NAME, TableSet
from pixelmemory.projection.rows import COLUMNS, SHOWN, Column, Kind, Row, ranked, row_of
from pixelmemory.projection.scaling import DIMENSIONS_MAX_FP32, has_direction
from pixelmemory.projection.sql.physical import namespace_key

__all__ = ["PublicReads"]


class PublicReads:
    """Reads one projection by Pixeltable's fluent API. Thread-safe: Pixeltable keeps a runtime a thread."""

    def __init__(self, tables: TableSet) -> None:
        self._tables = tables

    @internals.thread_released()
    def get(self, table: str, namespace: str, memory_id: str) -> Row | None:
        """One memory, or None."""
        handle = self._tables.table(table)
        query = self._scope(table, (namespace,), handle.memory_id == memory_key(memory_id))
        rows = list(self._rows(handle, query, namespace))
        return rows[0] if rows else None

    @internals.thread_released()
    def existing(self, table: str, namespace: str, keys: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """Which of ``keys`` are live rows."""
        handle = self._tables.table(table)
        query = self._scope(table, (namespace,), handle.memory_id.isin(list(keys)))
        return {row["memory_id"] for row in query.select(handle.memory_id).collect()}

    @internals.thread_released()
    def occupied(self, table: str, namespaces: Collection[str]) -> set[str]:
        """Which of ``namespaces``, all of them of ``table``, hold a row."""
        handle = self._tables.table(table)
        if not self._tables.is_shared(table):
            return set(namespaces) if handle.count() else set()
        rows = handle.select(handle.namespace).distinct().collect()
        return {row["namespace"] for row in rows} & set(namespaces)

    @internals.thread_released()
    def count(self, table: str, search: Search) -> int:
        """How many rows of ``table`` satisfy the conditions of ``search``."""
        handle = self._tables.table(table)
        query = self._conditions(table, search)
        if search.filter is None:
            return int(query.count())
        rows = (decode_metadata(row.metadata_json or "{}") for row in self._rows(handle, query, search.namespaces[0]))
        return sum(matches(search.filter, metadata) for metadata in rows)

    def scores(self, vectors: Sequence[np.ndarray], query: np.ndarray) -> list[float | None]:
        """As :meth:`pixelmemory.projection.contract.Host.scores`."""
        halves = len(query) > DIMENSIONS_MAX_FP32  # as the tables store them
        return [_cosine(each.astype(np.float16).astype(np.float32) if halves else each, query) for each in vectors]

    @internals.thread_released()
    def search(self, table: str, search: Search) -> list[Row]:
        """The rows of ``table`` that satisfy ``search``, best first."""
        handle = self._tables.table(table)
        query = self._conditions(table, search)
        own = search.namespaces[0]
        rows = self._rows(handle, query, own, search.vector, with_vectors=search.with_vectors)
        return ranked([row for row in rows if self._wanted(search, row)], search)

    def long_texts(self, table: str, namespace: str, window: Window) -> Generator[list[Row]]:
        """The rows whose content may be longer than ``window``, newest first, in pages of :data:`PAGE_ROWS`."""
        rows = [row for row in self.search(table, Search((namespace,))) if window.may_cut(row.content)]
        for start in range(0, len(rows), PAGE_ROWS):
            yield rows[start : start + PAGE_ROWS]

    def _wanted(self, search: Search, row: Row) -> bool:
        if not is_past(search, row.place):
            return False
        if search.min_score is not None and (row.score is None or row.score < search.min_score):
            return False
        return matches(search.filter, decode_metadata(row.metadata_json or "{}"))

    def _conditions(self, table: str, search: Search) -> Any:
        """The conditions of ``search`` that the public API can send to the database: all but the filter."""
        handle = self._tables.table(table)
        conditions: list[Any] = []
        if search.start is not None:
            conditions.append(handle.timestamp >= search.start)
        if search.end is not None:
            conditions.append(handle.timestamp <= search.end)
        if search.among is not None:
            conditions.append(self._keys(table, search.among))
        if search.without:
            conditions.append(~self._keys(table, search.without))
        return self._scope(table, search.namespaces, *conditions)

    def _keys(self, table: str, keys: Collection[tuple[str, str]]) -> Any:
        """The predicate that a row is one of ``keys``, of which there is one at least."""
        handle = self._tables.table(table)
        by_namespace: dict[str, list[uuid.UUID]] = defaultdict(list)
        for namespace, memory_id in keys:
            by_namespace[namespace].append(memory_key(memory_id))
        if not self._tables.is_shared(table):
            return handle.memory_id.isin([key for each in by_namespace.values() for key in each])
        predicates = [
            (handle.namespace_key == namespace_key(namespace)) & handle.memory_id.isin(each)
            for namespace, each in by_namespace.items()
        ]
        return functools.reduce(operator.or_, predicates)

    def _scope(self, table: str, namespaces: Sequence[str], *conditions: Any) -> Any:
        handle = self._tables.table(table)
        predicates = list(conditions)
        if self._tables.is_shared(table):
            predicates.append(handle.namespace_key.isin([namespace_key(namespace) for namespace in namespaces]))
        # Pixeltable takes one where() a query
        return handle.where(functools.reduce(operator.and_, predicates)) if predicates else handle

    def _rows(
        self,
        handle: pxt.Table,
        query: Any,
        own: str,
        vector: np.ndarray | None = None,
        *,
        with_vectors: bool = False,
    ) -> Iterator[Row]:
        """The rows of ``query``, the last written first; ``own``: the namespace of a table that is not shared."""
        names = ["id_text", "memory_id", *(column.name for column in COLUMNS)]
        if is_shared := "namespace" in handle.get_metadata()["columns"]:
            names.append("namespace")
        columns = {name: getattr(handle, name) for name in names}
        if vector is not None:
            # by cosine of the stored vectors: exact, where the HNSW index would stop after a few rows
            columns["vector"] = handle.content.embedding(idx=INDEX_NAME)
        rows = list(query.select(**columns).collect())
        if vector is not None:
            for row in rows:
                row["score"] = None if row["vector"] is None else _cosine(row["vector"], vector)
            rows = [row for row in rows if row["score"] is not None]
        rows.sort(key=_by_last_write)
        for row in rows:
            shown = (_shown(row, column) for column in SHOWN)
            yield row_of(
                row["namespace"] if is_shared else own,
                row["id_text"],
                row["memory_id"],
                *shown,
                row["lsn"],
                score=row.get("score"),
                vector=np.asarray(row["vector"], np.float32) if with_vectors else None,
            )


def _shown(row: dict[str, Any], column: Column) -> Any:
    value = row[column.name]
    if column.kind is not Kind.JSON:
        return value
    text = row[f"{column.name}_text"]
    # the database may hold a float as an integer: numbers are compared as numbers
    if text is not None and equal(decode_metadata(text), value):
        return text
    return None if value is None else msgspec.json.encode(value).decode()


def _by_last_write(row: dict[str, Any]) -> tuple[int, uuid.UUID]:
    """Rows that a user inserted come last."""
    return -row["lsn"] if row["lsn"] is not None else 0, row["memory_id"]


def _cosine(left: np.ndarray, right: np.ndarray) -> float | None:
    """The cosine of two vectors, -1 to 1; None where one of them has no direction."""
    if not (has_direction(left) and has_direction(right)):
        return None
    a, b = left.astype(np.float64), right.astype(np.float64)  # their squares neither overflow nor vanish
    cosine = float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    return min(max(cosine, -1.0), 1.0)  # rounding may lead beyond
