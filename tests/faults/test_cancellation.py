"""cancel_storm: calls that are cancelled at any moment are withdrawn or applied once; nothing hangs or leaks.

And linearizable: what concurrent updates and deletes of one memory answer fits the order of the log.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import anyio
import anyio.lowlevel
import pytest

from pixelmemory import AsyncMemory, MemoryExistsError
from pixelmemory.log.file.files import Files
from tests.harness.engine_oracle import ADDED, DELETED, UPDATED, check_store, events_of
from tests.harness.engine_tools import async_memory, vector
from tests.harness.fault_report import FaultReport, Verdict, timed_rounds

TASKS = 40
#: tests of the row cancel_storm, each event loop's counted
TESTS = 5
#: room for a few events only, so that writers wait for it; and many segments
TIGHT: dict[str, Any] = {
    "lag_events_max": 60,
    "batch_events_max": 25,
    "linger_seconds": 0.0,
    "segment_bytes_max": 32_768,
}


class _Call(NamedTuple):
    """One call, and what came of it."""

    type_code: int
    ids: tuple[str, ...]
    #: in the content of what it adds, in the metadata of what it updates
    tag: int
    #: what it returned; None where it was cancelled
    result: bool | None


def _request(memory: AsyncMemory, source: random.Random, tag: int) -> tuple[int, tuple[str, ...], Awaitable[Any]]:
    """A random call, not awaited yet."""
    choice = source.random()
    shared = f"shared {source.randrange(6)}"
    if choice < 0.4:
        ids = tuple(f"{tag} {n}" for n in range(source.choice([1, 1, 3])))
        entries = [{"content": f"{tag}", "memory_id": each, "embedding": vector(tag)} for each in ids]
        return ADDED, ids, memory.add_entries(entries)
    if choice < 0.55:
        return ADDED, (shared,), memory.add_entry(f"{tag}", memory_id=shared, embedding=vector(tag))
    if choice < 0.85:
        return UPDATED, (shared,), memory.update_memory(shared, metadata={"tag": tag})
    return DELETED, (shared,), memory.delete_memory(shared)


def _check_calls(calls: list[_Call], folder: Path, fault_report: FaultReport) -> None:
    """Each call that returned stands in the log once, each that was cancelled once or not at all, and nothing else."""
    events = events_of(folder)
    tagged: Counter[tuple[int, str, int]] = Counter()
    deleted: Counter[str] = Counter()
    for event in events:
        memory_id = event.fields["memory_id"]
        if event.type_code == DELETED:
            deleted[memory_id] += 1
        elif event.type_code == ADDED:
            tagged[ADDED, memory_id, int(event.fields["content"])] += 1
        else:
            tagged[UPDATED, memory_id, int(event.fields["metadata_json"].decode().strip('{}"tag: '))] += 1
    lost = doubled = torn = 0
    returned: Counter[str] = Counter()
    cancelled: Counter[str] = Counter()
    for call in calls:
        if call.type_code == DELETED:
            (memory_id,) = call.ids
            returned[memory_id] += call.result is True
            cancelled[memory_id] += call.result is None
            continue
        counts = {tagged.pop((call.type_code, each, call.tag), 0) for each in call.ids}
        torn += len(counts) > 1
        doubled += max(counts) > 1
        if call.result is not None:
            lost += call.result and 0 in counts
            doubled += not call.result and 1 in counts
    lost += sum(deleted[each] < count for each, count in returned.items())
    doubled += sum(count > returned[each] + cancelled[each] for each, count in deleted.items())
    acknowledged = sum(len(call.ids) for call in calls if call.result)
    fault_report.judge(Verdict(acknowledged, lost, doubled, 0, torn + len(tagged)))
    assert (lost, doubled, torn, tagged) == (0, 0, 0, Counter())


def _assert_nothing_is_left(memory: AsyncMemory) -> None:
    engine = memory._engine
    assert engine is not None
    assert (engine._room.in_flight, len(engine._locks)) == (0, 0)
    assert engine._visible.idle


@pytest.mark.anyio
async def test_a_storm_of_cancelled_scopes(tmp_path: Path, store_name: str, fault_report: FaultReport) -> None:
    for number in timed_rounds("cancel_storm", 1, TESTS):
        await _storm_of_cancelled_scopes(number, tmp_path, f"{store_name}_{number}", fault_report)


async def _storm_of_cancelled_scopes(storm: int, tmp_path: Path, store_name: str, fault_report: FaultReport) -> None:
    calls: list[_Call] = []
    per_task = 40

    async def one(number: int, memory: AsyncMemory) -> None:
        source = random.Random(storm * TASKS + number)
        for step in range(per_task):
            tag = number * per_task + step
            result: bool | None = None
            with anyio.move_on_after(source.random() * source.choice([0, 0.002, 0.02, 1.0])):
                type_code, ids, request = _request(memory, source, tag)
                try:
                    answer = await request
                    result = answer if isinstance(answer, bool) else True
                except MemoryExistsError:
                    result = False
                finally:
                    calls.append(_Call(type_code, ids, tag, result))
            if source.random() < 0.1:
                await anyio.lowlevel.checkpoint()

    async with async_memory(tmp_path, store_name, **TIGHT) as memory:
        async with anyio.create_task_group() as tasks:
            for number in range(TASKS):
                tasks.start_soon(one, number, memory)
        await memory.flush()
        await anyio.lowlevel.checkpoint()
        _assert_nothing_is_left(memory)
        await memory.add_entry("0", memory_id="usable", embedding=vector(0))
    calls.append(_Call(ADDED, ("usable",), 0, True))
    fault_report.add("cancel_storm: cancelled calls", sum(call.result is None for call in calls))
    assert {call.result for call in calls} == {True, False, None}
    _check_calls(calls, tmp_path / store_name, fault_report)
    check_store(tmp_path, store_name)


def test_a_storm_of_asyncios_own_cancellation(tmp_path: Path, store_name: str, fault_report: FaultReport) -> None:
    """It passes anyio's shields, and comes several times for one task."""
    for number in timed_rounds("cancel_storm", 1, TESTS):
        _storm_of_asyncios_own_cancellation(number, tmp_path, f"{store_name}_{number}", fault_report)


