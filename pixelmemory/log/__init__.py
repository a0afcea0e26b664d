"""The write-ahead log."""

from __future__ import annotations

from pixelmemory.log.append import Append
from pixelmemory.log.files import FAULT_POINTS, Files, fault_point, set_fault_hook
from pixelmemory.log.lock import StoreLock
from pixelmemory.log.log import Log, LogStats
from pixelmemory.log.manifest import Manifest
from pixelmemory.log.record import StoredEvent
from pixelmemory.log.renewal import RecoveryReport
from pixelmemory.log.segment import FORMAT_VERSION

__all__ = [
    "FAULT_POINTS",
    "FORMAT_VERSION",
    "Append",
    "Files",
    "Log",
    "LogStats",
    "Manifest",
    "RecoveryReport",
    "StoreLock",
    "StoredEvent",
    "fault_point",
    "set_fault_hook",
]
