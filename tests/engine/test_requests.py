"""What only the projector can do, asked for while it cannot get on: the caller is not held for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from pixelmemory import ProjectionUnavailableError
from pixelmemory.faults import set_fault_hook
from tests.harness.engine_tools import async_memory, vector


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    refused = threading.Event()

    def hook(point: str) -> None:
        if point == "projector.apply.before":
            refused.set()
            raise OSError("the database is away")

    set_fault_hook(hook)
    yield refused
    set_fault_hook(None)


@pytest.mark.anyio
async def test_requests_to_a_projector_that_is_stuck(tmp_path: Path, store_name: str, stuck: threading.Event) -> None:
    async with async_memory(tmp_path, store_name, wait_timeout_seconds=0.2) as memory:
        await memory.add_entry("never visible", embedding=vector(1))
        await anyio.to_thread.run_sync(stuck.wait)
        with anyio.move_on_after(0.1) as scope:
            await memory.retry_dead_letters()
        assert scope.cancelled_caught
        projection = memory._running()[1].projection
        with pytest.raises(ProjectionUnavailableError, match="the database is away"):
            await anyio.to_thread.run_sync(projection.namespace_table, "new")
