"""What every test of a log does with one: open it as the engine does, wait for outcomes, read all of it."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Condition
from typing import Any

import msgspec

from pixelmemory.errors import LogError, LogPoisonedError, LogWriteError, StoreClosedError
from pixelmemory.log.contract import StoredEvent
from pixelmemory.log.file.append import Append
from pixelmemory.log.file.file_log import FileLog
from pixelmemory.log.file.files import Files
from pixelmemory.memory.events import Event
from pixelmemory.options import Options
from pixelmemory.store.manifest import Manifest

__all__ = ["STORE_ID", "Outcomes", "end_dead", "open_next_epoch", "read_events", "segment_paths"]

STORE_ID = uuid.UUID("0192f0c8-7a3e-7cc2-98ab-1d2e3f405162")
WAIT_SECONDS = 60.0


def read_events(log: FileLog, *, events_max: int = 1000, bytes_max: int = 1 << 20) -> list[StoredEvent]:
    """Everything that the log gives out, in order from its first LSN."""
    events: list[StoredEvent] = []
    lsn = log.first_lsn
    while part := log.read(lsn, events_max=events_max, bytes_max=bytes_max):
        events += part
        lsn = part[-1].lsn + 1
    return events


def segment_paths(folder: Path) -> list[Path]:
    """The segments of a store, in their order."""
    return sorted((folder / "log").glob("*.log"))


def open_next_epoch(
    folder: Path,
    options: Options,
    on_commit: Callable[[Sequence[Append]], None],
    *,
    store_id: uuid.UUID | None = None,
    files: Files | None = None,
    check_folder: Callable[[], None] = lambda: None,
    **manifest: Any,
) -> FileLog:
    """The log of a store, opened as the engine opens it: the manifest of a new epoch first.

    Args:
        store_id: of a new store; default a random one.
        manifest: more of the manifest of a new store.
    """
    files = files or Files()
    saved = Manifest.load(folder, files) or Manifest(store_id=store_id or uuid.uuid4(), **manifest)
    saved = msgspec.structs.replace(saved, epoch=saved.epoch + 1)
    saved.save(folder, files, check_folder)
    log = FileLog.open(
        folder,
        store_id=saved.store_id,
        epoch=saved.epoch,
        options=options,
        on_commit=on_commit,
        files=files,
        has_log=saved.has_log,
        check_folder=check_folder,
    )
    if not saved.has_log:
        try:
            msgspec.structs.replace(saved, has_log=True).save(folder, files)
        except BaseException:
            end_dead(log)
            raise
    return log


def end_dead(log: FileLog) -> None:
    """End the threads of a log whose disk is gone: it may have something to flush, and cannot."""
    with contextlib.suppress(LogError, OSError):
        log.close()


class Outcomes:
    """An ``on_commit`` that writes down what became of each append, by its context.

    Attributes:
        acked: contexts of appends that were acknowledged.
        gone: of those that were refused with a definite error.
        errors: what the others were told, the definite ones among them.
        dead: the disk is gone; what the log says now counts for nothing.
    """

    def __init__(self, acked: set[int], gone: set[int]) -> None:
        self.acked = acked
        self.gone = gone
        self.errors: list[Exception] = []
        self.dead: Callable[[], bool] = lambda: False
        self._settled = Condition()
        self._outstanding = 0

    def __call__(self, appends: Sequence[Append]) -> None:
        with self._settled:
            for append in appends:
                self._outstanding -= 1
                if append.error is None:
                    self.acked.add(append.context)
                    continue
                self.errors.append(append.error)
                if isinstance(append.error, LogWriteError | LogPoisonedError) and not self.dead():
                    self.gone.add(append.context)
            self._settled.notify_all()

    def submit(self, log: FileLog, events: Sequence[Event], context: int) -> None:
        """Try one append, which may be refused."""
        with self._settled:
            self._outstanding += 1
        try:
            log.submit(events, context)
        except (LogPoisonedError, StoreClosedError) as error:
            with self._settled:
                self._outstanding -= 1
                self.errors.append(error)
                self.gone.add(context)

    def wait(self) -> None:
        """Until every append has its outcome."""
        deadline = time.monotonic() + WAIT_SECONDS
        with self._settled:
            while self._outstanding:
                assert self._settled.wait(deadline - time.monotonic()), "an append was never settled"
