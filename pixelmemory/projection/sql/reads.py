"""Reads by prepared SQL on the tables that Pixeltable keeps: a millisecond where its fluent API takes 30 to 60."""

from __future__ import annotations

import contextlib
import math
import uuid
from collections.abc import Callable, Collection, Generator, Sequence
from functools import partial
from typing import Any

import numpy as np
import psycopg
from psycopg.types.string import BytesBinaryDumper

from pixelmemory.embedding.window import Window
from pixelmemory.errors import ProjectionUnavailableError
from pixelmemory.memory.identity import memory_key
from pixelmemory.memory.schema import ColumnKind
from pixelmemory.memory.search import NO_LIMIT, Search
from pixelmemory.options import Options
from pixelmemory.projection.contract import PAGE_ROWS
from pixelmemory.projection.rows import Row, row_of
from pixelmemory.projection.scaling import DIMENSIONS_MAX_FP32, scaled
from pixelmemory.projection.sql.failures import cause_of, is_infrastructure_error
from pixelmemory.projection.sql.filters import compile_filter
from pixelmemory.projection.sql.physical import LIVE, PhysicalTable, PhysicalTables, namespace_key
from pixelmemory.projection.sql.ranking import RANKINGS, Asked, Vector, newest_order, result_columns
from pixelmemory.projection.sql.session import shared

