"""The connections of this process to the database of the tables: shared by its stores, bounded, let go when idle.

Three kinds: those in the pool here, for reads; single ones for upkeep and claims (:func:`connect`); and the pool of the
tables' host, which this module watches. A child of a fork inherits the sockets of all of them, and must not speak on
them: there they are replaced by the null device, so that the child can neither disturb its parent's sessions nor keep
them open after the parent's end.
"""

from __future__ import annotations

import collections
import contextlib
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import sqlalchemy as sql

from pixelmemory.errors import ProjectionUnavailableError, UnavailableCause
from pixelmemory.forks import never_collect
from pixelmemory.projection.sql.failures import EXHAUSTED_REMEDY, is_exhausted

__all__ = [
    "ReadConnections",
    "connect",
    "is_of_this_process",
    "keep_from_children",
    "let_go",
    "session_name",
    "shared",
    "watch_engine",
]

#: pause between two tries to connect where the server has no connection left
PAUSE_SECONDS = 0.1


def connect(
    dsn: str, application_name: str, *, timeout_seconds: float = 30.0, options: str | None = None
) -> psycopg.Connection[Any]:
    """A connection of its own, in autocommit mode; the caller closes it.

    Args:
        dsn: the database, as psycopg takes it.
        timeout_seconds: how long to wait while the server has no connection left.

    Raises:
        psycopg.OperationalError: the server cannot be reached.
        ProjectionUnavailableError: it has no connection left.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            connection = psycopg.connect(dsn, autocommit=True, application_name=application_name, options=options)
        except psycopg.OperationalError as error:
            if not is_exhausted(error):
                raise
            if time.monotonic() > deadline:
                raise ProjectionUnavailableError(
                    f"PostgreSQL has had no connection left for {timeout_seconds:g} s. {EXHAUSTED_REMEDY}",
                    UnavailableCause.NO_CONNECTION,
                ) from error
            shared.forget_idle()  # one of them may be what is missing
            time.sleep(PAUSE_SECONDS)
        else:
            keep_from_children(connection)
            return connection


class ReadConnections:
    """A pool: one connection for each thread that reads, at most ``size_max`` in use, closed after a while unused."""

    def __init__(self) -> None:
        self._idle: collections.deque[tuple[psycopg.Connection[Any], float]] = collections.deque()
        self._in_use = 0
        self._changed = threading.Condition()
        self._sweeper: threading.Thread | None = None
        self._idle_seconds = 30.0
        #: when a connection of the host's pool was last given back
        self._engine_used_at = 0.0

    @contextlib.contextmanager
    def connection(
        self,
        dsn: str,
        configure: Callable[[psycopg.Connection[Any]], None],
        *,
        size_max: int = 16,
        idle_seconds: float = 30.0,
        timeout_seconds: float = 60.0,
    ) -> Iterator[psycopg.Connection[Any]]:
        """Lend a connection for the block; one in which an error was raised is closed, not kept.

        Args:
            dsn: the database; the same for every caller, until :meth:`forget_idle`.
            configure: called with a new connection; the same for every caller.
            size_max: how many may be in use; the block waits for its turn.
            idle_seconds: how long it is kept afterwards.
            timeout_seconds: how long to wait for a turn, and for a connection that the server has left.

        Raises:
            psycopg.Error: the server cannot be reached, or what the block raises.
            ProjectionUnavailableError: all are in use for too long.
        """
        self._idle_seconds = idle_seconds
        connection = self._take(size_max, timeout_seconds)
        try:
            if connection is None:
                connection = connect(dsn, "pixelmemory", timeout_seconds=timeout_seconds, options="-c timezone=UTC")
                configure(connection)
            yield connection
        except BaseException:
            self._give_back(None)
            if connection is not None:
                connection.close()
            raise
        self._give_back(connection)

    def _take(self, size_max: int, timeout_seconds: float) -> psycopg.Connection[Any] | None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._in_use < size_max, timeout_seconds):
                raise ProjectionUnavailableError(
                    f"all {size_max} connections of this process have been in use for {timeout_seconds:g} s; raise "
                    "Options.connections_max, or search less at once",
                    UnavailableCause.NO_CONNECTION,
                )
            self._in_use += 1
            return self._idle.pop()[0] if self._idle else None

    def _give_back(self, connection: psycopg.Connection[Any] | None) -> None:
        with self._changed:
            self._in_use -= 1
            if connection is not None:
                self._idle.append((connection, time.monotonic()))
                self._sweep_later()
            self._changed.notify()

    def forget_idle(self) -> None:
        """Close what is idle: after a restart of the server every one of them is dead."""
        with self._changed:
            idle, self._idle = self._idle, collections.deque()
        for connection, _ in idle:
            connection.close()

    def stats(self) -> tuple[int, int]:
        """How many are in use, and how many idle."""
        with self._changed:
            return self._in_use, len(self._idle)

    # -- letting go

    def engine_used(self) -> None:
        """A connection of the host's pool was given back."""
        with self._changed:
            self._engine_used_at = time.monotonic()
            self._sweep_later()

    def _sweep_later(self) -> None:
        if self._sweeper is None:
            self._sweeper = threading.Thread(target=self._sweep, name="pixelmemory-connections", daemon=True)
            self._sweeper.start()

    def _sweep(self) -> None:
        """Close what was not used for a while; ends when nothing is left."""
        while True:
            time.sleep(min(1.0, self._idle_seconds / 2))
            expired = []
            with self._changed:
                before = time.monotonic() - self._idle_seconds
                while self._idle and self._idle[0][1] < before:
                    expired.append(self._idle.popleft()[0])
                engine_is_idle = self._engine_used_at < before
                nothing_left = not self._idle and engine_is_idle
                if nothing_left:
                    self._sweeper = None
            for connection in expired:
                connection.close()
            if engine_is_idle:
                _let_engines_go()
            if nothing_left:
                return


