"""What an acknowledgement costs, beside what the same bytes cost without Pixelmemory.

    python -m benchmarks.acknowledge [--events N] [--tasks N] [--json]

In one run, one after the other, on the same disk:

``bare``     write + fdatasync of one event's bytes, in a loop: the floor
``sqlite``   one-row transactions, WAL, synchronous=FULL
``one``      ``await add_entry`` from one task
``many``     ``await add_entry`` from ``--tasks`` tasks
``bulk``     ``await add_entries`` in batches of 1,000

Every event is counted afterwards. While ``bulk`` is projected a ticker measures how long the event loop was held up.
Figures of a shared machine: compare the ratios, not the microseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio

from pixelmemory import AsyncMemory, Options

CONTENT = "An agent remembers that the user prefers short answers with one example each, in the morning. " * 2
BULK_BATCH = 1000
TICK_SECONDS = 0.001


def _timed(run: Callable[[int], None], count: int) -> list[float]:
    seconds = []
    for index in range(count):
        started = time.perf_counter()
        run(index)
        seconds.append(time.perf_counter() - started)
    return seconds


def bare(folder: Path, count: int) -> list[float]:
    """Seconds of each write + fdatasync."""
    descriptor = os.open(folder / "bare", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    payload = CONTENT.encode()

    def run(_index: int) -> None:
        os.write(descriptor, payload)
        os.fdatasync(descriptor)

    try:
        return _timed(run, count)
    finally:
        os.close(descriptor)


def sqlite(folder: Path, count: int) -> list[float]:
    """Seconds of each one-row transaction."""
    database = sqlite3.connect(folder / "sqlite", isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE memories (id INTEGER PRIMARY KEY, content TEXT)")
    try:
        return _timed(lambda index: database.execute("INSERT INTO memories VALUES (?, ?)", (index, CONTENT)), count)  # type: ignore[arg-type]
    finally:
        database.close()


async def one(mem: AsyncMemory, count: int) -> list[float]:
    """Seconds of each add from one task."""
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        await mem.add_entry(CONTENT, "one")
        seconds.append(time.perf_counter() - started)
    return seconds


async def many(mem: AsyncMemory, count: int, tasks: int) -> float:
    """Seconds of ``count`` adds from ``tasks`` tasks."""

    async def run() -> None:
        for _ in range(count // tasks):
            await mem.add_entry(CONTENT, "many")

    started = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(tasks):
            group.start_soon(run)
    return time.perf_counter() - started


async def bulk(mem: AsyncMemory, count: int) -> dict[str, float]:
    """Seconds until ``count`` adds in batches were acknowledged and visible, and how long the loop was held up."""
    held_up: list[float] = []

    async def tick() -> None:
        while True:
            started = time.perf_counter()
            await anyio.sleep(TICK_SECONDS)
            held_up.append(time.perf_counter() - started - TICK_SECONDS)

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        started = time.perf_counter()
        for _ in range(count // BULK_BATCH):
            await mem.add_entries([{"content": CONTENT, "metadata": {"n": n}} for n in range(BULK_BATCH)], "bulk")
        acknowledged = time.perf_counter() - started
        await mem.flush(timeout=600)
        visible = time.perf_counter() - started
        group.cancel_scope.cancel()
    held_up.sort()
    return {
        "acknowledged_per_second": count / acknowledged,
        "visible_per_second": count / visible,
        "loop_held_up_p99_ms": held_up[int(len(held_up) * 0.99)] * 1000,
        "loop_held_up_max_ms": held_up[-1] * 1000,
    }


async def measure(folder: Path, events: int, tasks: int) -> dict[str, Any]:
    """All of the above; checks that every event arrived."""
    floor, rows = bare(folder, events), sqlite(folder, events)
    options = Options(home=folder / "stores", progress=False)
    async with AsyncMemory("acknowledge", embedding_config=None, options=options) as mem:
        await one(mem, min(events, 100))  # the first calls pay for what is imported late
        await mem.flush(timeout=600)
        single = await one(mem, events)
        await mem.flush(timeout=600)
        concurrent_count = events * 10 // tasks * tasks
        concurrent = await many(mem, concurrent_count, tasks)
        await mem.flush(timeout=600)
        bulk_count = max(events // BULK_BATCH, 1) * BULK_BATCH * 5
        bulk_figures = await bulk(mem, bulk_count)
        counts = {name: await mem.count(name) for name in ("one", "many", "bulk")}
    expected = {"one": min(events, 100) + events, "many": concurrent_count, "bulk": bulk_count}
    if counts != expected:
        raise SystemExit(f"acknowledged {expected}, found {counts}")
    floor_p50, sqlite_p50, single_p50 = (statistics.median(each) for each in (floor, rows, single))
    return {
        "event_bytes": len(CONTENT.encode()),
        "events": events,
        "tasks": tasks,
        "bare_p50_us": floor_p50 * 1e6,
        "sqlite_p50_us": sqlite_p50 * 1e6,
        "one_p50_us": single_p50 * 1e6,
        "one_to_bare": single_p50 / floor_p50,
        "sqlite_per_second": events / sum(rows),
        "many_per_second": concurrent_count / concurrent,
        "many_to_sqlite": concurrent_count / concurrent / (events / sum(rows)),
        **bulk_figures,
        "counts": counts,
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run and print; returns the figures."""
    parser = argparse.ArgumentParser(description="What an acknowledgement costs, beside a baseline.")
    parser.add_argument("--events", type=int, default=2000, help="events of the single measurements (default 2000)")
    parser.add_argument("--tasks", type=int, default=64, help="concurrent tasks (default 64)")
    parser.add_argument("--folder", type=Path, help="where to write; the disk is what is measured (default: temporary)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="pixelmemory-bench-", dir=options.folder) as folder:
        figures = anyio.run(measure, Path(folder), options.events, options.tasks)
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:28} {value:,.2f}" if isinstance(value, float) else f"{name:28} {value}")
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
