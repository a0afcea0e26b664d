"""Bar 1: what a durable acknowledgement costs, beside SQLite and beside a bare append and flush."""

from __future__ import annotations

import statistics
import time

import anyio
import msgspec

from benchmarks import data
from benchmarks.place import Place
from benchmarks.report import Bar, check
from benchmarks.stores.baselines import BareFile, SqliteRows
from benchmarks.timing import each_seconds_async, p50, p99, say, ticking
from pixelmemory import AsyncMemory
from pixelmemory.memory.events import MemoryAdded, encode_event

#: an event of so many bytes, as the log encodes it
EVENT_BYTES = 230
TASKS = (64, 256)


class Sizes(msgspec.Struct):
    rounds: int
    #: commits, bare appends and adds of one task in each round
    calls: int
    #: adds of many tasks in each round
    concurrent: int
    #: commits that bring SQLite's WAL to the size from which it is written again and again
    warm: int
    #: rows with vectors that are projected while the loop is watched
    backlog: int


SIZES = {
    "tiny": Sizes(1, 64, 640, 20, 200),
    "small": Sizes(3, 500, 10_000, 1_200, 2_000),
    "full": Sizes(5, 1_000, 20_000, 1_500, 10_000),
}


class Acknowledged(msgspec.Struct):
    sizes: Sizes
    bare_p50_us: float
    #: into a file that has its length already
    reserved_p50_us: float
    sqlite_per_second: float
    sqlite_p50_us: float
    one_p50_us: float
    #: by number of tasks
    many_per_second: dict[int, float]
    ticker_p99_ms: float
    ticker_max_ms: float
    ticks: int
    #: what was found afterwards
    counts: dict[str, int]

    def bars(self) -> list[Bar]:
        sizes = self.sizes
        bars = []
        for tasks, rate in self.many_per_second.items():
            bars.append(
                Bar(
                    number=1,
                    name=f"durable adds/s of {tasks} tasks",
                    measured=f"{rate:,.0f}/s",
                    baseline=f"SQLite, one row a commit: {self.sqlite_per_second:,.0f}/s",
                    sizes=f"{EVENT_BYTES} bytes, {sizes.rounds} x {sizes.concurrent} adds, {sizes.calls} commits",
                    ratio=rate / self.sqlite_per_second,
                    wanted=">= 10 x",
                    met=rate >= 10 * self.sqlite_per_second,
                )
            )
        floors = (("bare append + fdatasync", self.bare_p50_us), ("bare overwrite + fdatasync", self.reserved_p50_us))
        for floor, microseconds in floors:
            bars.append(
                Bar(
                    number=1,
                    name="durable add of one task, p50",
                    measured=f"{self.one_p50_us:,.0f} us",
                    baseline=f"{floor}: {microseconds:,.0f} us",
                    sizes=f"{EVENT_BYTES} bytes, n = {sizes.rounds} x {sizes.calls}",
                    ratio=self.one_p50_us / microseconds,
                    wanted="<= 4 x",
                    met=self.one_p50_us <= 4 * microseconds,
                )
            )
        bars.append(
            Bar(
                number=1,
                name="event loop held up while projecting, p99",
                measured=f"{self.ticker_p99_ms:.1f} ms (longest {self.ticker_max_ms:.1f})",
                sizes=f"{sizes.backlog} rows with vectors, n = {self.ticks} ticks",
                wanted="<= 10 ms",
                met=self.ticker_p99_ms <= 10,
            )
        )
        return bars


def fitting_content(namespace: str) -> str:
    """A content whose event has :data:`EVENT_BYTES` bytes in ``namespace``."""
    event = MemoryAdded(namespace, "0" * 36, "", 1_700_000_000_000_000, b"{}", None)
    room = EVENT_BYTES - len(encode_event(event)) - 1  # a text of this length has a header that is a byte longer
    return (data.content(1) * 3)[:room]


