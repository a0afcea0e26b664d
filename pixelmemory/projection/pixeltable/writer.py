"""Applying folded changes to the tables, with the checkpoint, in one transaction.

With Pixeltable's internals at hand the rows of a batch, on any number of tables, and its checkpoint commit together.
Through the public API alone each call commits by itself; the batch is then applied so that doing it again leaves the
same rows (every memory that it adds is deleted first), and the checkpoint comes last. Either way each event takes
effect exactly once.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import pixeltable as pxt
import sqlalchemy as sql

from pixelmemory.errors import ProjectionError
from pixelmemory.faults import fault_point
from pixelmemory.memory.identity import memory_key
from pixelmemory.projection.changes import Change
from pixelmemory.projection.contract import DeadLetter, Vectors, letters_of
from pixelmemory.projection.embed import VectorSource
from pixelmemory.projection.pixeltable import internals
from pixelmemory.projection.pixeltable.copied_inserts import copied_inserts
from pixelmemory.projection.pixeltable.plain_rows import PlainTables
from pixelmemory.projection.pixeltable.tables import INDEX_NAME, TableSet
from pixelmemory.projection.rows import Column, given, values_of
from pixelmemory.projection.sql.physical import namespace_key

__all__ = ["TableWriter"]


class TableWriter:
    """Writes to the tables of one projection. Belongs to the projector's thread."""

    def __init__(self, tables: TableSet, source: VectorSource) -> None:
        self._tables = tables
        self._source = source
        self._plain = PlainTables(tables)

    def prepare(self, changes: Sequence[Change]) -> None:
        """Make the tables that ``changes`` need; tables cannot be made inside a transaction."""
        for namespace in dict.fromkeys(change.namespace for change in changes if change.insert):
            self._tables.create(namespace)

    def apply(
        self,
        changes: Sequence[Change],
        vectors: Vectors,
        *,
        checkpoint_lsn: int | None,
        replace: bool = False,
        dead_letters: Sequence[DeadLetter] = (),
        revived_lsns: Sequence[int] = (),
    ) -> list[DeadLetter]:
        """As :meth:`pixelmemory.projection.contract.Host.apply`."""
        replace = replace or not self._tables.direct_sql
        by_table: dict[str, list[Change]] = defaultdict(list)
        missing: list[Change] = []
        for change in changes:
            name = self._tables.name_of(change.namespace)
            if name is not None:
                by_table[name].append(change)
            elif change.patch:
                missing.append(change)
        state = self._tables.table("state")
        dead = self._tables.table("dead_letters")
        opened = [self._tables.table(name) for name in by_table]
        if self._tables.direct_sql:
            for name in (*by_table, "state"):
                self._tables.physical(name)  # cannot be looked up within the transaction
        with self._transaction([*opened, state, dead]) as connection:
            fault_point("apply.begun")
            for name, group in by_table.items():
                missing += self._apply_table(connection, name, group, vectors, replace)
            fault_point("apply.rows")
            if revived_lsns:
                dead.delete(dead.lsn.isin(list(revived_lsns)))
            reason = "its memory is not in the table (deleted there directly?)"
            recorded = [*dead_letters, *(letter for change in missing for letter in letters_of(change, reason))]
            if recorded:
                dead.batch_update([msgspec.structs.asdict(letter) for letter in recorded], if_not_exists="insert")
            if checkpoint_lsn is not None:
                self._advance(connection, state, checkpoint_lsn)
            fault_point("apply.checkpoint")
        fault_point("apply.committed")
        return recorded

    @contextlib.contextmanager
    def _transaction(self, tables: Sequence[pxt.Table]) -> Iterator[sql.Connection | None]:
        if not self._tables.direct_sql:
            yield None
            return
        with internals.transaction(tables) as connection:
            yield connection

    def _advance(self, connection: sql.Connection | None, state: pxt.Table, lsn: int) -> None:
        if connection is not None:
            internals.advance_checkpoint(connection, self._tables.physical("state"), lsn)
        else:
            state.batch_update([{"key": 1, "checkpoint_lsn": lsn}])

    def _apply_table(
        self, connection: sql.Connection | None, name: str, changes: Sequence[Change], vectors: Vectors, replace: bool
    ) -> list[Change]:
        table = self._tables.table(name)
        # a memory that is added and deleted within the batch leaves no change, and may have been inserted before
        self._delete(table, [c for c in changes if c.delete or (replace and not c.patch)])
        self._insert(connection, table, [c for c in changes if c.insert], vectors)
        patches = [c for c in changes if c.patch]
        if not patches:
            return []
        live = self._live(connection, name, table, patches)
        self._patch(table, [c for c in patches if self._key(c) in live], vectors)
        return [c for c in patches if self._key(c) not in live]

    # -- keys

    def _key(self, change: Change) -> Any:
        key = memory_key(change.memory_id)
        return (namespace_key(change.namespace), key) if self._tables.shared else key

    def _key_columns(self, change: Change) -> dict[str, Any]:
        columns: dict[str, Any] = {"memory_id": memory_key(change.memory_id)}
        if self._tables.shared:
            columns["namespace_key"] = namespace_key(change.namespace)
        return columns

    def _predicates(self, table: pxt.Table, changes: Sequence[Change]) -> Iterator[Any]:
        """Predicates that together select the rows of ``changes``."""
        groups: dict[str, list[Any]] = defaultdict(list)
        for change in changes:
            groups[change.namespace if self._tables.shared else ""].append(memory_key(change.memory_id))
        for namespace, keys in groups.items():
            predicate = table.memory_id.isin(keys)
            yield (table.namespace_key == namespace_key(namespace)) & predicate if self._tables.shared else predicate

    def _live(
        self, connection: sql.Connection | None, name: str, table: pxt.Table, changes: Sequence[Change]
    ) -> set[Any]:
        columns = ["namespace_key", "memory_id"] if self._tables.shared else ["memory_id"]
        if connection is not None:
            keys = [self._key(change) for change in changes]
            return internals.live_keys(connection, self._tables.physical(name), columns, keys)
        live: set[Any] = set()
        for predicate in self._predicates(table, changes):
            rows = table.where(predicate).select(*[getattr(table, column) for column in columns]).collect()
            live |= {tuple(row[c] for c in columns) if self._tables.shared else row["memory_id"] for row in rows}
        return live

    # -- rows

    def _delete(self, table: pxt.Table, changes: Sequence[Change]) -> None:
        if changes:
            for predicate in self._predicates(table, changes):
                table.delete(predicate)

    def _insert(
        self, connection: sql.Connection | None, table: pxt.Table, changes: Sequence[Change], vectors: Vectors
    ) -> None:
        if not changes or (connection is not None and self._plain.insert(connection, table, changes, vectors)):
            return
        for group, prepared in self._rounds(changes, vectors):
            rows = [self._row(change) for change in group]
            with self._source.prepared(prepared), self._fast(table):
                # 'ignore' keeps a failing computed column of the user's from holding up the memories
                status = table.insert(rows, on_error="ignore")
            inserted = status.row_count_stats.ins_rows  # num_rows counts those of the user's views as well
            if inserted != len(rows):
                raise ProjectionError(f"Pixeltable inserted {inserted} of {len(rows)} rows")
            _check_embedded(status)

    def _fast(self, table: pxt.Table) -> contextlib.AbstractContextManager[None]:
        return copied_inserts(table) if self._tables.direct_sql else contextlib.nullcontext()

    def _patch(self, table: pxt.Table, changes: Sequence[Change], vectors: Vectors) -> None:
        by_columns: dict[tuple[Column, ...], list[Change]] = defaultdict(list)
        for change in changes:
            by_columns[given(change)].append(change)
        for group in by_columns.values():
            for same, prepared in self._rounds(group, vectors):
                with self._source.prepared(prepared):
                    self._update(table, same)

    def _update(self, table: pxt.Table, changes: Sequence[Change]) -> None:
        """Update rows, and let no failing computed column or index of the user's hold them up."""
        if self._tables.direct_sql:
            with internals.tolerant_updates(table):
                _check_embedded(table.batch_update([self._patch_row(change) for change in changes]))
            return
        for change in changes:  # the public API tolerates such a failure in single updates alone
            row = self._patch_row(change)
            for name in self._key_columns(change):
                del row[name]
            for predicate in self._predicates(table, [change]):
                _check_embedded(table.update(row, where=predicate))

    def _rounds(
        self, changes: Sequence[Change], vectors: Vectors
    ) -> Iterator[tuple[list[Change], dict[str, np.ndarray | None]]]:
        """Split ``changes`` so that within a round every text has one vector: the index looks vectors up by text."""
        waiting = list(changes)
        while waiting:
            group: list[Change] = []
            deferred: list[Change] = []
            prepared: dict[str, np.ndarray | None] = {}
            for change in waiting:
                if change.content is None or change.key not in vectors:
                    group.append(change)
                    continue
                vector = vectors[change.key]
                known = prepared.setdefault(change.content, vector)
                (group if _same(known, vector) else deferred).append(change)
            yield group, prepared
            waiting = deferred

    def _row(self, change: Change) -> dict[str, Any]:
        row = self._patch_row(change)
        row["id_text"] = None if str(row["memory_id"]) == change.memory_id else change.memory_id
        if self._tables.shared:
            row["namespace"] = change.namespace
        return row

    def _patch_row(self, change: Change) -> dict[str, Any]:
        columns = given(change)
        row = self._key_columns(change)
        row |= zip((column.name for column in columns), values_of(change, columns), strict=True)
        if "metadata" in row and self._tables.schema is not None:
            typed = self._tables.schema.extract(row["metadata"])
            row |= {name.lower(): value for name, value in typed.items()}
        return row


def _same(left: np.ndarray | None, right: np.ndarray | None) -> bool:
    return left is right or (left is not None and right is not None and np.array_equal(left, right))


def _check_embedded(status: Any) -> None:
    """Raise if rows of a write got no vector because our index failed; Pixeltable names it ``table.content:index``."""
    if any(column.endswith(f".content:{INDEX_NAME}") for column in status.cols_with_excs):
        raise ProjectionError(f"Pixeltable could not embed {status.num_excs} rows")
