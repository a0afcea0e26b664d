"""What the tests of the log share: events, a log whose outcomes can be waited for, files that can be held up."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pixelmemory import Options
from pixelmemory.doctor.inspection import Damage, DamageKind, DecodedFrame, LogInspection
from pixelmemory.log.contract import StoredEvent
from pixelmemory.log.file.append import Append
from pixelmemory.log.file.file_log import FileLog
from pixelmemory.log.file.files import Buffer, Files
from pixelmemory.memory.events import Event, MemoryAdded, MemoryDeleted, MemoryUpdated
from tests.harness.logs import STORE_ID

WAIT_SECONDS = 30.0


def added(number: int, content: str | None = None, *, embedding: bytes | None = None) -> MemoryAdded:
    return MemoryAdded(
        "work", f"id-{number}", f"content {number}" if content is None else content, number, embedding=embedding
    )


def sample_events(count: int) -> list[Event]:
    """Events of every type, of many sizes."""
    events: list[Event] = []
    for number in range(count):
        kinds: list[Event] = [
            added(number, "x" * (number * 37 % 701)),
            MemoryUpdated("work", f"id-{number}", metadata_json=b'{"number":%d}' % number),
            added(number, "vector", embedding=bytes(4 * (number % 400))),
            MemoryDeleted("nämespace", f"id-{number}"),
        ]
        events.append(kinds[number % 4])
    return events


class Outcomes:
    """An ``on_commit`` that keeps what it was told, and can be waited for."""

    def __init__(self) -> None:
        self.commits: list[list[Append]] = []
        self._changed = threading.Condition()

    def __call__(self, appends: Sequence[Append]) -> None:
        with self._changed:
            self.commits.append(list(appends))
            self._changed.notify_all()

    @property
    def appends(self) -> list[Append]:
        return [append for commit in self.commits for append in commit]

    def wait_for(self, count: int) -> list[Append]:
        """The first ``count`` outcomes, in the order they were reported."""
        self.wait_until(lambda: len(self.appends) >= count)
        return self.appends[:count]

    def wait_until(self, holds: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(holds, WAIT_SECONDS)


class OpenLog:
    """A log with its outcomes."""

    def __init__(self, log: FileLog, outcomes: Outcomes) -> None:
        self.log = log
        self.outcomes = outcomes

    def append(self, *events: Event) -> Append:
        """Append as one call, and wait for the outcome."""
        append = self.log.submit(events)
        self.outcomes.wait_until(lambda: append in self.outcomes.appends)
        return append

    def append_each(self, events: Iterable[Event]) -> None:
        """One frame for each event."""
        for event in events:
            assert self.append(event).error is None


@contextmanager
def opened(
    folder: Path,
    *,
    epoch: int = 1,
    files: Files | None = None,
    store_id: uuid.UUID = STORE_ID,
    check_folder: Callable[[], None] = lambda: None,
    **options: Any,
) -> Iterator[OpenLog]:
    outcomes = Outcomes()
    log = FileLog.open(
        folder,
        store_id=store_id,
        epoch=epoch,
        options=Options(**options),
        on_commit=outcomes,
        files=files,
        check_folder=check_folder,
    )
    try:
        yield OpenLog(log, outcomes)
    finally:
        log.close()


def looked_into(folder: Path) -> tuple[list[StoredEvent], list[Damage]]:
    """Every event that can be read without opening the log, and what is wrong with it; no MANIFEST is no damage."""
    items = list(LogInspection(folder, live=False).items(thorough=True))
    events = [event for item in items if isinstance(item, DecodedFrame) for event in item.events]
    damage = [item for item in items if isinstance(item, Damage)]
    return events, [each for each in damage if each.kind is not DamageKind.MANIFEST]


def plain(events: Iterable[StoredEvent]) -> list[Event]:
    return [stored.event for stored in events]


class HeldFiles(Files):
    """Real files whose syncs wait while :attr:`gate` is cleared."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        #: set when a sync waits
        self.waiting = threading.Event()
        self.syncs = 0

    def sync(self, fd: int) -> None:
        if not self.gate.is_set():
            self.waiting.set()
            assert self.gate.wait(WAIT_SECONDS)
        self.syncs += 1
        super().sync(fd)


class FailingFiles(Files):
    """Real files that fail an operation as told: ``fail["sync"] = OSError(...)`` until the key is taken away."""

    def __init__(self) -> None:
        self.fail: dict[str, OSError] = {}
        #: bytes that a failing write lets through before it fails
        self.partial_bytes = 0
        #: the call from now that fails, once; None if none does
        self.fail_nth: int | None = None
        #: (operation, descriptor) of each call, whether it was let through or failed
        self.calls: list[tuple[str, int]] = []

    def _check(self, operation: str, fd: int = -1) -> None:
        self.calls.append((operation, fd))
        if self.fail_nth is not None:
            self.fail_nth -= 1
            if self.fail_nth == 0:
                raise OSError(5, "Input/output error")
        if (error := self.fail.get(operation)) is not None:
            raise error

    def write(self, fd: int, data: Buffer, byte_offset: int) -> int:
        if "write" in self.fail and self.partial_bytes:
            super().write(fd, memoryview(data)[: self.partial_bytes], byte_offset)
        self._check("write", fd)
        return super().write(fd, data, byte_offset)

    def sync(self, fd: int) -> None:
        self._check("sync", fd)
        super().sync(fd)

    def truncate(self, fd: int, length: int) -> None:
        self._check("truncate", fd)
        super().truncate(fd, length)

    def open_new(self, path: Path) -> int:
        self._check("open_new")
        return super().open_new(path)

    def rename(self, source: Path, target: Path) -> None:
        self._check("rename")
        super().rename(source, target)

    def sync_folder(self, path: Path) -> None:
        self._check("sync_folder")
        super().sync_folder(path)