def _storm_of_asyncios_own_cancellation(storm: int, tmp_path: Path, store_name: str, fault_report: FaultReport) -> None:
    calls: list[_Call] = []
    per_task = 25

    async def one(number: int, memory: AsyncMemory) -> None:
        source = random.Random(storm * TASKS + number)
        for step in range(per_task):
            tag = number * per_task + step
            type_code, ids, request = _request(memory, source, tag)
            task = asyncio.ensure_future(request)
            for _ in range(source.choice([0, 0, 1, 2, 3])):
                pause = source.choice([0, 0, 0.0005, 0.002])
                await asyncio.sleep(source.random() * pause)
                task.cancel()
            result: bool | None = None
            try:
                answer = await asyncio.wait_for(task, source.choice([None, None, 0.003, 0.02]))
                result = answer if isinstance(answer, bool) else True
            except MemoryExistsError:
                result = False
            except (asyncio.CancelledError, TimeoutError):
                pass
            calls.append(_Call(type_code, ids, tag, result))

    async def main() -> None:
        async with async_memory(tmp_path, store_name, **TIGHT) as memory:
            await asyncio.gather(*(one(number, memory) for number in range(TASKS)))
            await memory.flush()
            await asyncio.sleep(0)
            _assert_nothing_is_left(memory)

    asyncio.run(main())
    fault_report.add("cancel_storm: cancelled calls", sum(call.result is None for call in calls))
    assert {call.result for call in calls} == {True, False, None}
    _check_calls(calls, tmp_path / store_name, fault_report)
    check_store(tmp_path, store_name)


@pytest.mark.anyio
async def test_a_withdrawn_append_makes_room(tmp_path: Path, store_name: str) -> None:
    """A writer that waits for room, while nothing but an append that is then withdrawn takes it, goes on."""
    async with async_memory(tmp_path, store_name, lag_events_max=1) as memory:
        engine = memory._engine
        assert engine is not None
        assert engine._store is not None
        log: Any = engine._store.log
        group_commit = log._writer
        while not group_commit._idle:  # noqa: ASYNC110 - a state of the log's thread, which tells nobody
            await anyio.sleep(0.001)
        group_commit._idle = False  # the writer is not woken: the first append stays in the buffer
        first = anyio.CancelScope()
        outcome: list[str] = []

        async def withdrawn() -> None:
            with first:
                await memory.add_entry("withdrawn", embedding=vector(1))

        async def waiting() -> None:
            with anyio.fail_after(20):
                await memory.add_entry("waited for room", embedding=vector(2))
            outcome.append("added")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(withdrawn)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(waiting)
            await anyio.wait_all_tasks_blocked()
            group_commit._idle = True
            first.cancel()
        assert outcome == ["added"]
    assert [event.fields["content"] for event in events_of(tmp_path / store_name)] == ["waited for room"]


class _HeldSyncs(Files):
    """Once ``hold`` is set, a sync announces itself and waits for ``go_on``."""

    def __init__(self) -> None:
        self.hold, self.held, self.go_on = threading.Event(), threading.Event(), threading.Event()

    def sync(self, fd: int) -> None:
        if self.hold.is_set():
            self.held.set()
            self.go_on.wait()
        super().sync(fd)


