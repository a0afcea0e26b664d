"""Wrote the golden files of format version 1, once. They are never written again: a change of what they hold, or of how
it is read, is a new format version with golden files of its own.

    python -m tests.golden.write_v1 FOLDER

- ``closed/``: a store that was closed properly, of several segments.
- ``killed/``: one as a kill left it, with reserved zeros behind its last batch.
- ``events.json``: what they hold, event by event, as it was given to the log (and its id and time, as the log chose).
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import msgspec

from pixelmemory import Options
from pixelmemory.log.file.append import Append
from pixelmemory.log.file.file_log import FileLog
from pixelmemory.memory.events import Event, MemoryAdded, MemoryDeleted, MemoryUpdated, encode_event
from pixelmemory.store.manifest import Manifest

STORE_ID = uuid.UUID("0192f0c8-7a3e-7cc2-98ab-1d2e3f405162")


def calls() -> list[list[Event]]:
    """The appends: every event type with every field set and left out, odd texts, large and small."""
    texts = ["", "plain", "Grüße, мир, 世界 \U0001f9e0", "line\nbreak\ttab \x00 nul", "e\u0301 and \xe9"]
    made: list[list[Event]] = [
        [MemoryAdded("default_namespace", f"id-{n}", text, 1_700_000_000_000_000 + n)] for n, text in enumerate(texts)
    ]
    metadata = '{"tags": ["a", "b"], "n": 12345678901234567890123, "f": 1e400, "ü": null}'.encode()
    made += [
        [MemoryAdded("名前空間", "full", "with everything", -1, metadata, bytes(range(64)) * 24)],
        [MemoryAdded("zeros", "vector", "a vector of zeros fills sectors", 2**62, b"{}", bytes(4 * 384))],
        [MemoryUpdated("default_namespace", "id-0", content="new")],
        [MemoryUpdated("default_namespace", "id-0", metadata_json=b'{"k": true}')],
        [MemoryUpdated("default_namespace", "id-0", "both", b"{}", b"\x00\x00\x80?")],
        [MemoryUpdated("default_namespace", "id-0")],
        [MemoryDeleted("default_namespace", "id-1")],
        [MemoryAdded("batch", f"{n}", "x" * (n * 11), n) for n in range(20)],
        [MemoryDeleted("batch", f"{n}") for n in range(20)],
        [MemoryAdded("large", "one", "larger than a segment " * 300, 5)],
    ]
    made += [[MemoryAdded("small", f"{n}", f"memory {n}", n)] for n in range(30)]
    return made


def plain(event: Event) -> dict[str, Any]:
    fields = {
        name: {"hex": value.hex()} if isinstance(value, bytes) else value
        for name, value in msgspec.structs.asdict(event).items()
    }
    return {"type": type(event).__name__, "fields": fields, "msgpack": encode_event(event).hex()}


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
    for events in calls():
        append: Append = log.submit(events)
        done.acquire()
        assert append.first_lsn is not None
        for index, event in enumerate(events):
            ids = append.event_ids[16 * index : 16 * index + 16].hex()
            row = {"lsn": append.first_lsn + index, "event_id": ids, "logged_at_ns": append.logged_at_ns}
            rows.append(row | plain(event))
    shutil.copytree(live, folder / "killed")
    log.close()
    (folder / "events.json").write_text(json.dumps(rows, indent=1, ensure_ascii=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
