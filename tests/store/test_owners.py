"""Who may use a store: one process, one handle, its own event loop, and not a child of a fork."""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pixeltable as pxt
import psycopg
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

import pixelmemory.sync
from pixelmemory import AsyncMemory, Memory, StoreClosedError, StoreLockedError, WrongThreadError
from pixelmemory.projection.pixeltable.tables import legacy_folder_name
from pixelmemory.store.lock import StoreLock
from tests.harness.engine_tools import (
    GIVEN,
    answer_of,
    async_memory,
    open_memory,
    options_at,
    run_script,
    tables_path,
    vector,
    with_pixeltable,
)

# -------------------------------------------------------------------------------------------------------- two openers


def test_a_second_handle_in_this_process_is_the_same_store(tmp_path: Path, store_name: str) -> None:
    """As in a notebook, whose cell is run again. It is closed with its last handle."""
    first = open_memory(tmp_path, store_name)
    first.add_entry("one", embedding=vector(1))
    second = open_memory(tmp_path, store_name)
    assert second.count() == 1
    second.add_entry("two", embedding=vector(2))
    assert first.count() == 2
    first.close()
    first.close()
    with pytest.raises(StoreClosedError):
        first.count()
    assert second.count() == 2
    with open_memory(tmp_path, store_name) as third:
        assert third.count() == 2
    second.add_entry("three", embedding=vector(3))
    second.close()
    lock = StoreLock.acquire(tmp_path / store_name / "LOCK")
    lock.release()
    with open_memory(tmp_path, store_name) as memory:
        assert memory.count() == 3


def test_a_handle_that_is_dropped_leaves_the_others_open(tmp_path: Path, store_name: str) -> None:
    memory = open_memory(tmp_path, store_name)
    again = open_memory(tmp_path, store_name)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        del memory
        gc.collect()
    assert [warning.category for warning in told] == [ResourceWarning]
    again.add_entry("goes on", embedding=vector(1))
    assert again.count() == 1
    again.close()
    StoreLock.acquire(tmp_path / store_name / "LOCK").release()


@pytest.mark.anyio
async def test_handles_of_one_event_loop_share_a_store(tmp_path: Path, store_name: str) -> None:
    async with async_memory(tmp_path, store_name) as one:
        opened: list[AsyncMemory] = []

        async def open_another() -> None:
            opened.append(await async_memory(tmp_path, store_name).__aenter__())

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(open_another)
        for number, each in enumerate(opened):
            await each.add_entry("x", embedding=vector(number))
        assert await one.count() == 5
        for each in opened:
            await each.aclose()
        assert await one.count() == 5
        with pytest.raises(StoreLockedError, match="another event loop"):
            await anyio.to_thread.run_sync(open_memory, tmp_path, store_name)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"embedding": None}, "embedding_config"),
        ({"schema": {"a": int}}, "schema"),
        ({"lag_events_max": 5}, "options"),
    ],
)
def test_a_second_handle_with_other_arguments_is_refused(
    tmp_path: Path, store_name: str, changes: dict[str, Any], what: str
) -> None:
    with open_memory(tmp_path, store_name) as memory:
        options = {name: value for name, value in changes.items() if name not in ("embedding", "schema")}
        given = options_at(tmp_path, **options)
        with pytest.raises(StoreLockedError, match=f"this process .* with another {what}") as caught:
            Memory(store_name, changes.get("schema"), changes.get("embedding", GIVEN), options=given)
        assert caught.value.pid == os.getpid()
        memory.add_entry("not disturbed", embedding=vector(1))
        assert memory.count() == 1


def test_many_threads_that_open_one_store_share_it(tmp_path: Path, store_name: str) -> None:
    def use(number: int) -> int:
        with open_memory(tmp_path, store_name) as memory:
            memory.add_entry("x", embedding=vector(number))
            return memory.count()

    for _ in range(3):
        with ThreadPoolExecutor(8) as threads:
            counts = list(threads.map(use, range(16)))
        assert max(counts) <= 48
    with open_memory(tmp_path, store_name) as memory:
        assert memory.count() == 48


