"""The log as a whole."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pixelmemory.errors import (
    InvalidArgumentError,
    LogCorruptError,
    LogError,
    LogWriteError,
    StoreClosedError,
    UnknownOutcomeError,
    WrongThreadError,
)
from pixelmemory.faults import fault_point
from pixelmemory.log.contract import LogCapability, LogStats, RewriteReport, StoredEvent
from pixelmemory.log.file.active_segment import ActiveSegment
from pixelmemory.log.file.append import Append
from pixelmemory.log.file.files import Files, ensure_folder, sync_parents
from pixelmemory.log.file.group_commit import GroupCommit
from pixelmemory.log.file.reader import SegmentReader
from pixelmemory.log.file.recovery import ReadyLog, RecoveryReport, renew_log
from pixelmemory.log.file.rewrite import NewLog, Rewriting
from pixelmemory.log.file.segment import segment_name
from pixelmemory.log.file.switch import LOG, OLD_LOG, HalfSwitchedError, finish_switch, remove_leftovers, switch_logs
from pixelmemory.log.file.tail import Tail
from pixelmemory.log.file.verification import verify_log
from pixelmemory.memory.events import Event
from pixelmemory.options import Options, SyncMode

__all__ = ["FileLog"]


class FileLog:
    """A store's write-ahead log, open for reading and writing. Made by :meth:`open`. Every method is thread-safe.

    Attributes:
        recovery: what the open found and did.
        lacks: nothing.
    """

    lacks: Mapping[LogCapability, str] = MappingProxyType({})

    def __init__(
        self,
        files: Files,
        folder: Path,
        ready: ReadyLog,
        options: Options,
        on_commit: Callable[[Sequence[Append]], None],
        check_folder: Callable[[], None],
    ) -> None:
        self._files = files
        self._check_folder = check_folder
        self._folder = folder
        self._segment_bytes_max = options.segment_bytes_max
        self.recovery: RecoveryReport = ready.report
        self._segments = ready.segments
        self._append_bytes_max = options.append_bytes_max
        self._active = ActiveSegment(
            files,
            ready,
            segment_bytes_max=options.segment_bytes_max,
            sync_each=options.sync_mode is SyncMode.ALWAYS,
            check_folder=check_folder,
        )
        self._tail = Tail(options.tail_bytes_max)
        self._reader = SegmentReader(files, self._segments, check_folder)
        self._closed = False
        self._writer = GroupCommit(self._active, self._tail, options, on_commit, ready.last_logged_at_ns)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "poisoned" if self.failure is not None else "open"
        return f"<FileLog {self._folder / LOG} {state} durable_lsn={self.durable_lsn}>"

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
        check_folder: Callable[[], None] = lambda: None,
    ) -> FileLog:
        """Verify the log in the store's ``folder``, make it ready to be appended to, and start its writer thread.

        Args:
            folder: ``<home>/<name>``; made if it is not there. The caller holds the store's lock.
            store_id: of the manifest; a segment of another store is refused.
            epoch: of the manifest; at least that of every segment.
            options: the limits, and the sync mode.
            on_commit: called in the writer thread, once per commit, with every append of the frame in LSN order, after
                ``durable_lsn`` has moved, or with ``error`` set on each. It must not call :meth:`close` or
                :meth:`flush`. What it raises is logged.
            files: the file operations.
            has_log: of the manifest; a log without segments is then refused.
            check_folder: raises an OSError where ``folder`` does not lead to the folder that was opened any more, as
                :meth:`pixelmemory.store.lock.StoreLock.check_place` does. Called before each segment that is made,
                about once a second while writes come, before anything goes to quarantine, and before and in a rewrite.

        Raises:
            LogCorruptError: damage, with its place; nothing was changed.
            UnknownEventError: a later version wrote the log.
            LogWriteError: the folder cannot be read or written; nothing that was acknowledged is lost.
        """
        started = time.monotonic()
        files = files or Files()
        folder = Path(folder).absolute()
        try:
            check_folder()
            finish_switch(files, folder)
            ensure_folder(files, folder / LOG)
            verified = verify_log(files, folder / LOG, store_id, epoch, drop_damaged=options.drop_damaged_final_frame)
            if not verified.segments and has_log:
                raise LogCorruptError(folder / LOG / segment_name(1), 0, 1, "the first segment is missing or empty")
            if not verified.segments:  # nothing was acknowledged yet; the way to what will be must be durable
                sync_parents(files, folder / LOG)
            check_folder()  # verifying took its time
            remove_leftovers(files, folder)
            ready = renew_log(files, folder, verified, store_id, epoch)
        except OSError as error:
            raise LogWriteError(
                f"the log in {folder} cannot be opened: {error}. Nothing acknowledged is lost"
            ) from error
        ready = ready._replace(report=ready.report._replace(seconds=time.monotonic() - started))
        return cls(files, folder, ready, options, on_commit, check_folder)

    @property
    def durable_lsn(self) -> int:
        """Last LSN that is acknowledged under the sync mode; 0 if there is none. Never decreases."""
        return self._writer.durable_lsn

    @property
    def synced_lsn(self) -> int:
        """Last LSN that was flushed. Equal to ``durable_lsn`` with ``SyncMode.ALWAYS``."""
        return self._active.synced_lsn

    @property
    def first_lsn(self) -> int:
        """LSN of the oldest event that the log holds, or will hold."""
        return self._segments[0].header.first_lsn

    @property
    def failure(self) -> LogError | None:
        """Why the log takes no more writes; None while it does."""
        return self._writer.failure

    @property
    def problem(self) -> LogError | None:
        """Why the last append was not recorded, while the next one may be: a full disk, a folder that was moved.

        None once an append was recorded, or would be: it is looked about once a second, without one.
        """
        return self._writer.problem

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
            StoreError: the segments are gone, with the store's folder.
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

    def rewrite(self, transform: Callable[[StoredEvent], Event]) -> RewriteReport:
        """Rewrite the log with what ``transform`` makes of its events, and remove the old one. Blocks.

        Appends and reads go on meanwhile; appends wait for a moment at the end. An event keeps its LSN, its event id
        and its time whatever stands there. Takes as much room on the disk as the log has. A kill at any moment leaves
        the old log or the new one, and the next open removes what is left of the other.

        Args:
            transform: called with every event, in LSN order; gives back ``stored.event`` itself to leave it as it is,
                or another event. The last calls are made in the log's writer thread: it must not call :meth:`flush`,
                :meth:`close` or :meth:`rewrite`, nor wait for an append. What it raises ends the rewrite, and the log
                stays as it was.

        Raises:
            LogWriteError: a file could not be written, say for want of room: the log is as it was. Or the new log
                stands, and the old one could not be removed; the message says which. Rewrite again, or reopen.
            UnknownOutcomeError: it is not known which of the two is on the device; the log is poisoned. Reopen.
            LogCorruptError: an event could not be read; the log is as it was.
            LogPoisonedError: an earlier flush failed.
            StoreClosedError, StoreForkedError: the log cannot be used, or was closed meanwhile.
            WrongThreadError: called from ``on_commit`` or from ``transform``.
        """
        started = time.monotonic()
        self._writer.begin_rewrite()
        try:
            report = self._rewrite(transform)
        finally:
            self._writer.end_rewrite()
        return report._replace(seconds=time.monotonic() - started)

    def _rewrite(self, transform: Callable[[StoredEvent], Event]) -> RewriteReport:
        bytes_before = self.stats().bytes
        try:
            self._check_folder()
            remove_leftovers(self._files, self._folder)  # what an earlier one could not
        except OSError as error:
            raise LogWriteError(f"the log could not be rewritten: {error}. It is as it was") from error
        rewriting = Rewriting(
            *(self._files, self._folder, self._segments, self._segment_bytes_max),
            transform,
            self._writer.check_rewrite,
        )
        try:
            rewriting.prepare()
            rewriting.copy_while_open(lambda: self.durable_lsn)
            fault_point("rewrite.before_rest")
            self._writer.execute(lambda: self._switch_to(rewriting))
        except HalfSwitchedError as error:
            raise UnknownOutcomeError(
                f"the log was being rewritten: {error.__cause__}. Every event is recorded; reopen the store, then look "
                "whether it was rewritten"
            ) from error
        except OSError as error:
            rewriting.remove()
            raise LogWriteError(f"the log could not be rewritten: {error}. It is as it was; make room") from error
        except BaseException:
            rewriting.remove()
            raise
        finally:
            rewriting.close()
        bytes_after = sum(segment.end_bytes for segment in rewriting.new.segments)
        try:
            remove_leftovers(self._files, self._folder)
        except OSError as error:
            raise LogWriteError(
                f"the log was rewritten, and the old one could not be removed from {self._folder / OLD_LOG}: {error}. "
                "Rewrite it again, or reopen the store, which removes it"
            ) from error
        return RewriteReport(rewriting.events_changed, bytes_before, bytes_after, 0.0)

    def _switch_to(self, rewriting: Rewriting) -> None:
        """Complete the new log, and go on with it. In the writer thread, between two commits."""
        rewriting.copy(self._active.last_lsn)
        fd = rewriting.new.finish()
        with self._reader.paused():
            try:
                self._check_folder()
                switch_logs(self._files, self._folder)
            except BaseException as error:
                if isinstance(error, HalfSwitchedError) and error.log_folder is None:
                    self._go_on_in(rewriting.new, fd)
                else:
                    with suppress(OSError):
                        self._files.close(fd)
                if isinstance(error, HalfSwitchedError) and error.log_folder is not None:
                    for segment in self._segments:
                        segment.path = error.log_folder / segment.path.name
                self._active.broken = not isinstance(error, OSError)  # that one was undone
                raise
            self._go_on_in(rewriting.new, fd)

    def _go_on_in(self, new: NewLog, fd: int) -> None:
        for segment in new.segments:
            segment.path = self._folder / LOG / segment.path.name
        assert new.writer is not None
        self._active.move_to(new.segments, fd, new.writer)
        self._tail.clear()

    def stats(self) -> LogStats:
        """Figures, from memory."""
        active = self._active
        return LogStats(
            frames=active.frames,
            events=self.durable_lsn - self.first_lsn + 1,
            bytes=sum(segment.end_bytes for segment in tuple(self._segments)),
            segments=len(self._segments),
            syncs=active.syncs,
            sync_seconds=active.sync_seconds,
            rotations=active.rotations,
            bytes_written=active.bytes_written,
            buffered_bytes=self.buffered_bytes,
            tail_bytes=self._tail.byte_count,
            durable_lsn=self.durable_lsn,
            synced_lsn=self.synced_lsn,
        )

    def close(self) -> None:
        """Write and flush what is in the buffer, stop the writer thread, close the files. Idempotent.

        A rewrite that runs is ended, with the log as it was, and waited for.

        Raises:
            UnknownOutcomeError: what a relaxed sync mode had acknowledged could not be flushed.
            WrongThreadError: called from ``on_commit``, or within a rewrite; nothing was closed.
        """
        self._closed = True
        try:
            self._writer.close()
        except WrongThreadError:
            self._closed = False
            raise
        finally:
            self._reader.close()
