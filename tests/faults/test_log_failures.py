"""The engine when the log fails under it: who is told what, what goes on, and what a reopen finds. And clock steps."""

from __future__ import annotations

import errno
import time
from pathlib import Path
from typing import Any
from unittest import mock

import anyio
import pytest

from pixelmemory import (
    AsyncMemory,
    LogPoisonedError,
    LogWriteError,
    MemoryExistsError,
    StoreClosedError,
    SyncMode,
    UnknownOutcomeError,
)
from pixelmemory.log.file.files import Files
from tests.harness.engine_oracle import check_store, events_of
from tests.harness.engine_tools import async_memory, open_memory, vector
from tests.harness.fault_report import FaultReport, Verdict


class _FailingFiles(Files):
    """Fails what is named in ``failing`` ("write", "sync") from now on."""

    def __init__(self) -> None:
        self.failing: dict[str, int] = {}
        self.failed = 0

    def _fail(self, operation: str) -> None:
        if (error := self.failing.get(operation)) is not None:
            self.failed += 1
            raise OSError(error, f"{errno.errorcode[error]} in {operation}")

    def write(self, fd: int, data: Any, byte_offset: int) -> int:
        self._fail("write")
        return super().write(fd, data, byte_offset)

    def sync(self, fd: int) -> None:
        self._fail("sync")
        super().sync(fd)


async def _open(home: Path, name: str, files: Files, **options: Any) -> AsyncMemory:
    memory = async_memory(home, name, **options)
    with mock.patch("pixelmemory.store.opening.Files", return_value=files):
        await memory._open()
    return memory


@pytest.mark.anyio
async def test_a_failed_sync(tmp_path: Path, store_name: str, fault_report: FaultReport) -> None:
    files = _FailingFiles()
    memory = await _open(tmp_path, store_name, files)
    acknowledged = [await memory.add_entry(f"{n}", memory_id=f"good {n}", embedding=vector(n)) for n in range(20)]
    assert (await memory.health()).ok
    outcomes: dict[str, str] = {}

    async def add(memory_id: str) -> None:
        try:
            await memory.add_entry("?", memory_id=memory_id, embedding=vector(1))
            outcomes[memory_id] = "acknowledged"
        except (UnknownOutcomeError, LogPoisonedError) as error:
            outcomes[memory_id] = type(error).__name__

    files.failing["sync"] = errno.EIO
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for n in range(12):
                tasks.start_soon(add, f"unknown {n}")
    assert set(outcomes.values()) <= {"UnknownOutcomeError", "LogPoisonedError"}
    assert "UnknownOutcomeError" in outcomes.values()
    files.failing.clear()  # the device works again; the log must not believe it
    for write in (
        memory.add_entry("later", embedding=vector(1)),
        memory.update_memory("good 1", metadata={"x": 1}),
        memory.delete_memory("good 1"),
        memory.add_entries([{"content": "later", "embedding": vector(1)}]),
    ):
        with pytest.raises(LogPoisonedError):
            await write
    with pytest.raises(LogPoisonedError):
        await memory.flush()
    health = await memory.health()
    assert not health.ok
    assert any("EIO" in problem or "Errno 5" in problem for problem in health.problems)
    # reads go on, and see what was acknowledged
    assert {record["memory_id"] for record in await memory.search(limit=1000)} == set(acknowledged)
    assert await memory.get_memory("good 1") is not None
    assert files.failed == 1  # the failed descriptor was never synced again
    with anyio.fail_after(30):
        await memory.aclose()
    assert files.failed == 1
    with pytest.raises(StoreClosedError):
        await memory.count()

    async with async_memory(tmp_path, store_name) as memory:
        assert (await memory.health()).ok
        for memory_id, outcome in outcomes.items():
            known = await memory.get_memory(memory_id) is not None
            assert not (known and outcome == "LogPoisonedError")  # that one says: not recorded
            try:
                await memory.add_entry("?", memory_id=memory_id, embedding=vector(1))
                assert not known
            except MemoryExistsError:
                assert known
        assert await memory.count() == 32
    recorded = [event.fields["memory_id"] for event in events_of(tmp_path / store_name)]
    fault_report.add("failed sync under a running engine")
    fault_report.judge(Verdict(20, lost=len(set(acknowledged) - set(recorded)), doubled=len(recorded) - 32))
    assert sorted(recorded) == sorted([*acknowledged, *outcomes])
    check_store(tmp_path, store_name)


