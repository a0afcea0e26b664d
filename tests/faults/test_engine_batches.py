"""Several events of one memory that are applied together, and batches whose commit was not heard of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pixelmemory import Layout, Memory
from pixelmemory.faults import set_fault_hook
from tests.harness.engine_oracle import check_store, dead_letters_of
from tests.harness.engine_tools import open_memory, vector
from tests.harness.fault_report import FaultReport

VARIANTS = pytest.mark.parametrize(
    "options",
    [{}, {"direct_sql": False}, {"layout": Layout.SHARED}],
    ids=["default", "public API", "shared layout"],
)


@pytest.fixture
def hook() -> Iterator[Any]:
    yield set_fault_hook
    set_fault_hook(None)


def _change(memory: Memory) -> None:
    """Every sequence of a few events of a memory that stands in the table, or does not."""
    memory.update_memory("updated, deleted", content="changed", embedding=vector(11))
    memory.delete_memory("updated, deleted")
    memory.delete_memory("deleted, added")
    memory.add_entry("again", memory_id="deleted, added", embedding=vector(12))
    memory.delete_memory("deleted, added, updated")
    memory.add_entry("again", memory_id="deleted, added, updated", metadata={"n": 1}, embedding=vector(13))
    memory.update_memory("deleted, added, updated", content="changed", embedding=vector(14))
    memory.delete_memory("deleted, added, deleted")
    memory.add_entry("again", memory_id="deleted, added, deleted", embedding=vector(15))
    memory.delete_memory("deleted, added, deleted")
    memory.update_memory("updated, updated", content="changed", embedding=vector(16))
    memory.update_memory("updated, updated", content="changed again", embedding=vector(17))
    memory.update_memory("updated, updated", metadata={"changed": True})
    memory.update_memory("its metadata", metadata={"changed": True})
    memory.add_entry("new", memory_id="new, updated", embedding=vector(18))
    memory.update_memory("new, updated", content="changed", embedding=vector(19))
    memory.add_entry("new", memory_id="new, deleted", embedding=vector(20))
    memory.delete_memory("new, deleted")


STANDING = (
    "updated, deleted",
    "deleted, added",
    "deleted, added, updated",
    "deleted, added, deleted",
    "updated, updated",
    "its metadata",
)


def _prepare(memory: Memory) -> None:
    for number, memory_id in enumerate(STANDING):
        memory.add_entry("first", memory_id=memory_id, metadata={"n": 0}, embedding=vector(number))
    memory.flush()


@VARIANTS
def test_events_of_a_memory_in_one_batch(tmp_path: Path, store_name: str, options: dict[str, Any]) -> None:
    # the flush ends the lingering
    with open_memory(tmp_path, store_name, linger_seconds=30.0, **options) as memory:
        _prepare(memory)
        _change(memory)
        memory.flush()
        assert len(check_store(tmp_path, store_name)) == 5
        assert memory.health().ok


@VARIANTS
def test_a_batch_whose_commit_was_not_heard_of_is_applied_once(
    tmp_path: Path, store_name: str, options: dict[str, Any], hook: Any, fault_report: FaultReport
) -> None:
    lost: list[str] = []

    def lose_the_connection(point: str) -> None:
        if point == "apply.committed" and len(lost) < 2:
            lost.append(point)
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    with open_memory(tmp_path, store_name, linger_seconds=30.0, retry_seconds_min=0.01, **options) as memory:
        _prepare(memory)
        hook(lose_the_connection)
        _change(memory)
        memory.flush()
        assert len(lost) == 2
        assert len(check_store(tmp_path, store_name)) == 5
        assert not dead_letters_of(store_name)
        assert memory.health().ok
    fault_report.add("a commit that is not heard of", len(lost))


def test_a_close_waits_until_all_is_visible(tmp_path: Path, store_name: str) -> None:
    with open_memory(tmp_path, store_name, linger_seconds=30.0) as memory:
        _prepare(memory)
        _change(memory)
    assert len(check_store(tmp_path, store_name)) == 5
