"""Reads by prepared SQL on the tables that Pixeltable keeps: a millisecond where its fluent API takes 30 to 60.

Searches are exact unless a table has outgrown ``graph_rows_min`` and has its HNSW index. Then a search whose conditions
leave few rows is still exact over those; any other walks the index with pgvector's iterative scan, which goes on until
enough rows satisfy the conditions, and falls back to the exact scan where it comes back with fewer than asked.
"""

from __future__ import annotations

import contextlib
import struct
import uuid
from collections.abc import Callable, Generator, Sequence
from typing import Any, Self

import numpy as np
import psycopg
from psycopg.types.string import BytesBinaryDumper

from pixelmemory.embedding.window import Window
from pixelmemory.errors import ProjectionUnavailableError, UnavailableCause
from pixelmemory.memory.identity import memory_key
from pixelmemory.memory.schema import ColumnKind
from pixelmemory.memory.search import Ranking, Search
from pixelmemory.options import Options
from pixelmemory.projection.contract import PAGE_ROWS
from pixelmemory.projection.rows import COLUMNS, SHOWN, Kind, Row, row_of
from pixelmemory.projection.scaling import scaled
from pixelmemory.projection.sql.failures import cause_of, is_infrastructure_error
from pixelmemory.projection.sql.filters import compile_filter
from pixelmemory.projection.sql.physical import LIVE, PhysicalTable, PhysicalTables, namespace_key
from pixelmemory.projection.sql.session import shared

__all__ = ["SqlReads"]

#: rows up to which a filtered search scans exactly although there is an HNSW index
EXACT_ROWS_MAX = 10_000

#: loads pgvector, whose settings follow (LOAD would need a superuser), and tells the id of its type
_VECTOR = "SELECT '[1]'::vector"
_SESSION = (
    "SET hnsw.iterative_scan = strict_order",
    "SET hnsw.ef_search = 200",
    "SET hnsw.max_scan_tuples = 200000",
    # the values decide which index is best, and planning costs little beside a bad plan
    "SET plan_cache_mode = force_custom_plan",
    "SET jit = off",
)


