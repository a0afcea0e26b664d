"""Many memories: bounded memory of the process, and an event loop that goes on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.harness.engine_tools import answer_of, async_memory, run_script, vector


def test_fifty_thousand_entries_in_bounded_memory(tmp_path: Path, store_name: str) -> None:
    """From a generator, in calls of 500: what is resident after ten thousand and after fifty thousand is much alike."""
    script = """
        import itertools, json, resource, sys
        from pathlib import Path
        from tests.harness.engine_tools import open_memory, vector

        entries = ({"content": f"entry {n} " + "word " * 20, "embedding": vector(n % 1000)} for n in itertools.count())
        ids, resident_mib = [], []
        with open_memory(*sys.argv[1:], tail_bytes_max=4 * 1024 * 1024, lag_events_max=5_000) as memory:
            for goal in (10_000, 50_000):
                while len(ids) < goal:
                    ids += memory.add_entries(itertools.islice(entries, 500))
                memory.flush(timeout=120)
                resident_mib.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
            count = memory.count()
            found = {record["memory_id"] for record in memory.search(limit=60_000)}
        print(json.dumps([count, len(found), found == set(ids), resident_mib]))
    """
    done = run_script(script, tmp_path, store_name, timeout_seconds=400)
    count, found, all_found, (after_ten, after_fifty) = answer_of(done)
    assert (count, found, all_found) == (50_000, 50_000, True)
    # 40,000 entries more are about 20 MB of text and vectors alone, and several times that as Python objects
    assert after_fifty - after_ten < 60, f"{after_ten} MiB, then {after_fifty} MiB"


@pytest.mark.anyio
async def test_the_event_loop_goes_on_while_memories_are_projected(
    tmp_path: Path, store_name: str, record_property: Any
) -> None:
    """The longest gap of a ticker is told, and not judged: other processes share the machine."""
    gaps: list[float] = []

    async def tick() -> None:
        last = time.perf_counter()
        while True:
            await anyio.sleep(0.001)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    async def add(number: int, memory: Any) -> None:
        for n in range(100):
            await memory.add_entry(f"{number} {n}", embedding=vector(n))

    async with async_memory(tmp_path, store_name) as memory:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tick)
            async with anyio.create_task_group() as writers:
                for number in range(20):
                    writers.start_soon(add, number, memory)
            await memory.flush()
            tasks.cancel_scope.cancel()
        assert await memory.count() == 2000
    record_property("longest gap, ms", round(max(gaps) * 1000, 1))
    print(f"longest gap of the event loop: {max(gaps) * 1000:.1f} ms, over {len(gaps)} ticks")
    assert len(gaps) > 1


@pytest.mark.anyio
@pytest.mark.parametrize("lag_events_max", [400, 100_000], ids=["few may gather", "many may gather"])
async def test_what_gathers_in_a_burst_is_projected(tmp_path: Path, store_name: str, lag_events_max: int) -> None:
    """Where few events may gather, in the midst of the burst; else once it ends, and no reader need wait for it."""
    options = {"linger_seconds": 0.001, "linger_seconds_max": 3600.0, "lag_events_max": lag_events_max}
    added = 0
    async with async_memory(tmp_path, store_name, **options) as memory:
        with anyio.fail_after(60):
            while added < 1000 or (lag_events_max == 400 and (await memory.stats()).watermark < 300):
                await memory.add_entries([{"content": str(n), "embedding": vector(n)} for n in range(100)])
                added += 100
            while (await memory.stats()).watermark < added:  # noqa: ASYNC110 - no reader is to wait for it
                await anyio.sleep(0.01)
        assert await memory.count(consistency="eventual") == added
