"""An index that a kill left half-built is rebuilt."""

from __future__ import annotations

from pathlib import Path

import psycopg

from pixelmemory import Memory
from pixelmemory.projection.pixeltable.startup import connection_string
from tests.harness.engine_tools import indexes_of, open_memory, tables_of, vector


def _index(memory: Memory) -> tuple[str, str]:
    """The table, and the index's name in PostgreSQL, which is built."""
    memory.flush()
    keeper = indexes_of(memory)
    assert keeper.wait(60)
    (namespace,) = tables_of(memory).namespaces()
    table = tables_of(memory).name_of(namespace)
    assert table is not None
    assert keeper.has_index(table)
    index = tables_of(memory).physical(table).hnsw
    assert index is not None
    return table, index


def _is_valid(index: str) -> bool:
    with psycopg.connect(connection_string(), autocommit=True) as connection:
        row = connection.execute("SELECT indisvalid FROM pg_index WHERE indexrelid = %s::regclass", (index,)).fetchone()
    assert row is not None
    return bool(row[0])


def test_an_index_that_was_left_half_built_is_built_anew(tmp_path: Path, store_name: str) -> None:
    entries = [{"content": f"{n}", "embedding": vector(n)} for n in range(60)]
    with open_memory(tmp_path, store_name, graph_rows_min=50) as memory:
        memory.add_entries(entries)
        _, index = _index(memory)
        assert _is_valid(index)
    with psycopg.connect(connection_string(), autocommit=True) as connection:
        # what CREATE INDEX CONCURRENTLY leaves where it is killed
        connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", (index,))
    with open_memory(tmp_path, store_name, graph_rows_min=50) as memory:
        memory.add_entry("one more", embedding=vector(60))
        _, index = _index(memory)
        assert _is_valid(index)
        assert len(memory.search(vector=vector(3), limit=61)) == 61
        assert memory.search(vector=vector(3), limit=1)[0]["content"] == "3"
