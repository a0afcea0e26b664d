"""Opening and closing: what a handle does before, while and after it is closed, and when nobody closes it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from pixelmemory import (
    AsyncMemory,
    InvalidArgumentError,
    Memory,
    PixelmemoryError,
    StoreClosedError,
    StoreLockedError,
    WaitTimeoutError,
)
from pixelmemory.loop_thread import LoopThread, Place
from tests.harness.engine_tools import GIVEN, async_memory, open_memory, options_at, vector


@contextlib.contextmanager
def stalled_projector(memory: AsyncMemory | Memory) -> Iterator[threading.Event]:
    """Hold the projector's writer thread until the block ends or the event is set."""
    inner = memory._memory if isinstance(memory, Memory) else memory
    assert inner._engine is not None
    go_on, held = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        go_on.wait()

    assert inner._engine._store is not None
    inner._engine._store.projection.projector.request(hold)
    held.wait()
    try:
        yield go_on
    finally:
        go_on.set()


# ------------------------------------------------------------------------------------------------- context managers


def test_memory_is_a_context_manager(tmp_path: Path, store_name: str) -> None:
    with open_memory(tmp_path, store_name) as memory:
        assert isinstance(memory, Memory)
        assert "open" in repr(memory)
        memory_id = memory.add_entry("kept", embedding=vector(1))
    assert "closed" in repr(memory)
    with open_memory(tmp_path, store_name) as memory:
        record = memory.get_memory(memory_id)
        assert record is not None
        assert record["content"] == "kept"


