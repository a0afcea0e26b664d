"""Vectors on disk by (model, content), so that a rebuild does not embed again.

One SQLite file for one model, ``<digest of the fingerprint>.vectors``, with one table::

    key    INTEGER  bytes 0..7 of BLAKE2b-192 of the content, little-endian, signed
    entry  BLOB     bytes 8..23 of it | CRC-32 of digest and vector, 4 bytes little-endian | float32[dimensions]

An entry counts only if all three parts agree with what was asked for. So damage, a half-written page or a collision
of keys is a miss, never a wrong vector; and nothing needs to be synced.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import random
import sqlite3
import threading
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pixelmemory.forks import never_collect

__all__ = ["VectorCache"]

_log = logging.getLogger("pixelmemory.embedding")

_PAGE_BYTES = 16 * 1024
_MEMORY_KIB = 16 * 1024
_SUFFIX = ".vectors"
#: share of the entries that goes when the file has reached its size
_EVICTED_SHARE = 1 / 8


class VectorCache:
    """Vectors of one model on disk. It never fails: an error is logged, and is a miss. For use from any thread.

    Files of other models in the folder are deleted: a store has one model, and what was erased must be nowhere.

    Args:
        folder: made if missing, for its owner only.
        fingerprint: of the model.
        dimensions: length of its vectors.
        bytes_max: the file's size at which an eighth of its entries, taken at random, gives way to new ones.
        check_folder: called before each use of the files; raises an OSError where the store's folder is not the one
            that was opened, and everything is a miss then. SQLite goes by paths.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        dimensions: int,
        *,
        bytes_max: int = 16 * 1024 * 1024 * 1024,
        check_folder: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder = Path(folder).absolute()
        self._check_folder = check_folder
        self._path = self._folder / (hashlib.blake2b(fingerprint.encode(), digest_size=16).hexdigest() + _SUFFIX)
        self._dimensions = dimensions
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._closed = False
        #: kinds of operation whose failure has been reported
        self._failed: set[str] = set()
        #: None while the cache cannot be used; every call is then a miss
        self._database: sqlite3.Connection | None = None
        _caches.add(self)
        with self._lock:
            self._open()

    def __repr__(self) -> str:
        state = "open" if self._database is not None else "closed"
        return f"<VectorCache {str(self._path)!r} dimensions={self._dimensions} {state}>"

    def get_many(self, texts: Sequence[str]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Look vectors up.

        Args:
            texts: contents, without a prompt; duplicates are fine.

        Returns:
            ``found`` of shape ``(len(texts),)`` and ``vectors`` of shape ``(len(texts), dimensions)``, whose rows are
            zero where nothing was found. The array is the caller's to fill.
        """
        found = np.zeros(len(texts), dtype=np.bool_)
        vectors = np.zeros((len(texts), self._dimensions), dtype=np.float32)

        def read(database: sqlite3.Connection) -> None:
            for row, text in enumerate(texts):
                digest = _digest(text)
                hit = database.execute("SELECT entry FROM vectors WHERE key = ?", (_key(digest),)).fetchone()
                vector = None if hit is None else _unpack(digest, hit[0], self._dimensions)
                if vector is not None:
                    vectors[row] = vector
                    found[row] = True

        self._run("read", read)
        return found, vectors

    def put_many(self, texts: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Keep ``vectors``, shape ``(len(texts), dimensions)``, one for each of ``texts``, in one transaction.

        Raises:
            ValueError: another shape.
        """
        if vectors.shape != (len(texts), self._dimensions):
            raise ValueError(f"vectors have the shape {vectors.shape}, not {(len(texts), self._dimensions)}")
        little_endian = np.ascontiguousarray(vectors, dtype="<f4")
        # in the order of the keys, so that a batch walks the tree once
        rows = sorted(_pack(_digest(text), vector.tobytes()) for text, vector in zip(texts, little_endian, strict=True))

        def write(database: sqlite3.Connection) -> None:
            self._make_room(database)
            with _transaction(database):
                database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)

        self._run("write", write)

    def discard(self, texts: Sequence[str]) -> None:
        """Erase the vectors of ``texts``: their bytes are overwritten, in the file and in what SQLite keeps beside it.

        Where that fails, the whole cache is deleted instead.

        Raises:
            OSError: and that failed too, so that the vectors are still on disk.
        """
        keys = [(_key(_digest(text)),) for text in texts]

        def erase(database: sqlite3.Connection) -> None:
            with _transaction(database):
                database.executemany("DELETE FROM vectors WHERE key = ?", keys)
            busy = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            if busy:
                raise sqlite3.OperationalError("another process reads the file")

        with self._lock:
            if not self._attempt("erase", erase):
                self._delete_all()

    def clear(self) -> None:
        """Delete every vector.

        Raises:
            OSError: the file cannot be deleted.
        """
        with self._lock:
            self._delete_all()

    def close(self) -> None:
        """Close the file; every later call is a miss. Closing twice is fine."""
        with self._lock:
            self._closed = True
            self._close()

    # -- one boundary for everything that SQLite and the file system may raise; all of it under the lock

    def _run(self, what: str, action: Callable[[sqlite3.Connection], None]) -> None:
        with self._lock:
            self._attempt(what, action)

    def _attempt(self, what: str, action: Callable[[sqlite3.Connection], None]) -> bool:
        if self._database is None:
            return False
        try:
            self._check_folder()
            action(self._database)
        except (sqlite3.Error, OSError) as error:
            level = logging.DEBUG if what in self._failed else logging.WARNING  # a full disk fails every time
            self._failed.add(what)
            _log.log(level, "the vector cache %s: %s failed: %s", self._path, what, error)
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                self._start_anew()  # the file is damaged, and will be at every call
            return False
        return True

    def _open(self) -> None:
        try:
            self._database = self._connect()
        except sqlite3.DatabaseError as error:
            _log.warning("the vector cache %s is unreadable and starts again: %s", self._path, error)
            self._start_anew()
        except OSError as error:
            _log.warning("the vector cache %s cannot be used: %s", self._path, error)

    def _start_anew(self) -> None:
        try:
            self._delete_all()
        except OSError as error:
            _log.warning("the vector cache %s cannot be deleted: %s", self._path, error)

    def _delete_all(self) -> None:
        """Delete the file and, unless the cache was closed, begin a new one."""
        usable = not self._closed
        self._check_folder()
        self._close()
        self._delete(self._path)
        if usable:
            try:
                self._database = self._connect()
            except (sqlite3.Error, OSError) as error:
                _log.warning("the vector cache %s cannot be used: %s", self._path, error)

    def _connect(self) -> sqlite3.Connection:
        self._check_folder()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for other in self._folder.glob(f"*{_SUFFIX}"):
            if other != self._path:
                self._delete(other)
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # SQLite copies the mode
        database = sqlite3.connect(self._path, timeout=1.0, isolation_level=None, check_same_thread=False)
        try:
            for pragma in (
                f"page_size = {_PAGE_BYTES}",
                "journal_mode = WAL",
                "synchronous = OFF",  # entries prove themselves
                f"cache_size = -{_MEMORY_KIB}",
                "secure_delete = ON",  # discard() must leave no bytes
                "trusted_schema = OFF",
            ):
                database.execute(f"PRAGMA {pragma}")
            database.execute("CREATE TABLE IF NOT EXISTS vectors (key INTEGER PRIMARY KEY, entry BLOB NOT NULL)")
        except BaseException:
            database.close()
            raise
        return database

    def _close(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            with contextlib.suppress(sqlite3.Error):
                database.close()

    @staticmethod
    def _delete(path: Path) -> None:
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)

    def _make_room(self, database: sqlite3.Connection) -> None:
        """Evict a random eighth of the key space (keys are hashes) when the file is full and has no free pages."""
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        free = database.execute("PRAGMA freelist_count").fetchone()[0]
        if (pages - free) * _PAGE_BYTES < self._bytes_max:
            return
        width = int(2**64 * _EVICTED_SHARE)
        low = -(2**63) + random.randrange(int(1 / _EVICTED_SHARE)) * width  # noqa: S311 - no secret
        with _transaction(database):
            database.execute("DELETE FROM vectors WHERE key BETWEEN ? AND ?", (low, low + width - 1))


_caches: weakref.WeakSet[VectorCache] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """SQLite forbids to close, in a child, what the parent has open."""
    for cache in list(_caches):
        database, cache._database = cache._database, None
        if database is not None:
            never_collect(database)
    _caches.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=24).digest()


def _key(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little", signed=True)


def _pack(digest: bytes, vector: bytes) -> tuple[int, bytes]:
    checksum = zlib.crc32(vector, zlib.crc32(digest)).to_bytes(4, "little")
    return _key(digest), digest[8:] + checksum + vector


def _unpack(digest: bytes, entry: object, dimensions: int) -> NDArray[np.float32] | None:
    """The vector in ``entry``, or None unless it is whole and belongs to ``digest``."""
    if not isinstance(entry, bytes) or len(entry) != 20 + 4 * dimensions or entry[:16] != digest[8:]:
        return None
    vector = entry[20:]
    if zlib.crc32(vector, zlib.crc32(digest)) != int.from_bytes(entry[16:20], "little"):
        return None
    return np.frombuffer(vector, dtype="<f4")
