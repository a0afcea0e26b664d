"""Bar 7: a rebuild from a log whose vectors are cached, beside the projection with vectors given."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from unittest.mock import patch

import anyio
import msgspec

from benchmarks import data
from benchmarks.bars.project import given_rate
from benchmarks.place import BATCH_ROWS, Place
from benchmarks.report import Bar, check
from benchmarks.timing import say
from pixelmemory import AsyncMemory

#: rows, rounds
SIZES = {"tiny": (300, 1), "small": (2_000, 1), "full": (10_000, 3)}


class Rebuilt(msgspec.Struct):
    rows: int
    rounds: int
    #: from the projector's start until everything is visible, less the making of the table: that of the store with
    #: vectors given, which this is beside, is there before its time begins as well
    rebuild_per_second: float
    #: of the whole call that opens: with Pixeltable's tables dropped and made
    open_seconds: float
    given_per_second: float
    #: contents that the embedder was called with during the rebuilds
    embedder_calls: int

    def bars(self) -> list[Bar]:
        ratio = self.rebuild_per_second / self.given_per_second
        return [
            Bar(
                number=7,
                name=f"rebuild with cached vectors, embedder calls: {self.embedder_calls}",
                measured=f"{self.rebuild_per_second:,.0f} rows/s",
                baseline=f"vectors given: {self.given_per_second:,.0f} rows/s",
                sizes=f"{self.rows} rows, {self.rounds} rounds, the whole open: {self.open_seconds:.2f} s",
                ratio=ratio,
                wanted=">= 0.8 x, 0 calls",
                met=ratio >= 0.8 and self.embedder_calls == 0,
            )
        ]


class ProjectorClock:
    """Since the projector was started, less what it took to make tables."""

    def __init__(self) -> None:
        self.started = math.nan
        self.making_seconds = 0.0

    def seconds(self) -> float:
        seconds = time.perf_counter() - self.started - self.making_seconds
        check(seconds > 0, "the projector was not started, or made no table")
        return seconds


@contextmanager
def projector_clock() -> Iterator[ProjectorClock]:
    """A clock for the store that is opened in the block."""
    from pixelmemory.projection.pixeltable.tables import TableSet
    from pixelmemory.projection.projector import Projector

    clock = ProjectorClock()
    start, create = Projector.start, TableSet.create

    def timed_start(projector: Projector) -> None:
        clock.started = time.perf_counter()
        start(projector)

    def timed_create(tables: TableSet, rows: Mapping[str, int]) -> None:
        started = time.perf_counter()
        try:
            create(tables, rows)
        finally:
            clock.making_seconds += time.perf_counter() - started

    with patch.object(Projector, "start", timed_start), patch.object(TableSet, "create", timed_create):
        yield clock


async def measure(place: Place) -> Rebuilt:
    from benchmarks.stores import pixeltable_direct
    from pixelmemory.projection.pixeltable.internals import thread_released
    from pixelmemory.projection.pixeltable.startup import start_pixeltable

    await anyio.to_thread.run_sync(thread_released()(lambda: start_pixeltable(keep_http_server=False)))
    rows, rounds = place.sized(SIZES)
    corpus = data.corpus(rows)
    pixeltable_direct.know(corpus)
    config = {"function": pixeltable_direct.counted, "dimensions": data.DIMENSIONS}
    name = place.name("rebuild")
    async with AsyncMemory(name, None, config, options=place.options()) as mem:
        for first in range(0, rows, BATCH_ROWS):
            entries = corpus.entries(first, first + BATCH_ROWS)
            await mem.add_entries([{key: each[key] for key in each if key != "embedding"} for each in entries], "all")
        await mem.flush()
    check(len(set(pixeltable_direct.embedded_texts) & set(corpus.contents)) == rows, "not every text was embedded")
    ours, beside, opens, calls = list[float](), list[float](), list[float](), 0
    for turn in range(rounds):
        say(f"round {turn + 1} of {rounds}, {rows} rows")
        pixeltable_direct.embedded_texts.clear()
        started = time.perf_counter()
        with projector_clock() as clock:
            async with AsyncMemory(name, None, config, options=place.options(rebuild=True)) as mem:
                await mem.flush()
                ours.append(rows / clock.seconds())
                opens.append(time.perf_counter() - started)
                check(await mem.count("all") == rows, "not every row is there")
                found = [each["metadata"]["n"] for each in await mem.search("all", vector=corpus.queries[0], limit=10)]
                check(data.recall(data.exact(corpus, corpus.queries[0]), found, 10) >= 0.9, "the nearest are not found")
        calls += sum(text in set(corpus.contents) for text in pixeltable_direct.embedded_texts)
        beside.append(await given_rate(place, corpus))
    return Rebuilt(
        rows=rows,
        rounds=rounds,
        rebuild_per_second=statistics.median(ours),
        open_seconds=statistics.median(opens),
        given_per_second=statistics.median(beside),
        embedder_calls=calls,
    )


def run(place: Place) -> Rebuilt:
    return anyio.run(measure, place)
