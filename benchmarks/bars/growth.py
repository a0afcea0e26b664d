"""Bar 6: what an operation, an open, a backlog and an often updated memory cost as the log grows."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import anyio
import msgspec

from benchmarks import data
from benchmarks.place import Place
from benchmarks.report import Bar, check
from benchmarks.timing import each_seconds_async, p50, peak_bytes, say
from pixelmemory import AsyncMemory

BATCH = 1000
#: "flat": the dearest is at most this many times the cheapest of the first and the last size
FLAT = 1.5


class Sizes(msgspec.Struct):
    #: events in the log at which an operation is timed; the last step is written at once, as a backlog
    steps: list[int]
    calls: int
    opens: int
    updates: int


SIZES = {
    "tiny": Sizes([100, 1_000], 10, 1, 50),
    "small": Sizes([1_000, 10_000, 100_000], 50, 2, 1_000),
    "full": Sizes([1_000, 10_000, 100_000, 1_000_000], 200, 3, 10_000),
}


class Cost(msgspec.Struct):
    """Medians with so many events in the log."""

    events: int
    add_ms: float
    visible_ms: float
    get_ms: float
    list_ms: float


class Opening(msgspec.Struct):
    """One open in a process of its own."""

    init_seconds: float
    open_seconds: float
    count: int


class Growth(msgspec.Struct):
    sizes: Sizes
    costs: list[Cost]
    #: over Pixeltable's own init: the store with all events, and one with a few
    open_seconds: float
    open_few_seconds: float
    init_seconds: float
    #: of the process: peak while the backlog was written and worked off, over the peak before
    backlog_bytes: int
    #: the most events that were durable and not visible
    backlog_events: int
    backlog_seconds: float
    #: get of one memory, before and after it was updated so often
    get_before_ms: float
    get_after_ms: float

    def bars(self) -> list[Bar]:
        sizes, first, last = self.sizes, self.costs[0], self.costs[-1]
        bars = []
        for name, field in (
            ("durable add", "add_ms"),
            ("add until visible", "visible_ms"),
            ("get", "get_ms"),
            ("list of the newest ten", "list_ms"),
        ):
            small, big = getattr(first, field), getattr(last, field)
            bars.append(
                Bar(
                    number=6,
                    name=f"{name}, p50 with {last.events:,} events",
                    measured=f"{big:.2f} ms",
                    baseline=f"{first.events:,} events: {small:.2f} ms",
                    sizes=f"n = {sizes.calls}, no vectors",
                    ratio=big / small,
                    wanted=f"flat (<= {FLAT} x)",
                    met=big <= FLAT * small,
                )
            )
        megabytes = self.backlog_bytes / 1e6
        ratio = self.get_after_ms / self.get_before_ms
        return [
            *bars,
            Bar(
                number=6,
                name=f"opening a store with {last.events:,} events, over Pixeltable's init",
                measured=f"{self.open_seconds:.2f} s",
                baseline=f"{BATCH} events: {self.open_few_seconds:.2f} s; init alone: {self.init_seconds:.2f} s",
                sizes=f"clean checkpoint, n = {sizes.opens}",
                wanted="<= 1 s",
                met=self.open_seconds <= 1,
            ),
            Bar(
                number=6,
                name="memory for a backlog, this process",
                measured=f"{megabytes:,.0f} MB",
                sizes=f"{last.events:,} events, {self.backlog_events:,} at once, gone in {self.backlog_seconds:.0f} s",
                wanted="<= 300 MB",
                met=megabytes <= 300,
            ),
            Bar(
                number=6,
                name=f"get p50 of a memory after {sizes.updates:,} updates",
                measured=f"{self.get_after_ms:.2f} ms",
                baseline=f"before: {self.get_before_ms:.2f} ms",
                sizes=f"n = {sizes.calls}",
                ratio=ratio,
                wanted=f"not slower (<= {FLAT} x)",
                met=ratio <= FLAT,
            ),
        ]


async def _write(mem: AsyncMemory, first: int, last: int) -> int:
    """Add rows ``first`` to ``last``. Returns the longest backlog that was seen."""
    most = 0
    for start in range(first, last, BATCH):
        rows = range(start, min(start + BATCH, last))
        await mem.add_entries([{"content": data.content(row), "metadata": {"n": row}} for row in rows], "all")
        most = max(most, (await mem.stats()).lag_events)
    return most


async def _cost(mem: AsyncMemory, events: int, calls: int) -> Cost:
    """Time single operations now that the log has so many events."""
    ids: list[str] = []

    async def add(_: int) -> None:
        ids.append(await mem.add_entry("one more", "single"))

    async def visible(_: int) -> None:
        memory_id = await mem.add_entry("one more", "single")
        check(await mem.get_memory(memory_id, "single") is not None, "an added memory is not there")

    async def get(index: int) -> None:
        check(await mem.get_memory(ids[index % len(ids)], "single") is not None, "a memory is not there")

    async def newest(_: int) -> None:
        check(len(await mem.search("all", limit=10)) == 10, "too few are listed")

    say(f"operations with {events:,} events")
    for warm in (add, visible, get, newest):
        await warm(0)
    await mem.flush()
    timed = []
    for operation in (add, visible, get, newest):
        timed.append(p50(await each_seconds_async(operation, range(calls))) * 1000)
        await mem.flush()
    return Cost(events, *timed)


async def _updates(mem: AsyncMemory, sizes: Sizes) -> tuple[float, float]:
    """Milliseconds of a get before and after the updates."""
    memory_id = await mem.add_entry("often updated", "often", {"turn": 0})
    await mem.flush()

    async def get(_: int) -> None:
        check(await mem.get_memory(memory_id, "often") is not None, "the memory is not there")

    await get(0)
    before = p50(await each_seconds_async(get, range(sizes.calls)))
    say(f"{sizes.updates} updates of one memory")
    for turn in range(1, sizes.updates + 1):
        check(await mem.update_memory(memory_id, "often", metadata={"turn": turn}), "an update was refused")
    await mem.flush()
    await get(0)
    after = p50(await each_seconds_async(get, range(sizes.calls)))
    found = await mem.get_memory(memory_id, "often")
    check(found is not None and found["metadata"] == {"turn": sizes.updates}, "the last update is not there")
    return before * 1000, after * 1000


def opened(place: Place, name: str, times: int) -> list[Opening]:
    """Opens of a store, each in a new process."""
    command = [sys.executable, "-m", "benchmarks.bars.opening", name, str(place.folder)]
    root = Path(__file__).parent.parent.parent
    found = []
    for _ in range(times):
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
        check(done.returncode == 0, done.stderr.strip()[-500:])
        found.append(msgspec.json.decode(done.stdout.strip().splitlines()[-1], type=Opening))
    return found


async def measure(place: Place) -> Growth:
    sizes = place.sized(SIZES)
    name, few = place.name("growth"), place.name("few")
    total, costs = sizes.steps[-1], list[Cost]()
    options = place.options(lag_events_max=2 * total)
    async with AsyncMemory(few, None, None, options=options) as mem:
        await _write(mem, 0, BATCH)
        await mem.flush()
    async with AsyncMemory(name, None, None, options=options) as mem:
        done = 0
        for step in sizes.steps[:-1]:
            await _write(mem, done, step)
            await mem.flush()
            done = step
            costs.append(await _cost(mem, step, sizes.calls))
        say(f"a backlog up to {total:,} events")
        peak, started = peak_bytes(), time.perf_counter()
        most = await _write(mem, done, total)
        await mem.flush()
        seconds, backlog_bytes = time.perf_counter() - started, peak_bytes() - peak
        costs.append(await _cost(mem, total, sizes.calls))
        check(await mem.count("all") == total, "not every event is there")
        before, after = await _updates(mem, sizes)
        count = await mem.count()
    say(f"opening it {sizes.opens} times")
    big = await anyio.to_thread.run_sync(opened, place, name, sizes.opens)
    small = await anyio.to_thread.run_sync(opened, place, few, sizes.opens)
    check(all(each.count == count for each in big), "an opened store lacks memories")
    return Growth(
        sizes=sizes,
        costs=costs,
        open_seconds=statistics.median(each.open_seconds for each in big),
        open_few_seconds=statistics.median(each.open_seconds for each in small),
        init_seconds=statistics.median(each.init_seconds for each in big + small),
        backlog_bytes=backlog_bytes,
        backlog_events=most,
        backlog_seconds=seconds,
        get_before_ms=before,
        get_after_ms=after,
    )


def run(place: Place) -> Growth:
    return anyio.run(measure, place)
