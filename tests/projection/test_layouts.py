"""How namespaces lie in tables: they share one, and move to tables of their own, live; nothing that is read changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pixeltable as pxt
import psycopg
import pytest

from pixelmemory import Layout, Memory, ProjectionMismatchError
from pixelmemory.faults import set_fault_hook
from pixelmemory.projection.pixeltable.startup import connection_string
from pixelmemory.projection.pixeltable.tables import SHARED_TABLE
from pixelmemory.projection.sql.physical import LIVE
from tests.harness.engine_oracle import check_store
from tests.harness.engine_tools import (
    GIVEN,
    indexes_of,
    open_memory,
    options_at,
    tables_of,
    tables_path,
    vector,
    with_pixeltable,
)

#: the tables of every projection that are not of memories
OTHERS = {"state", "registry", "dead_letters"}


@pytest.fixture
def hook() -> Iterator[Any]:
    yield set_fault_hook
    set_fault_hook(None)


def fill(memory: Memory, *namespaces: str, count: int = 5) -> None:
    for namespace in namespaces:
        memory.add_entries(
            [
                {
                    "content": f"{namespace} {n % 3}",
                    "memory_id": f"{n}",
                    "metadata": {"n": n, "z": {"b": 1, "a": [1.0, 1]}},
                    "embedding": vector(n),
                }
                for n in range(count)
            ],
            namespace,
        )


def read(memory: Memory, namespace: str) -> list[Any]:
    """What every kind of read finds in ``namespace``."""
    return [
        memory.search(namespace, limit=100),
        memory.search(namespace, vector=vector(3), limit=100),
        memory.search(namespace, metadata_filter={"n": {"$gte": 2}}, vector=vector(1), min_score=-0.2),
        memory.list_memories(namespace, order="oldest").memories,
        memory.count(namespace),
        [memory.get_memory(str(n), namespace) for n in range(8)],
    ]


def memory_tables(name: str) -> set[str]:
    """The tables of memories, in the store ``name``."""
    paths = with_pixeltable(lambda: pxt.list_tables(tables_path(name)))
    return {path.rpartition("/")[2] for path in paths} - OTHERS


def shared_rows(memory: Memory, namespace: str, where: str = LIVE) -> int:
    """How many rows of ``namespace`` there are in the shared table."""
    physical = with_pixeltable(lambda: tables_of(memory).physical(SHARED_TABLE))
    with psycopg.connect(connection_string()) as connection:
        statement = f"SELECT count(*) FROM {physical.name} WHERE {where} AND {physical.columns['namespace']} = %s"
        (count,) = connection.execute(statement.encode(), (namespace,)).fetchone() or (0,)
    return int(count)


def test_namespaces_share_a_table(tmp_path: Path, store_name: str) -> None:
    names = [f"user {n}" for n in range(60)]
    with open_memory(tmp_path, store_name) as memory:
        fill(memory, *names, count=2)
        memory.flush()
        assert memory_tables(store_name) == {SHARED_TABLE}
        assert memory.namespaces() == sorted(names)
        assert memory.count() == 120
        assert [memory.count(name) for name in names] == [2] * 60
        check_store(tmp_path, store_name)


@pytest.mark.parametrize("direct_sql", [True, False], ids=["sql", "public API"])
def test_a_namespace_moves_when_its_table_is_asked_for(tmp_path: Path, store_name: str, direct_sql: bool) -> None:
    with open_memory(tmp_path, store_name) as memory:
        fill(memory, "ann", "bob")
        memory.update_memory("1", "ann", content="changed", embedding=vector(9))
        memory.delete_memory("4", "ann")
        memory.flush()
    with open_memory(tmp_path, store_name, direct_sql=direct_sql) as memory:
        before = read(memory, "ann"), read(memory, "bob")
        table = memory.get_namespace_table("ann")
        assert with_pixeltable(table.count) == 4
        assert (read(memory, "ann"), read(memory, "bob")) == before
        table.add_computed_column(length=table.content.len())
        memory.add_entry("four", "ann", embedding=vector(5))
        memory.flush()
        lengths = with_pixeltable(lambda: table.where(table.content == "four").select(table.length).collect())
        assert [row["length"] for row in lengths] == [4]
        assert memory.get_namespace_table("ann").get_metadata()["name"] == table.get_metadata()["name"]
        check_store(tmp_path, store_name)
    with open_memory(tmp_path, store_name) as memory:
        assert memory.count("ann") == 5
        assert read(memory, "bob")[0] == before[1][0], "scores, on the other path, may differ in their last digit"
        assert shared_rows(memory, "ann") == 0
        assert shared_rows(memory, "bob") == 5


def test_a_namespace_that_outgrows_the_shared_table_moves(tmp_path: Path, store_name: str) -> None:
    with open_memory(tmp_path, store_name, graph_rows_min=40) as memory:
        fill(memory, "ann", "bob", count=30)
        memory.flush()
        assert memory_tables(store_name) == {SHARED_TABLE}
        memory.add_entries([{"content": f"{n}", "embedding": vector(n)} for n in range(100, 115)], "ann")
        memory.flush()
        assert len(memory_tables(store_name)) == 2
        assert memory.count("ann") == 45
        assert indexes_of(memory).wait(60)
        assert shared_rows(memory, "ann", "TRUE") == 0, "past versions are gone too"
        exact = memory.search("ann", vector=vector(3), limit=300)
        assert memory.search("ann", vector=vector(3), limit=5) == exact[:5]
        check_store(tmp_path, store_name)


def test_a_load_into_a_new_namespace_goes_straight_to_its_own_table(tmp_path: Path, store_name: str) -> None:
    with open_memory(tmp_path, store_name) as memory:
        memory.add_entries([{"content": f"{n}", "embedding": vector(n)} for n in range(1000)], "loaded")
        memory.flush()
        assert SHARED_TABLE not in memory_tables(store_name)
        fill(memory, "bob")
        memory.flush()
        assert len(memory_tables(store_name)) == 2


@pytest.mark.parametrize("layout", [Layout.PER_NAMESPACE, Layout.SHARED])
def test_stores_of_other_layouts_open_as_they_are(tmp_path: Path, store_name: str, layout: Layout) -> None:
    with open_memory(tmp_path, store_name, layout=layout) as memory:
        fill(memory, "ann", "bob")
        before = read(memory, "ann"), read(memory, "bob")
        memory.flush()
    tables = memory_tables(store_name)
    with open_memory(tmp_path, store_name) as memory:
        assert memory.stats().batches == 0, "nothing is applied once more"
        assert memory_tables(store_name) == tables
        assert (read(memory, "ann"), read(memory, "bob")) == before
        fill(memory, "carl")
        memory.flush()
        assert memory_tables(store_name) == tables | {SHARED_TABLE}
        memory.get_namespace_table("bob")
        assert (read(memory, "ann"), read(memory, "bob")) == before
        check_store(tmp_path, store_name)
    with pytest.raises(ProjectionMismatchError, match="layout"):
        open_memory(tmp_path, store_name, layout=layout)
    with open_memory(tmp_path, store_name, layout=layout, rebuild=True) as memory:
        assert (read(memory, "ann"), read(memory, "bob")) == before


def test_the_columns_of_a_schema_move_too(tmp_path: Path, store_name: str) -> None:
    schema = {"year": int | None, "Title": str | None}
    with Memory(store_name, schema, GIVEN, options=options_at(tmp_path)) as memory:
        for year in (1990, 2000, 2010):
            memory.add_entry("film", "ann", {"year": year, "Title": f"{year}"}, embedding=vector(year))
        before = memory.search("ann", metadata_filter={"year": {"$gt": 1995}})
        assert len(before) == 2
        table = memory.get_namespace_table("ann")
        assert memory.search("ann", metadata_filter={"year": {"$gt": 1995}}) == before
        rows = with_pixeltable(lambda: list(table.select(table.year, table.title).collect()))
        assert sorted((row["year"], row["title"]) for row in rows) == [(1990, "1990"), (2000, "2000"), (2010, "2010")]


def test_reads_go_on_while_namespaces_move(tmp_path: Path, store_name: str) -> None:
    names = [f"user {n}" for n in range(12)]
    wrong: list[Any] = []
    with open_memory(tmp_path, store_name) as memory:
        fill(memory, *names)
        memory.flush()
        expected = {name: read(memory, name) for name in names}
        over = threading.Event()

        def look(offset: int) -> None:
            n = offset
            while not over.is_set():
                name = names[n % len(names)]
                found = [
                    memory.search(name, limit=100, consistency="eventual"),
                    memory.search(name, vector=vector(3), limit=100, consistency="eventual"),
                ]
                if found != expected[name][:2] or memory.count(name, consistency="eventual") != 5:
                    wrong.append((name, found))
                n += 1

        readers = [threading.Thread(target=look, args=(offset,)) for offset in (0, 5)]
        for reader in readers:
            reader.start()
        for name in names:
            memory.get_namespace_table(name)
        over.set()
        for reader in readers:
            reader.join()
        assert not wrong
        assert {name: read(memory, name) for name in names} == expected
        assert len(memory_tables(store_name)) == 13


class KilledError(Exception):
    """Where a process would have been killed."""


@pytest.mark.parametrize("point", ["move.made", "move.copied", "move.committed"])
def test_a_move_that_failed_leaves_every_memory_once(tmp_path: Path, store_name: str, point: str, hook: Any) -> None:
    def fail(name: str) -> None:
        if name == point:
            raise KilledError(name)

    with open_memory(tmp_path, store_name) as memory:
        fill(memory, "ann", "bob")
        before = read(memory, "ann"), read(memory, "bob")
        hook(fail)
        with pytest.raises(KilledError):
            memory.get_namespace_table("ann")
        hook(None)
        assert (read(memory, "ann"), read(memory, "bob")) == before
        memory.update_memory("0", "ann", metadata={"changed": True})
        memory.add_entry("new", "ann", embedding=vector(1), memory_id="new")
        memory.flush()
        assert memory.health().ok
        assert memory.count("ann") == 6
        check_store(tmp_path, store_name)
    with open_memory(tmp_path, store_name) as memory:
        found = memory.get_memory("0", "ann")
        assert found is not None
        assert found["metadata"] == {"changed": True}
        assert memory.count("ann") == 6
        memory.get_namespace_table("ann")
        assert shared_rows(memory, "ann") == 0
        assert memory.count("ann") == 6
        assert read(memory, "bob") == before[1]
        check_store(tmp_path, store_name)


def test_vectors_move_exactly(tmp_path: Path, store_name: str) -> None:
    """Also where one text has several vectors."""
    with open_memory(tmp_path, store_name) as memory:
        for n in range(4):
            for name in ("sql", "public"):
                memory.add_entry("the same text", name, memory_id=f"{n}", embedding=vector(n))
        memory.flush()
    for name in ("sql", "public"):
        with open_memory(tmp_path, store_name, direct_sql=name == "sql") as memory:
            table = memory.get_namespace_table(name)
            column = table.content.embedding(idx="content_embedding")
            rows = with_pixeltable(table.select(table.id_text, v=column).collect)
            held = {row["id_text"]: np.asarray(row["v"], np.float32) for row in rows}
            assert all(np.array_equal(held[f"{n}"], np.asarray(vector(n), np.float32)) for n in range(4)), name
