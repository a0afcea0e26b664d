"""The log as a whole."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pixelmemory.errors import InvalidArgumentError, LogCorruptError, LogError, LogWriteError, StoreClosedError
from pixelmemory.events import Event
from pixelmemory.log.append import Append
from pixelmemory.log.appender import Appender
from pixelmemory.log.files import Files, ensure_folder, sync_parents
from pixelmemory.log.reader import SegmentReader
from pixelmemory.log.record import StoredEvent
from pixelmemory.log.recovery import verify_log
from pixelmemory.log.renewal import ReadyLog, RecoveryReport, renew_log
from pixelmemory.log.segment import segment_name
from pixelmemory.log.tail import Tail
from pixelmemory.log.writer import GroupCommit
from pixelmemory.options import Options, SyncMode

__all__ = ["Log", "LogStats"]


class LogStats(NamedTuple):
    """Figures of one handle of the log, from memory."""

    #: frames written by this handle
    frames: int
    #: events in the log
    events: int
    #: bytes of the log on disk, seals and closing marks aside
    bytes: int
    segments: int
    #: flushes by this handle
    syncs: int
    #: time spent in them
    sync_seconds: float
    rotations: int
    #: bytes written by this handle
    bytes_written: int
    #: encoded bytes that wait for the writer
    buffered_bytes: int
    #: encoded bytes of the newest frames kept in memory
    tail_bytes: int
    durable_lsn: int
    #: last LSN that was flushed; behind ``durable_lsn`` in the relaxed sync modes only
    synced_lsn: int


class Log:
    """A store's write-ahead log, open for reading and writing. Made by :meth:`open`. Every method is thread-safe.

    Attributes:
        recovery: what the open found and did.
    """

    def __init__(
        self, files: Files, ready: ReadyLog, options: Options, on_commit: Callable[[Sequence[Append]], None]
    ) -> None:
        self.recovery: RecoveryReport = ready.report
        self._segments = ready.segments
        self._append_bytes_max = options.append_bytes_max
        self._appender = Appender(
            files,
            ready,
            segment_bytes_max=options.segment_bytes_max,
            sync_each=options.sync_mode is SyncMode.ALWAYS,
        )
        self._tail = Tail(options.tail_bytes_max)
        self._reader = SegmentReader(files, self._segments)
        self._closed = False
        self._writer = GroupCommit(self._appender, self._tail, options, on_commit, ready.last_logged_at_ns)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "poisoned" if self.failure is not None else "open"
        return f"<Log {self._segments[0].path.parent} {state} durable_lsn={self.durable_lsn}>"

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        store_id: uuid.UUID,
        epoch: int,
        options: Options,
        on_commit: Callable[[Sequence[Append]], None],
        files: Files | None = None,
        has_log: bool = False,
    ) -> Log:
        """Verify the log in the store's ``folder``, make it ready to be appended to, and start its writer thread.

        Args:
            folder: ``<home>/<name>``; made if it is not there. The caller holds the store's lock.
            store_id: of the manifest; a segment of another store is refused.
            epoch: of the manifest; at least that of every segment.
            options: the limits, and the sync mode.
            on_commit: called in the writer thread, once per commit, with every append of the frame in LSN order, after
                ``durable_lsn`` has moved, or with ``error`` set on each. It must not call :meth:`close` or
                :meth:`flush`. What it raises is logged.
            files: the file operations; for tests.
            has_log: of the manifest; a log without segments is then refused.

        Raises:
            LogCorruptError: damage, with its place; nothing was changed.
            UnknownEventError: a later version wrote the log.
            LogWriteError: the folder cannot be read or written; nothing that was acknowledged is lost.
        """
        started = time.monotonic()
        files = files or Files()
        folder = Path(folder)
        try:
            ensure_folder(files, folder / "log")
            verified = verify_log(files, folder / "log", store_id, epoch, drop_damaged=options.drop_damaged_final_frame)
            if not verified.segments and has_log:
                raise LogCorruptError(folder / "log" / segment_name(1), 0, 1, "the first segment is missing or empty")
            if not verified.segments:  # nothing was acknowledged yet; the way to what will be must be durable
                sync_parents(files, folder / "log")
            ready = renew_log(files, folder, verified, store_id, epoch)
        except OSError as error:
            raise LogWriteError(
                f"the log in {folder} cannot be opened: {error}. Nothing acknowledged is lost"
            ) from error
        ready = ready._replace(report=ready.report._replace(seconds=time.monotonic() - started))
        return cls(files, ready, options, on_commit)

    @property
    def durable_lsn(self) -> int:
        """Last LSN that is acknowledged under the sync mode; 0 if there is none. Never decreases."""
        return self._writer.durable_lsn

    @property
    def synced_lsn(self) -> int:
        """Last LSN that was flushed. Equal to ``durable_lsn`` with ``SyncMode.ALWAYS``."""
        return self._appender.synced_lsn

    @property
    def first_lsn(self) -> int:
        """LSN of the oldest event that the log holds, or will hold."""
        return self._segments[0].header.first_lsn

    @property
    def failure(self) -> LogError | None:
        """Why the log takes no more writes; None while it does."""
        return self._writer.failure

    @property
    def buffered_bytes(self) -> int:
        """Encoded bytes that wait for the writer."""
        return self._writer.buffered_bytes

    @property
    def last_logged_at_ns(self) -> int:
        """Time of the last event that was submitted, nanoseconds since the epoch; 0 if there is none."""
        return self._writer.last_logged_at_ns

    def submit(self, events: Sequence[Event], context: Any = None, *, not_before_ns: int = 0) -> Append:
        """Encode ``events`` and put them into the buffer, as one atomic append. Does not wait.

        Args:
            context: the caller's own.
            not_before_ns: their time is at least this, whatever the clock says.

        Raises:
            LimitExceededError: they take more than ``append_bytes_max`` bytes.
            LogPoisonedError: an earlier flush failed.
            StoreClosedError, StoreForkedError: the log cannot be used.
        """
        append = Append(events, context, self._append_bytes_max)
        self._writer.submit(append, not_before_ns)
        return append

    def withdraw(self, append: Append) -> bool:
        """Take ``append`` back. True if the writer had not taken it: it is gone, and ``on_commit`` will not see it."""
        return self._writer.withdraw(append)

    def read(self, from_lsn: int, *, events_max: int, bytes_max: int) -> list[StoredEvent]:
        """Durable events from ``from_lsn`` on, in LSN order; ``[]`` if there are none yet.

        Ends with a whole frame, so that one append is never split, and gives at least one frame where there is one;
        further frames only while both bounds are kept. Reading on from where the last read ended costs no search.

        Args:
            from_lsn: at least ``first_lsn``.
            events_max: events.
            bytes_max: encoded bytes.

        Raises:
            LogCorruptError, UnknownEventError: what stands there cannot be given out.
            StoreClosedError, StoreForkedError: the log cannot be used.
        """
        self._writer.check_usable()
        if self._closed:
            raise StoreClosedError("the log is closed")
        if from_lsn < self.first_lsn:
            raise InvalidArgumentError("from_lsn", f"must be at least {self.first_lsn}, not {from_lsn}")
        durable_lsn = self.durable_lsn
        if from_lsn > durable_lsn:
            return []
        events = self._tail.read(from_lsn, events_max, bytes_max)
        if events is not None:
            return events
        return self._reader.read(from_lsn, durable_lsn, events_max, bytes_max)

    def flush(self) -> None:
        """Return when everything that was submitted before is flushed, whatever the sync mode.

        Raises:
            LogPoisonedError: a flush failed, this one or an earlier one.
            StoreClosedError, StoreForkedError: the log cannot be used.
        """
        self._writer.flush()

    def stats(self) -> LogStats:
        """Figures, from memory."""
        appender = self._appender
        return LogStats(
            frames=appender.frames,
            events=self.durable_lsn - self.first_lsn + 1,
            bytes=sum(segment.end_bytes for segment in tuple(self._segments)),
            segments=len(self._segments),
            syncs=appender.syncs,
            sync_seconds=appender.sync_seconds,
            rotations=appender.rotations,
            bytes_written=appender.bytes_written,
            buffered_bytes=self.buffered_bytes,
            tail_bytes=self._tail.byte_count,
            durable_lsn=self.durable_lsn,
            synced_lsn=self.synced_lsn,
        )

    def close(self) -> None:
        """Write and flush what is in the buffer, stop the writer thread, close the files. Idempotent.

        Raises:
            UnknownOutcomeError: what a relaxed sync mode had acknowledged could not be flushed.
        """
        self._closed = True
        try:
            self._writer.close()
        finally:
            self._reader.close()
