"""Bulk inserts by binary COPY, beneath Pixeltable's own insert.

Of the time that Pixeltable takes for a batch two thirds go into one INSERT statement, most of that into writing vectors
as text. Its pipeline (types, computed columns, row ids, versions, views) stays as it is; only the statement at its end
is replaced, on the same connection and so in the same transaction. A table with a column of a type that is not known
here is inserted into as ever.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pixeltable as pxt
import sqlalchemy as sql
from psycopg import Cursor
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.types.json import Jsonb
from sqlalchemy.dialects import postgresql

from pixelmemory.projection.sql.copy import VECTOR_ELEMENTS

__all__ = ["copied_inserts"]

#: SQLAlchemy's name of a column's type -> PostgreSQL's
_TYPES = {
    "BIGINT": "int8",
    "BOOLEAN": "bool",
    "DOUBLE PRECISION": "float8",
    "FLOAT": "float8",
    "JSONB": "jsonb",
    "TIMESTAMP WITH TIME ZONE": "timestamptz",
    "UUID": "uuid",
    "VARCHAR": "text",
    "VECTOR": "vector",
    "HALFVEC": "halfvec",
}


@contextmanager
def copied_inserts(table: pxt.Table) -> Iterator[None]:
    """Within the block, rows that Pixeltable inserts into ``table`` are written by COPY; views of it as ever.

    The caller holds the transaction.
    """
    store = table._tbl_version.get().store_tbl
    plain = store.sql_insert

    def insert(sa_table: sql.Table, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        if not _copy(sa_table, names, rows):
            plain(sa_table, names, rows)

    store.sql_insert = insert
    try:
        yield
    finally:
        del store.sql_insert


def _copy(sa_table: sql.Table, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> bool:
    """Write ``rows``; False, and nothing written, where a column's type is not known."""
    from pixeltable.runtime import get_runtime

    columns = [sa_table.c[name] for name in names]
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    types = [_TYPES.get(column.type.compile(dialect).split("(")[0]) for column in columns]
    known = [each for each in types if each is not None]
    if len(known) < len(types):
        return False
    adapt = [_json if each == "jsonb" else _plain for each in known]
    connection = get_runtime().conn.connection.driver_connection
    quoted = ", ".join(column.name for column in columns)
    with connection.cursor() as cursor:
        vectors = _register_vectors(cursor, set(known) & set(VECTOR_ELEMENTS))
        with cursor.copy(f"COPY {sa_table.name} ({quoted}) FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types([vectors.get(each, each) for each in known])
            for row in rows:
                copy.write_row([function(value) for function, value in zip(adapt, row, strict=True)])
    return True


def _plain(value: Any) -> Any:
    return None if isinstance(value, sql.sql.elements.Null) else value


def _json(value: Any) -> Any:
    return None if value is None or isinstance(value, sql.sql.elements.Null) else Jsonb(value)


def _register_vectors(cursor: Cursor[Any], kinds: set[str]) -> dict[str, int]:
    """Let ``cursor`` write numpy arrays as ``kinds`` in binary; the connection, which others use, is left alone.

    Returns:
        pgvector's types with their ids in this database.
    """
    ids: dict[str, int] = {}
    for kind in kinds:
        row = cursor.execute("SELECT %s::regtype::oid::int", (kind,)).fetchone()
        assert row is not None
        ids[kind] = row[0]
        cursor.adapters.register_dumper(np.ndarray, _dumper(row[0], VECTOR_ELEMENTS[kind]))
    return ids


def _dumper(oid_: int, element: str) -> type[Dumper]:
    pack: Callable[[int, int], bytes] = struct.Struct(">HH").pack

    class VectorDumper(Dumper):
        format = Format.BINARY
        oid = oid_

        def dump(self, obj: np.ndarray) -> bytes:
            return pack(len(obj), 0) + obj.astype(element).tobytes()

    return VectorDumper
