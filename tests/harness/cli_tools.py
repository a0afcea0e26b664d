"""What the tests of the program share: logs without tables, damage, and a run of the program."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from pixelmemory import Options
from pixelmemory.cli import main
from pixelmemory.log.file.file_log import FileLog
from pixelmemory.memory.events import Event, MemoryAdded, MemoryDeleted, MemoryUpdated
from tests.harness.logs import STORE_ID, open_next_epoch, read_events

SEGMENT_BYTES = 4096
FRAME_MAGIC = b"\xb5PMF"


class Run(NamedTuple):
    """What the program did."""

    status: int
    out: str
    err: str


class Program:
    """Runs the program in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Run:
        self._capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Run(status, *self._capsys.readouterr())


def sample(count: int) -> list[Event]:
    """Events of every type: each third memory is updated, each fourth deleted."""
    events: list[Event] = []
    for number in range(count):
        events.append(
            MemoryAdded(
                "work", f"id-{number}", f"text {number} " + "x" * (number % 7 * 20), 1_700_000_000_000_000 + number
            )
        )
        if number % 3 == 0:
            events.append(MemoryUpdated("work", f"id-{number}", metadata_json=b'{"number":%d}' % number))
        if number % 4 == 0:
            events.append(MemoryDeleted("work", f"id-{number}"))
    return events[:count]


def make_log(folder: Path, events: Iterable[Event], *, store_id: uuid.UUID = STORE_ID, epoch: int = 1) -> Path:
    """A closed store without tables: one frame an event."""
    with open_log(folder, store_id=store_id, epoch=epoch) as log:
        append(log, events)
    return folder


@contextmanager
def open_log(folder: Path, *, store_id: uuid.UUID = STORE_ID, epoch: int = 1) -> Iterator[FileLog]:
    """The log of a store without tables; a new one begins with ``epoch``."""
    folder.mkdir(parents=True, exist_ok=True)
    log = open_next_epoch(
        folder,
        Options(segment_bytes_max=SEGMENT_BYTES),
        lambda _: None,
        store_id=store_id,
        epoch=epoch - 1,
        embedding="none",
    )
    try:
        yield log
    finally:
        log.close()


def append(log: FileLog, events: Iterable[Event]) -> None:
    for event in events:
        log.submit([event])
        log.flush()


def logged(folder: Path) -> list[Event]:
    """Every event that an open log gives out. Opens a copy."""
    copy = folder.with_name(folder.name + "-copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    with open_log(copy) as log:
        return [stored.event for stored in read_events(log)]


def frames(path: Path) -> list[int]:
    """Where the frames of a segment start, by its bytes alone."""
    data = path.read_bytes()
    return [at for at in range(128, len(data), 64) if data[at : at + 4] == FRAME_MAGIC]


def flip(path: Path, byte_offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte_offset] ^= 0x40
    path.write_bytes(data)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
