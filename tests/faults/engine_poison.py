"""Make a store's table refuse some contents, as a user's own constraint would, and let them in again."""

from __future__ import annotations

import psycopg
from engine_oracle import with_pixeltable

__all__ = ["forbid_poison", "let_poison_in"]


def _alter(store: str, namespace: str, what: str) -> None:
    def run() -> None:
        import pixeltable as pxt

        from pixelmemory.projection.database import connection_string
        from pixelmemory.projection.store_sql import resolve

        registry = pxt.get_table(f"pixelmemory/{store}/registry")
        (row,) = registry.where(registry.namespace == namespace).select(registry.table_name).collect()
        physical = resolve(pxt.get_table(f"pixelmemory/{store}/{row['table_name']}"))
        with psycopg.connect(connection_string(), autocommit=True) as connection:
            connection.execute(f"ALTER TABLE {physical.name} {what.format(**physical.columns)}".encode())

    with_pixeltable(run)


def forbid_poison(store: str, namespace: str = "default_namespace") -> None:
    """Contents that begin with "poison" cannot enter the table of ``namespace``, which exists."""
    _alter(store, namespace, "ADD CONSTRAINT no_poison CHECK ({content} NOT LIKE 'poison%')")


def let_poison_in(store: str, namespace: str = "default_namespace") -> None:
    """Mend the cause."""
    _alter(store, namespace, "DROP CONSTRAINT no_poison")