def test_a_call_that_is_cancelled_again_and_again_keeps_its_memory_until_its_outcome_is_known(
    tmp_path: Path, store_name: str
) -> None:
    """Else the next add of the same id finds nothing, and both are recorded."""

    async def main() -> None:
        memory = async_memory(tmp_path, store_name)
        files = _HeldSyncs()
        with mock.patch("pixelmemory.store.opening.Files", return_value=files):
            await memory._open()
        async with memory:
            files.hold.set()
            first = asyncio.ensure_future(memory.add_entry("first", memory_id="m", embedding=vector(1)))
            await asyncio.to_thread(files.held.wait)
            second = asyncio.ensure_future(memory.add_entry("second", memory_id="m", embedding=vector(2)))
            for _ in range(5):
                first.cancel()
                for _ in range(5):
                    await asyncio.sleep(0)
            await asyncio.sleep(0.05)
            assert not second.done()
            files.go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await first
            with pytest.raises(MemoryExistsError):
                await second
            record = await memory.get_memory("m")
            assert record is not None
            assert record["content"] == "first"

    asyncio.run(main())
    assert [event.fields["content"] for event in events_of(tmp_path / store_name)] == ["first"]


# ------------------------------------------------------------------------------------------------------ linearizable


class _Observed(NamedTuple):
    """One call on one memory, with the durable LSN before and after it."""

    type_code: int
    memory_id: str
    tag: int
    done: bool
    lsn_before: int
    lsn_after: int


@pytest.mark.anyio
async def test_updates_and_deletes_are_linearizable_per_memory(
    tmp_path: Path, store_name: str, fault_report: FaultReport
) -> None:
    """A call that changed something did so between its beginning and its end; one that found nothing (or, an add, found
    the id taken) did so at some moment between them."""
    for number in timed_rounds("cancel_storm", 1, TESTS):
        await _linearizable(number, tmp_path, f"{store_name}_{number}", fault_report)


async def _linearizable(history: int, tmp_path: Path, store_name: str, fault_report: FaultReport) -> None:
    observed: list[_Observed] = []
    ids = [f"m{n}" for n in range(3)]
    per_task = 20

    async def one(number: int, memory: AsyncMemory) -> None:
        source = random.Random(history * TASKS + number)
        engine = memory._engine
        assert engine is not None
        assert engine._store is not None
        log = engine._store.log
        for step in range(per_task):
            tag, memory_id = number * per_task + step, source.choice(ids)
            type_code = source.choice([ADDED, UPDATED, UPDATED, DELETED])
            before = log.durable_lsn
            if type_code == ADDED:
                try:
                    await memory.add_entry("x", memory_id=memory_id, metadata={"tag": tag}, embedding=vector(1))
                    done = True
                except MemoryExistsError:
                    done = False
            elif type_code == UPDATED:
                done = await memory.update_memory(memory_id, metadata={"tag": tag})
            else:
                done = await memory.delete_memory(memory_id)
            observed.append(_Observed(type_code, memory_id, tag, done, before, log.durable_lsn))
            if source.random() < 0.3:
                await anyio.sleep(source.random() * 0.06)

    async with async_memory(tmp_path, store_name, linger_seconds=0.0) as memory, anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(one, number, memory)
    events = events_of(tmp_path / store_name)
    #: memory id -> whether it exists after each LSN, from 0
    exists: dict[str, list[bool]] = defaultdict(lambda: [False])
    by_tag: dict[int, int] = {}
    deletes: Counter[str] = Counter()
    for event in events:
        memory_id = event.fields["memory_id"]
        for each in ids:
            exists[each].append(exists[each][-1])
        exists[memory_id][-1] = event.type_code != DELETED
        if event.type_code == DELETED:
            deletes[memory_id] += 1
        else:
            by_tag[int(event.fields["metadata_json"].decode().strip('{}"tag: '))] = event.lsn
    for call in observed:
        states = exists[call.memory_id][call.lsn_before : call.lsn_after + 1]
        if not call.done:
            assert (call.type_code == ADDED) in states, call
        elif call.type_code != DELETED:
            assert call.lsn_before < by_tag.pop(call.tag) <= call.lsn_after, call
        else:
            assert True in states, call
            deletes[call.memory_id] -= 1
    assert not by_tag
    assert not +deletes
    assert not -deletes
    assert len({call.done for call in observed if call.type_code == DELETED}) == 2
    check_store(tmp_path, store_name)
    fault_report.judge(Verdict(acknowledged=len(events)))
