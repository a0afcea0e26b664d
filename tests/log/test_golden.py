"""Every released format version is read for ever: its golden files hold what they held when they were written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pixelmemory.log.contract import StoredEvent
from pixelmemory.memory.events import EVENT_TYPES, Event, decode_event
from pixelmemory.store.manifest import Manifest
from tests.harness.log_tools import added, looked_into, opened, plain
from tests.harness.logs import STORE_ID, read_events

GOLDEN = Path(__file__).parent.parent / "golden"
VERSIONS = sorted(folder.name for folder in GOLDEN.iterdir() if folder.name.startswith("v") and folder.is_dir())


def rows_of(version: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((GOLDEN / version / "events.json").read_text())
    return rows


def event_of(row: dict[str, Any]) -> Event:
    """The event from its plain fields, without any decoding of ours."""
    fields: dict[str, Any] = {
        name: bytes.fromhex(value["hex"]) if isinstance(value, dict) else value for name, value in row["fields"].items()
    }
    types = {cls.__name__: cls for cls in EVENT_TYPES.values()}
    return types[row["type"]](**fields)


def stored_of(version: str) -> list[StoredEvent]:
    return [
        StoredEvent(row["lsn"], bytes.fromhex(row["event_id"]), row["logged_at_ns"], event_of(row))
        for row in rows_of(version)
    ]


def test_the_golden_files_are_there_and_hold_every_event_type() -> None:
    assert VERSIONS == ["v1", "v1_removed"]
    types = {"MemoryAdded", "MemoryUpdated", "MemoryDeleted"}
    assert {row["type"] for row in rows_of("v1")} == types
    assert {row["type"] for row in rows_of("v1_removed")} == types | {"EventRemoved"}
    assert types | {"EventRemoved"} == {cls.__name__ for cls in EVENT_TYPES.values()}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["closed", "killed"])
def test_golden_segments_hold_the_same_events(version: str, name: str, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    shutil.copytree(GOLDEN / version / name, folder)
    expected = stored_of(version)
    assert looked_into(folder) == (expected, [])
    manifest = Manifest.load(folder)
    assert manifest is not None
    assert manifest.store_id == STORE_ID
    with opened(folder, epoch=manifest.epoch + 1, store_id=manifest.store_id) as store:
        assert store.log.recovery.clean == (name == "closed")
        assert store.log.recovery.segments > 3
        assert read_events(store.log, events_max=7) == expected
        assert store.append(added(1)).first_lsn == len(expected) + 1
    with opened(folder, epoch=manifest.epoch + 2, store_id=manifest.store_id) as store:
        assert plain(read_events(store.log)) == [*plain(expected), added(1)]


@pytest.mark.parametrize("version", VERSIONS)
def test_golden_payloads_decode_to_the_same_events(version: str) -> None:
    for row in rows_of(version):
        assert decode_event(bytes.fromhex(row["msgpack"])) == event_of(row)


def test_a_payload_without_its_optional_fields_gets_their_defaults() -> None:
    """What a version that did not know a field wrote."""
    for code, cls in EVENT_TYPES.items():
        required = {field.encode_name: field for field in msgspec.structs.fields(cls) if field.required}
        values: dict[str, Any] = {name: "text" if field.type is str else 1 for name, field in required.items()}
        event = decode_event(msgspec.msgpack.encode({"t": code, **values}))
        assert event == cls(**values)
