"""Dropping the tables of a store that nobody has open: it is destroyed, or was a temporary one."""

from __future__ import annotations

import contextlib
import uuid

import pixeltable as pxt

from pixelmemory.projection.pixeltable.claim import Claim
from pixelmemory.projection.pixeltable.internals import thread_released
from pixelmemory.projection.pixeltable.tables import ROOT, find_folder

__all__ = ["drop_tables"]


@thread_released()
def drop_tables(store_name: str, tables_id: uuid.UUID, history_id: uuid.UUID) -> None:
    """Drop what the store has in this Pixeltable, which runs, with what users added to its tables; it may have none.

    Args:
        store_name, tables_id, history_id: see :func:`find_folder`.

    Raises:
        StoreLockedError: another store uses the tables.
    """
    folder = find_folder(store_name, tables_id, str(history_id))
    if folder is not None:
        with contextlib.closing(Claim(folder)):
            pxt.drop_dir(f"{ROOT}/{folder}", force=True, if_not_exists="ignore")
