"""Bar 4: the time from a single add until a search of a waiting reader finds it, less its embedding."""

from __future__ import annotations

import time
from typing import Any

import anyio
import msgspec

from benchmarks import data
from benchmarks.bars.project import load_model
from benchmarks.place import Place, minilm_path
from benchmarks.report import Bar, check
from benchmarks.timing import p50, say
from pixelmemory import AsyncMemory

#: adds, and memories that are there before
SIZES = {"tiny": (5, 20), "small": (50, 300), "full": (200, 1_000)}


class Searchable(msgspec.Struct):
    adds: int
    rows: int
    #: from the call of ``add_entry`` until ``search`` returned with it
    found_p50_ms: float
    #: ``model.encode`` of the same text
    embedding_p50_ms: float
    #: a search of what is visible already, which is part of the first
    search_p50_ms: float

    def bars(self) -> list[Bar]:
        rest = self.found_p50_ms - self.embedding_p50_ms
        return [
            Bar(
                number=4,
                name="one add until a waiting search finds it, less its embedding, p50",
                measured=f"{rest:.1f} ms (whole: {self.found_p50_ms:.1f} ms)",
                baseline=f"embedding alone: {self.embedding_p50_ms:.1f} ms; search alone: {self.search_p50_ms:.1f} ms",
                sizes=f"n = {self.adds}, {self.rows} memories before",
                wanted="<= 25 ms",
                met=rest <= 25,
            )
        ]


async def measure(place: Place) -> Searchable:
    adds, rows = place.sized(SIZES)
    model: Any = load_model("cpu")
    found_seconds, embedding, search = [list[float]() for _ in range(3)]
    config = {"model_id": minilm_path(), "device": "cpu"}
    async with AsyncMemory(place.name("searchable"), None, config, options=place.options()) as mem:
        await mem.add_entries([{"content": each} for each in data.texts(rows)], "all")
        await mem.flush()
        say(f"{adds} adds, each looked for at once")
        for turn in range(adds + 3):
            text = data.content(1_000_000 + turn)
            started = time.perf_counter()
            vector = model.encode([text], show_progress_bar=False)[0]
            embedded = time.perf_counter()
            memory_id = await mem.add_entry(text, "all")
            found = await mem.search("all", vector=vector, limit=1)
            ended = time.perf_counter()
            again = await mem.search("all", vector=vector, limit=1)
            searched = time.perf_counter()
            check(found[0]["memory_id"] == again[0]["memory_id"] == memory_id, "a new memory was not found")
            if turn >= 3:  # the first ones pay for what is loaded late
                embedding.append(embedded - started)
                found_seconds.append(ended - embedded)
                search.append(searched - ended)
        check(await mem.count("all") == rows + adds + 3, "not every memory is there")
    return Searchable(
        adds=adds,
        rows=rows,
        found_p50_ms=p50(found_seconds) * 1000,
        embedding_p50_ms=p50(embedding) * 1000,
        search_p50_ms=p50(search) * 1000,
    )


def run(place: Place) -> Searchable:
    return anyio.run(measure, place)
