"""Make a store's table refuse some contents, as a user's own constraint would, and let them in again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg

from tests.harness.engine_tools import tables_path, with_pixeltable

__all__ = ["accept_marked", "refuse_marked", "refuse_with"]


def _execute(store: str, namespace: str, *statements: str) -> None:
    """Run SQL on the table of ``namespace``; ``{table}`` stands for it, ``{content}`` and others for its columns."""

    def run() -> None:
        import pixeltable as pxt

        from pixelmemory.projection.pixeltable.internals import resolve
        from pixelmemory.projection.pixeltable.startup import connection_string

        folder = tables_path(store)
        registry = pxt.get_table(f"{folder}/registry")
        (row,) = registry.where(registry.namespace == namespace).select(registry.table_name).collect()
        physical = resolve(pxt.get_table(f"{folder}/{row['table_name']}"))
        with psycopg.connect(connection_string(), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.format(table=physical.name, **physical.columns).encode())

    with_pixeltable(run)


def refuse_marked(store: str, namespace: str = "default_namespace") -> None:
    """Contents that begin with "refused" cannot enter the table of ``namespace``, which exists."""
    _execute(store, namespace, "ALTER TABLE {table} ADD CONSTRAINT no_refused CHECK ({content} NOT LIKE 'refused%')")


def accept_marked(store: str, namespace: str = "default_namespace") -> None:
    """Mend the cause."""
    _execute(store, namespace, "ALTER TABLE {table} DROP CONSTRAINT no_refused")


@contextlib.contextmanager
def refuse_with(store: str, sqlstate: str, namespace: str = "default_namespace") -> Iterator[None]:
    """Within the block, each row that enters the table of ``namespace`` gets PostgreSQL's error ``sqlstate``.

    As a disk that is full, say, would do it.
    """
    body = f"RAISE EXCEPTION 'the database is not well' USING ERRCODE = '{sqlstate}';"
    function = f"refuse_{store}"
    _execute(
        store,
        namespace,
        f"CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$",
        f"CREATE TRIGGER refuse BEFORE INSERT ON {{table}} FOR EACH ROW EXECUTE FUNCTION {function}()",
    )
    try:
        yield
    finally:
        _execute(store, namespace, "DROP TRIGGER refuse ON {table}", f"DROP FUNCTION {function}()")
