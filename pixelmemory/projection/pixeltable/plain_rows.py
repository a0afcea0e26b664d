"""Inserts into plain tables: those whose columns, indexes and views are exactly the ones that the layout makes.

Pixeltable takes 45 to 75 us of Python for a row: it computes columns, keeps files, checks types. A plain table has
nothing of the kind to be done. So its rows go straight from the changes, with their vectors, into the binary stream of
a COPY. The version, the row ids, the record of the operation and the transaction stay Pixeltable's: its own
``TableVersion._insert`` is called, and only the step in it that makes and writes the rows is ours.

A table to which its user has added anything is inserted into by Pixeltable as a whole. Which of the two it is, is seen
in the transaction that writes: it holds Pixeltable's lock of the table. The first row that is written is read back
through Pixeltable in the same transaction; where that fails, Pixeltable inserts everything until the store is closed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pixeltable as pxt
import psycopg
import sqlalchemy as sql
from pixeltable.catalog.update_status import RowCountStats
from pixeltable.type_system import ColumnType

from pixelmemory.errors import ProjectionUnavailableError, UnavailableCause
from pixelmemory.memory.identity import memory_key
from pixelmemory.projection.changes import Change
from pixelmemory.projection.embed import embed_content
from pixelmemory.projection.pixeltable.startup import is_infrastructure_error
from pixelmemory.projection.pixeltable.tables import INDEX_NAME, TableSet
from pixelmemory.projection.rows import COLUMNS, Kind, values_of
from pixelmemory.projection.sql.copy import VECTOR_ELEMENTS, RowEncoder, copy_rows
from pixelmemory.projection.sql.physical import namespace_key

__all__ = ["PlainTables", "insert_beneath"]

_logger = logging.getLogger("pixelmemory.projection")


class PlainTables:
    """Inserts into the plain tables of one projection. Belongs to the projector's thread."""

    def __init__(self, tables: TableSet) -> None:
        self._tables = tables
        #: by whether the table is shared
        self._columns: dict[bool, dict[str, ColumnType]] = {}
        self._encoders: dict[bool, RowEncoder] = {}
        for shared in (True, False):
            columns = tables.columns(shared=shared)
            self._columns[shared] = {name: ColumnType.normalize_type(kind) for name, kind in columns.items()}
            self._encoders[shared] = RowEncoder(len(columns), shared=shared, schema=tables.schema)
        #: whether Pixeltable has read a row of ours as it was meant; None until the first one is written
        self._proven: bool | None = None

    def insert(
        self,
        connection: sql.Connection,
        table: pxt.Table,
        changes: Sequence[Change],
        vectors: Mapping[tuple[str, str], np.ndarray | None],
        *,
        shared: bool,
    ) -> bool:
        """Insert the rows of ``changes``; False, and nothing done, where ``table`` is not plain.

        Args:
            connection: of the transaction, which has Pixeltable's lock of ``table``.
            shared: whether ``table`` holds several namespaces.
            changes: at least one, each with a row to insert.
            vectors: float32, ``(dimensions,)`` each, by (namespace, memory id). Where one is missing Pixeltable has to
                embed, and inserts them all.

        Raises:
            psycopg.Error: what PostgreSQL refused.
            ProjectionUnavailableError: Pixeltable does not work as this module believes; it does not come again.
        """
        if self._proven is False:
            return False
        if self._tables.state.dimensions is not None and not all(change.key in vectors for change in changes):
            return False
        try:
            version = table._tbl_version.get()
            names = self._physical_names(version, shared=shared)
            if names is None:
                return False
            self._insert(connection, version, names, changes, vectors, self._encoders[shared])
            if self._proven is None:
                self._prove(table, changes[0], shared=shared)
        except Exception as error:
            if self._proven or isinstance(error, psycopg.Error) or is_infrastructure_error(error):
                raise
            self._proven = False
            _logger.warning("rows are inserted by Pixeltable, which is slower: %s: %s", type(error).__name__, error)
            raise ProjectionUnavailableError(
                f"rows could not be written beneath Pixeltable: {error}", UnavailableCause.ROWS_REFUSED
            ) from error
        return True

    def _insert(
        self,
        connection: sql.Connection,
        version: Any,
        names: Sequence[str],
        changes: Sequence[Change],
        vectors: Mapping[tuple[str, str], np.ndarray | None],
        encoder: RowEncoder,
    ) -> None:
        store = version.store_tbl
        driver: Any = connection.connection.driver_connection

        def copy() -> int:
            element = None if self._tables.state.dimensions is None else _element(store.sa_tbl.c[names[-1]])
            rows = encoder.encode(version.next_row_id, version.version, changes, vectors, element)
            copy_rows(driver, f"{store.sa_tbl.name} (rowid, v_min, {', '.join(names)})", rows, len(changes))
            return len(changes)

        insert_beneath(version, copy)

    def _physical_names(self, version: Any, *, shared: bool) -> list[str] | None:
        """The physical names of the columns that are written, the vector last; None where the table is not plain."""
        if not version.is_data_versioned or version.is_view or version.is_snapshot or version.mutable_views:
            return None
        expected = self._columns[shared]
        names: dict[str, str] = {}
        unnamed: set[int] = set()
        for column in version.cols_by_id.values():
            if column.name is None:
                unnamed.add(column.id)
            elif column.is_computed or not column.is_stored or column.col_type != expected.get(column.name):
                return None
            else:
                names[column.name] = column.sa_col.name
        if len(names) != len(expected) or len(version.idxs) != len(version.idxs_by_name):
            return None
        ordered = [names[name] for name in expected]
        dimensions, store_id = self._tables.state.dimensions, self._tables.state.store_id
        if dimensions is None:
            return None if version.idxs or unnamed else ordered
        index = version.idxs_by_name.get(INDEX_NAME)
        if index is None or len(version.idxs) > 1 or {column.id for column in index.columns} != unnamed:
            return None
        # its user may have put an index of this name there, with a function of theirs
        expression = index.val_col.value_expr
        if str(expression) != f"embed_content(content, store_id={store_id!r}, dimensions={dimensions})":
            return None
        templates = getattr(expression.fn, "templates", ())
        if [template.expr.fn.self_path for template in templates] != [embed_content.self_path]:
            return None
        return [*ordered, index.val_col.sa_col.name]

    def _prove(self, table: pxt.Table, change: Change, *, shared: bool) -> None:
        """Raise unless Pixeltable reads the row of ``change``, which was written in this transaction."""
        key = memory_key(change.memory_id)
        predicate = table.memory_id == key
        if shared:
            predicate = (table.namespace_key == namespace_key(change.namespace)) & predicate
        # of a number in JSON the database may make another of the same value: its text is compared
        columns = [column for column in COLUMNS if column.kind is not Kind.JSON]
        found = list(table.where(predicate).select(*[getattr(table, column.name) for column in columns]).collect())
        if [[row[column.name] for column in columns] for row in found] != [values_of(change, columns)]:
            raise LookupError(f"of a row at LSN {change.lsn} it reads {len(found)} that differ")
        self._proven = True


def insert_beneath(version: Any, write: Callable[[], int]) -> None:
    """Let Pixeltable insert into the table ``version``, with ``write`` in place of the step that makes the rows.

    Args:
        write: writes rows from ``version.next_row_id`` on, and returns how many.
    """
    store = version.store_tbl

    def insert_rows(*_args: Any, **_kwargs: Any) -> Any:
        count = write()
        version.next_row_id += count
        return set(), RowCountStats(ins_rows=count), None

    store.insert_rows = insert_rows
    try:
        version._insert(SimpleNamespace(ctx=SimpleNamespace(title="")), time.time())
    finally:
        del store.insert_rows


def _element(column: sql.Column[Any]) -> str:
    return VECTOR_ELEMENTS[type(column.type).__name__.lower()]
