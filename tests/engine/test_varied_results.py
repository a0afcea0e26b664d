"""Near duplicates that are left out, and results that are chosen for their difference."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixelmemory import AsyncMemory, InvalidArgumentError, InvalidTypeError, Options
from tests.engine.test_reads_that_wait import held

pytestmark = pytest.mark.anyio

QUERY = [1.0, 0.0, 0.0]
#: id -> vector: five that are nearly one, two that are nearly another, and one alone
VECTORS = {
    **{f"tea {n}": [0.9, 0.1 + n / 1000, 0.0] for n in range(5)},
    **{f"milk {n}": [0.7, 0.0, 0.5 + n / 1000] for n in range(2)},
    "cake": [0.3, -0.9, 0.1],
}


def cosine(left: Any, right: Any) -> float:
    a, b = np.asarray(left, np.float64), np.asarray(right, np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.fixture(params=[True, False], ids=["sql", "public API"])
async def mem(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[AsyncMemory]:
    options = Options(home=tmp_path, progress=False, direct_sql=request.param)
    async with AsyncMemory("varied", None, {"dimensions": 3}, options=options) as opened:
        for memory_id, given in VECTORS.items():
            await opened.add_entry(memory_id, memory_id=memory_id, embedding=given)
        await opened.flush()
        yield opened


async def found(mem: AsyncMemory, **given: Any) -> list[str]:
    return [memory["memory_id"] for memory in await mem.search(vector=QUERY, **given)]


async def test_near_duplicates_are_left_out(mem: AsyncMemory) -> None:
    assert await found(mem, limit=3) == ["tea 0", "tea 1", "tea 2"]
    assert await found(mem, limit=3, distinct=0.99) == ["tea 0", "milk 0", "cake"]
    assert await found(mem, limit=1, offset=1, distinct=0.99) == ["milk 0"]
    assert await found(mem, limit=10, distinct=0.99, min_score=0.5) == ["tea 0", "milk 0"]
    assert await found(mem, limit=10, distinct=1) == sorted(VECTORS, key=lambda each: -cosine(VECTORS[each], QUERY))
    assert await found(mem, limit=0, distinct=0.99) == []
    assert await found(mem, namespace="nobody", distinct=0.99) == []


async def test_where_duplicates_crowd_out_the_rest_more_is_looked_at(mem: AsyncMemory) -> None:
    await mem.add_entries([{"content": f"{n}", "embedding": [1.0, n / 1000, 0.0]} for n in range(120)], "crowd")
    await mem.add_entry("the other", "crowd", memory_id="other", embedding=[0.0, 1.0, 0.0])
    await mem.flush()
    both = await mem.search("crowd", vector=QUERY, limit=2, distinct=0.99)
    assert [memory["content"] for memory in both] == ["0", "the other"]


async def test_the_most_relevant_of_what_is_different_comes_next(mem: AsyncMemory) -> None:
    for diversity in (0.0, 0.3, 0.7, 1.0):
        left, chosen = dict(VECTORS), list[str]()
        while left:

            def worth(memory_id: str) -> float:
                nearest = max((cosine(left[memory_id], VECTORS[each]) for each in chosen), default=0.0)  # noqa: B023
                return (1 - diversity) * cosine(left[memory_id], QUERY) - diversity * nearest  # noqa: B023

            best = max(left, key=worth)
            if diversity == 1.0 and not chosen:
                best = "tea 0"  # nothing is said yet: the most similar
            chosen.append(best)
            del left[best]
        assert await found(mem, limit=8, diversity=diversity) == chosen
        assert await found(mem, limit=2, offset=1, diversity=diversity) == chosen[1:3]
    assert await found(mem, limit=2, diversity=0.5, distinct=0.99) == ["tea 0", "cake"]


async def test_scores_stay_those_of_the_query(mem: AsyncMemory) -> None:
    for memory in await mem.search(vector=QUERY, limit=8, diversity=0.7):
        assert memory["similarity_score"] == pytest.approx(cosine(VECTORS[memory["memory_id"]], QUERY), abs=1e-6)


async def test_what_the_tables_do_not_show_yet_is_compared_too(mem: AsyncMemory) -> None:
    async with held(mem):
        await mem.add_entry("twin", memory_id="twin", embedding=[0.9, 0.1, 0.0])
        await mem.add_entry("pie", memory_id="pie", embedding=[0.3, -0.9, 0.1001])
        await mem.update_memory("milk 0", metadata={"n": 1})
        before = [await found(mem, limit=8, distinct=0.99), await found(mem, limit=8, diversity=0.4)]
    await mem.flush()
    assert before == [await found(mem, limit=8, distinct=0.99), await found(mem, limit=8, diversity=0.4)]
    assert before[0][0] == "twin"
    assert not {"tea 0", "milk 1"} & set(before[0])


@pytest.mark.parametrize("field", ["distinct", "diversity"])
async def test_bad_values_are_refused(mem: AsyncMemory, field: str) -> None:
    for value, error in ((1.1, InvalidArgumentError), (-1.5, InvalidArgumentError), ("x", InvalidTypeError)):
        with pytest.raises(error, match=field):
            await mem.search(vector=QUERY, **{field: value})  # type: ignore[arg-type]
    with pytest.raises(InvalidTypeError, match=field):
        await mem.search(vector=QUERY, **{field: True})  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="needs query or vector"):
        await mem.search(**{field: 0.5})  # type: ignore[arg-type]
