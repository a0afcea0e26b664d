"""Bar 2: ``add_entries`` in batches of 1,000, beside a bare loop that encodes, checksums, writes and flushes them."""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

import anyio
import msgspec

from benchmarks import data
from benchmarks.place import BATCH_ROWS, Place
from benchmarks.report import Bar, check
from benchmarks.stores.baselines import BareFile
from benchmarks.timing import say
from pixelmemory import AsyncMemory

#: both may differ by what frames and record headers add
BYTES_TOLERANCE = 0.25

SIZES = {"tiny": (1, 2), "small": (3, 5), "full": (5, 10)}
"""Rounds, and batches in each."""


class Bulk(msgspec.Struct):
    rounds: int
    batches: int
    #: medians of the rounds
    bare_per_second: float
    acknowledged_per_second: float
    bare_vectors_per_second: float
    acknowledged_vectors_per_second: float
    log_bytes: int
    bare_bytes: int
    count: int

    def bars(self) -> list[Bar]:
        sizes = f"{BATCH_ROWS} rows a call, {self.rounds} x {self.batches} calls"
        pairs = (
            ("bulk adds acknowledged/s", self.acknowledged_per_second, self.bare_per_second, sizes),
            (
                f"the same with vectors of {data.DIMENSIONS}",
                self.acknowledged_vectors_per_second,
                self.bare_vectors_per_second,
                sizes,
            ),
        )
        return [
            Bar(
                number=2,
                name=name,
                measured=f"{ours:,.0f}/s",
                baseline=f"bare loop: {bare:,.0f}/s",
                sizes=said,
                ratio=ours / bare,
                wanted=">= 0.5 x",
                met=ours >= 0.5 * bare,
            )
            for name, ours, bare, said in pairs
        ]


class _Side(NamedTuple):
    """The rounds with vectors, or without."""

    ours: list[float]
    bare: list[float]
    log_bytes: int
    rows: int


async def _side(place: Place, bare: BareFile, *, vectors: bool) -> _Side:
    rounds, batches = place.sized(SIZES)
    corpus = data.corpus(BATCH_ROWS, queries=1)
    kept = {"content", "metadata", "embedding"} if vectors else {"content", "metadata"}
    entries = [{key: entry[key] for key in kept} for entry in corpus.entries(0, BATCH_ROWS)]
    given = {"dimensions": data.DIMENSIONS} if vectors else None
    options = place.options(graph_rows_min=10**9)  # a graph that is built would take the CPU from what is measured
    side, per_round, added = _Side([], [], 0, 0), batches * BATCH_ROWS, 0
    async with AsyncMemory(place.name("bulk"), None, given, options=options) as mem:
        await mem.add_entries(entries[:50], "warm")
        await mem.flush()
        log_bytes = (await mem.stats()).log_bytes
        for turn in range(rounds):
            say(f"round {turn + 1} of {rounds}, {'with' if vectors else 'no'} vectors")
            side.bare.append(per_round / bare.append_batches(entries, batches))
            started = time.perf_counter()
            for _ in range(batches):
                added += len(await mem.add_entries(entries, "bulk"))
            side.ours.append(per_round / (time.perf_counter() - started))
            await mem.flush()
        log_bytes = (await mem.stats()).log_bytes - log_bytes
        count = await mem.count("bulk")
    check(count == added == rounds * per_round, f"acknowledged {added}, found {count}")
    return side._replace(log_bytes=log_bytes, rows=count)


async def measure(place: Place) -> Bulk:
    rounds, batches = place.sized(SIZES)
    bare = BareFile(place.new_folder("bulk"))
    plain = await _side(place, bare, vectors=False)
    vectors = await _side(place, bare, vectors=True)
    log_bytes = plain.log_bytes + vectors.log_bytes
    check(bare.close() == bare.written_bytes, "the bare file lacks bytes")
    check(
        abs(log_bytes - bare.written_bytes) < BYTES_TOLERANCE * log_bytes,
        f"the loops did not write the same: {log_bytes} and {bare.written_bytes} bytes",
    )
    return Bulk(
        rounds=rounds,
        batches=batches,
        bare_per_second=statistics.median(plain.bare),
        acknowledged_per_second=statistics.median(plain.ours),
        bare_vectors_per_second=statistics.median(vectors.bare),
        acknowledged_vectors_per_second=statistics.median(vectors.ours),
        log_bytes=log_bytes,
        bare_bytes=bare.written_bytes,
        count=plain.rows + vectors.rows,
    )


def run(place: Place) -> Bulk:
    return anyio.run(measure, place)
