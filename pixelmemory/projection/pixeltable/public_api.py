"""The same reads through Pixeltable's public API alone: slower, and right with any version of Pixeltable.

Filters are evaluated here in Python, before the limit: the public API has no way to send them to the database.
"""

from __future__ import annotations

import datetime as dt
import functools
import operator
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np
import pixeltable as pxt

from pixelmemory.embedding.window import Window
from pixelmemory.memory.filters import equal, matches
from pixelmemory.memory.identity import memory_key
from pixelmemory.memory.metadata import decode_metadata
from pixelmemory.memory.search import Ranking, Search, is_past
from pixelmemory.projection.contract import PAGE_ROWS
from pixelmemory.projection.pixeltable import internals
from pixelmemory.projection.pixeltable.tables import INDEX_NAME, TableSet
from pixelmemory.projection.rows import COLUMNS, SHOWN, Column, Kind, Row, in_list_order, row_of
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
        query = self._scope(table, namespace, handle.memory_id == memory_key(memory_id))
        rows = list(self._rows(handle, query))
        return rows[0] if rows else None

    @internals.thread_released()
    def existing(self, table: str, namespace: str, keys: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """Which of ``keys`` are live rows."""
        handle = self._tables.table(table)
        query = self._scope(table, namespace, handle.memory_id.isin(list(keys)))
        return {row["memory_id"] for row in query.select(handle.memory_id).collect()}

    @internals.thread_released()
    def count(self, table: str, search: Search) -> int:
        """How many rows of ``table`` satisfy the conditions of ``search``."""
        handle = self._tables.table(table)
        query = self._conditions(table, search)
        if search.filter is None:
            return int(query.count())
        rows = (decode_metadata(row.metadata_json or "{}") for row in self._rows(handle, query))
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
        rows = _RANKINGS[search.ranking](list(self._rows(handle, query, search.vector)))
        found = [row for row in rows if self._wanted(search, row)]
        return found[search.offset : search.offset + search.limit]

    def long_texts(self, table: str, namespace: str, window: Window) -> Generator[list[Row]]:
        """The rows whose content may be longer than ``window``, newest first, in pages of :data:`PAGE_ROWS`."""
        rows = [row for row in self.search(table, Search(namespace, 2**62)) if window.may_cut(row.content)]
        for start in range(0, len(rows), PAGE_ROWS):
            yield rows[start : start + PAGE_ROWS]

    def _wanted(self, search: Search, row: Row) -> bool:
        if not is_past(search, row.created_at, row.memory_id):
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
            conditions.append(handle.memory_id.isin([memory_key(each) for each in search.among]))
        if search.without:
            conditions.append(~handle.memory_id.isin([memory_key(each) for each in search.without]))
        return self._scope(table, search.namespace, *conditions)

    def _scope(self, table: str, namespace: str, *conditions: Any) -> Any:
        handle = self._tables.table(table)
        predicates = list(conditions)
        if self._tables.is_shared(table):
            predicates.append(handle.namespace_key == namespace_key(namespace))
        # Pixeltable takes one where() a query
        return handle.where(functools.reduce(operator.and_, predicates)) if predicates else handle

    def _rows(self, handle: pxt.Table, query: Any, vector: np.ndarray | None = None) -> Iterator[Row]:
        columns = {
            name: getattr(handle, name) for name in ("id_text", "memory_id", *(column.name for column in COLUMNS))
        }
        if vector is not None:
            # by cosine of the stored vectors: exact, where the HNSW index would stop after a few rows
            columns["vector"] = handle.content.embedding(idx=INDEX_NAME)
        rows = list(query.select(**columns).collect())
        if vector is not None:
            for row in rows:
                row["score"] = None if row["vector"] is None else _cosine(row["vector"], vector)
            rows = [row for row in rows if row["score"] is not None]
        rows.sort(key=_rank)
        for row in rows:
            shown = (_shown(row, column) for column in SHOWN)
            yield row_of(row["id_text"], row["memory_id"], *shown, score=row.get("score"))


def _newest(rows: list[Row]) -> list[Row]:
    oldest = dt.datetime.min.replace(tzinfo=dt.UTC)
    return sorted(rows, key=lambda row: row.created_at or oldest, reverse=True)


#: of rows by their score, where they have one, and then the last written first
_RANKINGS: dict[Ranking, Callable[[list[Row]], list[Row]]] = {
    Ranking.NEWEST: _newest,
    Ranking.SIMILARITY: list,
    Ranking.LISTED_NEWEST: partial(in_list_order, ranking=Ranking.LISTED_NEWEST),
    Ranking.LISTED_OLDEST: partial(in_list_order, ranking=Ranking.LISTED_OLDEST),
}


def _shown(row: dict[str, Any], column: Column) -> Any:
    value = row[column.name]
    if column.kind is not Kind.JSON:
        return value
    text = row[f"{column.name}_text"]
    # the database may hold a float as an integer: numbers are compared as numbers
    if text is not None and equal(decode_metadata(text), value):
        return text
    return None if value is None else msgspec.json.encode(value).decode()


def _rank(row: dict[str, Any]) -> tuple[float, float, uuid.UUID]:
    """Of equal score or time, the last written comes first; rows that a user inserted come last."""
    return -row.get("score", 0.0), -row["lsn"] if row["lsn"] is not None else 0, row["memory_id"]


def _cosine(left: np.ndarray, right: np.ndarray) -> float | None:
    """The cosine of two vectors, -1 to 1; None where one of them has no direction."""
    if not (has_direction(left) and has_direction(right)):
        return None
    a, b = left.astype(np.float64), right.astype(np.float64)  # their squares neither overflow nor vanish
    cosine = float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    return min(max(cosine, -1.0), 1.0)  # rounding may lead beyond
