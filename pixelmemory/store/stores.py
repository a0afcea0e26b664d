"""The stores of a home: what there is, and the end of one. Blocking.

A destroy is finished by the next one where it is interrupted: its first step leaves the file ``DESTROYED`` in the
store's folder, with which the store is not opened any more, and which goes last but for the lock.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import shutil
from pathlib import Path

from pixelmemory.errors import InvalidArgumentError, InvalidTypeError, StoreError, brief, type_name
from pixelmemory.faults import fault_point
from pixelmemory.log.file.files import Files, write_file
from pixelmemory.models import StoreRecord
from pixelmemory.options import Options
from pixelmemory.store.host import as_unavailable, drop_tables, start_host
from pixelmemory.store.lock import StoreLock
from pixelmemory.store.manifest import MANIFEST_NAME, Manifest

__all__ = ["check_not_destroyed", "destroy_store", "drop_temporary", "list_stores"]

_logger = logging.getLogger("pixelmemory")

_LOCK = "LOCK"
_DESTROYED = "DESTROYED"
#: what only a store's folder has
_OF_STORES = (MANIFEST_NAME, _DESTROYED)


def list_stores(options: Options) -> list[StoreRecord]:
    """The stores in the home of ``options``, by name.

    Raises:
        StoreError: the home cannot be read.
    """
    home = options.home_path()
    try:
        names = sorted(os.listdir(home))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"the stores in {options.home_origin()} cannot be listed: {error}") from error
    folders = [home / name for name in names if _is_store(home / name)]
    return [StoreRecord(name=folder.name, path=str(folder), bytes=_bytes(folder)) for folder in folders]


def _is_store(folder: Path) -> bool:
    return any((folder / name).exists() for name in _OF_STORES)


def _bytes(folder: Path) -> int:
    """The size of the files in ``folder``; those that vanish while it looks count nothing."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(parent, name)).st_size
    return size


def check_not_destroyed(folder: Path, name: str) -> None:
    """Raise StoreError where a destroy of the store in ``folder`` has begun."""
    if (folder / _DESTROYED).exists():
        raise StoreError(
            f"the store {name} cannot be opened: it was being destroyed, and that was interrupted. Finish it with "
            f"Memory.destroy({name!r}, confirm={name!r})"
        )


def destroy_store(name: str, confirm: object, options: Options) -> None:
    """Remove the store ``name`` with its log, its tables and its vector cache.

    Args:
        name: checked.
        confirm: the name again.

    Raises:
        InvalidArgumentError, InvalidTypeError: ``confirm`` is another one; nothing was touched.
        StoreLockedError: the store is open, here or in another process; nothing was touched.
        StoreError: there is no such store, or a file of it cannot be removed.
        ManifestError: its manifest, which says which tables are its, cannot be read; nothing was touched.
        ProjectionUnavailableError: Pixeltable does not start, or its database fails.
    """
    if not isinstance(confirm, str):
        raise InvalidTypeError("confirm", f"must be the store's name once more, not {type_name(confirm)}")
    if confirm != name:
        raise InvalidArgumentError("confirm", f"must be the store's name once more, {name!r}, not {brief(confirm)}")
    folder = options.home_path() / name
    try:
        if not _is_store(folder) and not set(os.listdir(folder)) <= {_LOCK}:  # else a destroy has come that far
            raise StoreError(f"{folder} is not a store: it has no MANIFEST; nothing was removed")
        lock = StoreLock.acquire(folder / _LOCK)
    except FileNotFoundError:
        raise StoreError(_no_such_store(name, options)) from None
    except OSError as error:
        raise StoreError(f"the store {name} cannot be destroyed: {error}") from error
    try:
        _destroy(name, folder, options)
    except OSError as error:
        raise StoreError(f"the store {name} could not be destroyed to its end: {error}. Call destroy again") from error
    finally:
        lock.release()


def _no_such_store(name: str, options: Options) -> str:
    names = [store["name"] for store in list_stores(options)]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f": did you mean {near[0]!r}?" if near else f"; stores there: {', '.join(names[:20])}" if names else ""
    return f"there is no store {name!r} in {options.home_path()}{hint}"


def _destroy(name: str, folder: Path, options: Options) -> None:
    """The steps, each of which may be done again. The caller holds the lock."""
    files = Files()
    manifest = Manifest.load(folder, files)
    if manifest is not None:
        start_host(None, options, lambda: None)
        write_file(files, folder / _DESTROYED, b"", "destroy.mark")
        files.sync_folder(folder)
        fault_point("destroy.after_mark")
        placed = manifest.placed(folder)
        if placed.tables_id == manifest.tables_id:  # else a copy that was never opened: it has no tables yet
            _drop(name, manifest)
        fault_point("destroy.after_tables")
    for path in sorted(folder.iterdir()):
        if path.name not in (_LOCK, MANIFEST_NAME, _DESTROYED):
            _remove(path)
            fault_point("destroy.after_file")
    for last in (MANIFEST_NAME, _DESTROYED, _LOCK):
        (folder / last).unlink(missing_ok=True)
        files.sync_folder(folder)
        fault_point("destroy.after_last_file")
    target = folder.resolve()
    with contextlib.suppress(OSError):  # another process makes a store of the name already; or it is a mount
        target.rmdir()
        if folder.is_symlink():
            folder.unlink()
        files.sync_folder(folder.parent)
    _logger.info("the store %s was destroyed", name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _drop(name: str, manifest: Manifest) -> None:
    """Drop the tables of the store that ``manifest`` is of; its host runs."""
    tables_id, history_id = manifest.tables_id or manifest.store_id, manifest.history_id or manifest.store_id
    try:
        drop_tables(name, tables_id, history_id)
    except Exception as error:
        if (unavailable := as_unavailable(error)) is None:
            raise
        raise unavailable from error


def drop_temporary(name: str, manifest: Manifest) -> None:
    """Drop the tables of a temporary store, whose projection is closed."""
    try:
        _drop(name, manifest)
    except Exception as error:  # noqa: BLE001 - a test must not fail for what it leaves behind
        _logger.warning("the tables of a temporary store are left in Pixeltable: %s", error)
