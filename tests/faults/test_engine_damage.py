"""A user drops what the projection needs: health says what, reads say so too, and a rebuild brings it back."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pixelmemory import Layout, Memory, ProjectionUnavailableError
from tests.harness.engine_tools import open_memory, tables_path, vector, with_pixeltable

SECONDS_MAX = 60.0


def _drop(path: str, column: str | None = None) -> None:
    def run() -> None:
        import pixeltable as pxt

        if column is None:
            pxt.drop_table(path, force=True)
        else:
            pxt.get_table(path).drop_column(column)

    with_pixeltable(run)


def _problem(memory: Memory) -> str:
    """What health says of the database, once it does."""
    deadline = time.monotonic() + SECONDS_MAX
    while time.monotonic() < deadline:
        if problems := [each for each in memory.health().problems if "the database" in each]:
            return problems[0]
        time.sleep(0.02)
    raise AssertionError("health never said so")


def _calls(memory: Memory) -> dict[str, Callable[[], object]]:
    return {
        "get": lambda: memory.get_memory("first", consistency="eventual"),
        "search": lambda: memory.search(consistency="eventual"),
        "count": lambda: memory.count(consistency="eventual"),
        "update": lambda: memory.update_memory("first", metadata={}),
        "delete": lambda: memory.delete_memory("first"),
    }


@pytest.mark.parametrize(
    ("dropped", "direct_sql"),
    [
        *(("table", True), ("metadata_text", True), ("dead_letters", True)),
        # which opens the dead letters only to write one
        *(("table", False), ("metadata_text", False)),
    ],
)
def test_health_and_reads_say_what_is_gone(dropped: str, direct_sql: bool, tmp_path: Path, store_name: str) -> None:
    options: dict[str, Any] = {"direct_sql": direct_sql, "layout": Layout.PER_NAMESPACE}
    with open_memory(tmp_path, store_name, wait_timeout_seconds=0.5, retry_seconds_min=0.01, **options) as memory:
        memory.add_entry("first", memory_id="first", embedding=vector(1))
        memory.flush(timeout=SECONDS_MAX)
        path = memory.get_namespace_table("default_namespace").get_metadata()["path"]
        match dropped:
            case "table":
                _drop(path)
            case "dead_letters":
                _drop(f"{with_pixeltable(lambda: tables_path(store_name))}/dead_letters")
            case column:
                _drop(path, column)
        memory.add_entry("private words", embedding=vector(2), metadata={"also": "private"})
        problem = _problem(memory)
        assert "put it back, or rebuild the projection" in problem
        assert ("has lost its columns metadata_text" if dropped == "metadata_text" else "is gone") in problem
        assert "private" not in problem
        assert memory.stats().dead_letters == 0
        if dropped == "table":
            for call in _calls(memory).values():
                with pytest.raises(ProjectionUnavailableError, match=r"is gone|does not exist"):
                    call()
        if dropped == "metadata_text" and not direct_sql:
            with pytest.raises(ProjectionUnavailableError, match="is gone"):
                memory.search(consistency="eventual")
    with open_memory(tmp_path, store_name, rebuild=True, **options) as memory:
        assert memory.count() == 2
        assert memory.health().ok