__all__ = ["SqlReads"]

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
        where, parameters = self._scope(table, physical, (namespace,))
        parameters["key"] = memory_key(memory_id)
        statement = (
            f"SELECT {result_columns(physical)} FROM {physical.name} "
            f"WHERE {where} AND {physical.columns['memory_id']} = %(key)s"
        )
        rows = self._run(statement, parameters)
        return row_of(namespace, *rows[0]) if rows else None

    def existing(self, table: str, namespace: str, keys: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """Which of ``keys`` are live rows."""
        physical = self._tables.physical(table)
        where, parameters = self._scope(table, physical, (namespace,))
        parameters["keys"] = list(keys)
        column = physical.columns["memory_id"]
        statement = f"SELECT {column} FROM {physical.name} WHERE {where} AND {column} = ANY(%(keys)s)"
        return {row[0] for row in self._run(statement, parameters)}

    def occupied(self, table: str, namespaces: Collection[str]) -> set[str]:
        """Which of ``namespaces``, all of them of ``table``, hold a row."""
        physical = self._tables.physical(table)
        if not self._tables.is_shared(table):
            return set(namespaces) if self._run(f"SELECT 1 FROM {physical.name} WHERE {LIVE} LIMIT 1", {}) else set()
        keys = {namespace_key(namespace): namespace for namespace in namespaces}
        # one look into an index for each: to make the values of a column distinct PostgreSQL reads every row
        statement = (
            "SELECT key FROM unnest(%(keys)s::uuid[]) AS given (key) WHERE EXISTS "
            f"(SELECT 1 FROM {physical.name} WHERE {LIVE} AND {physical.columns['namespace_key']} = key)"
        )
        return {keys[row[0]] for row in self._run(statement, {"keys": list(keys)})}

    def count(self, table: str, search: Search) -> int:
        """How many rows of ``table`` satisfy the conditions of ``search``."""
        physical = self._tables.physical(table)
        where, parameters = self._conditions(table, physical, search)
        rows = self._run(f"SELECT count(*) FROM {physical.name} WHERE {where}", parameters)
        return int(rows[0][0])

    def scores(self, vectors: Sequence[np.ndarray], query: np.ndarray) -> list[float | None]:
        """As :meth:`pixelmemory.projection.contract.Host.scores`: computed by pgvector, so they are the same."""
        kind = "vector" if len(query) <= DIMENSIONS_MAX_FP32 else "halfvec"
        values = ", ".join(f"({place}, %(v{place})s::{kind})" for place in range(len(vectors)))
        parameters: dict[str, Any] = {f"v{place}": Vector(vector) for place, vector in enumerate(vectors)}
        parameters["vector"] = Vector(scaled(query))
        rows = self._run(
            f"SELECT 1 - (value <=> %(vector)s::{kind}) FROM (VALUES {values}) AS given (place, value) ORDER BY place",
            parameters,
        )
        return [None if score is None or math.isnan(score) else float(score) for (score,) in rows]

    def long_texts(self, table: str, namespace: str, window: Window) -> Generator[list[Row]]:
        """The rows whose content may be longer than ``window``, newest first, in pages of :data:`PAGE_ROWS`.

        Raises:
            ProjectionUnavailableError: the database is down, or the table is gone.
        """
        physical = self._tables.physical(table)
        where, parameters = self._scope(table, physical, (namespace,))
        content = physical.columns["content"]
        where += (
            f" AND (octet_length({content}) > %(ascii)s OR "
            f"(octet_length({content}) > %(other)s AND octet_length({content}) <> char_length({content})))"
        )
        parameters |= {"ascii": window.ascii_bytes_max, "other": window.bytes_max}
        statement = (
            f"SELECT {result_columns(physical)} FROM {physical.name} WHERE {where} ORDER BY {newest_order(physical)}"
        )
        self._run("SELECT 1", {})  # a dead connection is found out here, where it can be replaced
        try:
            with (
                self._connection() as connection,
                connection.transaction(),  # a cursor lives in one
                connection.cursor(name="pixelmemory_long_texts") as cursor,
            ):
                cursor.execute(statement.encode(), parameters)
                while rows := cursor.fetchmany(PAGE_ROWS):
                    yield [row_of(namespace, *row) for row in rows]
        except psycopg.Error as error:
            raise ProjectionUnavailableError(f"the read failed: {error}", cause_of(error)) from error

    def search(self, table: str, search: Search) -> list[Row]:
        """The rows of ``table`` that satisfy ``search``, best first."""
        physical = self._tables.physical(table)
        where, parameters = self._conditions(table, physical, search)
        parameters |= {"limit": min(search.limit, NO_LIMIT), "offset": min(search.offset, NO_LIMIT)}
        shared, has_index = self._tables.is_shared(table), partial(self._has_index, table)
        asked = Asked(search, table, physical, where, parameters, shared, has_index, self._run)
        return RANKINGS[search.ranking](asked)

    def _scope(self, table: str, physical: PhysicalTable, namespaces: Sequence[str]) -> tuple[str, dict[str, Any]]:
        if not self._tables.is_shared(table):
            return LIVE, {}
        column = physical.columns["namespace_key"]
        if len(namespaces) == 1:
            return f"{LIVE} AND {column} = %(namespace)s", {"namespace": namespace_key(namespaces[0])}
        keys = [namespace_key(namespace) for namespace in namespaces]
        return f"{LIVE} AND {column} = ANY(%(namespaces)s)", {"namespaces": keys}

    def _conditions(self, table: str, physical: PhysicalTable, search: Search) -> tuple[str, dict[str, Any]]:
        where, parameters = self._scope(table, physical, search.namespaces)
        conditions = [where]
        column = physical.columns
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
        if search.among is not None:
            conditions.append(self._keys(table, physical, "IN", "among", search.among, parameters))
        if search.without:
            conditions.append(self._keys(table, physical, "NOT IN", "without", search.without, parameters))
        return " AND ".join(conditions), parameters

    def _keys(
        self,
        table: str,
        physical: PhysicalTable,
        is_in: str,
        name: str,
        keys: Collection[tuple[str, str]],
        parameters: dict[str, Any],
    ) -> str:
        """The condition that a row is, or is not, one of ``keys``; adds to ``parameters``."""
        parameters[name] = [memory_key(memory_id) for _, memory_id in keys]
        column = physical.columns
        if not self._tables.is_shared(table):
            return f"{column['memory_id']} {is_in} (SELECT unnest(%({name})s::uuid[]))"
        parameters[f"{name}_namespaces"] = [namespace_key(namespace) for namespace, _ in keys]
        both = f"SELECT * FROM unnest(%({name}_namespaces)s::uuid[], %({name})s::uuid[])"
        return f"({column['namespace_key']}, {column['memory_id']}) {is_in} ({both})"

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


def _configure(connection: psycopg.Connection[Any]) -> None:
    _let_vectors_be_sent(connection)
    for statement in _SESSION:
        connection.execute(statement)


def _let_vectors_be_sent(connection: psycopg.Connection[Any]) -> None:
    description = connection.execute(_VECTOR).description
    assert description is not None
    oid = description[0].type_code
    connection.adapters.register_dumper(Vector, type("VectorDumper", (BytesBinaryDumper,), {"oid": oid}))
