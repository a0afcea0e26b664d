"""Every use of Pixeltable's internals but inserts by COPY (``plain_rows``, ``copy_rows``) and its start (``database``).

Pixeltable's fluent API costs 30 to 60 ms a query and one transaction a call; the same SQL on the tables that it keeps
costs a millisecond. What is used here, and nowhere else:

- the physical names of a table, its columns, its embedding column and its HNSW index;
- ``v_max = MAX_VERSION`` for the live rows of a data-versioned table, whose other rows are its history;
- the tables of views and snapshots, whose ``rowid`` is that of the row they were made from (used by ``purge``);
- ``catalog.begin_xact``, which joins writes to several tables in one transaction.

:func:`check` compares all of it with the public API when a store is opened; where they disagree (another version of
Pixeltable), the store works through the public API alone (:mod:`pixelmemory.projection.pixeltable.public_api`).
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pixeltable as pxt
import psycopg
import sqlalchemy as sql

from pixelmemory.projection.sql.physical import LIVE, PhysicalTable

__all__ = [
    "advance_checkpoint",
    "check",
    "count_by_key",
    "create_index",
    "derived_tables",
    "execute",
    "keys_in",
    "media_files",
    "resolve",
    "thread_released",
    "tolerant_updates",
    "transaction",
]

_logger = logging.getLogger("pixelmemory.projection")


def resolve(table: pxt.Table, index_name: str | None = None) -> PhysicalTable:
    """The physical names of ``table`` and of its embedding index ``index_name``."""
    with pxt_transaction(for_write=False):
        version = table._tbl_version.get()
        columns = {column.name: column.sa_col.name for column in version.cols_by_name.values() if column.is_stored}
        name = version.store_tbl.sa_tbl.name
        if index_name is None or index_name not in version.idxs_by_name:
            return PhysicalTable(name, columns)
        info = version.idxs_by_name[index_name]
        hnsw = version._store_idx_name(info.id)
        value_column = info.val_col.sa_col
        kind = type(value_column.type).__name__.lower()
        operators = f"{kind}_cosine_ops"
        statement = (
            f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {hnsw} ON {name} USING hnsw ({value_column.name} {operators}) "
            "WITH (m = 16, ef_construction = 64)"
        )
        return PhysicalTable(name, columns, value_column.name, kind, hnsw, statement)


@contextmanager
def pxt_transaction(*, for_write: bool) -> Iterator[sql.Connection]:
    """A plain transaction on the calling thread's Pixeltable connection."""
    from pixeltable.runtime import get_runtime

    with get_runtime().begin_xact(for_write=for_write) as connection:
        yield connection


@contextmanager
def tolerant_updates(table: pxt.Table) -> Iterator[None]:
    """Within the block, ``batch_update`` of ``table`` keeps a row whose computed column fails, as inserts can.

    The column is then empty and holds its error. The caller holds the transaction.
    """
    version = table._tbl_version.get()
    propagate = version._propagate_update_plan

    def tolerant(plan: Any, *args: Any, **kwargs: Any) -> Any:
        plan.root.ctx.ignore_errors = True
        return propagate(plan, *args, **kwargs)

    version._propagate_update_plan = tolerant
    try:
        yield
    finally:
        del version._propagate_update_plan


@contextmanager
def thread_released() -> Iterator[None]:
    """Close, after the block, the event loop that Pixeltable keeps for each thread that runs a query or a write.

    Otherwise it lives, with three open descriptors, until the thread's remains are collected.
    """
    from pixeltable.runtime import get_runtime

    try:
        yield
    finally:
        get_runtime().close()


@contextmanager
def transaction(tables: Sequence[pxt.Table]) -> Iterator[sql.Connection]:
    """One transaction that joins every insert, update and delete on ``tables`` within the block.

    All tables have to be named up front, and none may be created inside.
    """
    from pixeltable.runtime import get_runtime

    paths = [table._tbl_version_path for table in tables]
    with get_runtime().catalog.begin_xact(for_write=True, write_tvps=paths, lock_mutable_tree=True) as connection:
        yield connection


def advance_checkpoint(connection: sql.Connection, state: PhysicalTable, lsn: int) -> None:
    """Set the checkpoint in place, within the transaction that applied its batch.

    Raises:
        LookupError: if the state row is gone.
    """
    column = state.columns["checkpoint_lsn"]
    result = connection.execute(sql.text(f"UPDATE {state.name} SET {column} = :lsn WHERE {LIVE}"), {"lsn": lsn})
    if result.rowcount != 1:
        raise LookupError(f"the state table holds {result.rowcount} rows, not 1")


def live_keys(
    connection: sql.Connection, table: PhysicalTable, key_columns: Sequence[str], keys: Sequence[Any]
) -> set[Any]:
    """Which of ``keys`` (values of the last of ``key_columns``; the others are fixed by ``keys``' tuples) are live."""
    names = ", ".join(table.columns[name] for name in key_columns)
    statement = sql.text(f"SELECT {names} FROM {table.name} WHERE {LIVE} AND ({names}) IN :keys").bindparams(
        sql.bindparam("keys", expanding=True)
    )
    single = len(key_columns) == 1
    rows = connection.execute(statement, {"keys": list(keys)})
    return {row[0] if single else tuple(row) for row in rows}