class SqlReads:
    """Reads one projection by SQL. Thread-safe; the stores of a process share their connections."""

    def __init__(self, tables: PhysicalTables, options: Options, has_index: Callable[[str], bool]) -> None:
        self._tables = tables
        self._options = options
        self._has_index = has_index

    def get(self, table: str, namespace: str, memory_id: str) -> Row | None:
        """One memory, or None."""
        physical = self._tables.physical(table)
        where, parameters = self._scope(physical, namespace)
        parameters["key"] = memory_key(memory_id)
        statement = (
            f"SELECT {_columns(physical)} FROM {physical.name} "
            f"WHERE {where} AND {physical.columns['memory_id']} = %(key)s"
        )
        rows = self._run(statement, parameters)
        return row_of(*rows[0]) if rows else None

    def existing(self, table: str, namespace: str, keys: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """Which of ``keys`` are live rows."""
        physical = self._tables.physical(table)
        where, parameters = self._scope(physical, namespace)
        parameters["keys"] = list(keys)
        column = physical.columns["memory_id"]
        statement = f"SELECT {column} FROM {physical.name} WHERE {where} AND {column} = ANY(%(keys)s)"
        return {row[0] for row in self._run(statement, parameters)}

    def count(self, table: str, namespace: str) -> int:
        """How many live rows ``namespace`` has."""
        physical = self._tables.physical(table)
        where, parameters = self._scope(physical, namespace)
        rows = self._run(f"SELECT count(*) FROM {physical.name} WHERE {where}", parameters)
        return int(rows[0][0])

    def long_texts(self, table: str, namespace: str, window: Window) -> Generator[list[Row]]:
        """The rows whose content may be longer than ``window``, newest first, in pages of :data:`PAGE_ROWS`.

        Raises:
            ProjectionUnavailableError: the database is down, or the table is gone.
        """
        physical = self._tables.physical(table)
        where, parameters = self._scope(physical, namespace)
        content = physical.columns["content"]
        where += (
            f" AND (octet_length({content}) > %(ascii)s OR "
            f"(octet_length({content}) > %(other)s AND octet_length({content}) <> char_length({content})))"
        )
        parameters |= {"ascii": window.ascii_bytes_max, "other": window.bytes_max}
        statement = f"SELECT {_columns(physical)} FROM {physical.name} WHERE {where} ORDER BY {_newest(physical)}"
        self._run("SELECT 1", {})  # a dead connection is found out here, where it can be made anew
        try:
            with (
                self._connection() as connection,
                connection.transaction(),  # a cursor lives in one
                connection.cursor(name="pixelmemory_long_texts") as cursor,
            ):
                cursor.execute(statement.encode(), parameters)
                while rows := cursor.fetchmany(PAGE_ROWS):
                    yield [row_of(*row) for row in rows]
        except psycopg.Error as error:
            raise ProjectionUnavailableError(f"the read failed: {error}", cause_of(error)) from error

    def search(self, table: str, search: Search) -> list[Row]:
        """The rows of ``table`` that satisfy ``search``, best first."""
        physical = self._tables.physical(table)
        where, parameters = self._conditions(physical, search)
        parameters["limit"] = min(search.limit, 2**62)
        if search.ranking is Ranking.NEWEST:
            return [row_of(*row) for row in self._newest(physical, where, parameters)]
        assert search.vector is not None
        if physical.vector is None:
            raise ProjectionUnavailableError(
                f"the embedding index of table {table} is gone; rebuild the projection", UnavailableCause.TABLE_GONE
            )
        parameters["vector"] = _Vector(scaled(search.vector))
        bound = search.min_score
        if self._has_index(table) and not self._few(physical, search, where, parameters):
            rows = self._nearest(physical, where, parameters, exact=False)
            if len(rows) >= search.limit:
                return [_scored(row) for row in rows if bound is None or row[-1] >= bound]
        return [_scored(row) for row in self._nearest(physical, where, parameters, exact=True, min_score=bound)]

    def _nearest(
        self,
        table: PhysicalTable,
        where: str,
        parameters: dict[str, Any],
        *,
        exact: bool,
        min_score: float | None = None,
    ) -> list[Any]:
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
        return self._run(
            f"SELECT {_columns(table)}, 1 - distance FROM "
            f"({self._first(table, where, order, f'{distance} AS distance')}) AS nearest WHERE {kept} ORDER BY {order}",
            parameters,
        )

    def _newest(self, table: PhysicalTable, where: str, parameters: dict[str, Any]) -> list[Any]:
        order = _newest(table)
        return self._run(
            f"SELECT {_columns(table)} FROM ({self._first(table, where, order)}) AS newest ORDER BY {order}", parameters
        )

    def _first(self, table: PhysicalTable, where: str, order: str, *more: str) -> str:
        """A subquery of the first rows in ``order``. What only results need is made outside, of these rows alone: to
        parse the metadata of every row that is looked at takes twice as long as their distances."""
        columns = ", ".join([*(table.columns[name] for name in _READ), *more])
        return f"SELECT {columns} FROM {table.name} WHERE {where} ORDER BY {order} LIMIT %(limit)s"

    def _few(self, table: PhysicalTable, search: Search, where: str, parameters: dict[str, Any]) -> bool:
        """Whether the conditions leave so few rows that an exact scan of them is cheap."""
        if search.limit > 200:
            return True
        if search.filter is None and search.start is None and search.end is None and not self._tables.shared:
            return False
        statement = f"SELECT count(*) FROM (SELECT 1 FROM {table.name} WHERE {where} LIMIT {EXACT_ROWS_MAX + 1}) AS few"
        return bool(self._run(statement, parameters)[0][0] <= EXACT_ROWS_MAX)

    def _scope(self, table: PhysicalTable, namespace: str) -> tuple[str, dict[str, Any]]:
        if not self._tables.shared:
            return LIVE, {}
        return f"{LIVE} AND {table.columns['namespace_key']} = %(namespace)s", {"namespace": namespace_key(namespace)}

    def _conditions(self, table: PhysicalTable, search: Search) -> tuple[str, dict[str, Any]]:
        where, parameters = self._scope(table, search.namespace)
        conditions = [where]
        column = table.columns
        if search.filter is not None:
            schema = self._tables.schema
            typed: dict[str, tuple[str, ColumnKind]] = {}
            if schema is not None:
                # Pixeltable keeps the names of columns in lower case
                known = [(name, name.lower(), kind) for name, kind in schema.columns.items()]
                typed = {name: (column[folded], kind) for name, folded, kind in known if folded in column}
            expression, values = compile_filter(search.filter, metadata=column["metadata"], typed=typed)
            conditions.append(f"({expression})")
            parameters |= values
        if search.start is not None:
            conditions.append(f"{column['timestamp']} >= %(start)s")
            parameters["start"] = search.start
        if search.end is not None:
            conditions.append(f"{column['timestamp']} <= %(end)s")
            parameters["end"] = search.end
        return " AND ".join(conditions), parameters

    def _connection(self) -> contextlib.AbstractContextManager[psycopg.Connection[Any]]:
        options = self._options
        return shared.connection(
            self._tables.connection_string(),
            _configure,
            size_max=options.connections_max,
            idle_seconds=options.connection_idle_seconds,
            timeout_seconds=options.database_timeout_seconds,
        )

    def _run(self, statement: str, parameters: dict[str, Any]) -> list[Any]:
        """Run one statement; once more on a fresh connection where the old one turned out to be dead.

        Raises:
            ProjectionUnavailableError: the database is down, or the table is gone.
        """
        for attempt in (1, 2):
            try:
                with self._connection() as connection:
                    return connection.execute(statement, parameters).fetchall()
            except psycopg.Error as error:
                if attempt == 2 or not is_infrastructure_error(error):
                    raise ProjectionUnavailableError(f"the read failed: {error}", cause_of(error)) from error
                shared.forget_idle()
                with contextlib.suppress(Exception):  # if it stays away, the second attempt says so
                    self._tables.revive()
        raise AssertionError("unreachable")


#: the columns that results are made of, and ordered by
_READ = ("id_text", "memory_id", *(column.name for column in COLUMNS))


def _columns(table: PhysicalTable) -> str:
    columns = [table.columns["id_text"], table.columns["memory_id"]]
    for column in SHOWN:
        value = table.columns[column.name]
        if column.kind is Kind.JSON:
            text = table.columns[f"{column.name}_text"]
            # a user may have changed the value through Pixeltable: then its text is out of date
            value = f"CASE WHEN {text}::jsonb = {value} THEN {text} ELSE {value}::text END"
        columns.append(value)
    return ", ".join(columns)


def _scored(row: Sequence[Any]) -> Row:
    return row_of(*row[:-1], score=row[-1])


def _newest(table: PhysicalTable) -> str:
    column = table.columns
    return f"{column['timestamp']} DESC NULLS LAST, {column['lsn']} DESC NULLS LAST, {column['memory_id']}"


class _Vector(bytes):
    """A query's vector as pgvector receives it: as text it took 0.2 ms to write."""

    def __new__(cls, vector: np.ndarray) -> Self:
        return super().__new__(cls, struct.pack(">HH", len(vector), 0) + vector.astype(">f4").tobytes())


def _configure(connection: psycopg.Connection[Any]) -> None:
    _let_vectors_be_sent(connection)
    for statement in _SESSION:
        connection.execute(statement)


def _let_vectors_be_sent(connection: psycopg.Connection[Any]) -> None:
    description = connection.execute(_VECTOR).description
    assert description is not None
    oid = description[0].type_code
    connection.adapters.register_dumper(_Vector, type("VectorDumper", (BytesBinaryDumper,), {"oid": oid}))
