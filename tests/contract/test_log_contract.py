"""The log in files, and one in memory, which the whole engine runs on."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import pytest

from pixelmemory import Options, StoreError
from pixelmemory.log.contract import Append, EventLog, LogCapability
from pixelmemory.log.file.file_log import FileLog
from tests.contract.memory_log import MemoryLog
from tests.harness.engine_tools import open_memory, vector

pytest.register_assert_rewrite("tests.contract.log_contract")
from tests.contract.log_contract import LogContract  # noqa: E402


class TestFileLog(LogContract):
    def open(
        self, folder: Path, options: Options, on_commit: Callable[[Sequence[Append]], None], epoch: int
    ) -> EventLog:
        return FileLog.open(folder, store_id=uuid.UUID(int=7), epoch=epoch, options=options, on_commit=on_commit)


class TestSmallSegments(TestFileLog):
    """Each append in a segment of its own, and nothing in memory to read from."""

    def open(
        self, folder: Path, options: Options, on_commit: Callable[[Sequence[Append]], None], epoch: int
    ) -> EventLog:
        small = Options(
            sync_mode=options.sync_mode,
            append_bytes_max=options.append_bytes_max,
            segment_bytes_max=4096,
            tail_bytes_max=0,
        )
        return super().open(folder, small, on_commit, epoch)


class TestMemoryLog(LogContract):
    lacks = frozenset(LogCapability)
    is_durable = False

    def open(
        self, folder: Path, options: Options, on_commit: Callable[[Sequence[Append]], None], epoch: int
    ) -> EventLog:
        return MemoryLog.open(folder, options=options, on_commit=on_commit, epoch=epoch)


def test_the_engine_runs_on_another_log(tmp_path: Path, store_name: str) -> None:
    """And asks it for what it may lack."""
    with mock.patch("pixelmemory.store.opening.open_log", MemoryLog.open), open_memory(tmp_path, store_name) as memory:
        ids = memory.add_entries([{"content": f"text {n}", "embedding": vector(n)} for n in range(20)])
        memory.update_memory(ids[0], content="changed", embedding=vector(99))
        memory.delete_memory(ids[1])
        assert memory.count() == 19
        assert memory.search(vector=vector(99), limit=1)[0]["memory_id"] == ids[0]
        assert memory.stats().log_events == 22
        assert memory.stats().log_bytes == 0
        for refused in (memory.compact, lambda: memory.erase_memory(ids[2])):
            with pytest.raises(StoreError, match="is not rewritten"):
                refused()
        assert memory.count() == 19
        assert memory.health().ok
    assert not (tmp_path / store_name / "log").exists()
