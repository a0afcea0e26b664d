"""A log in memory: the least that satisfies :class:`pixelmemory.log.contract.EventLog`, and survives nothing."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pixelmemory import InvalidArgumentError, LimitExceededError, LogError, Options, StoreClosedError, StoreForkedError
from pixelmemory.log.contract import Append, LogCapability, LogStats, RewriteReport, StoredEvent
from pixelmemory.memory.events import Event, encode_event


class MemoryAppend:
    """One append."""

    def __init__(self, events: Sequence[Event], context: Any) -> None:
        self.events = tuple(events)
        self.event_count = len(self.events)
        self.byte_count = sum(len(encode_event(event)) for event in self.events)
        self.first_lsn: int | None = None
        self.error: LogError | None = None
        self.context = context

    @property
    def last_lsn(self) -> int | None:
        return None if self.first_lsn is None else self.first_lsn + self.event_count - 1


class MemoryLog:
    """Keeps what it was given in a list; a thread of its own acknowledges."""

    lacks: ClassVar = {
        LogCapability.REWRITE: "a log in memory is not rewritten",
        LogCapability.STATISTICS: "it has no figures",
    }
    first_lsn = 1
    failure: LogError | None = None
    problem: LogError | None = None

    def __init__(self, options: Options, on_commit: Callable[[Sequence[Append]], None], **_: object) -> None:
        self._on_commit = on_commit
        self._bytes_max = options.append_bytes_max
        self._appends: list[list[StoredEvent]] = []
        self._lock, self._pid, self._closed = threading.Lock(), os.getpid(), False
        self._waiting: dict[MemoryAppend, int] = {}
        self._wake: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.durable_lsn = self.last_logged_at_ns = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, _folder: Path, *, options: Options, on_commit: Callable[..., None], **_: object) -> MemoryLog:
        return cls(options, on_commit)

    @property
    def synced_lsn(self) -> int:
        return self.durable_lsn

    @property
    def buffered_bytes(self) -> int:
        with self._lock:
            return sum(append.byte_count for append in self._waiting)

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise StoreForkedError("the log was opened before a fork")
        if self._closed:
            raise StoreClosedError("the log is closed")

    def submit(self, events: Sequence[Event], context: Any = None, *, not_before_ns: int = 0) -> MemoryAppend:
        append = MemoryAppend(events, context)
        if not append.events:
            raise InvalidArgumentError("events", "must not be empty")
        if append.byte_count > self._bytes_max:
            raise LimitExceededError("entries", "take too many bytes")
        self._check()
        with self._lock:
            self.last_logged_at_ns = max(time.time_ns(), self.last_logged_at_ns, not_before_ns)
            self._waiting[append] = self.last_logged_at_ns
        self._wake.put(True)
        return append

    def withdraw(self, append: Any) -> bool:
        with self._lock:
            return self._waiting.pop(append, None) is not None

    def _run(self) -> None:
        while self._wake.get():
            self._commit()

    def _commit(self) -> None:
        with self._lock:
            taken, self._waiting = self._waiting, {}
            for append, logged_at_ns in taken.items():
                append.first_lsn = self.durable_lsn + 1
                stored = [
                    StoredEvent(lsn, os.urandom(16), logged_at_ns, event)
                    for lsn, event in enumerate(append.events, append.first_lsn)
                ]
                self._appends.append(stored)
                self.durable_lsn = stored[-1].lsn
        if taken:
            try:
                self._on_commit(list(taken))
            except Exception:
                logging.getLogger("pixelmemory.log").exception("on_commit failed")

    def read(self, from_lsn: int, *, events_max: int, bytes_max: int) -> list[StoredEvent]:
        self._check()
        if from_lsn < 1:
            raise InvalidArgumentError("from_lsn", "must be at least 1")
        found: list[StoredEvent] = []
        for append in list(self._appends):
            if append[-1].lsn < from_lsn:
                continue
            part = [stored for stored in append if stored.lsn >= from_lsn]
            bytes_max -= sum(len(encode_event(stored.event)) for stored in part)
            if found and (len(found) + len(part) > events_max or bytes_max < 0):
                break
            found += part
        return found

    def flush(self) -> None:
        self._check()
        self._wait()

    def _wait(self) -> None:
        done = threading.Event()
        self._wake.put(True)
        while self._thread.is_alive():
            with self._lock:
                if not self._waiting:
                    return
            done.wait(0.001)

    def close(self) -> None:
        if os.getpid() == self._pid and not self._closed:
            self._closed = True
            self._wait()
            self._wake.put(False)
            self._thread.join()

    def rewrite(self, transform: Callable[[StoredEvent], Event]) -> RewriteReport:
        raise NotImplementedError(self.lacks[LogCapability.REWRITE])

    def stats(self) -> LogStats:
        raise NotImplementedError(self.lacks[LogCapability.STATISTICS])
