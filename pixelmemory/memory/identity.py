"""The ids of memories, and the keys that stand for them in the tables."""

from __future__ import annotations

import os
import random
import re
import threading
import time
import uuid

__all__ = ["memory_key", "new_memory_id"]

#: namespace of the UUIDv5 that stands for a memory id of the caller's own; part of the stored format, so for ever
MEMORY_ID_NAMESPACE = uuid.UUID("6f0c1d0e-5b1a-4c53-9a6e-70c9c1a0f4d2")

_CANONICAL_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

# A generator of our own, so that a program that seeds the global one does not make the same ids twice.
_random = random.Random(os.urandom(32))  # noqa: S311 - ids are unique, not secret
_id_lock = threading.Lock()
#: the last id's 48 bits of milliseconds and 74 free bits; only grows, so ids are monotone within the process
_id_last = 0


def _after_fork_in_child() -> None:
    global _id_lock
    _id_lock = threading.Lock()
    _random.seed(os.urandom(32))


os.register_at_fork(after_in_child=_after_fork_in_child)


def new_memory_id() -> str:
    """A new UUIDv7 (RFC 9562) as canonical text: it sorts by time, and is monotone within the process."""
    global _id_last
    with _id_lock:
        fresh = time.time_ns() // 1_000_000 << 74 | _random.getrandbits(73)
        # Within one millisecond, or when the clock steps back, go on from the last id by a random step.
        _id_last = value = fresh if fresh >> 74 > _id_last >> 74 else _id_last + 1 + _random.getrandbits(32)
    high, low = value >> 62, value & 0x3FFF_FFFF_FFFF_FFFF
    text = f"{(high >> 12) << 16 | 0x7000 | high & 0xFFF:016x}{0x8000_0000_0000_0000 | low:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def memory_key(memory_id: str) -> uuid.UUID:
    """The UUID that stands for ``memory_id`` in the tables; two ids never share one.

    Canonical (lowercase) UUID text of any version but 5 is its own key. Every other id maps to the UUIDv5 of its text
    under :data:`MEMORY_ID_NAMESPACE`; UUID text of version 5 does too, so that no caller can pass such a key off as
    an id.
    """
    if len(memory_id) == 36 and memory_id[14] != "5" and _CANONICAL_UUID.fullmatch(memory_id):
        return uuid.UUID(memory_id)
    return uuid.uuid5(MEMORY_ID_NAMESPACE, memory_id)
