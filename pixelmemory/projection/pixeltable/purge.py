"""Taking erased memories out of the projection, down to the bytes on disk.

A deleted row stays where it is: Pixeltable keeps every version of a row, PostgreSQL keeps what a transaction removed
until the table is rewritten, and its planner's statistics, its write-ahead log and its server log hold copies. So there
are two steps: :func:`purge` removes the row versions in one transaction, and :func:`scrub` rewrites what held them.
Both may be stopped anywhere, by a kill too, and be done again.

Out of reach are blocks that the file system has freed but not overwritten, and every copy that was made of the home.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import psycopg
from psycopg import errors, sql

from pixelmemory.errors import ProjectionError, ProjectionUnavailableError
from pixelmemory.faults import fault_point
from pixelmemory.memory.identity import memory_key
from pixelmemory.projection.pixeltable import internals
from pixelmemory.projection.pixeltable.startup import embedded_folder, empty_pixeltable_logs
from pixelmemory.projection.pixeltable.tables import TableSet
from pixelmemory.projection.sql.failures import cause_of
from pixelmemory.projection.sql.physical import PhysicalTable, namespace_key
from pixelmemory.projection.sql.session import connect

__all__ = ["NEEDS_SQL", "purge", "remove_rows", "scrub"]

_logger = logging.getLogger("pixelmemory.projection")

#: why nothing can be purged where the tables are reached through the public API alone
NEEDS_SQL = (
    "erased memories cannot be removed from the tables through Pixeltable's public API alone: it keeps every "
    "version of a row. Open the store with Options(direct_sql=True) and a version of Pixeltable that fits, or "
    "delete the projection and rebuild it"
)

#: how long one attempt waits for a lock: readers of the table queue behind it meanwhile
LOCK_SECONDS_MAX = 1.0
#: how long attempts are repeated, and how long older transactions are waited for
WAIT_SECONDS_MAX = 60.0
PAUSE_SECONDS = 0.25

#: what PostgreSQL answers where a table is in use
_IN_USE = (errors.LockNotAvailable, errors.DeadlockDetected, errors.SerializationFailure, errors.ObjectInUse)


def purge(tables: TableSet, namespace: str, memory_ids: Collection[str] | None, up_to_lsn: int) -> None:
    """Remove every version of the rows of memories, what views and snapshots made of them, and their dead letters.

    Blocking; may be called from any thread. Writers of the namespace's table wait meanwhile, readers do not.

    Args:
        memory_ids: which memories; None for all of the namespace.
        up_to_lsn: rows and dead letters of later events stay; rows that a user inserted, without an LSN, do not.

    Raises:
        ProjectionError: the tables are in use for too long.
        ProjectionUnavailableError: the database fails.
    """
    held = _tables_of(tables, namespace)
    dead = tables.physical("dead_letters")
    parameters: dict[str, Any] = {"lsn": up_to_lsn, "namespace": namespace, "namespace_key": namespace_key(namespace)}
    if memory_ids is not None:
        parameters |= {"ids": list(memory_ids), "keys": [memory_key(memory_id) for memory_id in memory_ids]}
    fault_point("purge.begun")
    with _session(tables) as connection:
        _retrying(lambda: _purge(connection, held, dead, parameters), "the rows")
    fault_point("purge.committed")


def remove_rows(tables: TableSet, name: str, namespace: str) -> None:
    """Remove every version of every row of ``namespace`` from the table ``name``, which is shared, and from its views.

    Raises:
        ProjectionError: the table is in use for too long.
        ProjectionUnavailableError: the database fails.
    """
    table = tables.physical(name)

    def remove() -> None:
        with connection.transaction():
            where = f"{table.columns['namespace_key']} = %(namespace_key)s"
            _remove(connection, table, where, {"namespace_key": namespace_key(namespace)})

    with _session(tables) as connection:
        _retrying(remove, "the rows")


def _tables_of(tables: TableSet, namespace: str) -> list[tuple[PhysicalTable, bool]]:
    """The tables that hold rows of ``namespace``, or have held some, each with whether it is shared."""
    return [(tables.physical(name), tables.is_shared(name)) for name in tables.names_for(namespace)]


def _remove(connection: psycopg.Connection[Any], table: PhysicalTable, where: str, parameters: dict[str, Any]) -> None:
    # no row may come in between what is removed from the views and from their table
    _execute(connection, f"LOCK TABLE {table.name} IN SHARE ROW EXCLUSIVE MODE")
    for view in internals.derived_tables(connection, table):
        rowids = f"SELECT rowid FROM {table.name} WHERE {where}"
        _execute(connection, f"DELETE FROM {view} WHERE rowid IN ({rowids})", parameters)
    _execute(connection, f"DELETE FROM {table.name} WHERE {where}", parameters)


def _purge(
    connection: psycopg.Connection[Any],
    held: list[tuple[PhysicalTable, bool]],
    dead: PhysicalTable,
    parameters: dict[str, Any],
) -> None:
    with connection.transaction():
        for table, shared in held:
            column = table.columns
            where = f"({column['lsn']} <= %(lsn)s OR {column['lsn']} IS NULL)"
            if shared:
                where += f" AND {column['namespace_key']} = %(namespace_key)s"
            if "keys" in parameters:
                where += f" AND {column['memory_id']} = ANY(%(keys)s)"
            _remove(connection, table, where, parameters)
        column = dead.columns
        where = f"{column['lsn']} <= %(lsn)s AND {column['namespace']} = %(namespace)s"
        if "ids" in parameters:
            where += f" AND {column['memory_id']} = ANY(%(ids)s)"
        _execute(connection, f"DELETE FROM {dead.name} WHERE {where}", parameters)
        fault_point("purge.rows")


def scrub(tables: TableSet, namespace: str) -> None:
    """Make unreadable on disk what :func:`purge` removed from ``namespace``.

    Blocking; may be called from any thread. Each table (the namespace's, its views, the dead letters) is rewritten
    under a lock that keeps readers and writers of it out for as long as that takes. The HNSW index is dropped before
    and built again at the end, beside reads and writes; searches are exact in between.

    Raises:
        ProjectionError: something was not scrubbed; the message says what. It may be called again.
        ProjectionUnavailableError: the database fails.
    """
    held = [table for table, _ in _tables_of(tables, namespace)]
    unscrubbed: list[str] = []
    with _session(tables) as connection:
        touched = [tables.physical("dead_letters").name]
        for table in held:
            touched += [table.name, *internals.derived_tables(connection, table)]
        _wait_for_transactions(connection)  # one that samples a table may still be writing its statistics
        with _step(unscrubbed, "the planner's statistics"):
            _delete_statistics(connection, touched)
        fault_point("purge.statistics_deleted")
        _wait_for_transactions(connection)  # a rewrite keeps what one of them could still see
        with contextlib.ExitStack() as without_hnsw:
            for table in held:
                without_hnsw.enter_context(_without_hnsw(connection, table))
            for each in touched:
                with _step(unscrubbed, f"table {each}"):
                    _rewrite(connection, each)
                fault_point("purge.table_rewritten")
            _scrub_shared(connection, unscrubbed)
        for each in touched:
            _execute(connection, f"ANALYZE {each}")
    if files := internals.media_files(touched):
        unscrubbed.append(f"{files} files that computed columns of these tables keep in Pixeltable's media folder")
    _report(unscrubbed)


def _scrub_shared(connection: psycopg.Connection[Any], unscrubbed: list[str]) -> None:
    """What all tables share; the write-ahead log last, as every step before writes to it."""
    for catalog in ("pg_catalog.pg_statistic", "pg_catalog.pg_statistic_ext_data"):
        with _step(unscrubbed, f"the planner's statistics in {catalog}"):
            _rewrite(connection, catalog)
    fault_point("purge.statistics_rewritten")
    _empty_logs(connection, unscrubbed)
    fault_point("purge.logs_emptied")
    with _step(unscrubbed, "PostgreSQL's write-ahead log"):
        _rewrite_wal(connection)


# ------------------------------------------------------------------------------------------------------------ steps


@contextlib.contextmanager
def _without_hnsw(connection: psycopg.Connection[Any], table: PhysicalTable) -> Iterator[None]:
    """Drop the HNSW index of ``table`` in the block: rebuilding it within a rewrite would keep readers out for long."""
    if table.hnsw is None:
        yield
        return
    row = connection.execute(
        "SELECT i.indisvalid FROM pg_index i WHERE i.indexrelid = to_regclass(%s)", (table.hnsw,)
    ).fetchone()
    if row is not None:
        _retrying(lambda: _execute(connection, f"DROP INDEX IF EXISTS {table.hnsw}"), "the HNSW index")
    fault_point("purge.hnsw_dropped")
    try:
        yield
    finally:
        if row is not None and row[0]:  # an invalid one is the index keeper's to build again
            _execute(connection, str(table.hnsw_statement))
            fault_point("purge.hnsw_built")


def _delete_statistics(connection: psycopg.Connection[Any], names: Sequence[str]) -> None:
    """ANALYZE would leave the samples of a table that has become empty."""
    relations = (
        "SELECT c.oid FROM pg_class c WHERE c.relname = ANY(%(names)s) UNION "
        "SELECT i.indexrelid FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid WHERE c.relname = ANY(%(names)s)"
    )
    parameters = {"names": list(names)}
    with connection.transaction():
        _execute(connection, f"DELETE FROM pg_catalog.pg_statistic WHERE starelid IN ({relations})", parameters)
        _execute(
            connection,
            "DELETE FROM pg_catalog.pg_statistic_ext_data WHERE stxoid IN "
            f"(SELECT oid FROM pg_catalog.pg_statistic_ext WHERE stxrelid IN ({relations}))",
            parameters,
        )


def _rewrite(connection: psycopg.Connection[Any], name: str) -> None:
    before = _file_of(connection, name)
    _retrying(lambda: _execute(connection, f"VACUUM (FULL) {name}"), name)
    if _file_of(connection, name) == before:  # without the privilege PostgreSQL only warns
        raise errors.InsufficientPrivilege(f"{name} was not rewritten")


def _file_of(connection: psycopg.Connection[Any], name: str) -> Any:
    row = connection.execute("SELECT pg_relation_filenode(to_regclass(%s))", (name,)).fetchone()
    return None if row is None else row[0]


def _empty_logs(connection: psycopg.Connection[Any], unscrubbed: list[str]) -> None:
    """The server logs the rows and the values that it refuses, and Pixeltable the errors."""
    folder = embedded_folder()
    row = connection.execute("SELECT current_setting('logging_collector')").fetchone()
    if folder is None or row is None or row[0] != "off":
        unscrubbed.append("PostgreSQL's server log (it is not where Pixeltable's embedded server has it)")
    elif (log := folder / "log").exists():
        with _step(unscrubbed, "PostgreSQL's server log"):
            os.truncate(log, 0)  # the server appends to it
    with _step(unscrubbed, "Pixeltable's logs"):
        empty_pixeltable_logs()


def _rewrite_wal(connection: psycopg.Connection[Any]) -> None:
    """Overwrite every segment that there is, those kept for later use included.

    A checkpoint removes the segments before its own or gives them later names; each later one is then entered and left
    at once, and leaving a segment fills the rest of it with zeros.
    """
    _leave_segment(connection)
    first = _current_segment(connection)
    fault_point("purge.wal_switched")
    _execute(connection, "CHECKPOINT")
    fault_point("purge.wal_checkpoint")
    segments = [
        row[0] for row in connection.execute("SELECT name FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'").fetchall()
    ]
    if kept := sum(name < first for name in segments):
        raise ProjectionError(f"{kept} segments are kept for a replica, an archive or by wal_keep_size")
    while _current_segment(connection) <= max(segments):
        _leave_segment(connection)
    fault_point("purge.wal_rewritten")


def _current_segment(connection: psycopg.Connection[Any]) -> str:
    # the message makes sure that the segment has been entered
    _execute(connection, "SELECT pg_logical_emit_message(false, 'pixelmemory', '')")
    row = connection.execute("SELECT pg_walfile_name(pg_current_wal_insert_lsn())").fetchone()
    assert row is not None
    return str(row[0])


def _leave_segment(connection: psycopg.Connection[Any]) -> None:
    _execute(connection, "SELECT pg_logical_emit_message(false, 'pixelmemory', '')")
    _execute(connection, "SELECT pg_switch_wal()")


# ------------------------------------------------------------------------------------------------ sessions and waiting


@contextlib.contextmanager
def _session(tables: TableSet) -> Iterator[psycopg.Connection[Any]]:
    """A connection of one's own: VACUUM runs outside of transactions."""
    try:
        with connect(tables.connection_string(), "pixelmemory erase") as connection:
            _execute(connection, f"SET lock_timeout = {round(LOCK_SECONDS_MAX * 1000)}")
            with contextlib.suppress(psycopg.Error):
                connection.execute("SET maintenance_work_mem = '256MB'")
            yield connection
    except psycopg.OperationalError as error:
        raise ProjectionUnavailableError(f"the database failed during an erase: {error}", cause_of(error)) from error
    except psycopg.Error as error:
        raise ProjectionError(f"PostgreSQL refused a step of an erase: {error}") from error


def _execute(connection: psycopg.Connection[Any], statement: str, parameters: dict[str, Any] | None = None) -> None:
    connection.execute(sql.SQL(statement), parameters)


@contextlib.contextmanager
def _step(unscrubbed: list[str], what: str) -> Iterator[None]:
    """Note what could not be done, and let the others be done."""
    try:
        yield
    except (errors.InsufficientPrivilege, ProjectionError, OSError) as error:
        unscrubbed.append(f"{what} ({error})")


def _report(unscrubbed: Sequence[str]) -> None:
    if unscrubbed:
        raise ProjectionError(
            "the rows of erased memories are gone from the tables, but their bytes may still stand in: "
            + "; ".join(unscrubbed)
        )


def _retrying(run: Callable[[], None], what: str) -> None:
    """Run ``run`` until it gets its locks."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while True:
        try:
            run()
            return
        except _IN_USE as error:
            if time.monotonic() > deadline:
                raise ProjectionError(f"{what} was in use for {WAIT_SECONDS_MAX:g} s: {error}") from error
            time.sleep(PAUSE_SECONDS)


_OLDER = """
    SELECT coalesce('process ' || pid || ' (' || application_name || ', ' || coalesce(state, 'background') || ')', '?')
    FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND (datname = current_database() OR datname IS NULL)
    AND (age(backend_xid) > age(%(xid)s::text::xid) OR age(backend_xmin) > age(%(xid)s::text::xid))
    UNION ALL SELECT 'prepared transaction ' || gid FROM pg_prepared_xacts
    WHERE age(transaction) > age(%(xid)s::text::xid)
    UNION ALL SELECT 'replication slot ' || slot_name FROM pg_replication_slots
    WHERE age(xmin) > age(%(xid)s::text::xid) OR age(catalog_xmin) > age(%(xid)s::text::xid)
"""


def _wait_for_transactions(connection: psycopg.Connection[Any]) -> None:
    """Wait until none runs that began before now."""
    row = connection.execute("SELECT pg_has_role(current_user, 'pg_read_all_stats', 'usage'), current_user").fetchone()
    if row is None or not row[0]:
        raise ProjectionError(
            "nothing was scrubbed: whether another transaction still sees the erased rows is hidden from the role "
            f"{row and row[1]}; grant it pg_read_all_stats"
        )
    row = connection.execute("SELECT pg_current_xact_id()::xid::text").fetchone()
    assert row is not None
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while older := connection.execute(_OLDER, {"xid": row[0]}).fetchall():
        if time.monotonic() > deadline:
            names = ", ".join(str(each[0]) for each in older)
            raise ProjectionError(
                f"nothing was scrubbed: older transactions can see the erased rows: {names}. End them, and erase again"
            )
        time.sleep(PAUSE_SECONDS / 5)
