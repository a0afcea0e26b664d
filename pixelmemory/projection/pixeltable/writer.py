"""Applying folded changes to the tables, with the checkpoint, in one transaction.

With Pixeltable's internals at hand the rows of a batch, on any number of tables, and its checkpoint commit together.
Through the public API alone each call commits by itself; the batch is then applied so that doing it again leaves the
same rows (every memory that it adds is deleted first), and the checkpoint comes last. Either way each event takes
effect exactly once.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, cast

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
from pixelmemory.projection.pixeltable.plain_rows import PlainTables, insert_beneath
from pixelmemory.projection.pixeltable.purge import remove_rows
from pixelmemory.projection.pixeltable.tables import INDEX_NAME, SHARED_TABLE, TableSet, registry_row, table_name
from pixelmemory.projection.rows import Column, given, values_of
from pixelmemory.projection.sql.physical import LIVE, PhysicalTable, namespace_key

__all__ = ["TableWriter"]

T = TypeVar("T")

#: stands for a vector that the writer was not given: Pixeltable embeds
_UNKNOWN = object()


class TableWriter:
    """Writes to the tables of one projection. Belongs to the projector's thread."""

    def __init__(self, tables: TableSet, source: VectorSource) -> None:
        self._tables = tables
        self._source = source
        self._plain = PlainTables(tables)

    def prepare(self, changes: Sequence[Change]) -> None:
        """Make the tables that ``changes`` need; tables cannot be made inside a transaction."""
        self._tables.create(Counter(change.namespace for change in changes if change.insert))

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

    def move_out(self, namespace: str) -> None:
        """Move ``namespace`` from the shared table to one of its own. Reads go on; between two batches.

        The copy and the registry commit together. A kill before leaves a table that is made again, and one afterwards
        rows in the shared table that nothing reads and the next open removes.
        """
        name = table_name(namespace)
        self._tables.make(name)
        fault_point("move.made")
        own, registry = self._tables.table(name), self._tables.table("registry")
        shared = self._tables.table(SHARED_TABLE)
        if self._tables.direct_sql:
            for each in (name, SHARED_TABLE):
                self._tables.physical(each)  # cannot be looked up within the transaction
        with self._tables.moving(namespace, name), self._transaction([shared, own, registry]) as connection:
            if connection is not None:
                self._copy(connection, namespace, own._tbl_version.get(), self._tables.physical(name))
            else:
                self._copy_publicly(namespace, shared, own)
            registry.batch_update([registry_row(namespace, name)])
            fault_point("move.copied")
        fault_point("move.committed")
        self.finish_move(namespace)

    def finish_move(self, namespace: str) -> None:
        """Remove from the shared table what has moved to a table of its own."""
        if self._tables.direct_sql:
            remove_rows(self._tables, SHARED_TABLE, namespace)
        else:
            shared = self._tables.table(SHARED_TABLE)
            shared.delete(shared.namespace_key == namespace_key(namespace))
        fault_point("move.finished")

    def _copy(self, connection: sql.Connection, namespace: str, version: Any, own: PhysicalTable) -> None:
        shared = self._tables.physical(SHARED_TABLE)
        names = list(self._tables.columns(shared=False))
        into = [own.columns[name] for name in names]
        out_of = [shared.columns[name] for name in names]
        if own.vector is not None and shared.vector is not None:
            into.append(own.vector)
            out_of.append(shared.vector)
        statement = sql.text(
            f"INSERT INTO {own.name} (rowid, v_min, {', '.join(into)}) "
            f"SELECT CAST(:first AS bigint) - 1 + row_number() OVER (ORDER BY rowid), CAST(:version AS bigint), "
            f"{', '.join(out_of)} FROM {shared.name} "
            f"WHERE {LIVE} AND {shared.columns['namespace_key']} = :namespace"
        )

        def copy() -> int:
            parameters = {
                "first": version.next_row_id,
                "version": version.version,
                "namespace": namespace_key(namespace),
            }
            return int(connection.execute(statement, parameters).rowcount)

        insert_beneath(version, copy)

    def _copy_publicly(self, namespace: str, shared: pxt.Table, own: pxt.Table) -> None:
        names = list(self._tables.columns(shared=False))
        selected = {f"c{place}": getattr(shared, name) for place, name in enumerate(names)}
        if self._tables.dimensions is not None:
            selected["vector"] = shared.content.embedding(idx=INDEX_NAME)
        given: list[tuple[dict[str, Any], str | None, np.ndarray | object | None]] = []
        for read in shared.where(shared.namespace_key == namespace_key(namespace)).select(**selected).collect():
            row = {name: read[f"c{place}"] for place, name in enumerate(names)}
            given.append((row, row["content"], read["vector"] if "vector" in selected else _UNKNOWN))
        for group, prepared in _rounds(given):
            self._insert_rows(own, group, prepared)

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
        target = _Target(name, self._tables.table(name), self._tables.is_shared(name))
        # a memory that is added and deleted within the batch leaves no change, and may have been inserted before
        self._delete(target, [c for c in changes if c.delete or (replace and not c.patch)])
        self._insert(connection, target, [c for c in changes if c.insert], vectors)
        patches = [c for c in changes if c.patch]
        if not patches:
            return []
        live = self._live(connection, target, patches)
        self._patch(target, [c for c in patches if target.key(c) in live], vectors)
        return [c for c in patches if target.key(c) not in live]

    def _live(self, connection: sql.Connection | None, target: _Target, changes: Sequence[Change]) -> set[Any]:
        columns = ["namespace_key", "memory_id"] if target.shared else ["memory_id"]
        if connection is not None:
            keys = [target.key(change) for change in changes]
            return internals.live_keys(connection, self._tables.physical(target.name), columns, keys)
        live: set[Any] = set()
        table = target.table
        for predicate in target.predicates(changes):
            rows = table.where(predicate).select(*[getattr(table, column) for column in columns]).collect()
            live |= {tuple(row[c] for c in columns) if target.shared else row["memory_id"] for row in rows}
        return live

    # -- rows

    def _delete(self, target: _Target, changes: Sequence[Change]) -> None:
        if changes:
            for predicate in target.predicates(changes):
                target.table.delete(predicate)

    def _insert(
        self, connection: sql.Connection | None, target: _Target, changes: Sequence[Change], vectors: Vectors
    ) -> None:
        if not changes:
            return
        table = target.table
        if connection is not None and self._plain.insert(connection, table, changes, vectors, shared=target.shared):
            return
        for group, prepared in _rounds([(c, c.content, vectors.get(c.key, _UNKNOWN)) for c in changes]):
            self._insert_rows(table, [self._row(target, change) for change in group], prepared)

    def _insert_rows(
        self, table: pxt.Table, rows: list[dict[str, Any]], prepared: dict[str, np.ndarray | None]
    ) -> None:
        with self._source.prepared(prepared), self._fast(table):
            # 'ignore' keeps a failing computed column of the user's from holding up the memories
            status = table.insert(rows, on_error="ignore")
        inserted = status.row_count_stats.ins_rows  # num_rows counts those of the user's views as well
        if inserted != len(rows):
            raise ProjectionError(f"Pixeltable inserted {inserted} of {len(rows)} rows")
        _check_embedded(status)

    def _fast(self, table: pxt.Table) -> contextlib.AbstractContextManager[None]:
        return copied_inserts(table) if self._tables.direct_sql else contextlib.nullcontext()

    def _patch(self, target: _Target, changes: Sequence[Change], vectors: Vectors) -> None:
        by_columns: dict[tuple[Column, ...], list[Change]] = defaultdict(list)
        for change in changes:
            by_columns[given(change)].append(change)
        for group in by_columns.values():
            for same, prepared in _rounds([(c, c.content, vectors.get(c.key, _UNKNOWN)) for c in group]):
                with self._source.prepared(prepared):
                    self._update(target, same)

    def _update(self, target: _Target, changes: Sequence[Change]) -> None:
        """Update rows, and let no failing computed column or index of the user's hold them up."""
        table = target.table
        if self._tables.direct_sql:
            with internals.tolerant_updates(table):
                _check_embedded(table.batch_update([self._patch_row(target, change) for change in changes]))
            return
        for change in changes:  # the public API tolerates such a failure in single updates alone
            row = self._patch_row(target, change)
            for name in target.key_columns(change):
                del row[name]
            for predicate in target.predicates([change]):
                _check_embedded(table.update(row, where=predicate))

    def _row(self, target: _Target, change: Change) -> dict[str, Any]:
        row = self._patch_row(target, change)
        row["id_text"] = None if str(row["memory_id"]) == change.memory_id else change.memory_id
        if target.shared:
            row["namespace"] = change.namespace
        return row

    def _patch_row(self, target: _Target, change: Change) -> dict[str, Any]:
        columns = given(change)
        row = target.key_columns(change)
        row |= zip((column.name for column in columns), values_of(change, columns), strict=True)
        if "metadata" in row and self._tables.schema is not None:
            typed = self._tables.schema.extract(row["metadata"])
            row |= {name.lower(): value for name, value in typed.items()}
        return row