def test_an_error_in_the_block_passes_through_and_closes(tmp_path: Path, store_name: str) -> None:
    def use() -> None:
        with open_memory(tmp_path, store_name) as memory:
            memory.add_entry("kept", embedding=vector(1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    with open_memory(tmp_path, store_name) as memory:
        assert memory.count() == 1


@pytest.mark.anyio
async def test_async_memory_is_a_context_manager(tmp_path: Path, store_name: str) -> None:
    async with async_memory(tmp_path, store_name) as memory:
        memory_id = await memory.add_entry("kept", embedding=vector(1))
    assert "closed" in repr(memory)
    async with await AsyncMemory.open(store_name, None, GIVEN, options=options_at(tmp_path)) as memory:
        assert await memory.get_memory(memory_id) is not None


@pytest.mark.anyio
async def test_a_handle_opens_once(tmp_path: Path, store_name: str) -> None:
    memory = async_memory(tmp_path, store_name)
    with pytest.raises(StoreClosedError):
        await memory.add_entry("too early", embedding=vector(1))
    async with memory:
        with pytest.raises(StoreClosedError):
            await memory._open()
    with pytest.raises(StoreClosedError):
        await memory.add_entry("too late", embedding=vector(1))


# ---------------------------------------------------------------------------------------------------------- closing


def test_close_is_idempotent_and_drains(tmp_path: Path, store_name: str) -> None:
    memory = open_memory(tmp_path, store_name, linger_seconds=0.2)
    memory.add_entries([{"content": f"{n}", "embedding": vector(n)} for n in range(500)])
    memory.close()
    memory.close()
    with open_memory(tmp_path, store_name) as memory:
        # no wait: what the close has drained is visible at once
        assert memory.count(consistency="eventual") == 500


def test_threads_that_close_at_the_same_time_all_wait_for_the_end(tmp_path: Path, store_name: str) -> None:
    memory = open_memory(tmp_path, store_name)
    memory.add_entries([{"content": f"{n}", "embedding": vector(n)} for n in range(500)])
    still_held: list[bool] = []

    def close() -> None:
        memory.close()
        with open(tmp_path / store_name / "LOCK") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                still_held.append(True)

    threads = [threading.Thread(target=close) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not still_held


@pytest.mark.anyio
async def test_tasks_that_close_at_the_same_time_all_wait_for_the_end(tmp_path: Path, store_name: str) -> None:
    memory = async_memory(tmp_path, store_name)
    await memory._open()
    await memory.add_entries([{"content": f"{n}", "embedding": vector(n)} for n in range(500)])

    async def close_and_look() -> None:
        await memory.aclose()
        with contextlib.suppress(PixelmemoryError):  # one of them has it open again
            async with async_memory(tmp_path, store_name) as again:
                opened.append(await again.count())

    opened: list[int] = []
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(close_and_look)
    assert opened
    assert set(opened) == {500}


USES: dict[str, tuple[Any, ...]] = {
    "add_entry": ("x",),
    "add_entries": ([{"content": "x"}],),
    "get_memory": ("x",),
    "search": (),
    "list_memories": (),
    "delete_where": ("x", {"n": 1}),
    "delete_namespace": ("x",),
    "update_memory": ("x",),
    "delete_memory": ("x",),
    "delete_memories": (["x"],),
    "erase_memory": ("x",),
    "erase_memories": (["x"],),
    "erase_namespace": ("x",),
    "compact": (),
    "get_namespace_table": ("x",),
    "namespaces": (),
    "truncated_memories": (),
    "count": (),
    "flush": (),
    "retry_dead_letters": (),
    "stats": (),
    "health": (),
}

#: what is asked of the class
NEED_NO_STORE = ("destroy", "stores", "temporary")


def test_every_use_after_close_is_an_error(tmp_path: Path, store_name: str) -> None:
    memory = open_memory(tmp_path, store_name)
    memory.close()
    public = {name for name in dir(Memory) if not name.startswith("_")}
    assert public - {"close", "last_lsn", "iterate", *NEED_NO_STORE} <= set(USES)
    for name in sorted(public & set(USES)):
        with pytest.raises(StoreClosedError):
            getattr(memory, name)(*USES[name])
    with pytest.raises(StoreClosedError):
        next(iter(memory.iterate()))
    assert memory.last_lsn == 0


@pytest.mark.anyio
async def test_every_async_use_after_close_is_an_error(tmp_path: Path, store_name: str) -> None:
    async with async_memory(tmp_path, store_name) as memory:
        pass
    for name in sorted({name for name in dir(AsyncMemory) if not name.startswith("_")} & set(USES)):
        with pytest.raises(StoreClosedError):
            await getattr(memory, name)(*USES[name])
    with pytest.raises(StoreClosedError):
        await anext(memory.iterate())
    await memory.aclose()


@pytest.mark.anyio
async def test_those_who_wait_when_the_store_closes_are_told(tmp_path: Path, store_name: str) -> None:
    """A reader that waits for an LSN, and a writer that waits for room, learn that the store was closed."""
    memory = async_memory(tmp_path, store_name, wait_timeout_seconds=0.3, lag_events_max=1)
    await memory._open()
    errors: list[str] = []

    async def told(call: Any) -> None:
        try:
            await call
        except PixelmemoryError as error:
            errors.append(type(error).__name__)

    with stalled_projector(memory) as go_on:
        await memory.add_entry("durable", embedding=vector(1))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(told, memory.search(timeout=100, consistency=memory.last_lsn))
            tasks.start_soon(told, memory.add_entry("no room", embedding=vector(2)))
            await anyio.sleep(0.1)
            tasks.start_soon(memory.aclose)
            await anyio.sleep(0.6)  # the close has given up waiting for the projection, and waits for its thread
            go_on.set()
    assert errors == ["StoreClosedError", "StoreClosedError"]
    async with async_memory(tmp_path, store_name) as memory:
        assert await memory.count() == 1


@pytest.mark.anyio
async def test_a_close_that_cannot_drain_loses_nothing(tmp_path: Path, store_name: str) -> None:
    memory = async_memory(tmp_path, store_name, wait_timeout_seconds=0.1)
    await memory._open()
    with stalled_projector(memory) as go_on:
        await memory.add_entry("durable", embedding=vector(1))
        with pytest.raises(WaitTimeoutError):
            await memory.flush()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(memory.aclose)
            await anyio.sleep(0.3)
            go_on.set()
    async with async_memory(tmp_path, store_name) as memory:
        assert await memory.count() == 1


# --------------------------------------------------------------------------------------------------- nobody closes it


def test_a_dropped_memory_warns_and_loses_nothing(tmp_path: Path, store_name: str) -> None:
    memory = open_memory(tmp_path, store_name)
    ids = [memory.add_entry(f"{n}", embedding=vector(n)) for n in range(50)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        del memory
        gc.collect()
    assert [str(one.message) for one in caught if "without close" in str(one.message)] == [
        f"<Memory '{store_name}' open> was dropped without close(); nothing acknowledged is lost"
    ]
    with open_memory(tmp_path, store_name) as memory:
        assert {record["memory_id"] for record in memory.search(limit=100)} == set(ids)


@pytest.mark.anyio
async def test_a_dropped_async_memory_warns_and_loses_nothing(tmp_path: Path, store_name: str) -> None:
    memory = async_memory(tmp_path, store_name)
    await memory._open()
    ids = [await memory.add_entry(f"{n}", embedding=vector(n)) for n in range(50)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        del memory
        gc.collect()
    assert [str(one.message) for one in caught if "without close" in str(one.message)] == [
        f"<AsyncMemory '{store_name}' open> was dropped without close(); nothing acknowledged is lost"
    ]
    async with async_memory(tmp_path, store_name) as memory:
        assert {record["memory_id"] for record in await memory.search(limit=100)} == set(ids)


def test_a_dropped_memory_lets_go_also_where_warnings_are_errors(
    tmp_path: Path, store_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: unraisable.append(what.exc_type))
    memory = open_memory(tmp_path, store_name)
    memory.add_entry("kept", embedding=vector(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del memory
        gc.collect()
    assert unraisable == [ResourceWarning]
    with open_memory(tmp_path, store_name) as memory:
        assert memory.count() == 1


def test_a_memory_that_did_not_open_leaves_nothing_behind(tmp_path: Path, store_name: str) -> None:
    threads = threading.active_count()
    with open_memory(tmp_path, store_name):
        for _ in range(3):
            with pytest.raises(StoreLockedError):
                open_memory(tmp_path, store_name, lag_events_max=5)
    gc.collect()
    assert threading.active_count() <= threads + 1  # anyio keeps idle workers for a moment


@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.08, 0.15])
def test_an_open_that_is_cancelled_lets_go_of_the_store(tmp_path: Path, store_name: str, seconds: float) -> None:
    """With asyncio's own cancellation: the thread that opens cannot be stopped, and must not keep what it opened."""

    async def main() -> int:
        try:
            async with asyncio.timeout(seconds):
                memory = await AsyncMemory.open(store_name, None, GIVEN, options=options_at(tmp_path))
        except TimeoutError:
            pass
        else:
            await memory.aclose()
        for _ in range(200):
            try:
                async with async_memory(tmp_path, store_name) as memory:
                    await memory.add_entry("works", embedding=vector(1))
                    return await memory.count()
            except PixelmemoryError:
                await asyncio.sleep(0.05)
        return 0

    assert asyncio.run(main()) == 1


@pytest.mark.anyio
async def test_an_open_in_a_cancelled_scope_lets_go_of_the_store(tmp_path: Path, store_name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the scope ends before anybody has the handle
        with anyio.move_on_after(0.05) as scope:
            memory = await AsyncMemory.open(store_name, None, GIVEN, options=options_at(tmp_path))
            await anyio.lowlevel.checkpoint()
            await memory.aclose()
        assert scope.cancelled_caught
        memory = None  # type: ignore[assignment]
        gc.collect()
    async with async_memory(tmp_path, store_name) as again:
        await again.add_entry("works", embedding=vector(1))


def test_an_argument_that_only_the_database_refuses_leaves_no_half_made_store(tmp_path: Path, store_name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="dimensions"):
        Memory(store_name, None, {"dimensions": 5000}, options=options_at(tmp_path))
    with open_memory(tmp_path, store_name) as memory:
        memory.add_entry("works", embedding=vector(1))


# ------------------------------------------------------------------------------------------------------- the loop


def test_whoever_leaves_while_the_loop_ends_has_left() -> None:
    """As after a Ctrl-C in a close, whose leave is under way when the next close leaves once more."""
    place = Place()
    loop = LoopThread.borrow("no store", place)
    second_began = anyio.Event()

    async def wait_for_second() -> None:
        await second_began.wait()

    async def begin_and_wait() -> None:
        second_began.set()
        await anyio.sleep_forever()

    first = loop.leave(place, wait_for_second, cancel=False)
    second = loop.leave(place, begin_and_wait, cancel=False)
    assert first.wait(60)
    assert first.outcome() is True
    assert second.wait(60)
    assert second.outcome() is None
    loop.wait_for_end(60)


def test_whoever_leaves_once_the_loop_ends_its_tasks_has_left() -> None:
    place = Place()
    loop = LoopThread.borrow("no store either", place)
    ending, go_on = threading.Event(), threading.Event()
    tasks: list[asyncio.Task[None]] = []

    async def outlive_the_stop() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ending.set()
            await asyncio.get_running_loop().run_in_executor(None, go_on.wait)

    async def begin() -> None:
        tasks.append(asyncio.get_running_loop().create_task(outlive_the_stop()))
        await asyncio.sleep(0)

    first = loop.leave(place, begin, cancel=False)
    assert ending.wait(60)
    second = loop.leave(place, anyio.sleep_forever, cancel=False)
    time.sleep(0.1)  # so that the loop has received it
    go_on.set()
    assert first.wait(60)
    assert second.wait(60)
    assert not second.outcome()
    loop.wait_for_end(60)