@pytest.mark.anyio
async def test_a_failed_sync_between_acknowledgements(
    tmp_path: Path, store_name: str, fault_report: FaultReport
) -> None:
    """With ``SyncMode.INTERVAL`` nobody waits for the sync that fails: the next write, flush and health tell."""
    files = _FailingFiles()
    memory = await _open(tmp_path, store_name, files, sync_mode=SyncMode.INTERVAL, sync_interval_seconds=0.01)
    await memory.add_entry("synced", embedding=vector(1))
    await memory.flush()
    files.failing["sync"] = errno.EIO
    await memory.add_entry("acknowledged, as this mode promises", embedding=vector(1))
    with anyio.fail_after(30):
        while (await memory.health()).ok:  # noqa: ASYNC110 - the log's thread tells nobody
            await anyio.sleep(0.005)
    with pytest.raises(LogPoisonedError):
        await memory.add_entry("refused", embedding=vector(1))
    with pytest.raises(LogPoisonedError):
        await memory.flush()
    # what it lost, if it did, was never visible; a reader that waits for it is told
    with pytest.raises(UnknownOutcomeError):
        await memory.count()
    assert await memory.count(consistency="eventual") == 1
    files.failing.clear()
    with anyio.fail_after(30):
        await memory.aclose()
    async with async_memory(tmp_path, store_name) as memory:
        assert await memory.count() == 2  # the process was not killed, and the device did not lose it
    fault_report.add("failed sync under a running engine")


@pytest.mark.anyio
async def test_a_reader_that_waits_for_the_flush_that_fails_is_told(tmp_path: Path, store_name: str) -> None:
    files = _FailingFiles()
    memory = await _open(tmp_path, store_name, files, sync_mode=SyncMode.INTERVAL, sync_interval_seconds=3600)
    await memory.add_entry("synced", embedding=vector(1))
    assert await memory.count() == 1
    files.failing["sync"] = errno.EIO
    await memory.add_entry("acknowledged, as this mode promises", embedding=vector(1))
    with anyio.fail_after(30), pytest.raises(UnknownOutcomeError):
        await memory.count(consistency=memory.last_lsn, timeout=100)
    files.failing.clear()
    await memory.aclose()


@pytest.mark.anyio
async def test_a_full_disk_refuses_writes_until_there_is_room(
    tmp_path: Path, store_name: str, fault_report: FaultReport
) -> None:
    files = _FailingFiles()
    memory = await _open(tmp_path, store_name, files)
    await memory.add_entry("first", memory_id="first", embedding=vector(1))
    files.failing["write"] = errno.ENOSPC
    for _ in range(5):
        with pytest.raises(LogWriteError):
            await memory.add_entry("no room", memory_id="second", embedding=vector(1))
        with pytest.raises(LogWriteError):
            await memory.update_memory("first", metadata={"x": 1})
        with pytest.raises(LogWriteError):
            await memory.delete_memory("first")
        assert await memory.count() == 1  # reads go on
        health = await memory.health()
        assert not health.ok
        assert any("writes fail" in problem and "ENOSPC" in problem for problem in health.problems)
    files.failing.clear()
    with anyio.fail_after(30):
        while not (await memory.health()).ok:  # noqa: ASYNC110 - the log finds out by itself, and tells nobody
            await anyio.sleep(0.01)
    await memory.add_entry("room", memory_id="second", embedding=vector(2))
    assert await memory.delete_memory("first")
    assert [record["content"] for record in await memory.search()] == ["room"]
    assert (await memory.health()).ok
    await memory.aclose()
    assert [event.type_code for event in events_of(tmp_path / store_name)] == [1, 1, 3]
    check_store(tmp_path, store_name)
    fault_report.add("full disk under a running engine")


# -------------------------------------------------------------------------------------------------------- clock steps


def test_steps_of_the_clock_leave_the_newest_first(
    tmp_path: Path, store_name: str, monkeypatch: pytest.MonkeyPatch, fault_report: FaultReport
) -> None:
    """Back a day with many memories, through a reopen, ahead a year, and back again."""
    real, step_seconds = time.time_ns, 0
    monkeypatch.setattr(time, "time_ns", lambda: real() + step_seconds * 10**9)
    order: list[str] = []

    def add(count: int) -> None:
        with open_memory(tmp_path, store_name) as memory:
            for each in range(count):
                order.append(memory.add_entry(f"{len(order)}", embedding=vector(each)))
            entries = [{"content": f"batch {n}", "embedding": vector(n)} for n in range(300)]
            order.extend(memory.add_entries(entries))
            listed = [record["memory_id"] for record in memory.search(limit=len(order) + 1)]
            assert listed == order[::-1]

    for step_seconds in (0, -86_400, -86_400, 365 * 86_400, -86_400):  # noqa: B007 - read by the clock
        add(3)
        fault_report.add("clock_steps: step of the clock")
    created = [event.fields["created_at_us"] for event in events_of(tmp_path / store_name)]
    assert created == sorted(set(created))
    logged = [event.logged_at_ns for event in events_of(tmp_path / store_name)]
    assert logged == sorted(logged)
    check_store(tmp_path, store_name)
