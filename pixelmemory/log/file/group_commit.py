"""Group commit: many callers fill a buffer, one thread writes it as one frame, syncs once, and reports.

A frame gathers while a sync runs; there is no timer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from threading import Condition, Lock, Thread, current_thread

from pixelmemory.errors import (
    LogError,
    LogPoisonedError,
    LogWriteError,
    StoreClosedError,
    StoreForkedError,
    UnknownOutcomeError,
    WrongThreadError,
)
from pixelmemory.forks import forks
from pixelmemory.log.file.active_segment import ActiveSegment
from pixelmemory.log.file.append import Append
from pixelmemory.log.file.tail import Tail
from pixelmemory.options import Options, SyncMode

__all__ = ["GroupCommit"]

_logger = logging.getLogger("pixelmemory.log")

#: after a write that failed, how often it is looked whether it would succeed now
PROBE_SECONDS = 1.0
#: while writes come, how often it is looked whether the store's folder is where it was
FOLDER_CHECK_SECONDS = 1.0


class _Task:
    """Something that the writer thread is asked to do between two commits."""

    def __init__(self, run: Callable[[], None]) -> None:
        self.run = run
        self.done = False
        self.error: BaseException | None = None


class GroupCommit:
    """The buffer and the writer thread.

    Invariants, under ``_lock``: the buffer's order is the order of LSNs, and ``logged_at_ns`` never decreases along it;
    an append is in the buffer, or taken by the writer, or settled. ``durable_lsn`` moves after the sync (after the
    write in the relaxed modes), and before ``on_commit``. Once ``failure`` is set, nothing is written any more.

    Attributes:
        failure: why nothing is written any more; None while appends are taken.
        problem: why the last append was not recorded, while the next one may be; None once one was, or a probe found
            that it would be.
    """

    def __init__(
        self,
        active: ActiveSegment,
        tail: Tail,
        options: Options,
        on_commit: Callable[[Sequence[Append]], None],
        last_logged_at_ns: int,
    ) -> None:
        self._active = active
        self._tail = tail
        self._sync_mode = options.sync_mode
        self._sync_interval_seconds = options.sync_interval_seconds
        self._append_bytes_max = options.append_bytes_max
        self._on_commit = on_commit
        self._forks = forks()
        self._lock = Lock()
        self._wake = Condition(self._lock)
        self._flushed = Condition(self._lock)
        #: appends that wait, in order; a dict so that one is withdrawn in constant time
        self._buffer: dict[Append, None] = {}
        self.buffered_bytes = 0
        self.last_logged_at_ns = last_logged_at_ns
        #: last LSN that is acknowledged or about to be; what may be read
        self.durable_lsn = active.last_lsn
        self.failure: LogError | None = None
        self.problem: LogError | None = None
        #: monotonic time of the next probe; None exactly while there is no problem
        self._probe_due: float | None = None
        #: monotonic time from which a commit looks after the store's folder
        self._folder_check_due = time.monotonic() + FOLDER_CHECK_SECONDS
        self._idle = False
        self._closing = False
        self._flushes_wanted = 0
        self._flushes_done = 0
        #: the thread that rewrites the log; one does at a time, and a close waits for its end
        self._rewriter: Thread | None = None
        #: what it asks for
        self._task: _Task | None = None
        #: monotonic time of the next sync; None while nothing is unsynced, and in the other modes
        self._sync_due: float | None = None
        #: appends that are being written
        self._taken: Sequence[Append] = ()
        self._thread = Thread(target=self._run, name="pixelmemory-log-writer", daemon=True)
        self._thread.start()

    # -- callers' threads

    def submit(self, append: Append, not_before_ns: int = 0) -> None:
        """Put ``append`` into the buffer and give it its time. Never blocks for long."""
        self.check_usable()
        logged_at_ns = max(time.time_ns(), self.last_logged_at_ns, not_before_ns)
        append.encode(logged_at_ns)
        with self._lock:
            if self._closing:
                raise StoreClosedError("the log is closed")
            if self.failure is not None:
                raise _refusal(self.failure)
            if logged_at_ns < self.last_logged_at_ns:  # another thread was faster
                append.encode(self.last_logged_at_ns)
            else:
                self.last_logged_at_ns = logged_at_ns
            self._buffer[append] = None
            self.buffered_bytes += append.byte_count
            if self._idle:
                self._idle = False
                self._wake.notify()

    def check_usable(self) -> None:
        """Raises StoreForkedError in a child of the process that opened the log."""
        if forks() != self._forks:
            raise StoreForkedError("the log was opened before a fork; only the process that opened it may use it")

    def withdraw(self, append: Append) -> bool:
        """Take ``append`` back if it is still in the buffer."""
        with self._lock:
            if append not in self._buffer:
                return False
            del self._buffer[append]
            self.buffered_bytes -= append.byte_count
        return True

    def flush(self) -> None:
        """Return when everything submitted before the call is synced.

        Raises:
            StoreClosedError, StoreForkedError, LogPoisonedError: it cannot be.
        """
        self.check_usable()
        if current_thread() is self._thread:
            raise WrongThreadError("flush() was called from the log's own writer thread; call it from another")
        with self._lock:
            if self._closing:
                raise StoreClosedError("the log is closed")
            self._flushes_wanted += 1
            ticket = self._flushes_wanted
            self._wake.notify()
            while self._flushes_done < ticket and self.failure is None:
                self._flushed.wait()
            if self._flushes_done < ticket and self.failure is not None:
                raise _refusal(self.failure)

    def close(self) -> None:
        """Drain the buffer, sync, stop the thread. Idempotent.

        Raises:
            UnknownOutcomeError: the last sync of a relaxed mode failed.
        """
        if forks() != self._forks:
            return  # the parent's log is not ours to close
        if current_thread() is self._thread:
            raise WrongThreadError("close() was called from the log's own writer thread; call it from another")
        if current_thread() is self._rewriter:
            raise WrongThreadError("close() was called from within a rewrite; call it from another thread")
        with self._lock:
            self._closing = True
            self._wake.notify()
            self._flushed.notify_all()
        self._thread.join()
        with self._lock:
            while self._rewriter is not None:
                self._flushed.wait()
        try:
            self._active.close()
        except UnknownOutcomeError as error:
            self.failure = error
            raise

    # -- rewriting

    def begin_rewrite(self) -> None:
        """The calling thread is going to rewrite the log. Waits for another one's rewrite to end.

        Raises:
            StoreClosedError, StoreForkedError, LogPoisonedError: it cannot be.
        """
        self.check_usable()
        if current_thread() in (self._thread, self._rewriter):
            raise WrongThreadError("rewrite() was called from the log's own writer thread, or within a rewrite")
        with self._lock:
            while self._rewriter is not None and not self._closing and self.failure is None:
                self._flushed.wait()
            self._check_open()
            self._rewriter = current_thread()

    def end_rewrite(self) -> None:
        """It has ended, whichever way."""
        with self._lock:
            self._rewriter = None
            self._flushed.notify_all()

    def check_rewrite(self) -> None:
        """Raises StoreClosedError or LogPoisonedError where a rewrite has to stop."""
        if self._closing or self.failure is not None:
            self._check_open()

    def _check_open(self) -> None:
        if self._closing:
            raise StoreClosedError("the log is closed")
        if self.failure is not None:
            raise _refusal(self.failure)

    def execute(self, run: Callable[[], None]) -> None:
        """Run something in the writer thread, between two commits, and return when it has run. For the rewriter.

        Raises:
            StoreClosedError, LogPoisonedError: it was not run.
            BaseException: what it raised; the log is poisoned if it left the segment broken.
        """
        task = _Task(run)
        with self._lock:
            self._check_open()
            self._task = task
            self._wake.notify()
            while not task.done:
                self._flushed.wait()
        if task.error is not None:
            raise task.error

    # -- the writer thread

    def _run_task(self) -> None:
        with self._lock:
            task, self._task = self._task, None
        if task is None:
            return
        if self.failure is None:
            try:
                task.run()
            except BaseException as error:  # noqa: BLE001 - it is for the one that asked
                task.error = error
            if self._active.broken:
                self._poison(UnknownOutcomeError(f"the log was left in the middle of a rewrite: {task.error!r}"))
        else:
            task.error = _refusal(self.failure)
        with self._lock:
            task.done = True
            self._flushed.notify_all()

    def _run(self) -> None:
        try:
            while self.failure is None:
                appends, flushes = self._wait_for_work()
                if appends:
                    self._commit(appends)
                elif flushes is None and self._closing and self._task is None:
                    return
                self._sync_if_due(flushes)
                self._run_task()
                self._probe_if_due()
        except BaseException as error:  # whatever it is, the waiters must learn of it
            _logger.critical("the log's writer stopped", exc_info=True)
            self._active.broken = True
            unknown = UnknownOutcomeError(f"the log's writer stopped: {error!r}; reopen the store")
            taken, self._taken = self._taken, ()
            self._poison(unknown)
            self._settle(taken, unknown)
            self._run_task()  # it is refused

    def _wait_for_work(self) -> tuple[Sequence[Append], int | None]:
        """The appends of the next frame, and the flush tickets that its sync serves (None if nobody asks)."""
        with self._lock:
            while not (self._buffer or self._closing or self._task or self._flushes_wanted > self._flushes_done):
                due = min((each for each in (self._sync_due, self._probe_due) if each is not None), default=None)
                wait_seconds = None if due is None else due - time.monotonic()
                if wait_seconds is not None and wait_seconds <= 0:
                    break
                self._idle = True
                self._wake.wait(wait_seconds)
                self._idle = False
            if self.buffered_bytes <= self._append_bytes_max:
                taken: list[Append] = list(self._buffer)
                self._buffer = {}
                self.buffered_bytes = 0
            else:
                taken = self._take_some()
            self._taken = taken
            asked = not self._buffer and self._flushes_wanted > self._flushes_done
            return taken, self._flushes_wanted if asked else None

    def _take_some(self) -> list[Append]:
        """As many whole appends as fit into one frame; at least one, which always fits."""
        taken: list[Append] = []
        byte_count = 0
        for append in self._buffer:
            if taken and byte_count + append.byte_count > self._append_bytes_max:
                break
            taken.append(append)
            byte_count += append.byte_count
        for append in taken:
            del self._buffer[append]
        self.buffered_bytes -= byte_count
        return taken

    def _commit(self, appends: Sequence[Append]) -> None:
        lsn = self._active.next_lsn
        for append in appends:
            append.first_lsn = lsn
            lsn += append.event_count
        try:
            if (now := time.monotonic()) >= self._folder_check_due:
                self._active.check_folder()
                self._folder_check_due = now + FOLDER_CHECK_SECONDS
            byte_count = self._active.write(appends)
            if self._sync_mode is SyncMode.ALWAYS:
                self._active.sync()
        except LogError as error:
            self._taken = ()
            if self._active.broken:
                self._poison(error)
            else:
                self._note_problem(error)
            self._settle(appends, error)
            return
        self.problem = self._probe_due = None
        self._active.publish()
        self._tail.add(appends, byte_count)
        self.durable_lsn = lsn - 1
        self._taken = ()
        if self._sync_mode is SyncMode.INTERVAL and self._sync_due is None:
            self._sync_due = time.monotonic() + self._sync_interval_seconds
        self._settle(appends, None)

    def _note_problem(self, error: LogError) -> None:
        self.problem = error
        self._probe_due = time.monotonic() + PROBE_SECONDS

    def _probe_if_due(self) -> None:
        """Look whether what failed last would succeed now, so that nobody has to write to learn of it."""
        if self._probe_due is None or self.failure is not None or time.monotonic() < self._probe_due:
            return
        try:
            self._active.probe()
        except LogError as error:
            if self._active.broken:
                self._poison(error)
            else:
                self._note_problem(error)
        else:
            _logger.info("the log can be written again")
            self.problem = self._probe_due = None

    def _sync_if_due(self, flushes: int | None) -> None:
        """Sync where the interval is over or someone asked for it."""
        if self.failure is not None:
            return
        due = self._sync_due is not None and time.monotonic() >= self._sync_due
        if (due or flushes is not None) and self._active.synced_lsn < self._active.last_lsn:
            try:
                self._active.sync()
            except LogError as error:
                self._poison(error)
                return
        if due or flushes is not None:
            self._sync_due = None
        if flushes is not None:
            with self._lock:
                self._flushes_done = flushes
                self._flushed.notify_all()

    def _poison(self, error: LogError) -> None:
        """Refuse everything from now on, and fail those that wait."""
        with self._lock:
            self.failure = error
            waiting = list(self._buffer)
            self._buffer = {}
            self.buffered_bytes = 0
            self._flushed.notify_all()
        _logger.error("the log takes no more writes until it is reopened: %s", error)
        self._settle(waiting, _refusal(error))

    def _settle(self, appends: Sequence[Append], error: LogError | None) -> None:
        """Report the outcome of ``appends``."""
        if not appends:
            return
        unrecorded = isinstance(error, LogWriteError | LogPoisonedError)
        for append in appends:
            append.settle(error, unrecorded=unrecorded)
        try:
            self._on_commit(appends)
        except Exception:
            # the events are as durable as before; a callback that fails must not stop the others' writes
            _logger.exception("on_commit failed for %d appends", len(appends))


def _refusal(failure: LogError) -> LogPoisonedError:
    return LogPoisonedError(f"the log takes no more writes after an earlier failure: {failure}")
