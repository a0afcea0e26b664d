"""Put a log that was rewritten in the place of the old one, and finish that where a kill cut it short.

The new log is made in ``log.new/``. Once all of it is on the device, names included::

    log      -> log.old     synced
    log.new  -> log         synced
    log.old                 removed

So ``log.old`` without ``log`` means that ``log.new`` is complete. Beside a ``log``, either is of no use any more; that
name is made durable before anything is removed, since the power may yet take a rename back.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from pixelmemory.errors import LogCorruptError
from pixelmemory.faults import fault_point
from pixelmemory.log.file.files import Files
from pixelmemory.log.file.segment import segment_name

__all__ = [
    "LOG",
    "NEW_LOG",
    "OLD_LOG",
    "HalfSwitchedError",
    "finish_switch",
    "log_folder",
    "remove_leftovers",
    "remove_log",
    "switch_logs",
]

LOG, NEW_LOG, OLD_LOG = "log", "log.new", "log.old"


class HalfSwitchedError(Exception):
    """A switch failed where it can neither be finished nor undone for certain. What is on disk opens to either log.

    Attributes:
        log_folder: where the old log is now; None where the new one has its place.
    """

    def __init__(self, log_folder: Path | None) -> None:
        super().__init__()
        self.log_folder = log_folder


def log_folder(folder: Path, files: Files | None = None) -> Path:
    """Where the segments of the store in ``folder`` are: ``log``, unless a switch was cut short. Changes nothing.

    Raises:
        OSError: the folder cannot be read.
    """
    files = files or Files()
    if not files.is_folder(folder / LOG) and files.is_folder(folder / OLD_LOG):
        return folder / (NEW_LOG if files.is_folder(folder / NEW_LOG) else OLD_LOG)
    return folder / LOG


def finish_switch(files: Files, folder: Path) -> None:
    """Give the new log of the store in ``folder`` its place if a kill came before. The caller holds the store's lock.

    Raises:
        LogCorruptError: an old or a new log is there, and not what must be beside it. Nothing was changed.
        OSError: the folder cannot be written. Nothing is lost; try again.
    """
    if files.is_folder(folder / LOG):
        return
    has_old, has_new = files.is_folder(folder / OLD_LOG), files.is_folder(folder / NEW_LOG)
    if has_old != has_new:
        left = OLD_LOG if has_old else NEW_LOG
        reason = f"the log is gone, and of its rewriting only {left} is there"
        raise LogCorruptError(folder / LOG / segment_name(1), 0, 1, reason)
    if has_new:
        files.rename(folder / NEW_LOG, folder / LOG)
        fault_point("rewrite.after_new_rename")
        files.sync_folder(folder)
        fault_point("rewrite.after_new_sync")


def remove_leftovers(files: Files, folder: Path) -> None:
    """Remove what a rewrite has left beside the log of the store in ``folder``.

    Raises:
        OSError: it cannot be removed, or not all of it.
    """
    left = [folder / name for name in (NEW_LOG, OLD_LOG) if files.is_folder(folder / name)]
    if left:
        files.sync_folder(folder)  # the log's name may be new, and the power may yet take it back
    for path in left:
        remove_log(files, path)


def remove_log(files: Files, path: Path) -> None:
    """Remove a folder of segments, durably, if it is there.

    Raises:
        OSError: it cannot be removed, or not all of it.
    """
    if not files.is_folder(path):
        return
    fault_point("rewrite.before_removal")
    for name in files.names(path):
        files.unlink(path / name)
        fault_point("rewrite.after_unlink")
    files.remove_folder(path)
    fault_point("rewrite.after_removal")
    files.sync_folder(path.parent)
    fault_point("rewrite.after_removal_sync")


def switch_logs(files: Files, folder: Path) -> None:
    """Give ``log.new``, which is complete and synced, the name ``log``; the old one becomes ``log.old``.

    Raises:
        OSError: it failed and is undone: the old log has its place, durably.
        HalfSwitchedError: it is not known what is on the device.
    """
    log, old = folder / LOG, folder / OLD_LOG
    fault_point("rewrite.before_switch")
    files.rename(log, old)
    fault_point("rewrite.after_old_rename")
    try:
        files.sync_folder(folder)
    except OSError as error:
        raise HalfSwitchedError(_put_back(files, folder)) from error
    fault_point("rewrite.after_old_sync")
    try:
        files.rename(folder / NEW_LOG, log)
    except OSError as error:
        where = _put_back(files, folder)
        try:
            files.sync_folder(folder)
        except OSError:
            raise HalfSwitchedError(where) from error
        if where != log:
            raise HalfSwitchedError(where) from error
        raise
    fault_point("rewrite.after_new_rename")
    try:
        files.sync_folder(folder)
    except OSError as error:
        raise HalfSwitchedError(None) from error
    fault_point("rewrite.after_new_sync")


def _put_back(files: Files, folder: Path) -> Path:
    """Give the old log its name again. Returns where it is then."""
    with contextlib.suppress(OSError):
        files.rename(folder / OLD_LOG, folder / LOG)
        return folder / LOG
    return folder / OLD_LOG
