"""Events as lines of JSON, for people and for programs of theirs."""

from __future__ import annotations

import base64
import datetime as dt
import json
from typing import Any

import msgspec

from pixelmemory.log.contract import StoredEvent
from pixelmemory.memory.events import EventRemoved, MemoryAdded, MemoryDeleted, MemoryUpdated

__all__ = ["EVENT_NAMES", "LOST", "event_fields", "event_name", "is_placeholder", "json_line"]

#: the reason of what stands in the log for an event that a repair had to remove, so that its LSN is not given out
#: again
LOST = "lost"

EVENT_NAMES = {MemoryAdded: "added", MemoryUpdated: "updated", MemoryDeleted: "deleted"}


def is_placeholder(stored: StoredEvent) -> bool:
    """Whether it only stands for an event that a repair took out."""
    return isinstance(stored.event, EventRemoved) and stored.event.reason == LOST


def event_name(stored: StoredEvent) -> str:
    """``added``, ``updated``, ``deleted``, or why it was removed: ``erased``, ``compacted``, ``lost``."""
    event = stored.event
    return event.reason if isinstance(event, EventRemoved) else EVENT_NAMES[type(event)]


def utc_text(us: int) -> str:
    """Microseconds since the epoch as ISO 8601, UTC; the number itself where no calendar holds it."""
    try:
        return (dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=us)).isoformat() + "Z"  # noqa: DTZ001 - it is UTC
    except OverflowError:
        return f"{us} us"


def event_fields(stored: StoredEvent) -> dict[str, Any]:
    """Everything that the log holds of an event; what an update leaves as it was is absent.

    ``embedding`` is base64 of little-endian float32; ``metadata`` is the JSON object, or, where it is none,
    ``metadata_text`` what stands there.
    """
    event = stored.event
    fields: dict[str, Any] = {
        "lsn": stored.lsn,
        "logged_at": utc_text(stored.logged_at_ns // 1000),
        "event_id": stored.event_id.hex(),
        "type": event_name(stored),
    }
    if isinstance(event, EventRemoved):
        return fields | {"removed_at": utc_text(event.removed_at_us)}
    for name, value in msgspec.structs.asdict(event).items():
        if value is not None:
            fields |= _field(name, value)
    return fields


def _field(name: str, value: Any) -> dict[str, Any]:
    """One field of an event, by its name and type in the log."""
    if name.endswith("_us"):
        return {name.removesuffix("_us"): utc_text(value)}
    if name == "metadata_json":
        return _metadata(value)
    return {name: base64.b64encode(value).decode() if isinstance(value, bytes) else value}


def _metadata(text: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {"metadata_text": text.decode(errors="backslashreplace")}
    # exactly as it was logged, unless it has line breaks of its own
    return {"metadata": msgspec.Raw(text) if min(text) >= 0x20 else value}


def json_line(fields: dict[str, Any]) -> str:
    """One line of JSON, without the line break. Characters that a terminal would act upon, or hide, are escaped."""
    line = msgspec.json.encode(fields).decode(errors="backslashreplace")
    if line.isprintable():
        return line
    # outside of strings JSON is ASCII and printable, so every such character stands in one
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in line)