def test_another_process_is_refused_and_told_the_owner(tmp_path: Path, store_name: str) -> None:
    script = """
        import json, sys
        from tests.harness.engine_tools import Memory, GIVEN, options_at
        from pixelmemory import StoreLockedError
        home, name = sys.argv[1:]
        try:
            # were the model loaded before the lock is tried, this would be another error
            Memory(name, None, "/no/such/model", options=options_at(home))
        except StoreLockedError as error:
            print(json.dumps([error.pid, str(error), "pixeltable" in sys.modules]))
    """
    with open_memory(tmp_path, store_name) as memory:
        pid, message, pixeltable_was_loaded = answer_of(run_script(script, tmp_path, store_name))
        assert pid == os.getpid()
        assert str(pid) in message
        assert not pixeltable_was_loaded
        memory.add_entry("not disturbed", embedding=vector(1))
        assert memory.count() == 1


def test_stores_of_one_name_in_different_homes_do_not_touch_each_other(tmp_path: Path, store_name: str) -> None:
    """Their tables have folders of their own, so that what users add to them stays too."""
    with open_memory(tmp_path / "a", store_name) as a:
        a.add_entry("of a", embedding=vector(1))
        a.get_namespace_table("default_namespace").insert([{"memory_id": uuid.uuid4(), "content": "a row of the user"}])
        with open_memory(tmp_path / "b", store_name) as b:
            assert b.count() == 0
            b.add_entry("of b", embedding=vector(3))
            a.add_entry("of a, too", embedding=vector(2))
            assert (a.count(), b.count()) == (3, 1)
    with open_memory(tmp_path / "b", store_name, rebuild=True) as b:
        assert {record["content"] for record in b.search()} == {"of b"}
    with open_memory(tmp_path / "a", store_name) as a:
        assert {record["content"] for record in a.search()} == {"of a", "of a, too", "a row of the user"}


@pytest.mark.parametrize("is_open", [True, False])
def test_a_copy_of_a_store_has_tables_of_its_own(tmp_path: Path, store_name: str, is_open: bool) -> None:
    """It bears the same id. With the same tables each would write over the other's."""
    a = open_memory(tmp_path / "a", store_name)
    a.add_entry("of both", embedding=vector(1))
    a.flush()
    if not is_open:
        a.close()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.copytree(tmp_path / "a" / store_name, tmp_path / "a" / f"{store_name}_copy")
    if not is_open:
        a = open_memory(tmp_path / "a", store_name)
    a.add_entry("of a", embedding=vector(2))
    with open_memory(tmp_path / "b", store_name) as b, open_memory(tmp_path / "a", f"{store_name}_copy") as c:
        b.add_entry("of b", embedding=vector(2))
        b.add_entry("of b, too", embedding=vector(3))
        assert {record["content"] for record in b.search()} == {"of both", "of b", "of b, too"}
        assert {record["content"] for record in c.search()} == {"of both"}
        assert {record["content"] for record in a.search()} == {"of both", "of a"}
    a.close()
    with open_memory(tmp_path / "b", store_name) as b:
        assert {record["content"] for record in b.search()} == {"of both", "of b", "of b, too"}
    with open_memory(tmp_path / "a", store_name) as a:
        assert {record["content"] for record in a.search()} == {"of both", "of a"}


def test_a_store_that_was_moved_by_copying_keeps_its_tables(tmp_path: Path, store_name: str) -> None:
    """As from one file system to another, or out of an archive: the old place is empty."""
    with open_memory(tmp_path / "a", store_name) as memory:
        memory.add_entry("mine", embedding=vector(1))
        memory.get_namespace_table("default_namespace").insert([{"memory_id": uuid.uuid4(), "content": "the user's"}])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    with open_memory(tmp_path / "b", store_name) as memory:
        assert {record["content"] for record in memory.search()} == {"mine", "the user's"}


