"""Pixelmemory: a local-first memory layer for agents, on Pixeltable.

:class:`Memory` for synchronous code, :class:`AsyncMemory` for asyncio and trio; :class:`Options` for every limit.
"""

from __future__ import annotations

from pixelmemory.aio import AsyncMemory
from pixelmemory.errors import *  # noqa: F403 - the whole tree is public
from pixelmemory.errors import __all__ as _errors
from pixelmemory.memory.namespaces import Under
from pixelmemory.models import Health, MemoryPage, MemoryRecord, Stats, StoreRecord, to_json
from pixelmemory.options import Layout, Options, SyncMode
from pixelmemory.sync import Memory

__version__ = "0.1.0"

__all__ = [
    "AsyncMemory",
    "Health",
    "Layout",
    "Memory",
    "MemoryPage",
    "MemoryRecord",
    "Options",
    "Stats",
    "StoreRecord",
    "SyncMode",
    "Under",
    "to_json",
    *_errors,
]
