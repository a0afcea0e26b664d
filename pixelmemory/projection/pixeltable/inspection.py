"""The tables of a store for whoever looks at them without opening the store: where they are, and how they are read."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

import pixeltable as pxt
import psycopg
from pixeltable import exceptions as excs

from pixelmemory.errors import ProjectionUnavailableError, UnavailableCause
from pixelmemory.projection.pixeltable.internals import resolve, thread_released
from pixelmemory.projection.pixeltable.startup import connection_string, start_pixeltable
from pixelmemory.projection.pixeltable.tables import ROOT, find_folder, folder_name
from pixelmemory.projection.sql.physical import PhysicalTable
from pixelmemory.projection.sql.session import connect

__all__ = ["open_tables", "physical_table"]


@contextlib.contextmanager
def open_tables(
    store_name: str, tables_id: uuid.UUID, history_id: uuid.UUID
) -> Iterator[tuple[psycopg.Connection[Any], str]]:
    """The folder of a store's tables in this environment's Pixeltable, and one snapshot of its database, read only.

    Raises:
        ProjectionUnavailableError: the database does not start, or has no connection left.
        psycopg.Error: it cannot be read.
    """
    start_pixeltable(keep_http_server=False)
    with (
        thread_released(),
        connect(connection_string(), "pixelmemory verify", options="-c timezone=UTC") as connection,
    ):
        connection.autocommit = False
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        folder = find_folder(store_name, tables_id, str(history_id)) or folder_name(store_name, tables_id)
        yield connection, f"{ROOT}/{folder}"


def physical_table(path: str) -> PhysicalTable:
    """The table in PostgreSQL behind a Pixeltable path.

    Raises:
        ProjectionUnavailableError: there is none, or Pixeltable cannot read it.
    """
    try:
        return resolve(pxt.get_table(path))
    except excs.NotFoundError:
        raise ProjectionUnavailableError(
            f"Pixeltable has no table {path}. If the store is used with another Pixeltable, set PIXELTABLE_HOME; else "
            "the next open rebuilds it",
            UnavailableCause.TABLE_GONE,
        ) from None
    except excs.Error as error:
        raise ProjectionUnavailableError(
            f"table {path} cannot be read: {error}", UnavailableCause.DATABASE_DOWN
        ) from error
