"""Rows of memories in the binary form of PostgreSQL's COPY, and the COPY itself.

Text takes the server twice as long, and a vector as text is four times its size.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg

from pixelmemory.errors import ProjectionError
from pixelmemory.memory.identity import memory_key
from pixelmemory.memory.metadata import decode_metadata
from pixelmemory.memory.schema import ColumnKind, Schema
from pixelmemory.projection.changes import Change
from pixelmemory.projection.contract import Vectors
from pixelmemory.projection.rows import COLUMNS, Kind
from pixelmemory.projection.sql.physical import namespace_key
from pixelmemory.readers import give_way

__all__ = ["VECTOR_ELEMENTS", "RowEncoder", "copy_rows"]

#: rows that are encoded before readers get their turn
ROWS_A_TURN = 30
#: bytes handed to the connection at once
CHUNK_BYTES = 1 << 18
#: the binary form of COPY: its signature, no flags, no extension
HEADER, TRAILER = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
NULL = struct.pack(">i", -1)
#: pgvector's types -> their numbers in binary form, big-endian
VECTOR_ELEMENTS = {"vector": ">f4", "halfvec": ">f2"}
#: 2000-01-01, from which PostgreSQL counts microseconds
EPOCH = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
EPOCH_US = 946_684_800_000_000

_length: Callable[[int], bytes] = struct.Struct(">i").pack
_int8: Callable[[int, int], bytes] = struct.Struct(">iq").pack
_float8: Callable[[int, float], bytes] = struct.Struct(">id").pack
_row_head: Callable[..., bytes] = struct.Struct(">hiqiq").pack
_vector_head: Callable[[int, int, int], bytes] = struct.Struct(">iHH").pack


class RowEncoder:
    """Encodes the rows of a table of memories.

    Args:
        column_count: of the table's own columns, the vector left out.
        shared: whether the table holds several namespaces.
        schema: which metadata has typed columns.
    """

    def __init__(self, column_count: int, *, shared: bool, schema: Schema | None) -> None:
        self._column_count = column_count
        self._shared = shared
        self._schema = schema
        typed = schema.columns if schema is not None else {}
        self._encoders = [_TYPED_ENCODERS[kind] for kind in typed.values()]

    def encode(
        self,
        rowid: int,
        version: int,
        changes: Sequence[Change],
        vectors: Vectors,
        element: str | None,
    ) -> Iterator[bytes]:
        """Rows in the binary form of COPY: rowid, v_min, the columns in their order, the vector."""
        shared, schema = self._shared, self._schema
        count = 2 + self._column_count + (element is not None)
        key_of = functools.cache(lambda namespace: _bytes(namespace_key(namespace).bytes))
        for place, change in enumerate(changes):
            if place % ROWS_A_TURN == 0:
                give_way()
            key = memory_key(change.memory_id)
            parts = [_row_head(count, 8, rowid + place, 8, version)]
            if shared:
                parts += key_of(change.namespace), _bytes(key.bytes), _bytes(change.namespace.encode())
            else:
                parts.append(_bytes(key.bytes))
            parts.append(NULL if str(key) == change.memory_id else _bytes(change.memory_id.encode()))
            for value_of, encode in _COLUMNS:
                value = value_of(change)
                parts.append(NULL if value is None else encode(value))
            if schema is not None:
                assert change.metadata_json is not None
                typed = schema.extract(decode_metadata(change.metadata_json)).values()
                for encode, held in zip(self._encoders, typed, strict=True):
                    parts.append(NULL if held is None else encode(held))
            if element is not None:
                vector = vectors[change.key]
                if vector is None:
                    parts.append(NULL)
                else:
                    size = len(vector)
                    parts.append(_vector_head(4 + size * int(element[-1]), size, 0) + vector.astype(element).tobytes())
            yield b"".join(parts)


def copy_rows(connection: psycopg.Connection[Any], target: str, rows: Iterator[bytes], count: int) -> None:
    """COPY ``rows`` into ``target``, a table with the names of its columns.

    Raises:
        psycopg.Error: what PostgreSQL refused.
        ProjectionError: it took another number of rows than ``count``.
    """
    with connection.cursor() as cursor:
        with cursor.copy(f"COPY {target} FROM STDIN (FORMAT BINARY)".encode()) as copy:
            chunk, size = [HEADER], 0
            for row in rows:
                chunk.append(row)
                size += len(row)
                if size >= CHUNK_BYTES:
                    copy.write(b"".join(chunk))
                    chunk, size = [], 0
            copy.write(b"".join([*chunk, TRAILER]))
        if cursor.rowcount != count:
            raise ProjectionError(f"PostgreSQL inserted {cursor.rowcount} of {count} rows")


def _bytes(value: bytes) -> bytes:
    return _length(len(value)) + value


def _jsonb(text: bytes) -> bytes:
    return _length(len(text) + 1) + b"\x01" + text


def _timestamp(value: dt.datetime) -> bytes:
    return _int8(8, (value - EPOCH) // dt.timedelta(microseconds=1))


#: how a value of a column is written, NULL aside
_ENCODERS: dict[Kind, Callable[[Any], bytes]] = {
    Kind.TEXT: lambda value: _bytes(value.encode()),
    Kind.JSON: _jsonb,
    Kind.JSON_TEXT: _bytes,
    Kind.TIME: lambda value: _int8(8, value - EPOCH_US),
    Kind.INT: lambda value: _int8(8, value),
}
_COLUMNS = [(column.of, _ENCODERS[column.kind]) for column in COLUMNS]

#: the same of a typed column
_TYPED_ENCODERS: dict[ColumnKind, Callable[[Any], bytes]] = {
    ColumnKind.STRING: lambda value: _bytes(value.encode()),
    ColumnKind.INT: lambda value: _int8(8, value),
    ColumnKind.FLOAT: lambda value: _float8(8, value),
    ColumnKind.BOOL: lambda value: b"\0\0\0\1\1" if value else b"\0\0\0\1\0",
    ColumnKind.TIMESTAMP: _timestamp,
    ColumnKind.JSON: lambda value: _jsonb(json.dumps(value).encode()),
}
