"""The claim of an open store on its folder in Pixeltable: an advisory lock in the database.

The LOCK of a store's folder keeps two processes off one log. It says nothing of two copies of a store's folder, which
share their tables, nor of two homes on one database: without the claim each would write over the other's rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from typing import Any

import psycopg

from pixelmemory.errors import StoreLockedError
from pixelmemory.projection.pixeltable.startup import connection_string
from pixelmemory.projection.sql.session import connect, session_name

__all__ = ["Claim"]

#: how long the claim of a process that has ended may last: until the server notices that its client is gone
ORPHAN_SECONDS_MAX = 30.0
PAUSE_SECONDS = 0.02


class Claim:
    """The claim of one open store on the folder ``folder``.

    Raises:
        StoreLockedError: another store holds it; with the pid of its process, if it runs on this machine.
    """

    def __init__(self, folder: str) -> None:
        self._what = f"tables pixelmemory/{folder}"
        digest = hashlib.blake2b(f"pixelmemory/{folder}".encode(), digest_size=8).digest()
        self._key = int.from_bytes(digest, "big", signed=True)
        self._pid = os.getpid()
        _session.claim(self._key, self._what)

    def renew(self) -> None:
        """Claim again if the server was away; to be called before anything is written to it.

        Raises:
            StoreLockedError: another store was faster.
        """
        _session.renew(self._key, self._what)

    def close(self) -> None:
        """As :meth:`release`."""
        self.release()

    def release(self) -> None:
        """Give the claim up, at once. Idempotent; in a child of a fork it does nothing."""
        if os.getpid() == self._pid:
            _session.release(self._key)


class _Session:
    """One connection of this process, which holds the locks of all its claims. Its name says whose they are."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[Any] | None = None
        self._keys: set[int] = set()

    def claim(self, key: int, what: str) -> None:
        deadline = time.monotonic() + ORPHAN_SECONDS_MAX
        while True:
            with self._lock:
                if key in self._keys:
                    raise StoreLockedError(what, os.getpid())
                connection = self._connected()
                if _try_lock(connection, key):
                    self._keys.add(key)
                    return
                owner = _owner(connection, key)
            pid = None if owner is None else _pid_of(owner)
            # our own name: of a session before this one, which the server has not missed yet
            orphaned = owner is None or owner == session_name() or (pid is not None and not _runs(pid))
            if not orphaned or time.monotonic() > deadline:
                raise StoreLockedError(what, pid)
            time.sleep(PAUSE_SECONDS)

    def _connected(self) -> psycopg.Connection[Any]:
        """The connection; a new one takes the locks of the old one, as far as nobody else has them."""
        if self._connection is not None:
            try:
                self._connection.execute("SELECT 1")
                return self._connection
            except psycopg.Error:
                self._connection.close()
                self._connection = None
        connection = connect(connection_string(), session_name())
        try:
            self._keys = {key for key in self._keys if _try_lock(connection, key)}
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def renew(self, key: int, what: str) -> None:
        with self._lock:
            self._connected()
            held = key in self._keys
        if not held:
            self.claim(key, what)

    def release(self, key: int) -> None:
        with self._lock:
            if key not in self._keys:
                return
            self._keys.discard(key)
            connection = self._connection
            if connection is None:
                return
            with contextlib.suppress(psycopg.Error):  # then it is gone already
                # explicitly: a session ends some time after its connection is closed
                connection.execute("SELECT pg_advisory_unlock(%s)", (key,))
            if not self._keys:
                connection.close()
                self._connection = None


_session = _Session()


def _after_fork_in_child() -> None:
    global _session
    _session = _Session()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _try_lock(connection: psycopg.Connection[Any], key: int) -> bool:
    row = connection.execute("SELECT pg_try_advisory_lock(%s)", (key,)).fetchone()
    return row is not None and bool(row[0])


def _owner(connection: psycopg.Connection[Any], key: int) -> str | None:
    """The name of the session that holds the lock; None if it was released a moment ago."""
    row = connection.execute(
        "SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid "
        "WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 "
        "AND (l.classid::bigint << 32) | l.objid::bigint = %s",
        (key,),
    ).fetchone()
    return None if row is None else str(row[0])


def _pid_of(name: str) -> int | None:
    """The process that gave a session its name; None if that was not on this machine, or not one of ours."""
    pid = name.removeprefix("pixelmemory ").partition("@")[0]
    return int(pid) if pid.isdecimal() and name == session_name(int(pid)) else None


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
