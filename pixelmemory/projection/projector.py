"""The projector: reads the log, embeds, applies, moves the watermark.

Two threads, so that the next batch is embedded while the last one is applied::

    reader thread   log.read -> fold -> embed       (at most one batch ahead)
    writer thread   apply + checkpoint -> watermark  (owns every Pixeltable write)

A backlog of any length costs the memory of three batches. An error of the infrastructure is tried again with growing
pauses, for ever, and reported meanwhile. An error of the rows is bisected down to the memory that causes it, whose
events become dead letters; later events of that memory wait behind it, so the order per memory is never broken.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from pixelmemory.errors import (
    PixelmemoryError,
    ProjectionUnavailableError,
    StoreClosedError,
    StoreLockedError,
    UnavailableCause,
    copy_of,
)
from pixelmemory.faults import fault_point
from pixelmemory.log.contract import EventLog
from pixelmemory.memory.events import MemoryAdded, MemoryUpdated
from pixelmemory.options import Options, SyncMode
from pixelmemory.projection.batches import Batch, EmbedTexts, Preparer, TruncatedTexts
from pixelmemory.projection.changes import Change
from pixelmemory.projection.contract import DeadLetter, Host, letters_of
from pixelmemory.projection.dead_letters import apply_what_can_be
from pixelmemory.projection.sql.failures import first_line
from pixelmemory.projection.stats import ProjectorStats

__all__ = ["Projector", "ProjectorStats"]

_logger = logging.getLogger("pixelmemory.projector")
T = TypeVar("T")

#: a slower stream is projected as it comes: that takes nothing from its writers
BURST_EVENTS_PER_SECOND = 1000


class _Request(NamedTuple):
    run: Callable[[], Any]
    future: Future[Any]


class Projector:
    """Keeps the projection up to date with the log.

    Args:
        log: what to read.
        host: where to write.
        checkpoint_lsn: last LSN that is applied.
        dead_letters: those that are recorded.
        embed: the store's model, or None.
        truncated: which texts it cuts, or None.
        dimensions: of a vector, or None without semantic search.
        options: limits.
        on_watermark: called on a projector thread after each step, with the new watermark; also when the state of
            health changes.
    """

    def __init__(
        self,
        log: EventLog,
        host: Host,
        *,
        checkpoint_lsn: int,
        dead_letters: Sequence[DeadLetter],
        embed: EmbedTexts | None,
        truncated: TruncatedTexts | None,
        dimensions: int | None,
        options: Options,
        on_watermark: Callable[[int], None],
    ) -> None:
        self._log = log
        self._host = host
        self._options = options
        self._on_watermark = on_watermark
        #: last LSN whose event is visible; only the writer thread moves it
        self.watermark = checkpoint_lsn
        #: up to here a life that was killed while it halved a refused batch may have applied some events already
        self._replayed_lsn = log.durable_lsn
        #: by LSN; only the writer thread changes it
        self.dead_letters: dict[int, DeadLetter] = {letter.lsn: letter for letter in dead_letters}
        self._dead_keys = _first_lsns(dead_letters)
        #: why nothing moves, for health; None while all is well
        self.blocked: str | None = None
        #: set when a thread ended that should not have; every waiter is told
        self.failure: BaseException | None = None
        self._batches = self._events = 0
        self._apply_seconds = 0.0

        self._stopping = threading.Event()
        self._preparer = Preparer(
            embed,
            truncated,
            dimensions,
            options,
            is_infrastructure_error=host.is_infrastructure_error,
            stopping=self._stopping,
            block=self._block,
            unblock=self._unblock,
        )
        self._wake = threading.Event()
        #: set while a reader waits: batches are not left to gather
        self._urgent = threading.Event()
        #: what the writer thread does next; None only wakes it
        self._inbox: queue.SimpleQueue[Batch | _Request | None] = queue.SimpleQueue()
        #: batches that are read, embedded or applied: one of them ahead of the writer
        self._slots = threading.Semaphore(2)
        self._threads = [
            threading.Thread(target=self._guarded, args=(run,), name=f"pixelmemory-projector-{name}", daemon=True)
            for name, run in (("reader", self._read_loop), ("writer", self._write_loop))
        ]

    def start(self) -> None:
        """Start both threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> bool:
        """Stop after the batch in hand. What is not applied stays in the log for the next open.

        Returns:
            Whether both threads have ended, within ``close_timeout_seconds``.
        """
        self._stop_threads()
        deadline = time.monotonic() + self._options.close_timeout_seconds
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        self._fail_requests(StoreClosedError("the store was closed"))
        return not any(thread.is_alive() for thread in self._threads)

    def _stop_threads(self) -> None:
        self._stopping.set()
        self._wake.set()
        self._urgent.set()
        self._slots.release()
        self._inbox.put(None)

    def notify(self, *, urgent: bool = False) -> None:
        """There may be new events, or (``urgent``) a reader that waits for them."""
        if urgent:
            self._urgent.set()
        self._wake.set()

    def request(self, run: Callable[[], T]) -> Future[T]:
        """Run ``run`` on the writer thread, between two batches."""
        future: Future[T] = Future()
        if self.failure is not None:
            reason = f"the projector is not running: {self.failure}"
            future.set_exception(ProjectionUnavailableError(reason, UnavailableCause.PROJECTOR_STOPPED))
            return future
        if self._stopping.is_set():
            future.set_exception(StoreClosedError("the store was closed"))
            return future
        self._inbox.put(_Request(run, future))
        if self._stopping.is_set():
            self._fail_requests(StoreClosedError("the store was closed"))
        return future

    def stats(self) -> ProjectorStats:
        """Figures since the store was opened."""
        return ProjectorStats(
            self.watermark,
            self._batches,
            self._events,
            self._preparer.texts_embedded,
            self._preparer.texts_unembeddable,
            self._preparer.texts_truncated,
            self._preparer.embed_seconds,
            self._apply_seconds,
            len(self.dead_letters),
            self.blocked,
        )

    def check_running(self) -> None:
        """Raise StoreClosedError once it is being stopped: for what waits on one of its threads."""
        if self._stopping.is_set():
            raise StoreClosedError("the store was closed")

    # -- both threads

    def _guarded(self, run: Callable[[], None]) -> None:
        try:
            with self._host.on_thread():
                run()
        except BaseException as error:
            self.failure = error
            self.blocked = f"the projector stopped: {first_line(error)}"
            _logger.critical("the projector stopped: reads see LSN %d and no later", self.watermark, exc_info=True)
            self._stop_threads()
            self._fail_requests(ProjectionUnavailableError(self.blocked, UnavailableCause.PROJECTOR_STOPPED))
            self._on_watermark(self.watermark)

    def _fail_requests(self, error: PixelmemoryError) -> None:
        while True:
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                return
            if isinstance(item, _Request):
                item.future.set_exception(copy_of(error))

    # -- the reader thread

    def _read_loop(self) -> None:
        next_lsn = self.watermark + 1
        gathered_lsn = 0
        while not self._stopping.is_set():
            if self.readable_lsn < next_lsn:
                self._wait_for_events(next_lsn)
                continue
            if next_lsn > gathered_lsn:
                gathered_lsn = self._linger(next_lsn)
            readable_lsn = self.readable_lsn
            events = self._log.read(
                next_lsn, events_max=self._options.batch_events_max, bytes_max=self._options.batch_bytes_max
            )
            events = [event for event in events if event.lsn <= readable_lsn]
            self._slots.acquire()
            if self._stopping.is_set():
                return
            try:
                self._inbox.put(self._preparer.prepare(events))
            except StoreClosedError:
                return
            next_lsn = events[-1].lsn + 1

    def _wait_for_events(self, next_lsn: int) -> None:
        """Return when there may be something to read from ``next_lsn`` on."""
        unflushed = self._log.durable_lsn >= next_lsn
        if unflushed and self._urgent.is_set():
            # a reader waits for what is acknowledged before its flush: the interval need not pass first
            with contextlib.suppress(PixelmemoryError):  # the log reports its failures itself
                self._log.flush()
            if self.readable_lsn >= next_lsn:
                return
        if not unflushed:
            self._urgent.clear()
            if self._log.durable_lsn >= next_lsn:  # its reader may have spoken up just before the clearing
                self._urgent.set()
                return
        if unflushed and self._log.failure is not None:
            self._on_watermark(self.watermark)  # those who wait for it learn that it will not come
        # what is acknowledged before its flush becomes readable without a further word
        self._wake.wait(self._options.sync_interval_seconds if unflushed else None)
        self._wake.clear()

    @property
    def readable_lsn(self) -> int:
        """The last LSN that may be projected.

        The database flushes its commits: in ``SyncMode.INTERVAL`` it would otherwise get ahead of a log that loses its
        last interval to a power failure. ``SyncMode.OS`` has no flush to wait for, and takes that risk.
        """
        if self._options.sync_mode is SyncMode.INTERVAL:
            return self._log.synced_lsn
        return self._log.durable_lsn

    def _linger(self, next_lsn: int) -> int:
        """Let events gather, unless a reader waits, and go on with it while a burst of them comes in.

        The projector and those who write share the interpreter: what it does in the midst of a burst, it takes from
        them. How much gathers is bounded in time and in events, so a stream that does not end is projected in turns.

        Returns:
            The last LSN that was gathered.
        """
        options = self._options
        ends_at = time.monotonic() + options.linger_seconds_max
        seen_lsn = self._log.durable_lsn
        while options.linger_seconds > 0 and seen_lsn - next_lsn < options.lag_events_max // 4:
            if self._urgent.wait(options.linger_seconds):
                break
            before_lsn, seen_lsn = seen_lsn, self._log.durable_lsn
            is_burst = seen_lsn - before_lsn >= BURST_EVENTS_PER_SECOND * options.linger_seconds
            if not is_burst or time.monotonic() >= ends_at:
                break
        return self._log.durable_lsn

    # -- the writer thread

    def _write_loop(self) -> None:
        while not self._stopping.is_set():
            item = self._inbox.get()
            if isinstance(item, _Request):
                try:
                    item.future.set_result(item.run())
                except BaseException as error:  # noqa: BLE001 - it is the requester's
                    item.future.set_exception(error)
            elif item is not None:
                self._apply_with_retries(item)
                self._slots.release()

    def _apply_with_retries(self, batch: Batch) -> None:
        pause = self._options.retry_seconds_min
        replace = batch.events[0].lsn <= self._replayed_lsn
        while not self._stopping.is_set():
            started = time.perf_counter()
            try:
                self._apply(batch, replace=replace)
            except Exception as error:
                if not self._host.is_infrastructure_error(error):
                    raise
                # the transaction may have committed before the connection broke: apply again as a replacement
                replace = True
                self._block("the database", error)
                revived = False
                while not revived:  # until then another try could only say that the database does not answer
                    if self._stopping.wait(pause):
                        return
                    pause = min(pause * 2, self._options.retry_seconds_max)
                    revived = self._try_revive()
                continue
            self._apply_seconds += time.perf_counter() - started
            self._batches += 1
            self._events += len(batch.events)
            self._unblock("the database")
            self._tend(batch)
            self.watermark = batch.events[-1].lsn
            fault_point("projector.watermark")
            self._on_watermark(self.watermark)
            return

    def _try_revive(self) -> bool:
        """Whether the database runs; what keeps it from that is what health tells."""
        try:
            self._host.revive(self.check_running)
        except StoreLockedError:
            raise
        except StoreClosedError:
            return False  # its end comes with the next look
        except Exception as error:  # noqa: BLE001 - it is tried again, and reported meanwhile
            self._block("the database", error)
            return False
        return True

    def _apply(self, batch: Batch, *, replace: bool) -> None:
        """Apply one batch and its checkpoint; events that cannot be applied become dead letters."""
        dead: list[DeadLetter] = []
        changes: list[Change] = []
        for key, change in batch.changes.items():
            if (blocked_by := self._dead_keys.get(key)) is not None:
                dead += letters_of(change, f"waits for the dead letter at LSN {blocked_by}", blocked_by)
            elif key in batch.failed:
                dead += letters_of(change, batch.failed[key])
            else:
                changes.append(change)
        last_lsn = batch.events[-1].lsn
        try:
            fault_point("projector.apply.before")
            self._host.prepare(changes)
            self._host.before_batch(changes, self._log.durable_lsn - last_lsn)
            fault_point("projector.apply.prepared")
            recorded = self._host.apply(
                changes, batch.vectors, checkpoint_lsn=last_lsn, dead_letters=dead, replace=replace
            )
            fault_point("projector.apply.after")
        except Exception as error:
            if self._host.is_infrastructure_error(error) and not self._host.is_missing_table(error):
                raise
            if (damage := self._host.damage({change.namespace for change in changes})) is not None:
                raise ProjectionUnavailableError(
                    f"{damage}; put it back, or rebuild the projection", UnavailableCause.TABLE_GONE
                ) from error
            if self._host.is_infrastructure_error(error):
                raise
            _logger.warning("a batch was refused (%s): looking for the event that causes it", first_line(error))
            fault_point("projector.bisect.before")
            dead += apply_what_can_be(self._host, changes, batch.vectors)
            fault_point("projector.bisect.after")
            recorded = self._host.apply([], {}, checkpoint_lsn=last_lsn, dead_letters=dead)
        self._keep(recorded)

    def _tend(self, batch: Batch) -> None:
        try:
            self._host.after_batch(batch.changes.values(), self._log.durable_lsn - batch.events[-1].lsn)
        except Exception as error:  # noqa: BLE001 - the batch is applied; its upkeep is ordered with a later one
            _logger.warning("the upkeep of tables waits for the next batch: %s", first_line(error))

    def _keep(self, letters: Sequence[DeadLetter]) -> None:
        for letter in sorted(letters, key=lambda letter: letter.lsn):
            _logger.error(
                "LSN %d (%r in namespace %r) could not be applied and is kept as a dead letter: %s",
                letter.lsn,
                letter.memory_id,
                letter.namespace,
                letter.error,
            )
            self.dead_letters[letter.lsn] = letter
            self._dead_keys.setdefault((letter.namespace, letter.memory_id), letter.lsn)

    def retry_dead_letters(self) -> int:
        """Apply every dead letter again, in LSN order; to be run by :meth:`request`.

        Returns:
            How many events were applied; the others stay dead letters.
        """
        lsns = sorted(self.dead_letters)
        if not lsns:
            return 0
        events = [self._log.read(lsn, events_max=1, bytes_max=1)[0] for lsn in lsns]
        batch = self._preparer.prepare(events)
        dead: list[DeadLetter] = []
        for key, reason in batch.failed.items():
            dead += letters_of(batch.changes[key], reason)
        changes = [change for key, change in batch.changes.items() if key not in batch.failed]
        dead += apply_what_can_be(self._host, changes, batch.vectors, revive=True)
        fault_point("projector.retry.applied")
        still = {letter.lsn for letter in dead}
        revived = [lsn for lsn in lsns if lsn not in still]
        self._host.apply([], {}, checkpoint_lsn=None, dead_letters=dead)  # with what they fail for now
        self._keep(dead)
        for lsn in revived:
            del self.dead_letters[lsn]
        self._dead_keys = _first_lsns(dead)
        self._on_watermark(self.watermark)
        return len(revived)

    def forget_dead_letters(self, namespace: str, memory_ids: Collection[str] | None, up_to_lsn: int) -> list[int]:
        """Drop the dead letters of erased memories; to be run by :meth:`request`.

        Later events that only waited behind them are tried again, and with them every other dead letter.

        Args:
            memory_ids: which memories; None for all of the namespace.
            up_to_lsn: letters of later events stay.

        Returns:
            The LSNs of those that were dropped.
        """
        wanted = None if memory_ids is None else set(memory_ids)
        forgotten = [
            lsn
            for lsn, letter in sorted(self.dead_letters.items())
            if lsn <= up_to_lsn and letter.namespace == namespace and (wanted is None or letter.memory_id in wanted)
        ]
        if forgotten:
            self._host.apply([], {}, checkpoint_lsn=None, revived_lsns=forgotten)
        for lsn in forgotten:
            del self.dead_letters[lsn]
        self._dead_keys = _first_lsns(self.dead_letters.values())
        waited_for = {letter.blocked_by for letter in self.dead_letters.values()} - {None}
        if not waited_for <= self.dead_letters.keys():  # also where a kill came in between the last time
            self.retry_dead_letters()
        self._on_watermark(self.watermark)
        return forgotten

    def is_dead(self, key: tuple[str, str]) -> bool:
        """Whether a memory has a dead letter. May be called from any thread."""
        return key in self._dead_keys

    def exists_after_dead_letters(self, namespace: str, memory_id: str) -> bool | None:
        """Whether a memory exists after its dead letters; None where they do not tell, and its row does.

        Blocking: reads the log. May be called from any thread.
        """
        if (namespace, memory_id) not in self._dead_keys:
            return None
        letters = list(self.dead_letters.values())
        lsns = [each.lsn for each in letters if (each.namespace, each.memory_id) == (namespace, memory_id)]
        for lsn in sorted(lsns, reverse=True):
            event = self._log.read(lsn, events_max=1, bytes_max=1)[0].event
            if not isinstance(event, MemoryUpdated):
                return isinstance(event, MemoryAdded)
        return None

    # -- health

    def _block(self, what: str, error: Exception) -> None:
        reason = f"{what} failed and is tried again: {first_line(error)}"
        if self.blocked is None:
            _logger.error("%s", reason)
        self.blocked = reason
        self._on_watermark(self.watermark)

    def _unblock(self, what: str) -> None:
        if self.blocked is not None and self.blocked.startswith(what):
            _logger.info("%s works again", what)
            self.blocked = None


def _first_lsns(letters: Iterable[DeadLetter]) -> dict[tuple[str, str], int]:
    """(namespace, memory id) -> the LSN of its first dead letter."""
    first: dict[tuple[str, str], int] = {}
    for letter in sorted(letters, key=lambda letter: letter.lsn):
        first.setdefault((letter.namespace, letter.memory_id), letter.lsn)
    return first
