"""A projector thread that ends where it should not: nobody waits for ever, writes go on, and a reopen catches up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from pixelmemory import ProjectionUnavailableError
from pixelmemory.faults import set_fault_hook
from tests.harness.engine_oracle import check_store
from tests.harness.engine_tools import async_memory, vector
from tests.harness.fault_report import FaultReport


class _Bug(BaseException):
    """What no ``except Exception`` takes."""


@pytest.fixture
def hook() -> Iterator[Any]:
    yield set_fault_hook
    set_fault_hook(None)


@pytest.mark.parametrize("point", ["projector.fold", "apply.committed"], ids=["the reader", "the writer"])
@pytest.mark.anyio
async def test_waiters_are_told_and_writes_go_on(
    tmp_path: Path, store_name: str, point: str, hook: Any, fault_report: FaultReport
) -> None:
    armed = threading.Event()

    def die(name: str) -> None:
        if name == point and armed.is_set():
            raise _Bug(point)

    outcome: dict[str, str] = {}

    async def told(what: str, call: Any) -> None:
        try:
            outcome[what] = repr(await call)
        except ProjectionUnavailableError as error:
            outcome[what] = "told" if point in str(error) else f"told without the cause: {error}"

    hook(die)
    memory = async_memory(tmp_path, store_name, lag_events_max=10, lag_timeout_seconds=120, wait_timeout_seconds=120)
    async with memory:
        await memory.add_entry("seen", memory_id="seen", embedding=vector(1))
        await memory.flush()
        held, go_on = threading.Event(), threading.Event()
        assert memory._engine is not None
        assert memory._engine._store is not None
        projector = memory._engine._store.projection.projector

        def hold() -> None:
            held.set()
            go_on.wait()

        projector.request(hold)
        await anyio.to_thread.run_sync(held.wait)
        armed.set()
        await memory.add_entry("never seen", embedding=vector(2))
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(told, "search", memory.search(consistency=memory.last_lsn))
                tasks.start_soon(told, "a count", memory.count(consistency=memory.last_lsn))
                tasks.start_soon(told, "flush", memory.flush())
                tasks.start_soon(told, "an LSN that nobody wrote", memory.count(consistency=1_000))
                tasks.start_soon(told, "retry_dead_letters", memory.retry_dead_letters())
                tasks.start_soon(told, "a new namespace's table", memory.get_namespace_table("new"))
                await anyio.wait_all_tasks_blocked()
                go_on.set()
            expected = dict.fromkeys(("search", "a count", "flush", "an LSN that nobody wrote"), "told")
            # where they stood before the batch they are done; with the reader's end nothing is done any more
            assert outcome.pop("retry_dead_letters") in ("0", "told")
            table = outcome.pop("a new namespace's table")
            assert table == "told" or table.startswith("table 'pixelmemory/")
            assert outcome == expected
            # reads of what is visible go on, and so do writes, until the lag limit says no
            assert await memory.get_memory("seen", consistency="eventual") is not None
            assert await memory.update_memory("seen", metadata={"n": 1})
            for n in range(7):
                await memory.add_entry(f"{n}", embedding=vector(n))
            with pytest.raises(ProjectionUnavailableError):
                await memory.add_entries([{"content": "beyond the limit", "embedding": vector(n)} for n in range(3)])
            with pytest.raises(ProjectionUnavailableError):
                await memory.search()
            health = await memory.health()
            assert not health.ok
            assert any("projector stopped" in problem and point in problem for problem in health.problems)
    hook(None)
    async with async_memory(tmp_path, store_name) as memory:
        await memory.flush()
        assert (await memory.health()).ok
        assert await memory.count() == len(check_store(tmp_path, store_name)) == 9
    fault_report.add("a projector thread that ends")
