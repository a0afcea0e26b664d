"""What an erase leaves on disk: every file below Pixeltable's home is searched for the bytes of what was erased."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import string
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psycopg
import pytest

from pixelmemory import Layout, Memory, ProjectionError
from tests.harness.engine_tools import (
    DIMENSIONS,
    host_of,
    indexes_of,
    open_memory,
    script_environment,
    tables_of,
    tables_path,
    vector,
)

NAMESPACE = "default_namespace"
LAYOUTS = pytest.mark.parametrize("layout", list(Layout), ids=lambda layout: layout.value)

# ------------------------------------------------------------------------------------------- what is looked for, where


def _random_text(length: int) -> str:
    return "".join(random.SystemRandom().choices(string.ascii_letters + string.digits, k=length))


class Canaries:
    """Texts and vectors that stand nowhere else.

    Attributes:
        made_at_ns: no file that was last written before holds any of them.
    """

    def __init__(self) -> None:
        self.made_at_ns = time.time_ns() - 2 * 10**9  # file systems may tell time in whole seconds
        self.texts = {
            name: _random_text(12)
            for name in ("content", "metadata", "first metadata", "id", "dead id", "dead content")
        }
        self.vectors = [np.random.default_rng().standard_normal(DIMENSIONS).astype("<f4") for _ in range(2)]
        #: a value that PostgreSQL compresses: what is random in it stays, in pieces
        self.pieces = [_random_text(12) for _ in range(6)]
        self.long = "".join(piece + "the same again and again " * 60 for piece in self.pieces)

    def needles(self) -> dict[str, list[bytes]]:
        """What to search for, by what it is of."""
        needles = {
            # without its outer zero UTF-16 is the same in both byte orders, and quickly searched for in empty pages
            name: [text.encode(), text.encode("utf-16-le")[:-1]]
            for name, text in self.texts.items()
        }
        needles["vectors"] = [each.tobytes()[start : start + 16] for each in self.vectors for start in (0, 16)]
        needles["compressed"] = [piece[start : start + 6].encode() for piece in self.pieces for start in (0, 6)]
        return needles


def found_on_disk(canaries: Canaries, only: Collection[str] = ()) -> dict[str, list[str]]:
    """What of ``canaries`` is found -> the files, after all that PostgreSQL holds in memory was written."""
    from pixelmemory.projection.pixeltable.startup import connection_string

    with psycopg.connect(connection_string(), autocommit=True) as connection:
        connection.execute("CHECKPOINT")
    home = Path(os.environ["PIXELTABLE_HOME"])
    needles = {name: each for name, each in canaries.needles().items() if not only or name in only}
    found: dict[str, list[str]] = {}
    for path in sorted(path for path in home.rglob("*") if path.is_file()):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime_ns < canaries.made_at_ns:
                continue
            data = _without_empty_pages(path.read_bytes())
            for name, each in needles.items():
                if any(needle in data for needle in each):
                    found.setdefault(name, []).append(str(path.relative_to(home)))
    return found


def _without_empty_pages(data: bytes, page: int = 8192) -> bytes:
    """Most of a write-ahead log is zeros, in which searching is slow."""
    pages = (data[start : start + page] for start in range(0, len(data), page))
    return b"".join(each for each in pages if each.count(0) < len(each))


def forget(memory: Memory, ids: Collection[str] | None, up_to_lsn: int) -> list[int]:
    """Let the projector forget dead letters, on its own thread."""
    engine = memory._memory._engine
    assert engine is not None
    assert engine._store is not None
    projector = engine._store.projection.projector
    forgotten: list[int] = projector.request(lambda: projector.forget_dead_letters(NAMESPACE, ids, up_to_lsn)).result(
        60
    )
    return forgotten


T = TypeVar("T")


def with_pixeltable(run: Callable[[], T]) -> T:
    """Use Pixeltable on a thread of its own, and let go there of what it keeps a thread."""
    from pixelmemory.projection.pixeltable.internals import thread_released

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(thread_released()(run)).result()


def sql(statement: str) -> list[tuple[Any, ...]]:
    """Run one statement in Pixeltable's database."""
    from pixelmemory.projection.pixeltable.startup import connection_string

    with psycopg.connect(connection_string(), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def stored(tables: Any, name: str | None) -> Any:
    """The table in PostgreSQL."""
    return with_pixeltable(lambda: tables.physical(name))


def live_rows(tables: Any) -> dict[str, list[tuple[Any, ...]]]:
    """Every column of every live row of the memories' tables."""
    from pixelmemory.projection.sql.physical import LIVE

    return {
        name: sql(f"SELECT * FROM {stored(tables, name).name} WHERE {LIVE} ORDER BY rowid")
        for name in {tables.name_of(namespace) for namespace in tables.namespaces()}
    }


def refuse_marked(tables: Any) -> None:
    """Contents that begin with "refused" cannot enter the table, as by a user's own constraint."""
    table = stored(tables, tables.name_of(NAMESPACE))
    content = table.columns["content"]
    sql(f"ALTER TABLE {table.name} ADD CONSTRAINT no_refused CHECK ({content} NOT LIKE 'refused%')")


def purge_and_scrub(tables: Any, ids: Collection[str] | None, up_to_lsn: int) -> None:
    """As an erase does it, on a thread of its own."""
    from pixelmemory.projection.pixeltable.purge import purge, scrub

    def run() -> None:
        purge(tables, NAMESPACE, ids, up_to_lsn)
        scrub(tables, NAMESPACE)

    with_pixeltable(run)


def _add_what_users_add(path: str, name: str) -> None:
    """A computed column, a view of the table, a view of that view, and a snapshot."""

    def run() -> None:
        import pixeltable as pxt

        table = pxt.get_table(path)
        table.add_computed_column(shouted=table.content.upper())
        view = pxt.create_view(f"{name}_view", table, additional_columns={"twice": table.content + table.content})
        pxt.create_view(f"{name}_deep", view, additional_columns={"thrice": view.twice + table.content})

    with_pixeltable(run)


def _take_snapshot(path: str, name: str) -> None:
    def run() -> None:
        import pixeltable as pxt

        table = pxt.get_table(path)
        pxt.create_snapshot(f"{name}_snapshot", table, additional_columns={"marked": table.content + "!"})
        pxt.create_snapshot(f"{name}_plain", table)

    with_pixeltable(run)


def _rows_in_views(name: str) -> dict[str, int]:
    def run() -> dict[str, int]:
        import pixeltable as pxt

        return {kind: pxt.get_table(f"{name}_{kind}").count() for kind in ("view", "deep", "snapshot", "plain")}

    return with_pixeltable(run)


def add_canaries(memory: Memory, canaries: Canaries) -> list[str]:
    """Memories with everything that is to vanish, and their deletion; returns their ids."""
    texts = canaries.texts
    given = [each.tolist() for each in canaries.vectors]
    memory.add_entry(
        f"a memory of {texts['content']}",
        memory_id=texts["id"],
        metadata={"of": texts["first metadata"]},
        embedding=given[0],
    )
    memory.add_entry(canaries.long, memory_id="long", metadata={"long": canaries.long}, embedding=given[0])
    memory.flush()
    assert memory.update_memory(texts["id"], metadata={"of": texts["metadata"]})
    memory.flush()
    assert memory.update_memory("long", content="shorter", embedding=given[1])
    memory.flush()
    return [texts["id"], "long"]


@LAYOUTS
def test_nothing_of_erased_memories_is_left(tmp_path: Path, store_name: str, layout: Layout) -> None:
    canaries = Canaries()
    with open_memory(tmp_path, store_name, layout=layout) as memory:
        for n in range(40):
            memory.add_entry(f"kept {n}", memory_id=f"kept {n}", metadata={"n": n}, embedding=vector(n))
        memory.add_entry("elsewhere", "other", memory_id="same id", embedding=vector(3))
        path = memory.get_namespace_table(NAMESPACE).get_metadata()["path"]
        memory.flush()
        tables = tables_of(memory)
        name = tables.name_of(NAMESPACE)
        _add_what_users_add(path, store_name)
        ids = add_canaries(memory, canaries)
        _take_snapshot(path, store_name)
        refuse_marked(tables)
        memory.add_entry(
            f"refused {canaries.texts['dead content']}", memory_id=canaries.texts["dead id"], embedding=vector(1)
        )
        memory.flush()
        assert memory.stats().dead_letters == 1
        ids.append(canaries.texts["dead id"])
        sql(f"ANALYZE {stored(tables, name).name}")
        for memory_id in ids:
            assert memory.delete_memory(memory_id)
        memory.flush()
        for _ in range(3):  # so that the write-ahead log has been kept for later use too
            sql("SELECT pg_logical_emit_message(false, '', '')")
            sql("SELECT pg_switch_wal()")
        before = found_on_disk(canaries)
        assert set(before) == set(canaries.needles()), "the search has to find what is there"
        for part in ("pgdata/base", "pgdata/pg_wal", "pgdata/log"):
            assert any(path.startswith(part) for paths in before.values() for path in paths)

        kept = live_rows(tables)
        nearest = [row["memory_id"] for row in memory.search(vector=vector(7), limit=5)]
        assert len(forget(memory, ids, memory.last_lsn)) == 2  # the addition, and the deletion that waited behind it
        assert memory.stats().dead_letters == 0
        assert memory.health().ok
        purge_and_scrub(tables, ids, memory.last_lsn)
        assert found_on_disk(canaries) == {}

        assert live_rows(tables) == kept
        assert [row["memory_id"] for row in memory.search(vector=vector(7), limit=5)] == nearest
        assert set(_rows_in_views(store_name).values()) == {41 if layout is Layout.SHARED else 40}
        assert sql(f"SELECT * FROM {stored(tables, 'dead_letters').name}") == []
        # and the memories may come again
        sql(f"ALTER TABLE {stored(tables, name).name} DROP CONSTRAINT no_refused")
        memory.add_entry("again", memory_id=ids[0], embedding=vector(2))
        memory.add_entry("refused again", memory_id=ids[2], embedding=vector(2))
        assert memory.get_memory(ids[2]) is not None
        purge_and_scrub(tables, ids, memory.last_lsn - 2)
        assert memory.get_memory(ids[0]) is not None
        assert memory.count() == 43


# ---------------------------------------------------------------------------------------------------- kills on the way


def _serve() -> None:
    """Fork a child for each line of stdin, which purges and is killed at a fault point; answer with its exit code."""
    import pixeltable  # noqa: F401 - once, for all children

    import pixelmemory.projection.pixeltable.purge  # noqa: F401

    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                _purge_in_child(*json.loads(line))
            finally:
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _purge_in_child(store_name: str, ids: list[str] | None, up_to_lsn: int, point: str) -> None:
    from pixelmemory.faults import set_fault_hook
    from pixelmemory.projection.contract import ProjectionState
    from pixelmemory.projection.pixeltable.purge import purge, scrub
    from pixelmemory.projection.pixeltable.startup import start_pixeltable
    from pixelmemory.projection.pixeltable.tables import TableSet

    start_pixeltable(keep_http_server=False)
    folder = tables_path(store_name).rpartition("/")[2]
    tables = TableSet(folder, ProjectionState("", "auto", None, None, None), None, direct_sql=True)
    stored_state = tables.stored_state()
    assert stored_state is not None
    tables = TableSet(folder, stored_state[0], None, direct_sql=True)
    tables.load()
    set_fault_hook(lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == point else None)
    purge(tables, NAMESPACE, ids, up_to_lsn)
    scrub(tables, NAMESPACE)


@contextlib.contextmanager
def purging_processes() -> Iterator[Callable[..., int]]:
    """Purges in processes of their own; each returns its exit code."""
    process = subprocess.Popen(
        [sys.executable, __file__], env=script_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def run(*arguments: Any) -> int:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(arguments) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    try:
        yield run
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def test_a_kill_at_each_point(tmp_path: Path, store_name: str) -> None:
    from pixelmemory.faults import PURGE_FAULT_POINTS

    searched = ("content", "metadata", "vectors")
    points = sorted(PURGE_FAULT_POINTS, key=lambda point: point != "purge.hnsw_built")  # while there is an index
    with purging_processes() as purge_in_process:
        with open_memory(tmp_path, store_name, graph_rows_min=10) as memory:
            for n in range(40):
                memory.add_entry(f"kept {n}", memory_id=f"kept {n}", embedding=vector(n))
            memory.flush()
            keeper = indexes_of(memory)
            assert keeper.wait(30)
            tables = tables_of(memory)
            table = stored(tables, tables.name_of(NAMESPACE))
            assert index_is_valid(table)
            kept = live_rows(tables)
            for point in points:
                canaries = Canaries()
                ids = add_canaries(memory, canaries)
                for memory_id in ids:
                    assert memory.delete_memory(memory_id)
                memory.flush()
                if point == points[0]:
                    assert set(found_on_disk(canaries, searched)) == set(searched)
                assert purge_in_process(store_name, ids, memory.last_lsn, point) == -signal.SIGKILL, point
                assert live_rows(tables) == kept
                purge_and_scrub(tables, ids, memory.last_lsn)
                assert found_on_disk(canaries, searched) == {}, point
                assert live_rows(tables) == kept
                assert {row["memory_id"] for row in memory.search(vector=vector(7), limit=1)} == {"kept 7"}
        with open_memory(tmp_path, store_name, graph_rows_min=10) as memory:
            memory.add_entry("one more", embedding=vector(1))
            memory.flush()
            assert indexes_of(memory).wait(30)
            assert index_is_valid(table), "what a kill took away is built again"


def index_is_valid(table: Any) -> bool:
    rows = sql(f"SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('{table.hnsw}')")
    return rows == [(True,)]


# ------------------------------------------------------------------------------------------- other scopes, and refusals


@LAYOUTS
def test_a_whole_namespace(tmp_path: Path, store_name: str, layout: Layout) -> None:
    canaries = Canaries()
    with open_memory(tmp_path, store_name, layout=layout) as memory:
        memory.add_entry("elsewhere", "other", memory_id="kept", embedding=vector(3))
        ids = add_canaries(memory, canaries)
        memory.flush()
        tables = tables_of(memory)
        name = tables.name_of(NAMESPACE)

        def insert_directly() -> None:
            key = {} if layout is Layout.PER_NAMESPACE else {"namespace_key": namespace_key(NAMESPACE)}
            tables.table(name or "").insert(
                [key | {"memory_id": uuid.uuid4(), "content": canaries.texts["dead content"]}]
            )

        from pixelmemory.projection.sql.physical import namespace_key

        with_pixeltable(insert_directly)
        sql(f"ANALYZE {stored(tables, name).name}")
        for memory_id in ids:
            assert memory.delete_memory(memory_id)
        memory.flush()
        searched = set(canaries.needles()) - {"dead id"}
        assert set(found_on_disk(canaries)) == searched
        purge_and_scrub(tables, None, memory.last_lsn)
        assert found_on_disk(canaries) == {}
        assert memory.count(NAMESPACE) == 0
        assert memory.count("other") == 1
        assert memory.get_memory("kept", "other") is not None


def test_what_has_moved_is_purged_where_it_was(tmp_path: Path, store_name: str) -> None:
    canaries = Canaries()
    with open_memory(tmp_path, store_name) as memory:
        memory.add_entry("elsewhere", "other", memory_id="kept", embedding=vector(3))
        ids = add_canaries(memory, canaries)
        memory.flush()
        memory.get_namespace_table(NAMESPACE)
        for memory_id in ids:
            assert memory.delete_memory(memory_id)
        memory.flush()
        assert found_on_disk(canaries)
        purge_and_scrub(tables_of(memory), ids, memory.last_lsn)
        assert found_on_disk(canaries) == {}
        assert memory.get_memory("kept", "other") is not None


def test_tables_in_use(tmp_path: Path, store_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pixelmemory.projection.pixeltable import purge as module
    from pixelmemory.projection.pixeltable.startup import connection_string

    monkeypatch.setattr(module, "WAIT_SECONDS_MAX", 0.3)
    monkeypatch.setattr(module, "LOCK_SECONDS_MAX", 0.1)
    canaries = Canaries()
    with open_memory(tmp_path, store_name) as memory:
        ids = add_canaries(memory, canaries)
        tables = tables_of(memory)
        name = stored(tables, tables.name_of(NAMESPACE)).name
        for memory_id in ids:
            assert memory.delete_memory(memory_id)
        memory.flush()
        with psycopg.connect(connection_string(), application_name="somebody") as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.execute(f"SELECT 1 FROM {name}".encode())
            with pytest.raises(ProjectionError, match=r"nothing was scrubbed.*somebody"):
                purge_and_scrub(tables, ids, memory.last_lsn)
            assert "content" in found_on_disk(canaries)
            connection.rollback()
            connection.isolation_level = None
            connection.execute(f"LOCK TABLE {name} IN ACCESS SHARE MODE".encode())
            with pytest.raises(ProjectionError, match=rf"may still stand in: table {name} \(.*in use"):
                purge_and_scrub(tables, ids, memory.last_lsn)
            assert "content" in found_on_disk(canaries)
        assert memory.count() == 0
        purge_and_scrub(tables, ids, memory.last_lsn)
        assert found_on_disk(canaries) == {}


def test_a_role_that_may_not(tmp_path: Path, store_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pixelmemory.projection.pixeltable import tables as module
    from pixelmemory.projection.pixeltable.startup import connection_string

    canaries = Canaries()
    role = f"role_{store_name}"
    with open_memory(tmp_path, store_name) as memory:
        ids = add_canaries(memory, canaries)
        memory.flush()
        tables = tables_of(memory)
        for memory_id in ids:
            assert memory.delete_memory(memory_id)
        memory.flush()
        sql(f"CREATE ROLE {role} LOGIN IN ROLE pg_read_all_data, pg_write_all_data")
        try:
            with monkeypatch.context() as patch:
                patch.setattr(
                    module, "connection_string", lambda: re.sub(r"//[^@]*@", f"//{role}@", connection_string())
                )
                with pytest.raises(ProjectionError, match=r"nothing was scrubbed.*pg_read_all_stats"):
                    purge_and_scrub(tables, ids, memory.last_lsn)
                sql(f"GRANT pg_read_all_stats TO {role}")
                with pytest.raises(ProjectionError, match=r"may still stand in") as caught:
                    purge_and_scrub(tables, ids, memory.last_lsn)
            for part in ("statistics", stored(tables, "dead_letters").name, "write-ahead log"):
                assert part in str(caught.value)
        finally:
            sql(f"DROP ROLE {role}")
        purge_and_scrub(tables, ids, memory.last_lsn)
        assert found_on_disk(canaries) == {}


def test_the_public_api_alone_cannot(tmp_path: Path, store_name: str) -> None:
    from pixelmemory.projection.contract import Capability

    with open_memory(tmp_path, store_name, direct_sql=False) as memory:
        memory.add_entry("text", memory_id="id", embedding=vector(1))
        memory.flush()
        assert "direct_sql" in host_of(memory).lacks[Capability.PURGE]
        with pytest.raises(ProjectionError, match="direct_sql"):
            memory.erase_memory("id")
        with pytest.raises(ProjectionError, match="direct_sql"):
            memory.erase_namespace(NAMESPACE)
        assert memory.get_memory("id") is not None


if __name__ == "__main__":
    _serve()
