"""Bars 3 and 5 at 100,000 rows: the backlog and its index beside Chroma, reads, a shared table's namespace."""

from __future__ import annotations

import time

import anyio
import msgspec
import numpy as np

from benchmarks import data
from benchmarks.bars.reads import LIMIT, SCHEMA, Filtered, filter_bars, filtered_reads, get_seconds, search_seconds
from benchmarks.place import Place, add_corpus, await_indexes
from benchmarks.report import Bar, check, not_run
from benchmarks.stores.peer_process import PeerProcess, installed
from benchmarks.timing import p50, say
from pixelmemory import AsyncMemory, Layout


class Sizes(msgspec.Struct):
    rows: int
    #: of the store that the searches are compared with
    small_rows: int
    #: from which a table gets its index
    graph_rows_min: int
    rounds: int
    calls: int
    #: of the shared table; a fiftieth is the small namespace
    shared_rows: int


#: the option's default is 20,000 rows; the smaller sizes set it lower, so that there is an index
SIZES = {
    "tiny": Sizes(600, 150, 200, 1, 10, 600),
    "small": Sizes(10_000, 1_000, 2_000, 1, 50, 10_000),
    "full": Sizes(100_000, 10_000, 20_000, 2, 100, 100_000),
}


class Large(msgspec.Struct):
    sizes: Sizes
    #: until everything is searchable and the index is there
    finished_seconds: float
    #: None: not installed
    chroma_seconds: float | None
    search_p50_ms: float
    recall: float
    small_search_p50_ms: float
    small_recall: float
    filtered: dict[str, Filtered]
    get_p50_ms: float
    #: searches in a namespace with a fiftieth of the shared table
    shared_p50_ms: float
    shared_recall: float

    def bars(self) -> list[Bar]:
        sizes = self.sizes
        name, wanted = "a backlog searchable, with its index", "< 1 x"
        if self.chroma_seconds is None:
            bars = [not_run(3, name, "Chroma is not installed", wanted)]
        else:
            ratio = self.finished_seconds / self.chroma_seconds
            bars = [
                Bar(
                    number=3,
                    name=name,
                    measured=f"{self.finished_seconds:.1f} s",
                    baseline=f"Chroma: {self.chroma_seconds:.1f} s",
                    sizes=f"{sizes.rows} rows, {data.DIMENSIONS} dimensions",
                    ratio=ratio,
                    wanted=wanted,
                    met=ratio < 1,
                )
            ]
        said = f"{sizes.rows} rows, n = {sizes.rounds * sizes.calls}"
        ratio = self.search_p50_ms / self.small_search_p50_ms
        return [
            *bars,
            Bar(
                number=5,
                name=f"search p50 at {sizes.rows} rows",
                measured=f"{self.search_p50_ms:.1f} ms, recall@{LIMIT} {self.recall:.3f}",
                baseline=f"{sizes.small_rows} rows: {self.small_search_p50_ms:.1f} ms, {self.small_recall:.3f}",
                sizes=said,
                ratio=ratio,
                wanted="<= 3 x, recall >= 0.99",
                met=ratio <= 3 and self.recall >= 0.99,
            ),
            *filter_bars(self.filtered, 20, f"{sizes.rows} rows, n = {sizes.calls}"),
            Bar(
                number=5,
                name="search in a namespace with 2 % of a shared table, recall",
                measured=f"{self.shared_recall:.3f} ({self.shared_p50_ms:.1f} ms)",
                baseline="an exact scan: 1.0",
                sizes=f"{sizes.shared_rows} rows, {sizes.shared_rows // 50} in it, n = {sizes.calls}",
                wanted=">= 0.99",
                met=self.shared_recall >= 0.99,
            ),
        ]


async def _shared(place: Place, of: data.Corpus, sizes: Sizes) -> tuple[float, float]:
    """Milliseconds and recall of searches in the small namespace."""
    options = place.options(layout=Layout.SHARED, graph_rows_min=sizes.graph_rows_min)
    member = np.zeros(len(of.contents), dtype=np.bool_)
    member[np.random.default_rng(3).permutation(sizes.shared_rows)[: sizes.shared_rows // 50]] = True
    async with AsyncMemory(place.name("shared"), SCHEMA, {"dimensions": data.DIMENSIONS}, options=options) as mem:
        await add_corpus(mem, of, "most", np.flatnonzero(~member[: sizes.shared_rows]).tolist())
        await add_corpus(mem, of, "few", np.flatnonzero(member).tolist())
        await await_indexes(mem)
        check(await mem.count() == sizes.shared_rows, "not every row is there")
        seconds, recall = await search_seconds(mem, of, sizes.calls, member, namespace="few")
    return p50(seconds) * 1000, recall


async def measure(place: Place) -> Large:
    sizes = place.sized(SIZES)
    of, small_of = data.corpus(sizes.rows), data.corpus(sizes.small_rows)
    options, given = place.options(graph_rows_min=sizes.graph_rows_min), {"dimensions": data.DIMENSIONS}
    chroma: float | None = None
    search, small_search, get = [list[float]() for _ in range(3)]
    recall = small_recall = 0.0
    async with (
        AsyncMemory(place.name("small"), SCHEMA, given, options=place.options()) as small,
        AsyncMemory(place.name("large"), SCHEMA, given, options=options) as mem,
    ):
        await add_corpus(small, small_of)
        await await_indexes(small)
        say(f"{sizes.rows} rows with the index")
        started = time.perf_counter()
        ids = await add_corpus(mem, of)
        await await_indexes(mem)
        finished = time.perf_counter() - started
        check(await mem.count("all") == sizes.rows, "not every row is there")
        if installed("chroma"):
            say(f"{sizes.rows} rows in Chroma")
            with PeerProcess(place, "chroma", sizes.rows, 1) as peer:
                chroma = sum((await anyio.to_thread.run_sync(peer.run, "bulk")).seconds)
        for turn in range(sizes.rounds):
            say(f"round {turn + 1} of {sizes.rounds}: searches of {sizes.small_rows} and {sizes.rows} rows, get")
            seconds, small_recall = await search_seconds(small, small_of, sizes.calls)
            small_search += seconds
            seconds, recall = await search_seconds(mem, of, sizes.calls)
            search += seconds
            get += await get_seconds(mem, of, ids, sizes.calls)
        say("filters")
        filters = await filtered_reads(mem, of, sizes.calls)
    say(f"a shared table of {sizes.shared_rows} rows")
    shared_ms, shared_recall = await _shared(place, of, sizes)
    return Large(
        sizes=sizes,
        finished_seconds=finished,
        chroma_seconds=chroma,
        search_p50_ms=p50(search) * 1000,
        recall=recall,
        small_search_p50_ms=p50(small_search) * 1000,
        small_recall=small_recall,
        filtered=filters,
        get_p50_ms=p50(get) * 1000,
        shared_p50_ms=shared_ms,
        shared_recall=shared_recall,
    )


def run(place: Place) -> Large:
    return anyio.run(measure, place)
