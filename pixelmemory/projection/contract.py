"""What a host of the projection owes: where the tables live, how they are written, read, tended and purged.

The projector, the queries and the erase know a projection by :class:`Host` alone. What an implementation has to do is
said here, and checked by the suite that it subclasses (``tests/contract/host_contract.py``).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import msgspec
import numpy as np

from pixelmemory.embedding.window import Window
from pixelmemory.memory.search import Search
from pixelmemory.projection.changes import Change
from pixelmemory.projection.rows import PROJECTION_FORMAT, Row

__all__ = [
    "PAGE_ROWS",
    "Capability",
    "DeadLetter",
    "Host",
    "ProjectionState",
    "Vectors",
    "letters_of",
]

#: rows of :meth:`Host.long_texts` that are in memory at once
PAGE_ROWS = 50

#: the vector of each change that has content, by (namespace, memory id): float32, ``(dimensions,)``, scaled for the
#: database; None where the model has none
Vectors = Mapping[tuple[str, str], np.ndarray | None]


class DeadLetter(msgspec.Struct, frozen=True):
    """An event that could not be applied: kept, reported, and applied by a retry."""

    lsn: int
    namespace: str
    memory_id: str
    #: why, for a person
    error: str
    #: the LSN of the memory's first dead letter, where the event only waits for that one
    blocked_by: int | None = None


class ProjectionState(msgspec.Struct, frozen=True):
    """What a projection was made from; it fits a store only if all but the checkpoint are equal."""

    store_id: str
    layout: str
    #: the embedding model's fingerprint, None without semantic search
    embedding: str | None
    dimensions: int | None
    #: the schema's fingerprint
    schema: str | None
    format: int = PROJECTION_FORMAT


class Capability(enum.Enum):
    """What a host may lack: it is asked for, and a call that needs it is refused before anything is done."""

    #: :meth:`Host.purge`: erased memories leave the disk
    PURGE = "purge"
    #: :meth:`Host.table`: a table that the user may extend
    TABLE = "table"


class Host(Protocol):
    """One projection in one database, claimed by one open store.

    The obligations:

    - **One transaction.** The rows of a batch, its dead letters and its checkpoint become visible, and durable,
      together. A host that cannot do that applies them so that doing it again leaves the same rows, the checkpoint
      last: whatever a kill leaves, applying the batch again with ``replace`` puts it right.
    - **Order.** Whoever calls ``apply`` gives changes in LSN order and one at a time. What ``apply`` has returned from,
      every later read sees, on any thread.
    - **Users' own.** Columns, indexes and views that a user adds to a table stay, and never hold up a memory. Rows that
      a user inserts, which have no LSN, are found by reads and touched by nothing but a purge of their namespace.
    - **Errors.** What is wrong with the machine or the database is told from what is wrong with a row by
      :meth:`is_infrastructure_error`: the first is tried again for ever, the second becomes a dead letter. A read
      raises ProjectionUnavailableError, with its cause, and nothing else of the host's.
    - **Threads.** Reads come from several threads at once, everything else from one thread at a time.
    """

    @property
    def name(self) -> str:
        """Which projection it is, for messages."""

    @property
    def lacks(self) -> Mapping[Capability, str]:
        """The capabilities that it does not have, each with the reason and the remedy, for a person."""

    def on_thread(self) -> AbstractContextManager[None]:
        """Around everything that one thread does with the host; lets go of what the host keeps for that thread."""

    # -- the projection as a whole

    def stored_state(self) -> tuple[ProjectionState, int] | None:
        """What the projection that is there was made from, and its checkpoint; None if there is none, or half."""

    def reset(self) -> None:
        """Delete what is there, and make an empty projection with its checkpoint at 0. A kill leaves none, or half."""

    def load(self) -> None:
        """Make ready for what follows; after :meth:`stored_state`, and :meth:`reset` where it does not fit.

        Where the tables that are there fit in another layout than theirs, it is theirs from now on.
        """

    def revive(self, check: Callable[[], None]) -> None:
        """Bring a database back that was killed, and the claim on it.

        Args:
            check: called while waiting; what it raises ends the wait.

        Raises:
            StoreLockedError: another store has claimed the projection meanwhile.
            Exception: it stays away; it is tried again.
        """

    def close(self, *, keep_claim: bool) -> None:
        """Let go of everything; of the claim, too, unless something may still be writing. Blocking; idempotent."""

    # -- errors

    def is_infrastructure_error(self, error: BaseException) -> bool:
        """Whether ``error``, or a cause of it, speaks of the database or the machine rather than of the rows."""

    def is_missing_table(self, error: BaseException) -> bool:
        """Whether ``error`` says that a table or column is gone: every row would fail, so no row is to blame."""

    # -- writing; the projector's writer thread

    def prepare(self, changes: Sequence[Change]) -> None:
        """Make the tables that ``changes`` need; before the transaction."""

    def apply(
        self,
        changes: Sequence[Change],
        vectors: Vectors,
        *,
        checkpoint_lsn: int | None,
        replace: bool = False,
        dead_letters: Sequence[DeadLetter] = (),
        revived_lsns: Sequence[int] = (),
    ) -> list[DeadLetter]:
        """Apply ``changes`` and, in the same transaction, the checkpoint and the dead letters.

        Args:
            changes: at most one a memory, prepared.
            vectors: for every change with content, where the store has vectors.
            checkpoint_lsn: the new checkpoint, or None to leave it.
            replace: delete each memory before it is inserted, and those that are added and deleted again: for events
                that may have been applied before, in batches that were cut elsewhere too.
            dead_letters: to record.
            revived_lsns: dead letters to remove.

        Returns:
            The dead letters that were recorded: those given, and one an event whose patch found no row.
        """

    def dead_letters(self) -> list[DeadLetter]:
        """Those that are recorded."""

    def damage(self, namespaces: Collection[str]) -> str | None:
        """What of our own is missing in the tables of ``namespaces``, for a person; None if nothing is."""

    def create(self, namespace: str) -> None:
        """Make what :meth:`table` returns for ``namespace``, if it is not there; what it holds moves, live."""

    # -- reading; any thread

    def knows(self, namespace: str) -> bool:
        """Whether ``namespace`` ever held a memory here."""

    def namespaces(self) -> list[str]:
        """Every namespace that ever held a memory here, in code-point order."""

    def get(self, namespace: str, memory_id: str) -> Row | None:
        """One memory, or None."""

    def existing(self, namespace: str, memory_ids: Collection[str]) -> set[str]:
        """Which of ``memory_ids`` are visible."""

    def occupied(self, namespaces: Collection[str]) -> set[str]:
        """Which of ``namespaces``, all of them known, hold a row."""

    def count(self, search: Search) -> int:
        """How many rows satisfy the conditions of ``search``; how they are ranked and cut does not matter."""

    def search(self, search: Search) -> list[Row]:
        """The rows that satisfy ``search``, best first: every condition holds before the limit is applied."""

    def scores(self, vectors: Sequence[np.ndarray], query: np.ndarray) -> list[float | None]:
        """What :meth:`search` would give as the score of rows that had ``vectors``; None where one has no direction.

        Args:
            vectors: float32, ``(dimensions,)`` each, scaled for the database.
            query: as :attr:`Search.vector`.
        """

    def long_texts(self, namespace: str, window: Window) -> Generator[list[Row]]:
        """The rows whose content may be longer than ``window``, newest first, in pages of :data:`PAGE_ROWS`."""

    # -- upkeep; the writer thread, around a batch

    def before_batch(self, changes: Sequence[Change], lag_events: int) -> None:
        """A batch is about to be applied, ``lag_events`` behind the log; its tables are prepared."""

    def after_batch(self, changes: Collection[Change], lag_events: int) -> None:
        """It is applied. Upkeep that takes time is done elsewhere; an error of it must not hold up the next batch."""

    # -- what a host may lack

    def purge(self, namespace: str, memory_ids: Collection[str] | None, up_to_lsn: int) -> None:
        """Take what is left of deleted memories off the disk; ``Capability.PURGE``. It may be done again.

        Args:
            memory_ids: which memories; None for all of the namespace.
            up_to_lsn: rows and dead letters of later events stay; rows that a user inserted do not.

        Raises:
            ProjectionError: something of it could not be removed; the message says what.
        """

    def has_table(self, namespace: str) -> bool:
        """Whether :meth:`table` can be called: :meth:`create` need not be."""

    def table(self, namespace: str) -> Any:
        """The host's table of ``namespace``, which exists; ``Capability.TABLE``."""


def letters_of(change: Change, error: str, blocked_by: int | None = None) -> list[DeadLetter]:
    """One dead letter for each event of ``change``."""
    return [DeadLetter(lsn, change.namespace, change.memory_id, error, blocked_by) for lsn in change.lsns]
