"""Bar 8: adds to many namespaces in the shared layout, beside one namespace; and the cost of a table for each."""

from __future__ import annotations

import statistics
import time

import anyio
import msgspec

from benchmarks import data
from benchmarks.place import Place
from benchmarks.report import Bar, check
from benchmarks.timing import say
from pixelmemory import AsyncMemory, Layout

TASKS = 64


class Sizes(msgspec.Struct):
    namespaces: int
    rows: int
    rounds: int
    #: of the layout with a table each, and rows in each
    tables: int
    table_rows: int


SIZES = {
    "tiny": Sizes(50, 300, 1, 5, 4),
    "small": Sizes(200, 2_000, 1, 20, 10),
    "full": Sizes(1_000, 10_000, 2, 100, 20),
}


class Namespaces(msgspec.Struct):
    sizes: Sizes
    many_per_second: float
    one_per_second: float
    #: with the shared layout: the first memory of each of the many
    first_ms_per_namespace: float
    #: with one table a namespace: the first memories of each, and later ones
    first_ms_per_table: float
    later_per_second: float

    def bars(self) -> list[Bar]:
        sizes = self.sizes
        ratio = self.many_per_second / self.one_per_second
        return [
            Bar(
                number=8,
                name=f"interleaved adds to {sizes.namespaces} namespaces that exist, shared layout, to searchable",
                measured=f"{self.many_per_second:,.0f} rows/s",
                baseline=f"one namespace: {self.one_per_second:,.0f} rows/s",
                sizes=f"{sizes.rows} rows with vectors, {sizes.rounds} rounds, {TASKS} tasks",
                ratio=ratio,
                wanted=">= 0.5 x",
                met=ratio >= 0.5,
            ),
            Bar(
                number=8,
                name="shared layout: the first memory of each",
                measured=f"{self.first_ms_per_namespace:.1f} ms a new namespace",
                sizes=f"{sizes.namespaces} namespaces, {sizes.rounds} rounds",
                wanted="-",
            ),
            Bar(
                number=8,
                name="a table each: the first memory of each, and later ones",
                measured=f"{self.first_ms_per_table:.0f} ms a new namespace, then {self.later_per_second:,.0f} rows/s",
                sizes=f"{sizes.tables} namespaces, {sizes.table_rows} rows each",
                wanted="-",
            ),
        ]


async def interleaved(mem: AsyncMemory, corpus: data.Corpus, namespaces: int, rows: int) -> float:
    """Seconds until ``rows`` single adds, each to the next namespace, are searchable."""
    entries = corpus.entries(0, rows)

    async def run(first: int) -> None:
        for row in range(first, rows, TASKS):
            await mem.add_entry(**entries[row], namespace=f"n{row % namespaces}")

    started = time.perf_counter()
    async with anyio.create_task_group() as group:
        for first in range(TASKS):
            group.start_soon(run, first)
    await mem.flush()
    return time.perf_counter() - started


async def _shared(place: Place, corpus: data.Corpus, namespaces: int, rows: int) -> tuple[float, float]:
    """Rows/s in a new store with the shared layout, and before that the milliseconds for each new namespace."""
    options = place.options(layout=Layout.SHARED)
    async with AsyncMemory(place.name("shared"), None, {"dimensions": data.DIMENSIONS}, options=options) as mem:
        await mem.add_entries(corpus.entries(0, 1), "warm")
        await mem.flush()
        first = await interleaved(mem, corpus, namespaces, namespaces)
        seconds = await interleaved(mem, corpus, namespaces, rows)
        check(await mem.count() == rows + namespaces + 1, "not every row is there")
        found = await mem.namespaces()
        check(len(found) == namespaces + 1, f"{len(found)} namespaces")
    return rows / seconds, first / namespaces * 1000


async def _table_each(place: Place, corpus: data.Corpus, sizes: Sizes) -> tuple[float, float]:
    """Milliseconds for each new namespace, and rows/s once they are there."""
    options = place.options(layout=Layout.PER_NAMESPACE)
    async with AsyncMemory(place.name("tables"), None, {"dimensions": data.DIMENSIONS}, options=options) as mem:
        await mem.add_entries(corpus.entries(0, 1), "warm")
        await mem.flush()
        first = await interleaved(mem, corpus, sizes.tables, sizes.tables)
        rows = sizes.tables * sizes.table_rows
        later = await interleaved(mem, corpus, sizes.tables, rows)
        check(await mem.count() == rows + sizes.tables + 1, "not every row is there")
    return first / sizes.tables * 1000, rows / later


async def measure(place: Place) -> Namespaces:
    sizes = place.sized(SIZES)
    corpus = data.corpus(max(sizes.rows, sizes.tables * sizes.table_rows), queries=1)
    many, one, new = list[float](), list[float](), list[float]()
    for turn in range(sizes.rounds):
        say(f"round {turn + 1} of {sizes.rounds}: {sizes.namespaces} namespaces, then one")
        rate, milliseconds = await _shared(place, corpus, sizes.namespaces, sizes.rows)
        many.append(rate)
        new.append(milliseconds)
        one.append((await _shared(place, corpus, 1, sizes.rows))[0])
    say(f"a table each: {sizes.tables} tables")
    first, later = await _table_each(place, corpus, sizes)
    return Namespaces(
        sizes=sizes,
        many_per_second=statistics.median(many),
        one_per_second=statistics.median(one),
        first_ms_per_namespace=statistics.median(new),
        first_ms_per_table=first,
        later_per_second=later,
    )


def run(place: Place) -> Namespaces:
    return anyio.run(measure, place)
