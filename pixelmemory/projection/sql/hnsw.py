"""The upkeep of the tables: when a table has its HNSW index, who builds it, and the planner's statistics.

An HNSW index makes searches of a large table fast and inserts into it slow (about 500 rows/s against 2,400 without),
and a small table is searched exactly in a few milliseconds. So a table gets its index when it has ``graph_rows_min``
rows, built in bulk on a thread of its own while reads and writes go on; a large backlog drops it and builds it again
after.

PostgreSQL's own statistics follow a minute or more later than a table grows, and until then its planner takes a table
of 50,000 rows for one of 250 and leaves the index alone; so a table that has doubled is analyzed at once.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any

import psycopg

from pixelmemory.projection.sql.physical import LIVE, PhysicalTable, PhysicalTables
from pixelmemory.projection.sql.session import connect

__all__ = ["IndexKeeper"]

_logger = logging.getLogger("pixelmemory.projection")

#: rows from which a table's statistics are worth taking
ANALYZE_ROWS_MIN = 500
#: one table at a time in this process: a build takes what cores there are
_tending = threading.Lock()


class IndexKeeper:
    """Decides and builds. ``after_batch`` is called by the projector's writer thread, ``has_index`` by any."""

    def __init__(self, tables: PhysicalTables, *, rows_min: int, backlog_events: int) -> None:
        self._tables = tables
        self._rows_min = rows_min
        self._backlog_events = backlog_events
        #: whether one is being worked off
        self._backlog = False
        #: names of the HNSW indexes that are valid, of any table in the database
        self._valid: set[str] = set()
        #: rows by table, counted once and then kept up
        self._rows: Counter[str] = Counter()
        self._counted: set[str] = set()
        #: tables that are being tended, or wait for it
        self._building: set[str] = set()
        #: rows by table when its statistics were last taken
        self._analyzed: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._build_loop, name="pixelmemory-hnsw", daemon=True)

    def start(self) -> None:
        """Learn which indexes there are, and start the builder."""
        with self._connect() as connection:
            valid = connection.execute(
                "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
                "JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'hnsw' AND i.indisvalid"
            )
            self._valid = {row[0] for row in valid}
        self._thread.start()

    def stop(self) -> None:
        """Ask the builder to end; a build that runs goes on until the process ends or it is done."""
        self._work.put(None)

    def has_index(self, table: str) -> bool:
        """Whether ``table`` has an index that searches may use."""
        return self._tables.physical(table).hnsw in self._valid

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until no upkeep is going on. For tests and benchmarks."""
        done = threading.Event()
        deadline = timeout_seconds
        while deadline > 0:
            with self._lock:
                if not self._building:
                    return True
            done.wait(0.05)
            deadline -= 0.05
        return False

    def before_batch(self, tables: Iterable[str], lag_events: int) -> None:
        """Drop the indexes of ``tables`` where a backlog is about to be inserted."""
        self._backlog = lag_events >= self._backlog_events
        if not self._backlog:
            return
        for name in filter(self.has_index, set(tables)):
            _logger.info("a backlog of %d events: table %s does without its HNSW index meanwhile", lag_events, name)
            table = self._tables.physical(name)
            self._valid.discard(str(table.hnsw))
            with self._connect() as connection:
                connection.execute(table.drop_hnsw.encode())

    def after_batch(self, inserted: Counter[str], lag_events: int) -> None:
        """Count what was inserted (negative: deleted), and order the upkeep that is due."""
        for name, rows in inserted.items():
            if name in self._counted:
                self._rows[name] += rows
                continue
            try:
                self._rows[name] = self._count(self._tables.physical(name))
                self._counted.add(name)
            except psycopg.Error as error:  # its batch is applied: nothing but the upkeep waits for the next one
                _logger.warning("the rows of table %s could not be counted: %s", name, error)
        for name in inserted:
            if self._rows[name] >= 2 * self._analyzed[name] + ANALYZE_ROWS_MIN:
                self._order(name)
        if lag_events < self._backlog_events:
            for name in filter(self._is_due, self._counted):
                self._order(name)

    def _is_due(self, name: str) -> bool:
        """Whether the table ``name`` has to get its index."""
        return self._tables.has_hnsw(name) and self._rows[name] >= self._rows_min and not self.has_index(name)

    def _connect(self) -> psycopg.Connection[Any]:
        return connect(self._tables.connection_string(), "pixelmemory upkeep")

    def _order(self, name: str) -> None:
        with self._lock:
            if name not in self._building:
                self._building.add(name)
                self._work.put(name)

    def _count(self, table: PhysicalTable) -> int:
        with self._connect() as connection:
            row = connection.execute(f"SELECT count(*) FROM {table.name} WHERE {LIVE}".encode()).fetchone()
            assert row is not None
            return int(row[0])

    def _build_loop(self) -> None:
        while (name := self._work.get()) is not None:
            try:
                with _tending:
                    self._tend(name)
            except Exception:
                _logger.exception("the upkeep of table %s failed; its searches stay exact, or are slower", name)
            finally:
                with self._lock:
                    self._building.discard(name)

    def _tend(self, name: str) -> None:
        table, rows = self._tables.physical(name), self._rows[name]
        if self._is_due(name) and not self._backlog:
            self._build(name, table)
        with self._connect() as connection:
            connection.execute(f"ANALYZE {table.name}".encode())
        self._analyzed[name] = rows

    def _build(self, name: str, table: PhysicalTable) -> None:
        if table.hnsw_statement is None or table.hnsw is None:
            return
        _logger.info("building the HNSW index of table %s", name)
        with self._connect() as connection:
            if _is_valid(connection, table.hnsw) is False:  # left by a kill, maybe still being built
                connection.execute(
                    "SELECT pg_terminate_backend(p.pid) FROM pg_stat_progress_create_index p "
                    "JOIN pg_class c ON c.oid = p.index_relid WHERE c.relname = %s",
                    (table.hnsw,),
                )
                connection.execute(f"DROP INDEX IF EXISTS {table.hnsw}".encode())
            connection.execute("SET maintenance_work_mem = '256MB'")
            connection.execute(table.hnsw_statement.encode())
            if not _is_valid(connection, table.hnsw):
                raise RuntimeError("PostgreSQL left the index invalid")
        self._valid.add(table.hnsw)
        _logger.info("table %s has its HNSW index", name)


def _is_valid(connection: psycopg.Connection[Any], index: str) -> bool | None:
    """Whether ``index`` can be used; None where there is none."""
    row = connection.execute(
        "SELECT i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE c.relname = %s", (index,)
    ).fetchone()
    return None if row is None else bool(row[0])
