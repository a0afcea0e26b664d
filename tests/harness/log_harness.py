"""A store's log under test, and the book in which an outsider writes down what it was told."""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from collections.abc import Callable, Iterable, Sequence, Set
from pathlib import Path
from threading import Condition
from typing import NamedTuple

import msgspec

from pixelmemory.errors import LogError, LogPoisonedError, LogWriteError
from pixelmemory.log.contract import StoredEvent
from pixelmemory.log.file.append import Append
from pixelmemory.log.file.file_log import FileLog
from pixelmemory.log.file.files import Files
from pixelmemory.memory.events import MemoryAdded
from pixelmemory.options import Options
from pixelmemory.store.manifest import Manifest
from tests.harness.fault_report import Verdict
from tests.harness.independent_reader import DiskEvent, DiskLog, read_log
from tests.harness.simulated_disk import SimulatedDisk

__all__ = ["STORE", "Book", "Recovered", "Store", "disk_log", "judge", "make_events", "read_all", "recovered"]

#: where the stores on simulated disks are
STORE = Path("/home/store")
OUTCOME_TIMEOUT_SECONDS = 60.0


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
        self.acked = set(there)
        self.gone = set(self.counts) - there


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
    events: list[StoredEvent] = []
    while part := log.read(len(events) + 1, events_max=events_max, bytes_max=1 << 20):
        events += part
    return recovered(events)


class Store:
    """An open log, as the engine opens it: the manifest of a new epoch first.

    Attributes:
        log: open until ``close``.
        opened_with: what it held at open.
        failures: what ``on_commit`` was told, but for refusals.
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
        self._dead = dead
        self._settled = Condition()
        self._outstanding = 0
        self.errors: list[Exception] = []
        if not files.is_folder(folder):
            files.make_folder(folder)
        manifest = Manifest.load(folder, files) or Manifest(store_id=store_id or uuid.uuid4())
        manifest = msgspec.structs.replace(manifest, epoch=manifest.epoch + 1)
        manifest.save(folder, files, check_folder)
        self.log = FileLog.open(
            folder,
            store_id=manifest.store_id,
            epoch=manifest.epoch,
            options=options,
            on_commit=self._on_commit,
            files=files,
            has_log=manifest.has_log,
            check_folder=check_folder,
        )
        if not manifest.has_log:
            try:
                msgspec.structs.replace(manifest, has_log=True).save(folder, files)
            except BaseException:
                self.end_dead()
                raise

    def _on_commit(self, appends: Sequence[Append]) -> None:
        with self._settled:
            for append in appends:
                self._outstanding -= 1
                if append.error is None:
                    self.book.acked.add(append.context)
                else:
                    self.errors.append(append.error)
                    if isinstance(append.error, LogWriteError | LogPoisonedError) and not self._dead():
                        self.book.gone.add(append.context)
            self._settled.notify_all()

    def submit(self, count: int) -> int:
        """Try one append of ``count`` events; returns its number."""
        number = self.book.new(count)
        with self._settled:
            self._outstanding += 1
        try:
            self.log.submit(make_events(number, count), number)
        except LogPoisonedError as error:
            with self._settled:
                self._outstanding -= 1
                self.errors.append(error)
                self.book.gone.add(number)
        return number

    def wait(self) -> None:
        """Until every append has an outcome."""
        deadline = time.monotonic() + OUTCOME_TIMEOUT_SECONDS
        with self._settled:
            while self._outstanding:
                assert self._settled.wait(deadline - time.monotonic()), "an append was never settled"

    def append(self, count: int = 1) -> bool:
        """One append and its outcome; False if it was not acknowledged."""
        number = self.submit(count)
        self.wait()
        return number in self.book.acked

    def end_dead(self) -> None:
        """End the writer thread of a process whose disk is gone."""
        with contextlib.suppress(LogError, OSError):  # it may have had something to flush
            self.log.close()