def test_tables_named_as_0_1_0_named_them_move_with_what_users_added(tmp_path: Path, store_name: str) -> None:
    """Without a rebuild; those of another store with that name are left alone."""
    with open_memory(tmp_path / "a", store_name) as a:
        a.add_entry("of a", embedding=vector(1))
        a.get_namespace_table("default_namespace").insert([{"memory_id": uuid.uuid4(), "content": "a row of the user"}])
    legacy = f"pixelmemory/{legacy_folder_name(store_name)}"
    with_pixeltable(lambda: pxt.move(tables_path(store_name), legacy))
    with open_memory(tmp_path / "b", store_name) as b:  # not its own
        assert b.count() == 0
    with open_memory(tmp_path / "a", store_name) as a:
        assert {record["content"] for record in a.search()} == {"of a", "a row of the user"}
    assert legacy not in with_pixeltable(lambda: pxt.list_dirs("pixelmemory", recursive=False))


def test_a_store_that_was_renamed_keeps_its_tables(tmp_path: Path, store_name: str) -> None:
    with open_memory(tmp_path, store_name) as memory:
        memory.add_entry("mine", embedding=vector(1))
        memory.get_namespace_table("default_namespace").insert([{"memory_id": uuid.uuid4(), "content": "the user's"}])
    (tmp_path / store_name).rename(tmp_path / f"{store_name}_renamed")
    with open_memory(tmp_path, f"{store_name}_renamed") as memory:
        assert {record["content"] for record in memory.search()} == {"mine", "the user's"}
        assert f"/{store_name}_renamed_" in memory.get_namespace_table("default_namespace").get_metadata()["path"]


