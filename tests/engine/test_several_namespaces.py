"""Reads over several namespaces, or over all under a prefix: ranked together, and each result says where it is from."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pixelmemory import AsyncMemory, InvalidArgumentError, InvalidTypeError, Options, Under
from tests.engine.test_reads_that_wait import held
from tests.harness.embedders import embed_words

pytestmark = pytest.mark.anyio

START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
NAMES = ("users/ann", "users/ann/notes", "users/anna", "users/bob", "team.x", "50%", "5_")


@pytest.fixture
async def mem(tmp_path: Path) -> AsyncIterator[AsyncMemory]:
    options = Options(home=tmp_path, progress=False, wait_timeout_seconds=30)
    async with AsyncMemory("several", embedding_config={"function": embed_words}, options=options) as opened:
        for n, name in enumerate(NAMES):
            for k in range(4):
                when = START + dt.timedelta(days=k)  # equal times in all of them
                await opened.add_entry(f"tea {n} {k}", name, {"k": k}, memory_id=f"{k}", timestamp=when)
        yield opened


async def read(mem: AsyncMemory, namespace: Any) -> list[Any]:
    """Every kind of read."""
    pages: list[Any] = []
    after: str | None = None
    while True:
        page = await mem.list_memories(namespace, limit=3, after=after, order="oldest")
        pages += page.memories
        if (after := page.next) is None:
            break
    return [
        await mem.search(namespace, limit=6),
        await mem.search(namespace, limit=6, offset=3),
        await mem.search(namespace, "tea 1 2", limit=9),
        await mem.search(namespace, "tea 1 2", metadata_filter={"k": {"$gte": 2}}, limit=9),
        await mem.count(namespace, metadata_filter={"k": 1}),
        pages,
        [memory async for memory in mem.iterate(namespace)],
    ]


async def test_several_are_ranked_together(mem: AsyncMemory) -> None:
    both = ["users/ann", "users/bob"]
    single = {name: await mem.search(name, "tea 1 2", limit=50) for name in both}
    found = await mem.search(both, "tea 1 2", limit=5)
    named = [memory | {"namespace": name} for name, memories in single.items() for memory in memories]
    best = sorted(named, key=lambda memory: -memory["similarity_score"])
    assert [memory["similarity_score"] for memory in found] == [memory["similarity_score"] for memory in best[:5]]
    assert all(memory in named for memory in found)
    newest = await mem.search(both, limit=4)
    assert [(memory["namespace"], memory["memory_id"]) for memory in newest] == [
        ("users/bob", "3"),
        ("users/ann", "3"),
        ("users/bob", "2"),
        ("users/ann", "2"),
    ]
    assert "namespace" not in (await mem.search("users/ann", limit=1))[0]
    assert await mem.count(both) == 8
    assert await mem.count(["users/ann", "users/ann", "nobody"]) == 4
    assert await mem.search(["nobody"], "tea") == []


async def test_a_prefix_is_whole_labels(mem: AsyncMemory) -> None:
    async def found(*under: str) -> set[str]:
        return {memory["namespace"] for memory in await mem.search(Under(*under), limit=100)}

    assert await found("users/ann") == {"users/ann", "users/ann/notes"}
    assert await found("users") == {name for name in NAMES if name.startswith("users/")}
    assert await found("") == set(NAMES)
    assert await found("team", ".") == {"team.x"}
    assert await found("user") == set()
    assert await found("5%") == set()
    assert await found("5_") == {"5_"}
    assert await mem.count(Under("users/ann")) == 8
    assert await mem.count() == 4 * len(NAMES)
    await mem.add_entry("new", "users/ann/more")
    assert await found("users/ann") == {"users/ann", "users/ann/notes", "users/ann/more"}


async def test_a_cursor_over_several_visits_each_memory_once(mem: AsyncMemory) -> None:
    """Their times and ids are equal: the namespace decides."""
    await mem.flush()
    for order in ("newest", "oldest"):
        places = [
            (memory["timestamp"], memory["memory_id"], memory["namespace"])
            async for memory in mem.iterate(Under("users"), order=order)
        ]
        assert places == sorted(set(places), reverse=order == "newest")
        assert len(places) == 16
        paged: list[Any] = []
        after: str | None = None
        while True:
            page = await mem.list_memories(Under("users"), limit=3, after=after, order=order)
            paged += [(memory["timestamp"], memory["memory_id"], memory["namespace"]) for memory in page.memories]
            if (after := page.next) is None:
                break
        assert paged == places


@pytest.mark.parametrize("namespace", [["users/ann", "team.x", "unknown"], Under("users"), Under("")])
async def test_they_see_what_the_tables_do_not_show_yet(mem: AsyncMemory, namespace: Any) -> None:
    await mem.flush()
    await mem.get_namespace_table("users/ann")
    async with held(mem):
        assert await mem.update_memory("1", "users/ann", "tea milk", {"k": 2})
        assert await mem.delete_memory("2", "team.x")
        await mem.add_entry("tea 1 2", "users/ann", {"k": 2}, memory_id="new")
        await mem.add_entry("tea 9 9", "users/zoe", {"k": 1}, memory_id="1")
        before = await read(mem, namespace)
        names = await mem.namespaces()
    await mem.flush()
    assert before == await read(mem, namespace)
    assert names == sorted([*NAMES, "users/zoe"]) == await mem.namespaces()


async def test_the_whole_store_is_counted_without_a_wait(mem: AsyncMemory) -> None:
    await mem.flush()
    async with held(mem):
        await mem.add_entry("new", "fresh", memory_id="x")
        for k in range(4):
            assert await mem.delete_memory(f"{k}", "50%")
        assert await mem.count(timeout=0) == 4 * len(NAMES) - 3
        assert await mem.count(metadata_filter={"k": 1}, timeout=0) == len(NAMES) - 1
        assert await mem.namespaces(timeout=0) == sorted({*NAMES, "fresh"} - {"50%"})


@pytest.mark.parametrize(
    ("namespace", "error"),
    [
        ([], InvalidArgumentError),
        (["a", 1], InvalidTypeError),
        (["a", ""], InvalidArgumentError),
        ({"a": 1}, InvalidTypeError),
        (b"a", InvalidTypeError),
        (7, InvalidTypeError),
        (None, InvalidTypeError),
        (Under("a/"), InvalidArgumentError),
        (Under("a", ""), InvalidArgumentError),
        (Under(1), InvalidTypeError),  # type: ignore[arg-type]
    ],
)
async def test_what_names_no_namespace_is_refused(mem: AsyncMemory, namespace: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="namespace"):
        await mem.search(namespace)
    with pytest.raises(error, match="namespace"):
        await mem.list_memories(namespace)


async def test_one_memory_is_of_one_namespace(mem: AsyncMemory) -> None:
    for several in (["users/ann", "users/bob"], Under("users")):
        wrong: Any = several
        for call in (mem.get_memory("1", wrong), mem.delete_memory("1", wrong), mem.add_entry("x", wrong)):
            with pytest.raises(InvalidTypeError, match="namespace"):
                await call
        with pytest.raises(InvalidTypeError, match="namespace"):
            await mem.delete_where(wrong, {"k": 1})
        with pytest.raises(InvalidTypeError, match="namespace"):
            await mem.delete_namespace(wrong)
