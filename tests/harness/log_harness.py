"""A store's log under test, and the book in which an outsider writes down what it was told."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterable, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from pixelmemory.log.contract import StoredEvent
from pixelmemory.log.file.file_log import FileLog
from pixelmemory.log.file.files import Files
from pixelmemory.memory.events import MemoryAdded
from pixelmemory.options import Options
from tests.harness.fault_report import Verdict
from tests.harness.independent_reader import DiskEvent, DiskLog, read_log
from tests.harness.logs import Outcomes, end_dead, open_next_epoch, read_events
from tests.harness.simulated_disk import SimulatedDisk

__all__ = ["STORE", "Book", "Recovered", "Store", "disk_log", "judge", "make_events", "read_all", "recovered"]

#: where the stores on simulated disks are
STORE = Path("/home/store")


class Recovered(NamedTuple):
    """One event that was found."""

    lsn: int
    logged_at_ns: int
    memory_id: str
    content: str

    @property
    def number(self) -> int:
        """Of its append."""
        return int(self.memory_id.split(".")[0])


def make_content(number: int, index: int) -> str:
    """What event ``index`` of append ``number`` says: of many sizes, with zeros, with text that looks like a frame."""
    rng = random.Random(number * 1000 + index)
    kind = rng.randrange(10)
    if kind < 6:
        return f"{number}.{index} " + "word " * rng.randrange(40)
    if kind < 8:
        return f"{number}.{index} " + "\0" * rng.randrange(2500)
    return f"{number}.{index} " + "\xb5PMF" * rng.randrange(300)


def make_events(number: int, count: int) -> list[MemoryAdded]:
    """The events of append ``number``; each says its place in it."""
    return [MemoryAdded("n", f"{number}.{index}.{count}", make_content(number, index), 1) for index in range(count)]


def recovered(events: Iterable[DiskEvent | StoredEvent]) -> list[Recovered]:
    """The events of either reader in one form."""
    found: list[Recovered] = []
    for event in events:
        if isinstance(event, DiskEvent):
            found.append(
                Recovered(event.lsn, event.logged_at_ns, event.fields["memory_id"], event.fields.get("content", ""))
            )
        else:
            assert isinstance(event.event, MemoryAdded)
            found.append(Recovered(event.lsn, event.logged_at_ns, event.event.memory_id, event.event.content))
    return found


class Book:
    """Appends by number, and what became of each as far as an outsider knows.

    ``counts`` has every append that was tried; each is in one of the sets, or its outcome is unknown.
    """

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        #: acknowledged
        self.acked: set[int] = set()
        #: of those (and of what an open has shown), the ones that the next fault must not take
        self.promised: set[int] = set()
        #: refused with a definite error, or not there after an open: they must not be there ever
        self.gone: set[int] = set()
        self._next = 0

    @property
    def next_number(self) -> int:
        """What ``new`` gives next."""
        return self._next + 1

    def new(self, count: int) -> int:
        """A number for an append of ``count`` events that is about to be tried."""
        self._next += 1
        self.counts[self._next] = count
        return self._next

    def settle(self, found: Sequence[Recovered]) -> None:
        """An open has succeeded and showed ``found``: all of that stays, and nothing else comes back."""
        there = {event.number for event in found}
        self.promised = set(there)
        self.acked.clear()  # an open log goes on to write in these two
        self.acked |= there
        self.gone.clear()
        self.gone |= set(self.counts) - there


def judge(book: Book, found: Sequence[Recovered], promised: Set[int] | None = None) -> Verdict:
    """Hold ``found``, in the order of the log, against ``book``; ``promised`` in place of the book's if it is given."""
    promised = book.promised if promised is None else promised
    lost = doubled = reordered = silent = 0
    seen: dict[int, list[int]] = {}
    last_number = last_time = 0
    for position, event in enumerate(found):
        number, index, count = map(int, event.memory_id.split("."))
        indices = seen.setdefault(number, [])
        if index in indices:
            doubled += 1
        elif number < last_number or event.lsn != position + 1 or event.logged_at_ns < last_time:
            reordered += 1
        indices.append(index)
        last_number, last_time = max(number, last_number), event.logged_at_ns
        wanted = book.counts.get(number) == count and number not in book.gone
        if not wanted or event.content != make_content(number, index):
            silent += 1
    for number, indices in seen.items():
        if indices != list(range(book.counts.get(number, -1))):
            silent += 1  # part of an append
    for number in book.acked - set(seen):
        # what was acknowledged without a promise may be lost, and then all that came after it as well
        if number in promised or number < last_number:
            lost += book.counts[number]
    return Verdict(sum(book.counts[number] for number in promised), lost, doubled, reordered, silent)


def disk_log(disk: SimulatedDisk, folder: Path = STORE) -> DiskLog:
    """The independent reader's view of a log on a simulated disk."""
    return read_log(disk.contents(folder / "log"))


def read_all(log: FileLog, events_max: int = 50) -> list[Recovered]:
    """Everything that the log gives out."""
    return recovered(read_events(log, events_max=events_max))


class Store:
    """An open log, as the engine opens it: the manifest of a new epoch first.

    Attributes:
        log: open until ``close``.
        opened_with: what it held at open.
    """

    def __init__(
        self,
        book: Book,
        folder: Path,
        options: Options,
        files: Files,
        dead: Callable[[], bool] = lambda: False,
        store_id: uuid.UUID | None = None,
        check_folder: Callable[[], None] = lambda: None,
    ) -> None:
        self.book = book
        self._outcomes = Outcomes(book.acked, book.gone)
        self._outcomes.dead = dead
        if not files.is_folder(folder):
            files.make_folder(folder)
        self.log = open_next_epoch(
            folder, options, self._outcomes, store_id=store_id, files=files, check_folder=check_folder
        )

    @property
    def errors(self) -> list[Exception]:
        """What appends were told that were not acknowledged."""
        return self._outcomes.errors

    def submit(self, count: int) -> int:
        """Try one append of ``count`` events; returns its number."""
        number = self.book.new(count)
        self._outcomes.submit(self.log, make_events(number, count), number)
        return number

    def wait(self) -> None:
        """Until every append has an outcome."""
        self._outcomes.wait()

    def append(self, count: int = 1) -> bool:
        """One append and its outcome; False if it was not acknowledged."""
        number = self.submit(count)
        self.wait()
        return number in self.book.acked

    def end_dead(self) -> None:
        """End the writer thread of a process whose disk is gone."""
        end_dead(self.log)
