"""Bar 5 at 10,000 rows: search, filters, get, and readers at the same time; query vectors are given."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import anyio
import msgspec
import numpy as np

from benchmarks import data
from benchmarks.place import BATCH_ROWS, Place, add_corpus, await_indexes
from benchmarks.report import Bar, check, not_run
from benchmarks.stores.peer_process import PeerProcess, installed
from benchmarks.timing import each_seconds_async, p50, say
from pixelmemory import AsyncMemory
from pixelmemory.projection.pixeltable.internals import thread_released

LIMIT = 10
READERS = 8
#: the one typed field: a range of it has an index, a range of ``score`` has none
SCHEMA = {"year": int}


class Sizes(msgspec.Struct):
    rows: int
    rounds: int
    #: reads of each kind in each round
    calls: int
    #: reads of each of the readers at the same time, and of those through Pixeltable
    each: int
    each_fluent: int


SIZES = {
    "tiny": Sizes(300, 1, 10, 5, 2),
    "small": Sizes(2_000, 2, 50, 20, 5),
    "full": Sizes(10_000, 3, 200, 100, 10),
}


class Filtered(msgspec.Struct):
    """Searches with a vector and one filter that a twentieth of the rows passes."""

    p50_ms: float
    recall: float
    #: what it lets through
    rows: int


class Reads(msgspec.Struct):
    sizes: Sizes
    search_p50_ms: float
    recall: float
    #: None: not installed
    chroma_p50_ms: float | None
    chroma_recall: float | None
    filtered: dict[str, Filtered]
    get_p50_ms: float
    #: searches per second of :data:`READERS` at the same time
    concurrent_per_second: float
    fluent_per_second: float

    def bars(self) -> list[Bar]:
        sizes = self.sizes
        said = f"{sizes.rows} rows, n = {sizes.rounds} x {sizes.calls}"
        wanted = "<= 1 x, recall >= 0.99"
        ours = f"{self.search_p50_ms:.1f} ms, recall@{LIMIT} {self.recall:.3f}"
        if self.chroma_p50_ms is None or self.chroma_recall is None:
            bars = [not_run(5, "search p50", "Chroma is not installed", wanted)]
        else:
            ratio = self.search_p50_ms / self.chroma_p50_ms
            bars = [
                Bar(
                    number=5,
                    name="search p50",
                    measured=ours,
                    baseline=f"Chroma: {self.chroma_p50_ms:.1f} ms, recall {self.chroma_recall:.3f}",
                    sizes=said,
                    ratio=ratio,
                    wanted=wanted,
                    met=ratio <= 1 and self.recall >= 0.99,
                )
            ]
        bars += filter_bars(self.filtered, 4, said)
        ratio = self.concurrent_per_second / self.fluent_per_second
        return [
            *bars,
            Bar(
                number=5,
                name="get p50",
                measured=f"{self.get_p50_ms:.2f} ms",
                sizes=said,
                wanted="<= 1 ms",
                met=self.get_p50_ms <= 1,
            ),
            Bar(
                number=5,
                name=f"searches/s of {READERS} readers",
                measured=f"{self.concurrent_per_second:,.0f}/s",
                baseline=f"{READERS} threads, Pixeltable's fluent query: {self.fluent_per_second:,.0f}/s",
                sizes=f"{sizes.rows} rows, {sizes.each} and {sizes.each_fluent} searches each",
                ratio=ratio,
                wanted=">= 4 x",
                met=ratio >= 4,
            ),
        ]


def filter_bars(filtered: dict[str, Filtered], limit_ms: float, sizes: str) -> list[Bar]:
    return [
        Bar(
            number=5,
            name=f"search filtered by {name}, p50",
            measured=f"{each.p50_ms:.1f} ms, recall@{LIMIT} {each.recall:.3f}",
            sizes=f"{sizes}, {each.rows} rows match",
            wanted=f"<= {limit_ms:g} ms, recall 1.0",
            met=each.p50_ms <= limit_ms and each.recall >= 1.0,
        )
        for name, each in filtered.items()
    ]


def _arguments(of: data.Corpus, name: str, wanted: dict[str, Any] | None) -> dict[str, Any]:
    if name != "time":
        return {"metadata_filter": wanted}
    start, end = data.time_range(len(of.times))
    return {"start_time": start, "end_time": end}


async def search_seconds(
    mem: AsyncMemory, of: data.Corpus, calls: int, among: np.ndarray | None = None, **arguments: Any
) -> tuple[list[float], float]:
    """Seconds of ``calls`` searches, and their mean recall; a result that does not belong is an error."""
    found: dict[int, list[int]] = {}
    namespace = arguments.pop("namespace", "all")

    async def run(turn: int) -> None:
        query = of.queries[turn]
        result = await mem.search(namespace, vector=query, limit=LIMIT, **arguments)
        found[turn] = [each["metadata"]["n"] for each in result]

    await run(0)  # the first one prepares the statement
    seconds = await each_seconds_async(run, [i % len(of.queries) for i in range(calls)])
    matching = len(of.contents) if among is None else int(among.sum())
    shares = []
    for turn, rows in found.items():
        check(len(set(rows)) == min(LIMIT, matching), f"{len(rows)} of {min(LIMIT, matching)} results")
        check(among is None or all(among[row] for row in rows), "a result that the filter excludes")
        shares.append(data.recall(data.exact(of, of.queries[turn], among), rows, LIMIT))
    return seconds, float(np.mean(shares))


async def filtered_reads(mem: AsyncMemory, of: data.Corpus, calls: int) -> dict[str, Filtered]:
    """Every filter of :data:`benchmarks.data.FILTERS`."""
    results = {}
    for name, wanted in data.FILTERS:
        among = data.matches(of, name)
        seconds, recall = await search_seconds(mem, of, calls, among, **_arguments(of, name, wanted))
        results[name] = Filtered(p50(seconds) * 1000, recall, int(among.sum()))
    return results


async def get_seconds(mem: AsyncMemory, of: data.Corpus, ids: Sequence[str], calls: int) -> list[float]:
    """Seconds of ``calls`` gets by id, each checked."""
    rows = np.random.default_rng(2).integers(0, len(ids), calls).tolist()

    async def run(row: int) -> None:
        found = await mem.get_memory(ids[row], "all")
        check(found is not None and found["content"] == of.contents[row], f"another content of row {row}")

    await run(0)
    return await each_seconds_async(run, rows)


async def concurrent_rate(mem: AsyncMemory, of: data.Corpus, each: int) -> float:
    """Searches per second of :data:`READERS` tasks."""

    async def run(first: int) -> None:
        for turn in range(each):
            found = await mem.search("all", vector=of.queries[(first + turn) % len(of.queries)], limit=LIMIT)
            check(len(found) == LIMIT, "too few results")

    started = time.perf_counter()
    async with anyio.create_task_group() as group:
        for first in range(READERS):
            group.start_soon(run, first)
    return READERS * each / (time.perf_counter() - started)


@thread_released()
def fluent_rate(direct: Any, of: data.Corpus, each: int) -> float:
    """Searches per second of as many threads through Pixeltable's fluent query."""
    done: list[int] = []

    @thread_released()
    def run(first: int) -> None:
        for turn in range(each):
            found = direct.search(of.queries[(first + turn) % len(of.queries)], LIMIT)
            done.append(len(found))

    direct.search(of.queries[0], LIMIT)
    threads = [threading.Thread(target=run, args=(first,)) for first in range(READERS)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    check(done == [LIMIT] * (READERS * each), "Pixeltable found too few, or failed")
    return READERS * each / seconds


@thread_released()
def direct_table(of: data.Corpus) -> Any:
    """The same rows in a table of Pixeltable's own."""
    from benchmarks.stores.pixeltable_direct import DirectTable

    direct = DirectTable(of)
    for first in range(0, len(of.contents), BATCH_ROWS):
        direct.insert(first, first + BATCH_ROWS)
    return direct


async def measure(place: Place) -> Reads:
    sizes = place.sized(SIZES)
    of = data.corpus(sizes.rows)
    search, get, chroma = [list[float]() for _ in range(3)]
    recalls, chroma_recalls, rates, fluent = [list[float]() for _ in range(4)]
    options, given = place.options(), {"dimensions": data.DIMENSIONS}
    async with AsyncMemory(place.name("reads"), SCHEMA, given, options=options) as mem:
        ids = await add_corpus(mem, of)
        await await_indexes(mem)
        peer = PeerProcess(place, "chroma", sizes.rows, 1) if installed("chroma") else None
        try:
            if peer is not None:
                await anyio.to_thread.run_sync(peer.run, "bulk")
            for turn in range(sizes.rounds):
                say(f"round {turn + 1} of {sizes.rounds}: search, get, Chroma's search")
                seconds, recall = await search_seconds(mem, of, sizes.calls)
                search += seconds
                recalls.append(recall)
                get += await get_seconds(mem, of, ids, sizes.calls)
                if peer is not None:
                    timed = await anyio.to_thread.run_sync(peer.run, "search", sizes.calls)
                    chroma += timed.seconds
                    chroma_recalls.append(timed.recall or 0.0)
        finally:
            if peer is not None:
                peer.close()
        say("filters")
        filters = await filtered_reads(mem, of, sizes.calls)
        direct = await anyio.to_thread.run_sync(direct_table, of)
        for turn in range(sizes.rounds):
            say(f"round {turn + 1} of {sizes.rounds}: {READERS} readers, here and through Pixeltable")
            rates.append(await concurrent_rate(mem, of, sizes.each))
            fluent.append(await anyio.to_thread.run_sync(fluent_rate, direct, of, sizes.each_fluent))
        await anyio.to_thread.run_sync(thread_released()(direct.drop))
        check(await mem.count("all") == sizes.rows, "not every row is there")
    return Reads(
        sizes=sizes,
        search_p50_ms=p50(search) * 1000,
        recall=float(np.mean(recalls)),
        chroma_p50_ms=p50(chroma) * 1000 if chroma else None,
        chroma_recall=float(np.mean(chroma_recalls)) if chroma else None,
        filtered=filters,
        get_p50_ms=p50(get) * 1000,
        concurrent_per_second=p50(rates),
        fluent_per_second=p50(fluent),
    )


def run(place: Place) -> Reads:
    return anyio.run(measure, place)
