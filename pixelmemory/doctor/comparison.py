"""Compare a projection with the fold of its log, row by row. Nothing is written, and the store may be open elsewhere.

The tables are read in one snapshot of the database, with the checkpoint that belongs to it; the log is folded up to
there. The fold stands here once more, in its plainest form, so that the projector's own is checked by another.
Vectors and typed columns are not compared: both follow from the rest.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import os
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import psycopg
from psycopg import sql

from pixelmemory.errors import ProjectionUnavailableError, UnavailableCause
from pixelmemory.log.contract import StoredEvent
from pixelmemory.memory.events import EventRemoved, MemoryAdded, MemoryDeleted
from pixelmemory.paths import absolute_path

__all__ = ["Comparison", "Fold", "ProjectionSnapshot", "RowFinding", "open_snapshot"]

#: findings of each kind that are kept as examples
EXAMPLES_MAX = 20
#: rows fetched at a time
FETCH_ROWS = 1000

_COLUMNS = ("id_text", "memory_id", "content", "metadata_text", "timestamp", "lsn", "metadata")
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class FoldedMemory(msgspec.Struct, frozen=True, gc=False):
    """What a memory's row has to be."""

    lsn: int
    created_at_us: int
    content_digest: bytes
    metadata_digest: bytes


class RowFinding(msgspec.Struct, frozen=True):
    """One row that is not as the log says."""

    #: ``missing``, ``extra`` or ``different``
    kind: str
    namespace: str | None
    memory_id: str
    #: of the row, or of the memory's last event where there is no row
    lsn: int | None
    #: columns that differ
    columns: list[str] = []


class Comparison(msgspec.Struct):
    """What comparing found."""

    checkpoint_lsn: int
    #: rows of memories, those that a user inserted directly left out
    rows: int = 0
    #: rows that a user inserted directly: no fault
    inserted_directly: int = 0
    missing: int = 0
    extra: int = 0
    different: int = 0
    dead_letters: int = 0
    #: at most :data:`EXAMPLES_MAX` of each kind
    examples: list[RowFinding] = []

    @property
    def faults(self) -> int:
        """Rows that are not as the log says."""
        return self.missing + self.extra + self.different

    def note(self, finding: RowFinding) -> None:
        """Count a finding, and keep it while there are few of its kind."""
        count = getattr(self, finding.kind) + 1
        setattr(self, finding.kind, count)
        if count <= EXAMPLES_MAX:
            self.examples.append(finding)


class TableRow(msgspec.Struct, frozen=True):
    """One live row of a memory table."""

    #: None where a user inserted a row without it
    namespace: str | None
    memory_id: str
    content: str
    #: a JSON object; None in a row of a user's
    metadata_json: str | None
    #: the metadata was changed through Pixeltable
    metadata_changed: bool
    created_at_us: int | None
    #: None in a row that a user inserted
    lsn: int | None


class Fold:
    """The log, folded: one entry a memory. Memory: about half a kilobyte for each.

    Args:
        dead_lsns: dead letters: events that count as not applied.
    """

    def __init__(self, dead_lsns: set[int]) -> None:
        self._dead_lsns = dead_lsns
        self.memories: dict[tuple[str, str], FoldedMemory] = {}

    def add(self, stored: StoredEvent) -> None:
        """The next event, in LSN order."""
        event = stored.event
        if isinstance(event, EventRemoved) or stored.lsn in self._dead_lsns:
            return
        key = (event.namespace, event.memory_id)
        if isinstance(event, MemoryDeleted):
            self.memories.pop(key, None)
        elif isinstance(event, MemoryAdded):
            self.memories[key] = FoldedMemory(
                stored.lsn, event.created_at_us, _digest(event.content.encode()), _digest(event.metadata_json)
            )
        elif (old := self.memories.get(key)) is not None:
            self.memories[key] = FoldedMemory(
                stored.lsn,
                old.created_at_us,
                old.content_digest if event.content is None else _digest(event.content.encode()),
                old.metadata_digest if event.metadata_json is None else _digest(event.metadata_json),
            )


