"""What the tables of a store have to hold, from the bytes of its log; and what they do hold, row by row.

Neither side comes from the engine: the log is read by ``independent_reader``, and the rows by Pixeltable's public API.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from tests.harness.engine_tools import tables_path, with_pixeltable
from tests.harness.independent_reader import DiskEvent, DiskLog, read_folder

__all__ = ["Expected", "check_store", "events_of", "expected_rows", "fold_events", "rows_of"]

Key = tuple[str, str]

ADDED, UPDATED, DELETED, REMOVED = 1, 2, 3, 4


class Expected(NamedTuple):
    """One memory."""

    content: str
    metadata: dict[str, Any]
    created_at_us: int
    #: of the last event that touched it
    lsn: int
    #: as given, rounded to float32; None where the model makes it
    vector: tuple[float, ...] | None


def events_of(folder: Path) -> list[DiskEvent]:
    """Every event of the closed or open store in ``folder``; its log must be whole."""
    log: DiskLog = read_folder(folder)
    assert log.stopped is None, log.stopped
    assert [event.lsn for event in log.events] == list(range(1, len(log.events) + 1))
    assert len({event.event_id for event in log.events}) == len(log.events)
    return log.events


def fold_events(events: Iterable[DiskEvent], dead_lsns: Collection[int] = ()) -> dict[Key, Expected]:
    """The memories after ``events``, less the dead letters."""
    memories: dict[Key, Expected] = {}
    for event in events:
        if event.lsn in dead_lsns or event.type_code == REMOVED:
            continue
        fields = event.fields
        key = (fields["namespace"], fields["memory_id"])
        if event.type_code == DELETED:
            assert memories.pop(key, None) is not None, f"LSN {event.lsn} deletes what is not there"
            continue
        metadata = fields.get("metadata_json")
        vector = fields.get("embedding")
        if event.type_code == ADDED:
            assert key not in memories, f"LSN {event.lsn} adds what is there"
            created, content, known = fields["created_at_us"], fields["content"], {}
        else:
            assert event.type_code == UPDATED
            assert key in memories, f"LSN {event.lsn} updates what is not there"
            old = memories[key]
            created, known = old.created_at_us, old.metadata
            content = fields.get("content")
            if content is None:
                content, vector = old.content, None if old.vector is None else np.array(old.vector, "<f4").tobytes()
        memories[key] = Expected(
            content,
            known if metadata is None else msgspec.json.decode(metadata),
            created,
            event.lsn,
            None if vector is None else tuple(np.frombuffer(vector, "<f4").tolist()),
        )
    return memories


def expected_rows(folder: Path, dead_lsns: Collection[int] = ()) -> dict[Key, Expected]:
    """The memories that the log in ``folder`` amounts to."""
    return fold_events(events_of(folder), dead_lsns)


def rows_of(name: str) -> dict[Key, Expected]:
    """Every row of every table of memories of the store ``name``; a row that stands twice is an error."""
    return with_pixeltable(lambda: _rows_of(name))


def _rows_of(name: str) -> dict[Key, Expected]:
    import pixeltable as pxt

    found: dict[Key, Expected] = {}
    folder = tables_path(name)
    registry = pxt.get_table(f"{folder}/registry")
    for entry in registry.select(registry.namespace, registry.table_name).collect():
        table = pxt.get_table(f"{folder}/{entry['table_name']}")
        columns = {
            name: getattr(table, name) for name in ("memory_id", "id_text", "content", "metadata", "timestamp", "lsn")
        }
        if "content_embedding" in table.get_metadata()["indexes"]:
            columns["vector"] = table.content.embedding(idx="content_embedding")
        if "namespace" in table.get_metadata()["columns"]:
            columns["namespace"] = table.namespace
        for row in table.select(**columns).collect():
            namespace = row.get("namespace", entry["namespace"])
            if namespace != entry["namespace"]:
                continue
            key = (namespace, row["id_text"] or str(row["memory_id"]))
            assert key not in found, f"{key} stands twice in the table"
            vector = row.get("vector")
            found[key] = Expected(
                row["content"],
                row["metadata"],
                round(row["timestamp"].timestamp() * 1_000_000),
                row["lsn"],
                None if vector is None else tuple(np.asarray(vector, np.float32).tolist()),
            )
    return found


def dead_letters_of(name: str) -> dict[int, str]:
    """LSN -> reason, as the projection keeps them."""

    def read() -> dict[int, str]:
        import pixeltable as pxt

        table = pxt.get_table(f"{tables_path(name)}/dead_letters")
        return {row["lsn"]: row["error"] for row in table.select(table.lsn, table.error).collect()}

    return with_pixeltable(read)


def check_store(home: Path, name: str) -> dict[Key, Expected]:
    """Compare the tables of a store, which are level with its log, with the fold of that log."""
    expected = expected_rows(home / name, dead_letters_of(name))
    found = rows_of(name)
    different = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    assert not different, "\n".join(
        [f"{len(different)} memories differ"]
        + [f"{key}: the log amounts to {expected.get(key)}, the table holds {found.get(key)}" for key in different[:5]]
    )
    return expected