async def _many(mem: AsyncMemory, text: str, count: int, tasks: int) -> float:
    """Seconds of ``count`` adds from ``tasks`` tasks."""

    async def run() -> None:
        for _ in range(count // tasks):
            await mem.add_entry(text, "many")

    started = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(tasks):
            group.start_soon(run)
    return time.perf_counter() - started


async def _watched(place: Place, rows: int) -> tuple[list[float], int]:
    """How late a ticker woke while ``rows`` acknowledged rows were projected, and how many are there then."""
    corpus = data.corpus(rows, queries=1)
    name, given = place.name("watched"), {"dimensions": data.DIMENSIONS}
    async with AsyncMemory(name, None, given, options=place.options()) as mem:
        await mem.add_entries(corpus.entries(0, 10), "warm")
        await mem.flush()
        # all in one call: from then on nobody but the projector has anything to do
        await mem.add_entries(corpus.entries(0, rows), "all")
        async with ticking() as ticker:
            await mem.flush()
        return ticker.late_seconds, await mem.count("all")


async def measure(place: Place) -> Acknowledged:
    sizes = place.sized(SIZES)
    folder = place.new_folder("acknowledge")
    bare, sqlite = BareFile(folder), SqliteRows(folder)
    reserved = BareFile(folder, reserved_bytes=sizes.rounds * sizes.calls * EVENT_BYTES)
    text = fitting_content("many")
    payload = encode_event(MemoryAdded("many", "0" * 36, text, 1_700_000_000_000_000, b"{}", None))
    check(len(payload) == EVENT_BYTES, f"the event has {len(payload)} bytes")
    floors, overwrites, commits, singles = [list[float]() for _ in range(4)]
    rates: dict[int, list[float]] = {tasks: [] for tasks in TASKS}
    added = {"one": 0, "many": 0}
    async with AsyncMemory(place.name("acknowledge"), None, None, options=place.options()) as mem:
        # the first calls pay for what is imported late
        added["one"] += len(await each_seconds_async(lambda _: mem.add_entry(text, "one"), range(50)))
        added["many"] += 256
        await _many(mem, text, 256, 64)
        bare.append(payload, 20)
        sqlite.insert(text, sizes.warm)
        await mem.flush()
        for turn in range(sizes.rounds):
            say(f"round {turn + 1} of {sizes.rounds}")
            floors += bare.append(payload, sizes.calls)
            overwrites += reserved.append(payload, sizes.calls)
            commits += sqlite.insert(text, sizes.calls)
            singles += await each_seconds_async(lambda _: mem.add_entry(text, "one"), range(sizes.calls))
            added["one"] += sizes.calls
            await mem.flush()
            for tasks in TASKS:
                count = max(sizes.concurrent // tasks, 1) * tasks
                rates[tasks].append(count / await _many(mem, text, count, tasks))
                added["many"] += count
                await mem.flush()
        counts = {name: await mem.count(name) for name in added}
    late, projected = await _watched(place, sizes.backlog)
    check(counts == added, f"acknowledged {added}, found {counts}")
    check(bare.close() == bare.written_bytes, "the bare file lacks bytes")
    check(reserved.close() == reserved.written_bytes, "the reserved file lacks bytes")
    check(sqlite.close() == sizes.rounds * sizes.calls + sizes.warm, "SQLite lacks rows")
    check(projected == sizes.backlog, f"acknowledged {sizes.backlog}, found {projected}")
    return Acknowledged(
        sizes=sizes,
        bare_p50_us=p50(floors) * 1e6,
        reserved_p50_us=p50(overwrites) * 1e6,
        sqlite_per_second=len(commits) / sum(commits),
        sqlite_p50_us=p50(commits) * 1e6,
        one_p50_us=p50(singles) * 1e6,
        many_per_second={tasks: statistics.median(each) for tasks, each in rates.items()},
        ticker_p99_ms=p99(late) * 1000,
        ticker_max_ms=max(late) * 1000,
        ticks=len(late),
        counts=counts,
    )


def run(place: Place) -> Acknowledged:
    return anyio.run(measure, place)