def keys_in(table: PhysicalTable, column: str, keys: Sequence[uuid.UUID]) -> list[uuid.UUID]:
    """Which of ``keys`` stand in ``column`` of a live row."""
    name = table.columns[column]
    # one look into an index for each key: to make its values distinct PostgreSQL reads every row
    statement = sql.text(
        f"SELECT key FROM unnest(:keys) AS given (key) "
        f"WHERE EXISTS (SELECT 1 FROM {table.name} WHERE {LIVE} AND {name} = key)"
    ).bindparams(sql.bindparam("keys", type_=sql.ARRAY(sql.UUID())))
    with pxt_transaction(for_write=False) as connection:
        return [row[0] for row in connection.execute(statement, {"keys": list(keys)})]


def count_by_key(table: PhysicalTable, column: str, keys: Sequence[uuid.UUID]) -> dict[uuid.UUID, int]:
    """How many live rows there are with each of ``keys`` in ``column``."""
    name = table.columns[column]
    statement = sql.text(
        f"SELECT {name}, count(*) FROM {table.name} WHERE {LIVE} AND {name} = ANY(:keys) GROUP BY {name}"
    ).bindparams(sql.bindparam("keys", type_=sql.ARRAY(sql.UUID())))
    with pxt_transaction(for_write=False) as connection:
        return {row[0]: row[1] for row in connection.execute(statement, {"keys": list(keys)})}


def create_index(table: PhysicalTable, suffix: str, method_and_columns: str, predicate: str = "TRUE") -> None:
    """Make a partial index of ours over the live rows, if it is missing.

    Args:
        suffix: tells it from the table's others.
        method_and_columns: such as ``btree (col_1)``; trusted SQL, as is ``predicate``.
    """
    where = LIVE if predicate == "TRUE" else f"{LIVE} AND ({predicate})"
    statement = (
        f"CREATE INDEX IF NOT EXISTS pxm_{suffix}_{table.name} ON {table.name} USING {method_and_columns} WHERE {where}"
    )
    execute(statement)


def execute(statement: str) -> None:
    """Run one statement, which is trusted, in a transaction of Pixeltable's."""
    with pxt_transaction(for_write=True) as connection:
        connection.exec_driver_sql(statement)


def derived_tables(connection: psycopg.Connection[Any], table: PhysicalTable) -> list[str]:
    """The tables in PostgreSQL of all views and snapshots of ``table``, and of theirs; all have its ``rowid``."""
    table_id = table.name.removeprefix("tbl_")
    rows = connection.execute(
        "SELECT c.relname FROM tables t JOIN pg_class c ON c.relname = 'view_' || replace(t.id::text, '-', '') "
        "WHERE strpos(replace((t.md -> 'view_md' -> 'base_versions')::text, '-', ''), %s) > 0 AND c.relkind = 'r' "
        "ORDER BY c.relname",
        (table_id,),
    )
    return [str(row[0]) for row in rows]


def media_files(names: Sequence[str]) -> int:
    """How many files Pixeltable keeps for the tables ``names`` in PostgreSQL: large values of computed columns."""
    from pixeltable.env import Env
    from pixeltable.utils.local_store import LocalStore

    store = LocalStore(Env.get().media_dir)
    return sum(store.count(uuid.UUID(name.rpartition("_")[2])) for name in names)


#: the minor version of Pixeltable whose internals these are, and the first patch level they were tried with
TESTED_MINOR, TESTED_PATCH = (0, 7), 21


def check(state: pxt.Table) -> str | None:
    """Whether the internals behave as this module believes, tried on the state table.

    Returns:
        None if they do, else what differs.
    """
    try:
        version = [int(part) for part in pxt.__version__.split(".")[:3]]
        if tuple(version[:2]) != TESTED_MINOR or version[2] < TESTED_PATCH:
            return f"version {pxt.__version__}, where {TESTED_MINOR[0]}.{TESTED_MINOR[1]}.{TESTED_PATCH} was expected"
        table = resolve(state)
        with transaction([state]) as connection:
            names = [table.columns[name] for name in ("store_id", "checkpoint_lsn")]
            rows = connection.execute(sql.text(f"SELECT {', '.join(names)} FROM {table.name} WHERE {LIVE}")).fetchall()
        public = state.select(state.store_id, state.checkpoint_lsn).collect()
        expected = [(row["store_id"], row["checkpoint_lsn"]) for row in public]
        if [tuple(row) for row in rows] != expected:
            return f"SQL read {rows}, the public API {expected}"
    except Exception as error:  # noqa: BLE001 - any difference in the internals shows as some exception; all mean the same
        return f"{type(error).__name__}: {error}"
    return None