class ProjectionSnapshot:
    """A projection as it was at one moment. Made by :func:`open_snapshot`.

    Attributes:
        path: the folder in Pixeltable.
        state_id: the id of the history that it was made from.
        checkpoint_lsn: the last LSN that it has applied.
        dead_lsns: its dead letters.
    """

    def __init__(self, connection: psycopg.Connection[Any], path: str) -> None:
        self._connection = connection
        self.path = path
        rows = self._read("state", ("store_id", "checkpoint_lsn"))
        if len(rows) != 1:
            raise ProjectionUnavailableError(
                f"the projection {path} is only half made; the next open rebuilds it", UnavailableCause.NOT_BUILT
            )
        self.state_id: str = rows[0][0]
        self.checkpoint_lsn: int = rows[0][1]
        self.dead_lsns: set[int] = {row[0] for row in self._read("dead_letters", ("lsn",))}
        registry = [row for row in self._read("registry", ("namespace", "table_name")) if row[1] is not None]
        self._tables: dict[str, str] = {name: namespace for namespace, name in registry}
        #: namespace -> its table: the rows of one that is being moved stand in two
        self._table_of: dict[str, str] = dict(registry)

    def _read(self, name: str, columns: tuple[str, ...]) -> list[Any]:
        table, names = _physical(f"{self.path}/{name}", *columns)
        return self._connection.execute(
            _select(table, [sql.Identifier(names[column]) for column in columns])
        ).fetchall()

    def rows(self) -> Iterator[TableRow]:
        """Every live row of every memory table, read as it is asked for.

        Raises:
            ProjectionUnavailableError: the database fails, or a table is gone.
        """
        for name, namespace in self._tables.items():
            table, names = _physical(f"{self.path}/{name}", *_COLUMNS)
            columns: list[sql.Composable] = [sql.Identifier(names[c]) for c in _COLUMNS if c != "metadata"]
            text, value = sql.Identifier(names["metadata_text"]), sql.Identifier(names["metadata"])
            # where a user changed the metadata through Pixeltable, its text is out of date
            columns.append(
                sql.SQL("CASE WHEN {text}::jsonb = {value} THEN NULL ELSE {value}::text END").format(
                    text=text, value=value
                )
            )
            if shared := "namespace" in names:
                columns.append(sql.Identifier(names["namespace"]))
            try:
                with self._connection.cursor(name="pixelmemory_rows") as cursor:
                    cursor.itersize = FETCH_ROWS
                    for row in cursor.execute(_select(table, columns)):
                        found = row[7] if shared else namespace
                        if self._table_of.get(found, name) == name:
                            yield _table_row(row, found)
            except psycopg.Error as error:
                raise ProjectionUnavailableError(
                    f"table {self.path}/{name} cannot be read: {error}", UnavailableCause.DATABASE_DOWN
                ) from error

    def compare(self, fold: Fold) -> Comparison:
        """Compare every row with ``fold``, which has to be complete up to the checkpoint."""
        result = Comparison(self.checkpoint_lsn, dead_letters=len(self.dead_lsns))
        left = dict(fold.memories)
        for row in self.rows():
            if row.lsn is None:
                result.inserted_directly += 1
                continue
            result.rows += 1
            expected = None if row.namespace is None else left.pop((row.namespace, row.memory_id), None)
            if expected is None:
                result.note(RowFinding("extra", row.namespace, row.memory_id, row.lsn))
            elif columns := _differences(row, expected):
                result.note(RowFinding("different", row.namespace, row.memory_id, row.lsn, columns))
        for (namespace, memory_id), expected in left.items():
            result.note(RowFinding("missing", namespace, memory_id, expected.lsn))
        return result

    def rows_from(self, first_lsn: int) -> Iterator[dict[str, Any]]:
        """The rows whose memory was last changed by ``first_lsn`` or a later event, as fields for a line of JSON."""
        for row in self.rows():
            if row.lsn is not None and row.lsn >= first_lsn:
                yield {
                    "namespace": row.namespace,
                    "memory_id": row.memory_id,
                    "content": row.content,
                    "metadata": msgspec.Raw((row.metadata_json or "{}").encode()),
                    "created_at": None
                    if row.created_at_us is None
                    else (_EPOCH + dt.timedelta(microseconds=row.created_at_us)).isoformat(),
                    "lsn": row.lsn,
                }


