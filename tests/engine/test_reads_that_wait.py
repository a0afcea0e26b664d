"""A read sees every acknowledged write of what it reads, and waits for nothing else."""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pixelmemory import AsyncMemory, Options, WaitTimeoutError
from pixelmemory.engine.engine import OVERLAID_MAX
from pixelmemory.faults import set_fault_hook
from tests.harness.embedders import DIMENSIONS, HALF_DIMENSIONS, embed_far, embed_words, embedded, words_vector

pytestmark = pytest.mark.anyio


@contextlib.contextmanager
def faults(hook: Callable[[str], object]) -> Iterator[None]:
    """``hook`` is called at each fault point within the block."""
    set_fault_hook(hook)  # type: ignore[arg-type]
    try:
        yield
    finally:
        set_fault_hook(None)


@contextlib.asynccontextmanager
async def held(mem: AsyncMemory) -> AsyncIterator[None]:
    """The tables do not change within the block."""
    assert mem._engine is not None
    may_go = threading.Event()
    mem._engine.store().projection.projector.request(may_go.wait)
    try:
        yield
    finally:
        may_go.set()


@pytest.fixture
async def mem(tmp_path: Path) -> AsyncIterator[AsyncMemory]:
    options = Options(home=tmp_path, progress=False, wait_timeout_seconds=30)
    async with AsyncMemory("waits", embedding_config={"function": embed_words}, options=options) as opened:
        yield opened


async def everything(mem: AsyncMemory, ids: list[str], consistency: Any = "session") -> list[Any]:
    """Every kind of read of one namespace."""
    given: dict[str, Any] = {"consistency": consistency, "timeout": 2}
    day = dt.datetime(2024, 5, 2, tzinfo=dt.UTC)
    return [
        [await mem.get_memory(memory_id, "ann", **given) for memory_id in ids],
        await mem.count("ann", **given),
        await mem.search("ann", limit=3, **given),
        await mem.search("ann", metadata_filter={"kind": "drink"}, **given),
        await mem.search("ann", start_time=day, end_time=day, **given),
        await mem.search("ann", "hot tea", **given),
        await mem.search("ann", "hot tea", metadata_filter={"kind": "drink"}, min_score=0.1, **given),
        await mem.search("ann", vector=words_vector("cold milk"), limit=1, **given),
    ]


async def test_nobody_waits_for_another_namespace(mem: AsyncMemory) -> None:
    memory_id = await mem.add_entry("ann likes tea", "ann")
    await mem.flush()
    async with held(mem):
        await mem.add_entries([{"content": f"text {n}"} for n in range(OVERLAID_MAX + 1)], "bob")
        (found,) = await mem.search("ann", "tea", timeout=2)
        assert found["memory_id"] == memory_id
        assert await mem.count("ann", consistency="strong", timeout=2) == 1
        assert await mem.truncated_memories("ann", timeout=2) == []
        with pytest.raises(WaitTimeoutError):
            await mem.search("bob", timeout=0.2)
        with pytest.raises(WaitTimeoutError):
            await mem.count(timeout=0.2)
        assert await mem.search("bob", consistency="eventual") == []
    assert await mem.count("bob") == OVERLAID_MAX + 1


@pytest.mark.parametrize("consistency", ["session", "strong"])
async def test_a_read_sees_its_own_writes_before_the_tables_do(mem: AsyncMemory, consistency: str) -> None:
    day = dt.datetime(2024, 5, 2, tzinfo=dt.UTC)
    ids = await mem.add_entries(
        [
            {"content": "hot tea", "metadata": {"kind": "drink"}, "timestamp": day},
            {"content": "cold milk", "metadata": {"kind": "drink"}},
            {"content": "old bread", "metadata": {"kind": "food"}},
            {"content": "to be deleted", "metadata": {"kind": "drink"}},
        ],
        "ann",
    )
    await mem.flush()
    async with held(mem):
        assert await mem.update_memory(ids[0], "ann", metadata={"kind": "drink", "n": 1})
        assert await mem.update_memory(ids[1], "ann", content="warm milk")
        assert await mem.update_memory(ids[2], "ann", content="tea biscuits", metadata={"kind": "drink"})
        assert await mem.delete_memory(ids[3], "ann")
        ids += await mem.add_entries(
            [
                {"content": "green tea", "metadata": {"kind": "drink"}, "timestamp": day},
                {"content": "given", "embedding": [1.0] * DIMENSIONS},
            ],
            "ann",
        )
        before = await everything(mem, ids, consistency)
        assert await everything(mem, ids, "eventual") != before
    await mem.flush()
    assert before == await everything(mem, ids, "eventual")
    assert [m and m["content"] for m in before[0]] == [
        "hot tea",
        "warm milk",
        "tea biscuits",
        None,
        "green tea",
        "given",
    ]
    assert before[1] == 5


