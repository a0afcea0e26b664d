"""The typed events: what the log holds and what every projection is folded from.

An event is a frozen, tagged :class:`msgspec.Struct`; the integer tag is also the record's type code in the log, so a
type that this version does not know is refused by number and never skipped.

Rules of evolution, so that a log written today is read by every later version:

1. A tag is never reused and its meaning never changes.
2. A field is never removed, renamed or given another type.
3. A new field has a default, and the default means what its absence meant before.
4. A change that breaks rule 2 or 3 is a new event type with a new tag; the old one is read for ever.

Events hold strings, bytes and numbers alone and are many at a time, so the garbage collector need not look at them.

Metadata travels as the exact JSON text (UTF-8) that was made from the caller's value, so that key order, large
integers and floats come back as they went in.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

__all__ = [
    "EVENT_TYPES",
    "Event",
    "EventRemoved",
    "MemoryAdded",
    "MemoryDeleted",
    "MemoryEvent",
    "MemoryUpdated",
    "decode_event",
    "encode_event",
]


class MemoryAdded(msgspec.Struct, frozen=True, gc=False, tag_field="t", tag=1, omit_defaults=True):
    """A memory came into being."""

    #: 1 to 255 characters
    namespace: str
    #: unique within the namespace
    memory_id: str
    content: str
    #: when the memory was created, microseconds since the epoch, UTC
    created_at_us: int
    #: a JSON object as UTF-8 text
    metadata_json: bytes = b"{}"
    #: the caller's own vector: little-endian float32; None where the store's model embeds the content
    embedding: bytes | None = None


class MemoryUpdated(msgspec.Struct, frozen=True, gc=False, tag_field="t", tag=2, omit_defaults=True):
    """Content, metadata or both were replaced; None leaves the field as it was."""

    namespace: str
    memory_id: str
    content: str | None = None
    metadata_json: bytes | None = None
    #: as in :class:`MemoryAdded`
    embedding: bytes | None = None


class MemoryDeleted(msgspec.Struct, frozen=True, gc=False, tag_field="t", tag=3, omit_defaults=True):
    """A memory was deleted; its id may be added again."""

    namespace: str
    memory_id: str


class EventRemoved(msgspec.Struct, frozen=True, gc=False, tag_field="t", tag=4, omit_defaults=True):
    """An event stood here and was removed; so LSNs stay dense. It is of no memory and changes nothing."""

    #: ``erased``, ``compacted``, or ``lost`` (to damage, when the log was repaired)
    reason: str
    #: when it was removed, microseconds since the epoch, UTC
    removed_at_us: int


#: what happened to one memory
MemoryEvent: TypeAlias = MemoryAdded | MemoryUpdated | MemoryDeleted

Event: TypeAlias = MemoryEvent | EventRemoved

#: type code -> class; the codes are the structs' tags
EVENT_TYPES: dict[int, type[Event]] = {1: MemoryAdded, 2: MemoryUpdated, 3: MemoryDeleted, 4: EventRemoved}

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Event)


def encode_event(event: Event) -> bytes:
    """The event as msgpack, its tag included."""
    return _encoder.encode(event)


def decode_event(payload: bytes | memoryview) -> Event:
    """The event in ``payload``.

    Raises:
        msgspec.ValidationError: if the tag is unknown or a field has the wrong type.
        msgspec.DecodeError: if the bytes are not msgpack.
    """
    event: Event = _decoder.decode(payload)
    return event
