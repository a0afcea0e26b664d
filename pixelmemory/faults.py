"""Named places where a test may stop the process: every one of them, and the hook that they call.

They stand around each step that a kill could come between. They do nothing unless a hook is set, or the environment
variable ``PIXELMEMORY_FAULT_POINT=name[:n]`` asks for a SIGKILL at the nth hit.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

__all__ = [
    "DESTROY_FAULT_POINTS",
    "ERASE_FAULT_POINTS",
    "LOG_FAULT_POINTS",
    "PROJECTION_FAULT_POINTS",
    "PURGE_FAULT_POINTS",
    "fault_point",
    "set_fault_hook",
]

#: of the log and the manifest, in the order of a life
LOG_FAULT_POINTS = (
    "frame.before_write",
    "frame.after_write",
    "frame.after_sync",
    "undo.before_truncate",
    "undo.after_truncate",
    "undo.after_sync",
    "segment.before_create",
    "segment.after_write",
    "segment.after_sync",
    "segment.after_rename",
    "segment.after_folder_sync",
    "seal.before_truncate",
    "seal.before_write",
    "seal.after_write",
    "seal.after_sync",
    "close.before_write",
    "close.after_write",
    "close.after_sync",
    "quarantine.before_write",
    "quarantine.after_write",
    "quarantine.after_sync",
    "quarantine.after_folder_sync",
    "manifest.before_write",
    "manifest.after_write",
    "manifest.after_sync",
    "manifest.after_rename",
    "manifest.after_folder_sync",
    "rewrite.before_create",
    "rewrite.after_create",
    "rewrite.after_write",
    "rewrite.before_seal",
    "rewrite.after_segment_sync",
    "rewrite.before_rest",
    "rewrite.after_sync",
    "rewrite.after_folder_sync",
    "rewrite.before_switch",
    "rewrite.after_old_rename",
    "rewrite.after_old_sync",
    "rewrite.after_new_rename",
    "rewrite.after_new_sync",
    "rewrite.before_removal",
    "rewrite.after_unlink",
    "rewrite.after_removal",
    "rewrite.after_removal_sync",
)

#: of the projection, in the order of a life
PROJECTION_FAULT_POINTS = (
    "projection.before_drop",
    "projection.after_drop",
    "projection.after_folder",
    "projection.after_registry",
    "projection.after_state",
    "projection.after_state_row",
    "projector.fold",
    "projector.embed.before",
    "projector.embed.after",
    "projector.apply.before",
    "table.before_create",
    "table.after_create",
    "table.after_embedding_index",
    "table.after_indexes",
    "table.after_registration",
    "projector.apply.prepared",
    "apply.begun",
    "apply.rows",
    "apply.checkpoint",
    "apply.committed",
    "projector.apply.after",
    "projector.watermark",
    "move.made",
    "move.copied",
    "move.committed",
    "move.finished",
    "projector.bisect.before",
    "projector.bisect.after",
    "projector.retry.applied",
)

#: of an erase, beside those of the log's rewrite and of the purge, in their order
ERASE_FAULT_POINTS = (
    "erase.after_intent",
    "erase.after_cache",
    "erase.after_log",
    "erase.after_quarantine",
    "erase.after_projection",
)

#: of a purge of the tables and of the scrub after it, in their order
PURGE_FAULT_POINTS = (
    "purge.begun",
    "purge.rows",
    "purge.committed",
    "purge.statistics_deleted",
    "purge.hnsw_dropped",
    "purge.table_rewritten",
    "purge.statistics_rewritten",
    "purge.logs_emptied",
    "purge.wal_switched",
    "purge.wal_checkpoint",
    "purge.wal_rewritten",
    "purge.hnsw_built",
)

#: of a destroy of a store, in their order
DESTROY_FAULT_POINTS = (
    "destroy.mark.before_write",
    "destroy.mark.after_write",
    "destroy.mark.after_sync",
    "destroy.after_mark",
    "destroy.after_tables",
    "destroy.after_file",
    "destroy.after_last_file",
)

_hook: Callable[[str], None] | None = None


def set_fault_hook(hook: Callable[[str], None] | None) -> None:
    """Call ``hook(name)`` at every fault point of this process; None removes it. For tests."""
    global _hook
    _hook = hook


def fault_point(name: str) -> None:
    """A named place where a test may stop the process. Does nothing otherwise."""
    if _hook is not None:
        _hook(name)


def _hook_from_environment(setting: str) -> Callable[[str], None]:
    wanted, _, count = setting.partition(":")
    hits_left = int(count or 1)

    def hook(name: str) -> None:
        nonlocal hits_left
        if name == wanted:
            hits_left -= 1
            if hits_left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


if _setting := os.environ.get("PIXELMEMORY_FAULT_POINT"):
    set_fault_hook(_hook_from_environment(_setting))
