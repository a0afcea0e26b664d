"""How each ranking finds its rows: what is ordered by, by which index, and what its score is.

By similarity a search is exact unless its table has outgrown ``graph_rows_min`` and has its HNSW index. Then a search
whose conditions leave few rows is still exact over those; any other walks the index with pgvector's iterative scan,
which goes on until enough rows satisfy the conditions, and falls back to the exact scan where it returns fewer rows
than were asked for.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np

from pixelmemory.errors import ProjectionUnavailableError, UnavailableCause
from pixelmemory.memory.search import Position, Ranking, Search
from pixelmemory.projection.rows import COLUMNS, SHOWN, Kind, Row, row_of
from pixelmemory.projection.scaling import scaled
from pixelmemory.projection.sql.physical import PhysicalTable

__all__ = ["RANKINGS", "Asked", "Vector", "newest_order", "result_columns"]

#: rows up to which a filtered search scans exactly although there is an HNSW index
EXACT_ROWS_MAX = 10_000


class Vector(bytes):
    """A query's vector as pgvector receives it: as text it took 0.2 ms to write."""

    def __new__(cls, vector: np.ndarray) -> Self:
        return super().__new__(cls, struct.pack(">HH", len(vector), 0) + vector.astype(">f4").tobytes())


class Asked(NamedTuple):
    """A search of one table, whose conditions are SQL already."""

    search: Search
    #: the table's name in its host, for messages
    name: str
    table: PhysicalTable
    where: str
    #: of ``where``, ``limit`` and ``offset``
    parameters: dict[str, Any]
    #: whether ``where`` picks rows out of those of several namespaces
    shared: bool
    #: whether the table has its HNSW index at the moment
    has_index: Callable[[], bool]
    #: runs a statement with its parameters
    run: Callable[[str, dict[str, Any]], list[Any]]

    @property
    def namespace(self) -> str:
        """The namespace of a row, as SQL; by code point, as Python compares."""
        return f'({self.table.columns["namespace"]} COLLATE "C")' if self.shared else '(%(own)s::text COLLATE "C")'

    def rows(self, order: str, *more: str, where: str = "", among: str) -> list[Row]:
        """The rows of the subquery ``among``, made into results, in ``order``; ``more`` are a score and a vector."""
        parameters = self.parameters
        if not self.shared:
            parameters = {**parameters, "own": self.search.namespaces[0]}
        columns = ", ".join([self.namespace, result_columns(self.table), *more])
        found = self.run(f"SELECT {columns} FROM ({among}) AS found {where} ORDER BY {order}", parameters)
        if not more:
            return [row_of(*row) for row in found]
        if len(more) == 1:
            return [row_of(*row[:-1], score=row[-1]) for row in found]
        return [row_of(*row[:-2], score=row[-2], vector=np.asarray(row[-1], np.float32)) for row in found]

    def first(self, order: str, *more: str) -> str:
        """A subquery of the first rows in ``order``. What only results need is made outside, of these rows alone: to
        parse the metadata of every row that is looked at takes twice as long as their distances."""
        names = (*_READ, "namespace") if self.shared else _READ
        columns = ", ".join([*(self.table.columns[name] for name in names), *more])
        return (
            f"SELECT {columns} FROM {self.table.name} WHERE {self.where} ORDER BY {order} "
            "LIMIT %(limit)s OFFSET %(offset)s"
        )


def newest(asked: Asked) -> list[Row]:
    """The newest first."""
    order = newest_order(asked.table)
    return asked.rows(order, among=asked.first(order))


def listed(asked: Asked) -> list[Row]:
    """A page of a list: the dated rows by time and id, then the others by id."""
    time, id_text, memory_key = (asked.table.columns[name] for name in ("timestamp", "id_text", "memory_id"))
    key = f'(COALESCE({id_text}, {memory_key}::text) COLLATE "C")'  # by code point, as Python compares
    sign, direction = ("<", "DESC") if asked.search.ranking is Ranking.LISTED_NEWEST else (">", "ASC")
    place = f"{key}, {asked.namespace}"
    order = f"{key} {direction}, {asked.namespace} {direction}"
    after, rows = asked.search.after, list[Row]()
    if after is None or after.created_at is not None:
        condition = f"{time} IS NOT NULL"
        if after is not None:
            condition = f"({time}, {place}) {sign} (%(after_time)s, %(after_key)s, %(after_namespace)s)"
        rows = _page(asked, condition, f"{time} {direction}, {order}", after, len(rows))
    if len(rows) < asked.search.limit:
        condition = f"{time} IS NULL"
        if after is not None and after.created_at is None:
            condition += f" AND ({place}) {sign} (%(after_key)s, %(after_namespace)s)"
        rows += _page(asked, condition, order, after, len(rows))
    return rows