async def test_a_text_is_embedded_once(mem: AsyncMemory) -> None:
    embedded.clear()
    await mem.add_entry("already there", "ann")
    await mem.flush()
    async with held(mem):
        await mem.add_entry("embedded by the read alone", "ann")
        for _ in range(2):
            assert len(await mem.search("ann", "read")) == 2
    await mem.flush()
    assert embedded.count("embedded by the read alone") == 1


async def test_scores_in_half_precision_are_the_tables(tmp_path: Path) -> None:
    options = Options(home=tmp_path, progress=False)
    async with AsyncMemory("half", embedding_config={"function": embed_far}, options=options) as mem:
        await mem.add_entry("1 first of all", "ann")
        await mem.flush()
        async with held(mem):
            await mem.add_entry("1e6 hot tea", "ann")
            await mem.add_entry("1e-6 cold tea", "ann")
            vector = [*words_vector("tea").tolist(), *[0.0] * (HALF_DIMENSIONS - DIMENSIONS)]
            before = await mem.search("ann", vector=vector)
            assert len(before) == 3
        await mem.flush()
        assert before == await mem.search("ann", vector=vector)


async def test_more_than_a_read_lays_over_the_tables_is_waited_for(mem: AsyncMemory) -> None:
    async with held(mem):
        ids = await mem.add_entries([{"content": f"text {n}"} for n in range(OVERLAID_MAX + 1)], "ann")
        with pytest.raises(WaitTimeoutError):
            await mem.search("ann", timeout=0.2)
        found = await mem.get_memory(ids[7], "ann", timeout=2)
        assert found is not None
        assert found["content"] == "text 7"


async def test_an_lsn_is_waited_for_whoever_wrote_it(mem: AsyncMemory) -> None:
    await mem.add_entry("text", "ann")
    async with held(mem):
        await mem.add_entry("text", "bob")
        with pytest.raises(WaitTimeoutError):
            await mem.search("ann", consistency=mem.last_lsn, timeout=0.2)


async def test_what_a_life_left_unprojected_is_seen_without_a_wait(tmp_path: Path) -> None:
    """The life before this one ended behind a backlog: its log has events that no table shows."""
    options = Options(home=tmp_path, progress=False, wait_timeout_seconds=30)
    given: dict[str, Any] = {"embedding_config": {"function": embed_words}, "options": options}
    mem = AsyncMemory("left", **given)
    async with mem:
        await mem.add_entry("applied", "ann", memory_id="a")
        await mem.flush()
        assert mem._engine is not None
        projector = mem._engine.store().projection.projector
        projector.request(lambda: projector._stopping.wait(30))  # until it is closed
        await mem.add_entry("hot tea", "ann", {"kind": "drink"}, memory_id="b")
        await mem.update_memory("a", "ann", metadata={"kind": "changed"})
        await mem.add_entry("of another", "bob", memory_id="c")
        await mem._abandon()
    may_go = threading.Event()
    with faults(lambda name: may_go.wait(30) if name == "projector.apply.before" else None):
        async with AsyncMemory("left", **given) as mem:
            before = await everything(mem, ["a", "b", "c"])
            assert before[1] == 2
            assert (await mem.search("ann", "hot tea", limit=1, timeout=0))[0]["memory_id"] == "b"
            assert await mem.add_entry("again", "ann", memory_id="b", if_exists="ignore") == "b"
            assert await mem.count(timeout=0) == 3
            assert (await mem.stats()).watermark == 1
            may_go.set()
            await mem.flush()
            assert before == await everything(mem, ["a", "b", "c"])


async def test_a_namespace_behind_others_is_laid_over_up_to_a_thousand_events(mem: AsyncMemory) -> None:
    await mem.add_entry("first", "ann")
    await mem.flush()
    async with held(mem):
        await mem.add_entries([{"content": f"tea {n}"} for n in range(OVERLAID_MAX + 1)], "ann")
        with pytest.raises(WaitTimeoutError):
            await mem.count("ann", timeout=0)
        await mem.add_entries([{"content": f"other {n}"} for n in range(2 * OVERLAID_MAX)], "bob")
        assert await mem.count("ann", timeout=0) == OVERLAID_MAX + 2
        assert len(await mem.search("ann", "tea", limit=7, timeout=0)) == 7
        with pytest.raises(WaitTimeoutError):
            await mem.count("bob", timeout=0)
