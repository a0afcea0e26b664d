"""What the tests of rewriting share: a log of which some events are to be taken out, and an outsider's book of it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pixelmemory.log.contract import StoredEvent
from pixelmemory.log.file.file_log import FileLog
from pixelmemory.log.file.files import Files
from pixelmemory.memory.events import Event, EventRemoved, MemoryAdded
from pixelmemory.options import Options
from tests.harness.fault_report import Verdict
from tests.harness.independent_reader import DiskEvent, DiskLog
from tests.harness.logs import Outcomes, end_dead, read_events

__all__ = ["CANARY", "REMOVED_AT_US", "STORE_ID", "Ledger", "Life", "erase", "folders_of"]

CANARY = "c4n4ry"
REMOVED_AT_US = 7
STORE_ID = uuid.UUID(int=20)


def erase(stored: StoredEvent) -> Event:
    """The transform under test: what holds a canary is taken out."""
    event = stored.event
    if isinstance(event, MemoryAdded) and CANARY in event.content:
        return EventRemoved("erased", REMOVED_AT_US)
    return event


def folders_of(names: Sequence[str]) -> list[str]:
    """Of a store's entries, those that are logs."""
    return [name for name in names if name.startswith("log")]


class Entry(NamedTuple):
    """One append that was tried."""

    number: int
    event_count: int
    canary: bool

    def fields(self, index: int) -> dict[str, object]:
        """What event ``index`` holds."""
        content = (CANARY if self.canary else "plain") * (1 + (self.number * 7 + index * 13) % 40)
        return {"namespace": "n", "memory_id": f"{self.number}.{index}", "content": content, "created_at_us": index}

    def events(self) -> list[MemoryAdded]:
        return [
            MemoryAdded("n", f"{self.number}.{i}", str(self.fields(i)["content"]), i) for i in range(self.event_count)
        ]


class Ledger:
    """Every append that was tried, in the order of LSNs, and what an outsider was told of it."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.acked: set[int] = set()
        self.gone: set[int] = set()
        #: (event id, logged at) of every event that the independent reader has seen
        self._seen: dict[int, tuple[bytes, int]] = {}

    def new(self, count: int, *, canary: bool = False) -> Entry:
        entry = Entry(len(self.entries) + 1, count, canary)
        self.entries.append(entry)
        return entry

    def judge(self, log: DiskLog, *, states: Sequence[str] = ("old", "new", "none")) -> Verdict:
        """Hold a log against the book: each append is there whole or not at all, every canary or none."""
        places: dict[tuple[int, int], int] = {}
        doubled = silent = 0
        silent += log.stopped is not None
        at, found = 0, set()
        for entry in self.entries:
            part = log.events[at : at + entry.event_count]
            there = [self._is(event, entry, index, at + index + 1) for index, event in enumerate(part)]
            if len(part) < entry.event_count or not all(there):
                continue
            silent += entry.number in self.gone
            if entry.canary:
                found |= {event.removed for event in part}
            for index in range(entry.event_count):
                places[entry.number, index] = at + index
            at += entry.event_count
        silent += len(log.events) - at
        lost = sum(
            entry.event_count
            for entry in self.entries
            if entry.number in self.acked and (entry.number, 0) not in places
        )
        ids = [event.event_id for event in log.events]
        doubled = len(ids) - len(set(ids))
        state = "none" if not found else "mixed" if len(found) == 2 else "new" if found == {True} else "old"
        silent += state not in states
        if not (lost or doubled or silent):
            for event in log.events:
                self._seen[event.lsn] = event.event_id, event.logged_at_ns
        return Verdict(sum(e.event_count for e in self.entries if e.number in self.acked), lost, doubled, 0, silent)

    def _is(self, event: DiskEvent, entry: Entry, index: int, lsn: int) -> bool:
        if event.lsn != lsn or self._seen.get(lsn, event[1:3]) != event[1:3]:
            return False
        if event.removed:
            return entry.canary and event.fields == {"reason": "erased", "removed_at_us": REMOVED_AT_US}
        return event.type_code == 1 and event.fields == entry.fields(index)

    def settle(self, log: DiskLog) -> None:
        """An open has succeeded and this is what there is: it stays, and nothing else comes back."""
        there = {int(str(e.fields["memory_id"]).split(".")[0]) for e in log.events if not e.removed}
        at = 0
        for entry in self.entries:
            part = log.events[at : at + entry.event_count]
            if entry.number in there or (entry.canary and part and part[0].removed):
                self.acked.add(entry.number)
                at += entry.event_count
        self.gone |= {entry.number for entry in self.entries} - self.acked


class Life:
    """One process that has the log open."""

    def __init__(self, ledger: Ledger, folder: Path, files: Files, epoch: int, options: Options) -> None:
        self.ledger = ledger
        #: the disk is gone: what the log says now counts for nothing
        self.dead = False
        self._outcomes = Outcomes(ledger.acked, ledger.gone)
        self._outcomes.dead = lambda: self.dead
        self.log = FileLog.open(
            folder, store_id=STORE_ID, epoch=epoch, options=options, on_commit=self._outcomes, files=files
        )

    def append(self, count: int = 1, *, canary: bool = False) -> bool:
        """One append and its outcome; False if it was not acknowledged."""
        entry = self.ledger.new(count, canary=canary)
        self._outcomes.submit(self.log, entry.events(), entry.number)
        self._outcomes.wait()
        return entry.number in self.ledger.acked

    def fill(self, counts: Sequence[int] = (1, 3, 1, 9, 1, 2, 12, 1, 1, 4)) -> None:
        """Appends of which every third holds canaries."""
        for number, count in enumerate(counts):
            assert self.append(count, canary=number % 3 == 1)

    def read(self) -> list[StoredEvent]:
        """Everything that the log gives out."""
        return read_events(self.log, events_max=7)

    def end_dead(self) -> None:
        """End the threads of a process whose disk is gone."""
        self.dead = True
        end_dead(self.log)
