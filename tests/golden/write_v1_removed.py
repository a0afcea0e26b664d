"""Wrote the golden files of the event type ``EventRemoved``, once, in format version 1. They are never written again.

    python -m tests.golden.write_v1_removed FOLDER

As ``write_v1.py``, whose events these are too: a log of several segments of which every third event was taken out by a
rewrite, and to which more was written then.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
from pathlib import Path

from pixelmemory import Options
from pixelmemory.log.contract import StoredEvent
from pixelmemory.log.file.append import Append
from pixelmemory.log.file.file_log import FileLog
from pixelmemory.memory.events import Event, EventRemoved, MemoryAdded
from pixelmemory.store.manifest import Manifest
from tests.golden.write_v1 import STORE_ID, calls, plain

REASONS = ("erased", "compacted", "lost")


def removed(stored: StoredEvent) -> Event:
    if stored.lsn % 3:
        return stored.event
    return EventRemoved(REASONS[stored.lsn // 3 % 3], 1_700_000_000_000_000 + stored.lsn)


def main(folder: Path) -> None:
    folder.mkdir()  # never over others
    live, rows = folder / "closed", []
    done = threading.Semaphore(0)

    live.mkdir()
    Manifest(store_id=STORE_ID, epoch=1, embedding="none", created_at_us=1_700_000_000_000_000).save(live)
    log = FileLog.open(
        live,
        store_id=STORE_ID,
        epoch=1,
        options=Options(segment_bytes_max=4096),
        on_commit=lambda _: done.release(),
    )

    def append(events: list[Event], *, taken_out: bool) -> None:
        made: Append = log.submit(events)
        done.acquire()
        assert made.first_lsn is not None
        for index, event in enumerate(events):
            event_id = made.event_ids[16 * index : 16 * index + 16]
            stored = StoredEvent(made.first_lsn + index, event_id, made.logged_at_ns, event)
            row = {"lsn": stored.lsn, "event_id": event_id.hex(), "logged_at_ns": stored.logged_at_ns}
            rows.append(row | plain(removed(stored) if taken_out else event))

    for events in calls():
        append(events, taken_out=True)
    log.rewrite(removed)
    for number in range(10):
        append([MemoryAdded("later", f"{number}", f"memory {number}", number)], taken_out=False)
    shutil.copytree(live, folder / "killed")
    log.close()
    (folder / "events.json").write_text(json.dumps(rows, indent=1, ensure_ascii=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