@pytest.mark.parametrize("alive", [False, True])
def test_the_claim_of_a_process_that_has_ended_is_waited_for(
    tmp_path: Path, store_name: str, alive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server notices a killed client a moment later: its session stands in nobody's way, a live one's does."""
    from pixelmemory.projection.pixeltable import claim
    from pixelmemory.projection.pixeltable.startup import connection_string

    open_memory(tmp_path, store_name).close()
    claimed = with_pixeltable(lambda: tables_path(store_name))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    pid = os.getpid() if alive else ended.pid
    digest = hashlib.blake2b(claimed.encode(), digest_size=8).digest()
    with psycopg.connect(
        connection_string(), autocommit=True, application_name=f"pixelmemory {pid}@{socket.gethostname()}"
    ) as session:
        session.execute("SELECT pg_advisory_lock(%s)", (int.from_bytes(digest, "big", signed=True),))
        if alive:
            monkeypatch.setattr(claim, "ORPHAN_SECONDS_MAX", 2.0)
            with pytest.raises(StoreLockedError):
                open_memory(tmp_path, store_name)
            return
        opened: list[int] = []
        thread = threading.Thread(target=lambda: opened.append(_count(tmp_path, store_name)))
        thread.start()
        thread.join(0.5)
        assert not opened
        session.execute("SELECT pg_advisory_unlock_all()")
        thread.join()
        assert opened == [0]


def _count(home: Path, name: str) -> int:
    with open_memory(home, name) as memory:
        return memory.count()


# ------------------------------------------------------------------------------------------------------------- forks

FORK = """
    import json, os, sys, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks where threads run
    import anyio
    from tests.harness.engine_tools import open_memory, vector
    from pixelmemory import StoreForkedError

    home, name = sys.argv[1:]
    memory = open_memory(home, name)
    kept = memory.add_entry("before the fork", embedding=vector(1))
    memory.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        outcome = []
        for use in (
            memory.count,
            lambda: memory.add_entry("by the child", embedding=vector(2)),
            memory.search,
            lambda: anyio.run(memory._memory.add_entry, "by the child"),
        ):
            try:
                use()
                outcome.append("no error")
            except BaseException as error:
                outcome.append(type(error).__name__)
        memory.close()
        os.write(writing, json.dumps(outcome).encode())
        del memory
        sys.exit(0)  # as the interpreter ends, with everything that it collects and joins
    os.close(writing)
    outcome = json.loads(os.read(reading, 10_000))
    # with the child still ending, and after it
    more = [memory.add_entry(f"after the fork {n}", embedding=vector(n)) for n in range(20)]
    _, status = os.waitpid(child, 0)
    found = {record["memory_id"] for record in memory.search(limit=100)}
    more.append(memory.add_entry("after the child", embedding=vector(3)))
    memory.flush()
    count, health = memory.count(), list(memory.health())
    memory.close()
    print(json.dumps([outcome, status, kept in found and found < {kept, *more}, count, health]))
"""


def test_the_child_of_a_fork_gets_an_error_and_the_parent_goes_on(tmp_path: Path, store_name: str) -> None:
    done = run_script(FORK, tmp_path, store_name)
    outcome, status, found, count, health = answer_of(done)
    assert outcome == ["StoreForkedError"] * 4
    assert status == 0
    assert found
    assert count == 22
    assert health == [True, []]
    assert "Traceback" not in done.stderr
    with open_memory(tmp_path, store_name) as memory:
        assert memory.count() == 22


# ------------------------------------------------------------------------------------------------- threads and loops


def test_a_call_from_the_stores_own_loop_is_an_error(tmp_path: Path, store_name: str) -> None:
    with open_memory(tmp_path, store_name) as memory:
        loop, place = memory._loop, memory._place
        assert loop is not None

        async def called(method: Callable[[], object]) -> object:
            return method()

        with pytest.raises(WrongThreadError):
            loop.call(place, called, memory.count)
        with pytest.raises(WrongThreadError):
            loop.call(place, called, memory.close)
        assert memory.count() == 0
    assert "closed" in repr(memory)


@pytest.fixture
def other_loop(anyio_backend: str) -> Iterator[BlockingPortal]:
    with start_blocking_portal(anyio_backend) as portal:
        yield portal


def test_another_event_loop_is_an_error(tmp_path: Path, store_name: str, other_loop: BlockingPortal) -> None:
    async def opened() -> AsyncMemory:
        memory = async_memory(tmp_path, store_name)
        await memory._open()
        return memory

    async def used(memory: AsyncMemory) -> None:
        await memory.add_entry("from elsewhere", embedding=vector(1))

    with start_blocking_portal("asyncio") as home_loop:
        memory = home_loop.call(opened)
        try:
            with pytest.raises(WrongThreadError):
                other_loop.call(used, memory)
            with pytest.raises(WrongThreadError):
                other_loop.call(memory.count)
            with pytest.raises(WrongThreadError):
                other_loop.call(memory.aclose)
            home_loop.call(used, memory)
            assert home_loop.call(memory.count) == 1
        finally:
            home_loop.call(memory.aclose)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_memory_inside_a_running_loop_works_and_warns_once(
    tmp_path: Path, store_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixelmemory.sync, "_warned_of_running_loop", False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with open_memory(tmp_path, store_name) as memory:
            memory.add_entry("in a notebook", embedding=vector(1))
            assert memory.count() == 1
            assert memory.search(vector=vector(1))[0]["content"] == "in a notebook"
    about_loops = [one for one in caught if one.category is RuntimeWarning]
    assert ["event loop" in str(one.message) for one in about_loops] == [True]


def test_memory_without_a_running_loop_does_not_warn(
    tmp_path: Path, store_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixelmemory.sync, "_warned_of_running_loop", False)
    with open_memory(tmp_path, store_name) as memory:
        memory.count()
    assert not pixelmemory.sync._warned_of_running_loop


def test_threads_share_one_memory(tmp_path: Path, store_name: str) -> None:
    """Each thread sees its own writes at once; together they leave what each of them left."""
    threads_count, rounds = 8, 12
    expected: dict[str, str] = {}
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(rounds):
                memory_id = f"{number}-{step}"
                memory.add_entry(f"first {memory_id}", memory_id=memory_id, embedding=vector(step))
                record = memory.get_memory(memory_id)
                assert record is not None
                assert record["content"] == f"first {memory_id}"
                if step % 3 == 0:
                    assert memory.delete_memory(memory_id)
                    assert memory.get_memory(memory_id) is None
                    continue
                assert memory.update_memory(memory_id, content=f"then {memory_id}", embedding=vector(step + 1))
                found = memory.search(metadata_filter={}, limit=1000)
                assert f"then {memory_id}" in {record["content"] for record in found}
                expected[memory_id] = f"then {memory_id}"
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test shows it
            errors.append(error)

    with open_memory(tmp_path, store_name) as memory:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(threads_count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert {record["memory_id"]: record["content"] for record in memory.search(limit=1000)} == expected
