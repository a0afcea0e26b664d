"""The tables of a projection as PostgreSQL has them, whoever made them: names, keys, and which rows are live."""

from __future__ import annotations

import hashlib
import uuid
from typing import Protocol

import msgspec

from pixelmemory.memory.schema import Schema

__all__ = ["LIVE", "PhysicalTable", "PhysicalTables", "namespace_key"]

#: the predicate of live rows in a table that keeps its past, and of every partial index of ours
LIVE = "v_max = 9223372036854775807"


class PhysicalTable(msgspec.Struct, frozen=True):
    """One table in PostgreSQL. All names are safe in SQL."""

    name: str
    #: column name -> physical name
    columns: dict[str, str]
    #: physical name of the embedding column, or None
    vector: str | None = None
    #: "vector" or "halfvec"
    vector_type: str = "vector"
    #: name of the HNSW index, whether or not it exists at the moment
    hnsw: str | None = None
    #: the statement that builds the HNSW index
    hnsw_statement: str | None = None

    @property
    def drop_hnsw(self) -> str:
        """The statement that drops the HNSW index; searches by meaning are exact without it."""
        return f"DROP INDEX IF EXISTS {self.hnsw}"


class PhysicalTables(Protocol):
    """The tables of one projection, as reads by SQL and the upkeep need them. Thread-safe."""

    #: which metadata has typed columns
    @property
    def schema(self) -> Schema | None: ...

    #: of a vector, or None without semantic search
    @property
    def dimensions(self) -> int | None: ...

    def is_shared(self, name: str) -> bool:
        """Whether the table ``name`` holds several namespaces."""

    def has_hnsw(self, name: str) -> bool:
        """Whether the table ``name`` gets an HNSW index once it is large."""

    def physical(self, name: str) -> PhysicalTable:
        """The physical side of the table ``name``."""

    def connection_string(self) -> str:
        """The database, as psycopg takes it; may change when its server is started again."""

    def revive(self) -> None:
        """Start the database again if it is gone and ours to start."""


def namespace_key(namespace: str) -> uuid.UUID:
    """The key of a namespace in the registry and the shared table."""
    return uuid.UUID(bytes=hashlib.blake2b(namespace.encode(), digest_size=16).digest())