def let_go() -> None:
    """Close every connection of this process that nobody uses."""
    shared.forget_idle()
    _let_engines_go()


def is_of_this_process(application_name: str) -> bool:
    """Whether a session that has this name can be one of this process."""
    return application_name in ("pixelmemory", f"pixeltable-{os.getpid()}", session_name())


def session_name(pid: int | None = None) -> str:
    """What the connection calls itself that holds the claims of a process; by default of this one."""
    host = socket.gethostname().encode("ascii", "replace").decode()
    return f"pixelmemory {os.getpid() if pid is None else pid}@{host}"[:63]  # more is cut by PostgreSQL


def _let_engines_go() -> None:
    """Close the idle connections of every watched pool of which none is in use."""
    for engine in list(_watched):
        pool: Any = engine.pool
        if pool.checkedin() and not pool.checkedout():
            engine.dispose()


#: of this process
shared = ReadConnections()

_watched: weakref.WeakSet[sql.Engine] = weakref.WeakSet()


def watch_engine(engine: sql.Engine) -> None:
    """Let the connections of a host's pool be let go, and kept from children, as ours are."""
    if engine in _watched:
        return
    _watched.add(engine)
    sql.event.listen(engine, "connect", lambda connection, _record: keep_from_children(connection))
    sql.event.listen(engine, "checkin", lambda _connection, _record: shared.engine_used())
    engine.dispose()  # those that it has already are not known here
    shared.engine_used()


# -- forks

_inheritable: weakref.WeakSet[Any] = weakref.WeakSet()


def keep_from_children(connection: psycopg.Connection[Any]) -> None:
    """Let a child of a fork have the null device in place of the socket of ``connection``."""
    _inheritable.add(connection)


def _after_fork_in_child() -> None:
    global shared
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for connection in list(_inheritable):
        with contextlib.suppress(Exception):  # one that is closed has none
            os.dup2(null, connection.pgconn.socket, inheritable=False)
            never_collect(connection)
    os.close(null)
    for engine in list(_watched):
        with contextlib.suppress(Exception):
            engine.dispose(close=False)
    _inheritable.clear()
    shared.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_after_fork_in_child)