def _page(asked: Asked, condition: str, order: str, after: Position | None, had: int) -> list[Row]:
    parameters = {**asked.parameters, "limit": asked.parameters["limit"] - had}
    if after is not None:
        parameters |= {
            "after_time": after.created_at,
            "after_key": after.memory_id,
            "after_namespace": after.namespace,
        }
    page = asked._replace(where=f"{asked.where} AND {condition}", parameters=parameters)
    return page.rows(order, among=page.first(order))


def similar(asked: Asked) -> list[Row]:
    """The most similar first, by the cosine of their vectors; rows without a vector are left out."""
    search, bound = asked.search, asked.search.min_score
    assert search.vector is not None
    if asked.table.vector is None:
        raise ProjectionUnavailableError(
            f"the embedding index of table {asked.name} is gone; rebuild the projection",
            UnavailableCause.TABLE_GONE,
        )
    asked.parameters["vector"] = Vector(scaled(search.vector))
    if asked.has_index() and not _leaves_few(asked):
        rows = _nearest(asked, exact=False)
        if len(rows) >= search.limit:
            return [row for row in rows if bound is None or (row.score is not None and row.score >= bound)]
    return _nearest(asked, exact=True, min_score=bound)


def _nearest(asked: Asked, *, exact: bool, min_score: float | None = None) -> list[Row]:
    table, parameters = asked.table, asked.parameters
    distance, order = f"{table.vector} <=> %(vector)s::{table.vector_type}", "distance"
    if exact:  # an ORDER BY that is no bare operator cannot be served by the index
        distance = f"({distance}) + 0"
        order += f", {table.columns['lsn']} DESC NULLS LAST, {table.columns['memory_id']}"
    # Rows without a vector come last, and before them those whose stored vector has no direction: their distance is
    # NaN, which PostgreSQL takes for greater than every number, so that it would satisfy any min_score.
    kept = "distance IS NOT NULL AND distance <> 'NaN'"
    if min_score is not None:
        kept += " AND 1 - distance >= %(min_score)s"
        parameters = {**parameters, "min_score": min_score}
    more = [f"{distance} AS distance"]
    results = ["1 - distance"]
    if asked.search.with_vectors:
        more.append(str(table.vector))
        results.append(f"{table.vector}::real[]")
    asked = asked._replace(parameters=parameters)
    return asked.rows(order, *results, where=f"WHERE {kept}", among=asked.first(order, *more))


def _leaves_few(asked: Asked) -> bool:
    """Whether the conditions leave so few rows that an exact scan of them is cheap."""
    search = asked.search
    if search.limit > 200 or search.among is not None:
        return True
    if search.filter is None and search.start is None and search.end is None and not asked.shared:
        return False
    some = f"SELECT 1 FROM {asked.table.name} WHERE {asked.where} LIMIT {EXACT_ROWS_MAX + 1}"
    return bool(asked.run(f"SELECT count(*) FROM ({some}) AS few", asked.parameters)[0][0] <= EXACT_ROWS_MAX)


#: how the rows of each are found
RANKINGS: dict[Ranking, Callable[[Asked], list[Row]]] = {
    Ranking.NEWEST: newest,
    Ranking.SIMILARITY: similar,
    Ranking.LISTED_NEWEST: listed,
    Ranking.LISTED_OLDEST: listed,
}

#: the columns that results are made of, and ordered by
_READ = ("id_text", "memory_id", *(column.name for column in COLUMNS))


def result_columns(table: PhysicalTable) -> str:
    """What :func:`pixelmemory.projection.rows.row_of` takes, after the namespace."""
    columns = [table.columns["id_text"], table.columns["memory_id"]]
    for column in SHOWN:
        value = table.columns[column.name]
        if column.kind is Kind.JSON:
            text = table.columns[f"{column.name}_text"]
            # a user may have changed the value through Pixeltable: then its text is out of date
            value = f"CASE WHEN {text}::jsonb = {value} THEN {text} ELSE {value}::text END"
        columns.append(value)
    columns.append(table.columns["lsn"])
    return ", ".join(columns)


def newest_order(table: PhysicalTable) -> str:
    """The newest first: by time, then by the last write."""
    column = table.columns
    return f"{column['timestamp']} DESC NULLS LAST, {column['lsn']} DESC NULLS LAST, {column['memory_id']}"
