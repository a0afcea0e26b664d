"""What a log owes the engine: the truth of a store, in one order, that survives what its sync mode promises.

The engine, the projector, the erase and the compaction know a log by :class:`EventLog` alone. What an implementation
has to do is said here, and checked by the suite that it subclasses (``tests/contract/log_contract.py``).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from pixelmemory.errors import LogError
from pixelmemory.memory.events import Event

__all__ = ["Append", "EventLog", "LogCapability", "LogStats", "RewriteReport", "StoredEvent"]


class StoredEvent(msgspec.Struct, frozen=True, gc=False):
    """An event with what the log knows of it. Many at a time: the garbage collector need not look at them."""

    lsn: int
    #: 16 bytes, unique for ever
    event_id: bytes
    #: when it was appended, nanoseconds since the epoch; never decreases from one LSN to the next
    logged_at_ns: int
    event: Event


class Append(Protocol):
    """One call on its way to the log: all of its events are recorded, or none. Made by :meth:`EventLog.submit`."""

    #: in order; at least one
    events: tuple[Event, ...]
    event_count: int
    #: None until the log gives it, and where nothing was recorded
    first_lsn: int | None
    #: why it was not recorded, or may not be; set before ``on_commit`` is called
    error: LogError | None
    #: the caller's own
    context: Any

    @property
    def last_lsn(self) -> int | None:
        """LSN of the last event, or None as ``first_lsn``."""


class LogCapability(enum.Enum):
    """What a log may lack: it is asked for, and a call that needs it is refused before anything is done."""

    #: :meth:`EventLog.rewrite`: events can be removed; erase and compaction need it
    REWRITE = "rewrite"
    #: :meth:`EventLog.stats`
    STATISTICS = "statistics"


class LogStats(NamedTuple):
    """Figures of one handle of a log, from memory."""

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


class RewriteReport(NamedTuple):
    """What a rewrite of the log did."""

    events_changed: int
    #: of the log on disk, seals and closing marks aside
    bytes_before: int
    bytes_after: int
    seconds: float


class EventLog(Protocol):
    """One store's log, open for reading and writing by one process.

    The obligations:

    - **Durability.** ``on_commit`` is called for an append once it is as durable as the sync mode says, with its LSNs
      set; or with ``error`` set on it: LogWriteError and LogPoisonedError where nothing of it is recorded,
      UnknownOutcomeError where it may be. ``durable_lsn`` has moved by then. What was acknowledged is there after any
      kill; what was refused for certain is not, ever.
    - **Order.** LSNs are dense, from 1, never reused, and the one order there is: appends get theirs in the order in
      which :meth:`submit` took them. An append is recorded whole or not at all, and its events are neighbours.
    - **Times.** ``logged_at_ns`` never decreases from one LSN to the next, whatever the clock does, also over opens.
    - **Reads** give what is durable and nothing else, each event exactly as it was submitted, and never part of an
      append whose first event is read.
    - **Failure.** After a flush that failed nothing is written any more: ``failure`` says why, appends are refused with
      LogPoisonedError, reads go on. Where the next append may succeed (a full disk), ``problem`` says what is wrong.
    - **Threads.** Every method may be called from any thread. ``on_commit`` is called on a thread of the log's own,
      once for each commit, with all of its appends in LSN order; what it raises is logged and harms nobody.
    - **The end.** After :meth:`close` every call is StoreClosedError; in a child of a fork every call is
      StoreForkedError, and the child's end takes nothing from its parent.
    """

    @property
    def lacks(self) -> Mapping[LogCapability, str]:
        """The capabilities that it does not have, each with the reason, for a person."""

    @property
    def first_lsn(self) -> int:
        """LSN of the oldest event that the log holds, or will hold."""

    @property
    def durable_lsn(self) -> int:
        """Last LSN that is acknowledged; 0 if there is none. Never decreases."""

    @property
    def synced_lsn(self) -> int:
        """Last LSN that survives a power failure, as far as the log can know."""

    @property
    def last_logged_at_ns(self) -> int:
        """Time of the last event that was submitted, nanoseconds since the epoch; 0 if there is none."""

    @property
    def buffered_bytes(self) -> int:
        """Bytes of appends that wait to become durable: the engine holds writers back by it."""

    @property
    def failure(self) -> LogError | None:
        """Why nothing is written any more; None while appends are taken."""

    @property
    def problem(self) -> LogError | None:
        """Why the last append was not recorded, while the next one may be."""

    def submit(self, events: Sequence[Event], context: Any = None, *, not_before_ns: int = 0) -> Append:
        """Take ``events`` as one atomic append; does not wait for it to become durable.

        Args:
            context: the caller's own.
            not_before_ns: their time is at least this, whatever the clock says.

        Raises:
            InvalidArgumentError: there are none; LimitExceededError where they take more than ``append_bytes_max``.
            LogPoisonedError: an earlier flush failed.
            StoreClosedError, StoreForkedError: the log cannot be used.
        """

    def withdraw(self, append: Any) -> bool:
        """Take ``append`` back, if it is not being written yet: it is gone, and ``on_commit`` does not see it."""

    def read(self, from_lsn: int, *, events_max: int, bytes_max: int) -> list[StoredEvent]:
        """Durable events from ``from_lsn`` on, in LSN order; ``[]`` if there are none yet.

        At least one append where there is one; further ones only while both bounds are kept.

        Raises:
            InvalidArgumentError: ``from_lsn`` is before ``first_lsn``.
            LogCorruptError, UnknownEventError: what stands there cannot be given out.
            StoreClosedError, StoreForkedError: the log cannot be used.
        """

    def flush(self) -> None:
        """Return when everything that was submitted before is synced, whatever the sync mode.

        Raises:
            LogPoisonedError: a flush failed, this one or an earlier one.
            StoreClosedError, StoreForkedError: the log cannot be used.
        """

    def close(self) -> None:
        """Make durable what was submitted, and let go of everything. Idempotent."""

    # -- what a log may lack

    def rewrite(self, transform: Callable[[StoredEvent], Event]) -> RewriteReport:
        """Put what ``transform`` makes of each event in its place; ``LogCapability.REWRITE``.

        An event keeps its LSN, its id and its time whatever stands there, and nothing is left of what stood there
        before. Appends and reads go on meanwhile. A kill leaves the one or the other. What ``transform`` raises ends
        the rewrite, and the log stays as it was.
        """

    def stats(self) -> LogStats:
        """Figures; ``LogCapability.STATISTICS``."""