@contextlib.contextmanager
def open_snapshot(store_name: str, tables_id: uuid.UUID, history_id: uuid.UUID) -> Iterator[ProjectionSnapshot]:
    """The projection of a store in the Pixeltable of this environment; read only.

    Args:
        store_name, tables_id, history_id: of the store; see
            :func:`pixelmemory.projection.pixeltable.tables.find_folder`.

    Raises:
        ProjectionUnavailableError: there is none, or it cannot be read; the message says why.
    """
    _refuse_to_make_a_home()
    from pixelmemory.projection.pixeltable.inspection import open_tables

    try:
        with open_tables(store_name, tables_id, history_id) as (connection, path):
            yield ProjectionSnapshot(connection, path)
    except psycopg.Error as error:
        raise ProjectionUnavailableError(
            f"the database cannot be read: {error}", UnavailableCause.DATABASE_DOWN
        ) from error


def _refuse_to_make_a_home() -> None:
    """Pixeltable makes its home where there is none; who only looks must not."""
    home = absolute_path(os.environ.get("PIXELTABLE_HOME") or "~/.pixeltable", "PIXELTABLE_HOME")
    elsewhere = any(os.environ.get(name) for name in ("PIXELTABLE_DB_CONNECT_STR", "PIXELTABLE_PGDATA"))
    if not elsewhere and not (home / "pgdata").exists() and not (home / "config.toml").exists():
        raise ProjectionUnavailableError(
            f"there is no Pixeltable at {home}; set PIXELTABLE_HOME to the one that the store is used with",
            UnavailableCause.NOT_STARTED,
        )


def _physical(path: str, *needed: str) -> tuple[str, Mapping[str, str]]:
    """The table in PostgreSQL behind a Pixeltable path, and its columns, ``needed`` among them."""
    from pixelmemory.projection.pixeltable.inspection import physical_table

    found = physical_table(path)
    if gone := [column for column in needed if column not in found.columns]:
        raise ProjectionUnavailableError(
            f"table {path} has no column {gone[0]} any more; rebuild the projection", UnavailableCause.TABLE_GONE
        )
    return found.name, found.columns


def _select(table: str, columns: list[Any]) -> sql.Composed:
    from pixelmemory.projection.sql.physical import LIVE

    return sql.SQL("SELECT {} FROM {} WHERE {}").format(
        sql.SQL(", ").join(columns), sql.Identifier(table), sql.SQL(LIVE)
    )


def _table_row(row: tuple[Any, ...], namespace: str | None) -> TableRow:
    id_text, memory_id, content, metadata_text, timestamp, lsn, changed = row[:7]
    # PostgreSQL and Python may read a number differently; both have to see a change
    is_changed = changed is not None and (
        metadata_text is None or msgspec.json.decode(metadata_text) != msgspec.json.decode(changed)
    )
    return TableRow(
        namespace,
        str(memory_id) if id_text is None else id_text,
        content,
        changed if is_changed else metadata_text,
        is_changed,
        None if timestamp is None else (timestamp - _EPOCH) // dt.timedelta(microseconds=1),
        lsn,
    )


def _differences(row: TableRow, expected: FoldedMemory) -> list[str]:
    metadata = (row.metadata_json or "").encode()
    same = {
        "content": _digest(row.content.encode()) == expected.content_digest,
        "metadata": not row.metadata_changed and _digest(metadata) == expected.metadata_digest,
        "timestamp": row.created_at_us == expected.created_at_us,
        "lsn": row.lsn == expected.lsn,
    }
    return [column for column, equal in same.items() if not equal]


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
