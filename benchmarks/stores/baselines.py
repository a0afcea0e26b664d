"""What Pixelmemory is measured beside, where that is a few lines: a bare file, SQLite."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec

from benchmarks.timing import each_seconds
from pixelmemory.memory.events import MemoryAdded, encode_event

__all__ = ["BareFile", "SqliteRows"]

_encode_json = msgspec.json.Encoder().encode


def flush(descriptor: int) -> None:
    """As the log does: ``fdatasync`` where there is one."""
    getattr(os, "fdatasync", os.fsync)(descriptor)


class BareFile:
    """Bytes written to the end of one file and flushed: what durability costs at the least.

    With ``reserved_bytes`` the file has so many zeros first, which are overwritten: its length need not be flushed.
    """

    def __init__(self, folder: Path, reserved_bytes: int = 0) -> None:
        self._path = folder / ("reserved" if reserved_bytes else "bare")
        self._descriptor = os.open(self._path, os.O_CREAT | os.O_WRONLY, 0o600)
        os.write(self._descriptor, bytes(reserved_bytes))
        os.fsync(self._descriptor)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self.written_bytes = 0

    def append(self, payload: bytes, calls: int) -> list[float]:
        """Seconds of each write + flush."""

        def run(_index: int) -> None:
            self.written_bytes += os.write(self._descriptor, payload)
            flush(self._descriptor)

        return each_seconds(run, range(calls))

    def append_batches(self, entries: Sequence[Mapping[str, Any]], batches: int) -> float:
        """Seconds to encode, checksum, write and flush ``entries`` so many times: plain values in, nothing checked."""
        started = time.perf_counter()
        for _ in range(batches):
            parts: list[bytes] = []
            for row, entry in enumerate(entries):
                vector = entry.get("embedding")
                payload = encode_event(
                    MemoryAdded(
                        "bulk",
                        f"{row:036d}",
                        entry["content"],
                        1_700_000_000_000_000,
                        _encode_json(entry["metadata"]),
                        None if vector is None else vector.tobytes(),
                    )
                )
                parts += (len(payload).to_bytes(4, "little"), crc32(payload).to_bytes(4, "little"), payload)
            body = b"".join(parts)
            self.written_bytes += os.write(self._descriptor, crc32(body).to_bytes(4, "little") + body)
            flush(self._descriptor)
        return time.perf_counter() - started

    def close(self) -> int:
        """Its size, which has to be what was written."""
        os.close(self._descriptor)
        return self._path.stat().st_size


class SqliteRows:
    """One row a transaction: WAL, ``synchronous=FULL``."""

    def __init__(self, folder: Path) -> None:
        self._database = sqlite3.connect(folder / "sqlite", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute("CREATE TABLE memories (id INTEGER PRIMARY KEY, content TEXT)")

    def insert(self, content: str, rows: int) -> list[float]:
        """Seconds of each commit."""
        return each_seconds(
            lambda _: self._database.execute("INSERT INTO memories (content) VALUES (?)", (content,)), range(rows)
        )

    def close(self) -> int:
        """How many rows it has."""
        count: int = self._database.execute("SELECT count(*) FROM memories").fetchone()[0]
        self._database.close()
        return count