class _Target(NamedTuple):
    """A table that is written, and how its rows are told apart."""

    name: str
    table: pxt.Table
    #: whether it holds several namespaces
    shared: bool

    def key(self, change: Change) -> Any:
        key = memory_key(change.memory_id)
        return (namespace_key(change.namespace), key) if self.shared else key

    def key_columns(self, change: Change) -> dict[str, Any]:
        columns: dict[str, Any] = {"memory_id": memory_key(change.memory_id)}
        if self.shared:
            columns["namespace_key"] = namespace_key(change.namespace)
        return columns

    def predicates(self, changes: Sequence[Change]) -> Iterator[Any]:
        """Predicates that together select the rows of ``changes``."""
        groups: dict[str, list[Any]] = defaultdict(list)
        for change in changes:
            groups[change.namespace if self.shared else ""].append(memory_key(change.memory_id))
        for namespace, keys in groups.items():
            predicate = self.table.memory_id.isin(keys)
            yield (self.table.namespace_key == namespace_key(namespace)) & predicate if self.shared else predicate


def _rounds(
    given: Sequence[tuple[T, str | None, np.ndarray | object | None]],
) -> Iterator[tuple[list[T], dict[str, np.ndarray | None]]]:
    """Split rows so that within a round every text has one vector: the index looks vectors up by text.

    Args:
        given: what stands for each row, its text, and its vector; :data:`_UNKNOWN` where there is none to be given.
    """
    waiting = list(given)
    while waiting:
        group: list[T] = []
        deferred: list[tuple[T, str | None, np.ndarray | object | None]] = []
        prepared: dict[str, np.ndarray | None] = {}
        for each in waiting:
            item, text, vector = each
            if text is None or vector is _UNKNOWN:
                group.append(item)
                continue
            known = prepared.setdefault(text, cast("np.ndarray | None", vector))
            if _same(known, cast("np.ndarray | None", vector)):
                group.append(item)
            else:
                deferred.append(each)
        yield group, prepared
        waiting = deferred


def _same(left: np.ndarray | None, right: np.ndarray | None) -> bool:
    return left is right or (left is not None and right is not None and np.array_equal(left, right))


def _check_embedded(status: Any) -> None:
    """Raise if rows of a write got no vector because our index failed; Pixeltable names it ``table.content:index``."""
    if any(column.endswith(f".content:{INDEX_NAME}") for column in status.cols_with_excs):
        raise ProjectionError(f"Pixeltable could not embed {status.num_excs} rows")
