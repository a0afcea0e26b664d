"""refused: events that the projection cannot take. One memory's events become dead letters, and nothing else waits."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import pytest

from pixelmemory import Memory
from tests.harness import engine_udfs
from tests.harness.engine_oracle import check_store, dead_letters_of, events_of, rows_of
from tests.harness.engine_tools import async_memory, open_memory, options_at, tables_path, vector, with_pixeltable
from tests.harness.fault_report import FaultReport
from tests.harness.refusals import accept_marked, refuse_marked

VARIANTS = pytest.mark.parametrize(
    "options", [{}, {"direct_sql": False}, {"layout": "shared"}], ids=["default", "public API", "shared layout"]
)


def _options(options: dict[str, object]) -> dict[str, object]:
    from pixelmemory import Layout

    return options | ({"layout": Layout.SHARED} if options.get("layout") == "shared" else {})


@VARIANTS
def test_one_refused_event_in_a_batch(
    tmp_path: Path, store_name: str, options: dict[str, object], fault_report: FaultReport
) -> None:
    """Added in the middle of a hundred; updated and deleted while it is a dead letter; mended after a reopen."""
    options = _options(options)
    with open_memory(tmp_path, store_name, linger_seconds=0.5, **options) as memory:
        memory.add_entry("the table exists", embedding=vector(0))
        memory.flush()
        refuse_marked(store_name)
        entries = [{"content": f"good {n}", "memory_id": f"m{n}", "embedding": vector(n)} for n in range(100)]
        entries[57] = {"content": "refused", "memory_id": "bad", "embedding": vector(57)}
        memory.add_entries(entries)
        bad_lsn = 1 + 57 + 1
        # while nothing of it is visible yet, the memory exists: later events of it wait behind the first
        assert memory.update_memory("bad", metadata={"later": 1})
        assert memory.update_memory("m3", metadata={"later": 1})
        memory.flush()
        letters = dead_letters_of(store_name)
        assert set(letters) == {bad_lsn, 102}
        assert "no_refused" in letters[bad_lsn]
        health = memory.health()
        assert not health.ok
        assert any(f"LSN {bad_lsn}" in problem and "no_refused" in problem for problem in health.problems)
        assert memory.stats().dead_letters == 2
        assert memory.get_memory("bad") is None
        assert memory.count() == 100
        # other memories go on, and so do other events of the same batch sizes
        assert memory.delete_memory("m4")
        memory.add_entry("later", memory_id="later", embedding=vector(1))
        assert memory.get_memory("later") is not None
        memory.flush()
        assert check_store(tmp_path, store_name)
    with open_memory(tmp_path, store_name, **options) as memory:
        assert memory.stats().dead_letters == 2
        assert not memory.health().ok
        assert memory.retry_dead_letters() == 0  # nothing was mended
        assert memory.stats().dead_letters == 2
        accept_marked(store_name)
        assert memory.retry_dead_letters() == 2
        assert memory.health().ok
        record = memory.get_memory("bad")
        assert record is not None
        assert record["metadata"] == {"later": 1}
        assert memory.delete_memory("bad")
        memory.flush()
        assert not dead_letters_of(store_name)
        check_store(tmp_path, store_name)
    with open_memory(tmp_path, store_name, **options) as memory:
        assert memory.health().ok
    fault_report.add("refused: event refused by the projection")


def test_an_update_that_is_refused_keeps_later_events_of_its_memory_in_order(
    tmp_path: Path, store_name: str, fault_report: FaultReport
) -> None:
    with open_memory(tmp_path, store_name) as memory:
        for name in ("a", "b"):
            memory.add_entry(f"first {name}", memory_id=name, embedding=vector(1))
        memory.flush()
        refuse_marked(store_name)
        memory.update_memory("a", content="refused a", embedding=vector(2))
        memory.flush()
        memory.update_memory("a", content="third a", embedding=vector(3))
        memory.update_memory("b", content="second b", embedding=vector(2))
        memory.flush()
        # "third a" could be applied, and would then be overtaken by "refused a" at the retry
        assert set(dead_letters_of(store_name)) == {3, 4}
        contents = {record["memory_id"]: record["content"] for record in memory.search()}
        assert contents == {"a": "first a", "b": "second b"}
        check_store(tmp_path, store_name)
        assert memory.retry_dead_letters() == 2  # together they are one change, which the table takes
        contents = {record["memory_id"]: record["content"] for record in memory.search()}
        assert contents == {"a": "third a", "b": "second b"}
        assert memory.health().ok
        check_store(tmp_path, store_name)
    fault_report.add("refused: event refused by the projection")


def test_events_wait_behind_a_dead_letter_of_an_earlier_life(tmp_path: Path, store_name: str) -> None:
    with open_memory(tmp_path, store_name) as memory:
        memory.add_entry("first", memory_id="a", embedding=vector(1))
        memory.flush()
        refuse_marked(store_name)
        memory.update_memory("a", content="refused", embedding=vector(2))
        memory.flush()
    with open_memory(tmp_path, store_name) as memory:
        memory.update_memory("a", content="third", embedding=vector(3))
        memory.flush()
        assert set(dead_letters_of(store_name)) == {2, 3}
        assert [record["content"] for record in memory.search()] == ["first"]
        accept_marked(store_name)
        assert memory.retry_dead_letters() == 2
        assert [record["content"] for record in memory.search()] == ["third"]
        check_store(tmp_path, store_name)


def test_a_delete_waits_behind_a_dead_letter_and_answers_what_was_acknowledged(tmp_path: Path, store_name: str) -> None:
    with open_memory(tmp_path, store_name) as memory:
        memory.add_entry("first", memory_id="a", embedding=vector(1))
        memory.flush()
        refuse_marked(store_name)
        assert memory.update_memory("a", content="refused", embedding=vector(2))
        memory.flush()
        assert memory.delete_memory("a")
        memory.flush()
        assert not memory.delete_memory("a")  # it was deleted, and that is on record
        assert not memory.update_memory("a", metadata={})
        memory.add_entry("again", memory_id="a", embedding=vector(3))
        assert [event.type_code for event in events_of(tmp_path / store_name)] == [1, 2, 3, 1]
        memory.flush()
        assert memory.retry_dead_letters() == 3
        record = memory.get_memory("a")
        assert record is not None
        assert record["content"] == "again"
        check_store(tmp_path, store_name)


def test_a_row_that_a_user_put_where_an_add_belongs_makes_way(
    tmp_path: Path, store_name: str, fault_report: FaultReport
) -> None:
    """The log is the truth: it acknowledged the memory before the row was there."""
    from pixelmemory import Layout

    memory_id = uuid.uuid4()
    with open_memory(tmp_path, store_name, linger_seconds=1.0, layout=Layout.PER_NAMESPACE) as memory:
        memory.add_entry("other", embedding=vector(1))
        memory.flush()
        memory.add_entry("of the log", memory_id=str(memory_id), embedding=vector(2))
        memory.add_entry("beside it", embedding=vector(3))

        def insert() -> None:
            import pixeltable as pxt

            registry = pxt.get_table(f"{tables_path(store_name)}/registry")
            (row,) = registry.select(registry.table_name).collect()
            pxt.get_table(f"{tables_path(store_name)}/{row['table_name']}").insert(
                [{"memory_id": memory_id, "content": "of the user"}]
            )

        with_pixeltable(insert)
        memory.flush()
        assert memory.count() == 3
        record = memory.get_memory(str(memory_id))
        assert record is not None
        assert record["content"] == "of the log"
        assert memory.health().ok
        check_store(tmp_path, store_name)
    fault_report.add("refused: foreign row in the way")


@pytest.mark.anyio
async def test_a_row_that_a_user_deleted_makes_its_updates_dead_letters(
    tmp_path: Path, store_name: str, fault_report: FaultReport
) -> None:
    async with async_memory(tmp_path, store_name) as memory:
        for name in ("a", "b"):
            await memory.add_entry(f"first {name}", memory_id=name, embedding=vector(1))
        await memory.flush()
        table = await memory.get_namespace_table("default_namespace")
        import anyio.to_thread

        await anyio.to_thread.run_sync(lambda: with_pixeltable(lambda: table.delete(table.id_text == "a")))
        assert not await memory.update_memory("a", metadata={"x": 1})  # it is not there
        assert await memory.update_memory("b", metadata={"x": 1})
        await memory.flush()
        assert (await memory.health()).ok
        assert set(rows_of(store_name)) == {("default_namespace", "b")}
    fault_report.add("refused: row deleted by a user")


@pytest.mark.parametrize("direct_sql", [True, False], ids=["default", "public API"])
def test_an_update_of_a_row_that_a_user_deleted_meanwhile_is_a_dead_letter(
    tmp_path: Path, store_name: str, direct_sql: bool, fault_report: FaultReport
) -> None:
    """It was acknowledged while the row was there."""
    # the flush ends the lingering
    with open_memory(tmp_path, store_name, linger_seconds=30.0, direct_sql=direct_sql) as memory:
        for name in ("a", "b"):
            memory.add_entry(f"first {name}", memory_id=name, embedding=vector(1))
        table = memory.get_namespace_table("default_namespace")
        assert memory.update_memory("a", metadata={"x": 1})
        assert memory.update_memory("b", metadata={"x": 1})
        with_pixeltable(lambda: table.delete(table.id_text == "a"))
        memory.flush()
        assert set(dead_letters_of(store_name)) == {3}
        assert any("LSN 3" in problem for problem in memory.health().problems)
        assert [record["metadata"] for record in memory.search()] == [{"x": 1}]
    fault_report.add("refused: row deleted by a user")


def test_a_text_that_the_model_refuses(tmp_path: Path, store_name: str, fault_report: FaultReport) -> None:
    config = {"function": engine_udfs.embed_or_refuse}
    engine_udfs.mended = False
    try:
        with Memory(store_name, None, config, options=options_at(tmp_path, linger_seconds=0.5)) as memory:
            memory.add_entries([{"content": f"{'refused' if n == 7 else 'good'} {n}"} for n in range(20)])
            memory.flush()
            assert memory.count() == 19
            assert set(dead_letters_of(store_name)) == {8}
            assert not memory.health().ok
            assert {record["content"] for record in memory.search(query="good 3", limit=1)} == {"good 3"}
            engine_udfs.mended = True
            assert memory.retry_dead_letters() == 1
            assert memory.health().ok
            assert memory.count() == 20
    finally:
        engine_udfs.mended = False
    fault_report.add("refused: text refused by the model")


def test_a_dead_letter_is_a_wait_for_nobody(tmp_path: Path, store_name: str) -> None:
    """A session read after a poisoned write returns: the LSN is settled, as a dead letter."""
    with open_memory(tmp_path, store_name) as memory:
        memory.add_entry("the table exists", embedding=vector(0))
        memory.flush()
        refuse_marked(store_name)
        for n in range(5):
            memory.add_entry(f"refused {n}", embedding=vector(n))
            assert memory.count(consistency=memory.last_lsn) == 1
        assert memory.stats().lag_events == 0
        assert memory.stats().dead_letters == 5


def test_a_rebuild_gives_dead_letters_another_chance(tmp_path: Path, store_name: str) -> None:
    with open_memory(tmp_path, store_name) as memory:
        memory.add_entry("the table exists", embedding=vector(0))
        memory.flush()
        refuse_marked(store_name)
        memory.add_entry("refused", memory_id="p", embedding=vector(1))
        memory.flush()
        assert not memory.health().ok
    with open_memory(tmp_path, store_name, rebuild=True) as memory:
        assert memory.health().ok
        assert memory.get_memory("p") is not None
        check_store(tmp_path, store_name)


@pytest.mark.parametrize("options", [{}, {"direct_sql": False}], ids=["default", "public API"])
def test_a_table_that_lost_a_column_is_no_fault_of_the_events(
    tmp_path: Path, store_name: str, options: dict[str, object], fault_report: FaultReport
) -> None:
    """They wait, health tells, and a rebuild has them all."""
    from pixelmemory import Layout

    options = {"layout": Layout.PER_NAMESPACE, **options}  # nobody waits for the making of its table
    with open_memory(tmp_path, store_name, wait_timeout_seconds=0, retry_seconds_min=0.01, **options) as memory:
        memory.add_entry("before", memory_id="before", embedding=vector(1))
        memory.flush(timeout=30)
        table = memory.get_namespace_table("default_namespace")
        table.drop_column("metadata_text")
        assert memory.update_memory("before", metadata={"n": 1})
        memory.add_entries([{"content": f"after {n}", "embedding": vector(n)} for n in range(3)])
        deadline = time.monotonic() + 30
        while memory.health().ok and time.monotonic() < deadline:
            time.sleep(0.01)
        assert any("metadata_text" in problem for problem in memory.health().problems)
        assert memory.stats().dead_letters == 0
    with open_memory(tmp_path, store_name, rebuild=True, **options) as memory:
        memory.flush()
        assert memory.health().ok
        assert len(check_store(tmp_path, store_name)) == 4
    fault_report.add("a column dropped by a user")
