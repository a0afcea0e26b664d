"""What every method promises, held against Memory and against AsyncMemory on both event loops."""

from __future__ import annotations

import datetime as dt
import itertools
import unicodedata
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import numpy as np
import pixeltable as pxt
import pytest

from pixelmemory import (
    AsyncMemory,
    InvalidArgumentError,
    InvalidTypeError,
    Layout,
    Memory,
    MemoryExistsError,
    Options,
    PixelmemoryError,
    StoreClosedError,
    StoreLockedError,
    WaitTimeoutError,
)
from tests.harness.embedders import DIMENSIONS, cosine, embed_words, words_vector
from tests.harness.facades import FACADES, open_facade, with_pixeltable

if TYPE_CHECKING:
    from tests.conftest import OpenMemory

pytestmark = pytest.mark.anyio

_numbers = itertools.count()


@pytest.fixture(scope="module", params=list(FACADES))
def facade(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def anyio_backend(facade: str) -> str:
    return FACADES[facade]


@pytest.fixture(scope="module")
def options(facade: str, tmp_path_factory: pytest.TempPathFactory) -> Options:
    """The layouts promise the same, so the facades run on one or the other."""
    layout = Layout.PER_NAMESPACE if facade == "Memory" else Layout.SHARED
    return Options(home=tmp_path_factory.mktemp("home"), progress=False, layout=layout)


@pytest.fixture(scope="module")
async def mem(facade: str, options: Options) -> AsyncIterator[AsyncMemory]:
    opened = await open_facade(
        facade, f"contract_{next(_numbers)}", embedding_config={"function": embed_words}, options=options
    )
    yield opened
    await opened.aclose()


@pytest.fixture
def ns() -> str:
    """A namespace of the test's own."""
    return f"space {next(_numbers)}"


def contents(found: Sequence[Any]) -> list[str]:
    return [memory["content"] for memory in found]


def at(day: int, hour: int = 0, microsecond: int = 0) -> dt.datetime:
    return dt.datetime(2024, 5, day, hour, 0, 0, microsecond, tzinfo=dt.UTC)


# ------------------------------------------------------------------------------------------------------- adding


async def test_what_is_added_is_got(mem: AsyncMemory, ns: str) -> None:
    before = dt.datetime.now(dt.UTC)
    memory_id = await mem.add_entry("Ada prefers tea", ns, {"kind": "preference", "tags": ["a", "b"]})
    after = dt.datetime.now(dt.UTC)
    found = await mem.get_memory(memory_id, ns)
    assert found is not None
    assert isinstance(memory_id, str)
    assert set(found) == {"memory_id", "timestamp", "content", "metadata"}
    assert found["memory_id"] == memory_id
    assert found["content"] == "Ada prefers tea"
    assert found["metadata"] == {"kind": "preference", "tags": ["a", "b"]}
    created = found["timestamp"]
    assert created is not None
    assert created.tzinfo is not None
    assert before - dt.timedelta(milliseconds=1) <= created <= after + dt.timedelta(milliseconds=1)


async def test_the_defaults(mem: AsyncMemory) -> None:
    memory_id = await mem.add_entry("by default")
    found = await mem.get_memory(memory_id)
    assert found is not None
    assert found["metadata"] == {}
    assert found == await mem.get_memory(memory_id, "default_namespace")
    assert await mem.update_memory(memory_id, content="still by default")
    assert contents(await mem.search()) == ["still by default"]
    ids = await mem.add_entries([{"content": str(i)} for i in range(6)])
    assert contents(await mem.search()) == ["5", "4", "3", "2", "1"], "limit is 5 by default"
    assert await mem.count("default_namespace") == 7
    assert await mem.delete_memories(ids) == 6
    assert await mem.delete_memory(memory_id)
    assert await mem.search() == []


async def test_new_ids_are_uuids_that_sort_by_time(mem: AsyncMemory, ns: str) -> None:
    ids = [
        await mem.add_entry("a", ns),
        *await mem.add_entries([{"content": "b"}] * 20, ns),
        await mem.add_entry("c", ns),
    ]
    assert len(set(ids)) == 22
    assert ids == sorted(ids)
    assert {uuid.UUID(i).version for i in ids} == {7}
    assert all(str(uuid.UUID(i)) == i for i in ids)


async def test_add_entries_keeps_the_order(mem: AsyncMemory, ns: str) -> None:
    entries: list[dict[str, Any]] = [
        {"content": "first", "metadata": {"n": 1}},
        {"content": "second", "metadata": None, "memory_id": None, "timestamp": None, "embedding": None},
        {"content": "third", "memory_id": "my own", "timestamp": at(1)},
    ]
    ids = await mem.add_entries(entries, ns)
    assert len(ids) == 3
    assert ids[2] == "my own"
    found = [await mem.get_memory(i, ns) for i in ids]
    assert [m and (m["memory_id"], m["content"], m["metadata"]) for m in found] == [
        (ids[0], "first", {"n": 1}),
        (ids[1], "second", {}),
        ("my own", "third", {}),
    ]
    assert contents(await mem.search(ns)) == ["second", "first", "third"]


async def test_adding_nothing_logs_nothing(mem: AsyncMemory, ns: str) -> None:
    lsn = (await mem.stats()).durable_lsn
    assert await mem.add_entries([], ns) == []
    assert await mem.add_entries((), ns) == []
    assert (await mem.stats()).durable_lsn == lsn


async def test_entries_may_be_any_iterable_of_mappings(mem: AsyncMemory, ns: str) -> None:
    entries: Any = ({"content": text} for text in ("a", "b"))
    assert len(await mem.add_entries(entries, ns)) == 2
    assert await mem.count(ns) == 2


IDS = [
    "x", " ", "ticket/42?a=b&c='d'\"e\"", "é" * 1024, "e\u0301", "😀", "%s",
    "{017f22e2-79b0-7cc3-98c4-dc0c0c07398f}", "017F22E2-79B0-7CC3-98C4-DC0C0C07398F",
    "017f22e2-79b0-7cc3-98c4-dc0c0c07398f", "2ed6657d-e927-568b-95e1-2665a8aea6a2",
]  # fmt: skip


async def test_ids_of_ones_own_come_back_exactly(mem: AsyncMemory, ns: str) -> None:
    for memory_id in IDS:
        assert await mem.add_entry("mine", ns, memory_id=memory_id) == memory_id
        found = await mem.get_memory(memory_id, ns)
        assert found is not None
        assert found["memory_id"] == memory_id
        assert [m["memory_id"] for m in await mem.search(ns)] == [memory_id]
        assert await mem.delete_memory(memory_id, ns)
        assert await mem.get_memory(memory_id, ns) is None


async def test_ids_that_look_alike_are_different(mem: AsyncMemory, ns: str) -> None:
    alike = ["017F22E2-79B0-7CC3-98C4-DC0C0C07398F", "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"]
    alike += ["é", "e\u0301", "a", "A", "a ", "017f22e279b07cc398c4dc0c0c07398f"]
    await mem.add_entries([{"content": str(n), "memory_id": i} for n, i in enumerate(alike)], ns)
    for n, i in enumerate(alike):
        found = await mem.get_memory(i, ns)
        assert found is not None
        assert (found["memory_id"], found["content"]) == (i, str(n))


TIMES = [
    dt.datetime(2024, 2, 29, 23, 59, 59, 999999, tzinfo=dt.UTC),
    dt.datetime(1969, 12, 31, 23, 59, 59, 1, tzinfo=dt.UTC),
    dt.datetime(1, 1, 2, tzinfo=dt.UTC),
    dt.datetime(9999, 12, 30, tzinfo=dt.UTC),
    dt.datetime(2024, 7, 1, 12, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=45))),
    dt.datetime(2024, 7, 1, 12, 30, 15, 123456),  # noqa: DTZ001 - naive is what is tested
]


async def test_timestamps_of_ones_own_come_back_exactly(mem: AsyncMemory, ns: str) -> None:
    ids = await mem.add_entries([{"content": str(given), "timestamp": given} for given in TIMES], ns)
    for memory_id, given in zip(ids, TIMES, strict=True):
        found = await mem.get_memory(memory_id, ns)
        assert found is not None
        assert found["timestamp"] == given.astimezone(dt.UTC), "a naive datetime is local time"
        assert contents(await mem.search(ns, start_time=given, end_time=given)) == [str(given)]


# ------------------------------------------------------------------------------------------------- ids that exist


async def test_an_id_that_exists_is_refused(mem: AsyncMemory, ns: str) -> None:
    await mem.add_entry("first", ns, {"n": 1}, memory_id="taken")
    await mem.flush()
    lsn = (await mem.stats()).durable_lsn
    with pytest.raises(MemoryExistsError) as raised:
        await mem.add_entry("second", ns, memory_id="taken")
    assert (raised.value.memory_id, raised.value.namespace) == ("taken", ns)
    assert isinstance(raised.value, ValueError)
    assert "taken" in str(raised.value)
    with pytest.raises(MemoryExistsError):
        await mem.add_entries([{"content": "new"}, {"content": "second", "memory_id": "taken"}], ns)
    assert (await mem.stats()).durable_lsn == lsn
    assert contents(await mem.search(ns)) == ["first"]


async def test_an_id_twice_in_one_call_is_refused(mem: AsyncMemory, ns: str) -> None:
    lsn = (await mem.stats()).durable_lsn
    with pytest.raises(MemoryExistsError) as raised:
        await mem.add_entries([{"content": text, "memory_id": "twice"} for text in "ab"], ns)
    assert raised.value.memory_id == "twice"
    assert (await mem.stats()).durable_lsn == lsn
    assert await mem.search(ns) == []


async def test_an_id_that_is_not_yet_projected_is_refused(mem: AsyncMemory, ns: str) -> None:
    for n in range(10):
        await mem.add_entry("first", ns, memory_id=f"id {n}")
        with pytest.raises(MemoryExistsError):
            await mem.add_entry("second", ns, memory_id=f"id {n}")
    assert contents(await mem.search(ns, limit=100)) == ["first"] * 10


async def test_of_many_adds_of_one_id_one_succeeds(mem: AsyncMemory, ns: str) -> None:
    outcomes: list[str] = []

    async def add(n: int) -> None:
        try:
            await mem.add_entry(f"try {n}", ns, memory_id="contended")
            outcomes.append(f"try {n}")
        except MemoryExistsError:
            outcomes.append("exists")

    async with anyio.create_task_group() as tasks:
        for n in range(20):
            tasks.start_soon(add, n)
    assert sorted(outcomes)[:19] == ["exists"] * 19
    assert contents(await mem.search(ns)) == [sorted(outcomes)[19]]


async def test_the_same_id_in_another_namespace_is_another_memory(mem: AsyncMemory, ns: str) -> None:
    for space in (ns, ns + "b"):
        await mem.add_entry(f"in {space}", space, memory_id="shared id")
    assert await mem.update_memory("shared id", ns, content="changed")
    assert contents(await mem.search(ns)) == ["changed"]
    assert await mem.delete_memory("shared id", ns)
    assert not await mem.delete_memory("shared id", ns)
    assert contents(await mem.search(ns + "b")) == [f"in {ns}b"]


# ------------------------------------------------------------------------------------------------------ namespaces

ALIKE = [
    "Notes", "notes", "notes ", "é", unicodedata.normalize("NFD", "é"), "ﬁ", "fi", "😀", "it's", 'say "hi"', "a/b",
    "../..", "%s", "\n\u200b", "x" * 255, "x" * 254 + "y", "😀" * 255, "memories", "state", "ns_a; DROP TABLE x; --",
]  # fmt: skip


async def test_namespaces_are_kept_apart(mem: AsyncMemory) -> None:
    assert len(set(ALIKE)) == len(ALIKE)
    ids = {space: await mem.add_entry(f"in {space}", space) for space in ALIKE}
    await mem.flush()
    for space in ALIKE:
        found = await mem.search(space, limit=10)
        assert [(m["memory_id"], m["content"]) for m in found] == [(ids[space], f"in {space}")]
        assert await mem.count(space) == 1
        assert contents(await mem.search(space, "in", 10)) == [f"in {space}"]
    for space, other in itertools.pairwise(ALIKE):
        assert await mem.get_memory(ids[space], other) is None
        assert not await mem.update_memory(ids[space], other, "stolen")
        assert await mem.delete_memories(list(ids.values()), other) == 1
    assert await mem.count(ALIKE[0]) == 1
    assert await mem.delete_memories(list(ids.values()), ALIKE[0]) == 1
    assert not set(ALIKE) & set(await mem.namespaces())


async def test_what_is_not_there(mem: AsyncMemory, ns: str) -> None:
    lsn = (await mem.stats()).durable_lsn
    assert await mem.get_memory("nobody", ns) is None
    assert await mem.search(ns) == []
    assert await mem.search(ns, "nobody") == []
    assert await mem.count(ns) == 0
    assert await mem.update_memory("nobody", ns, "content") is False
    assert await mem.delete_memory("nobody", ns) is False
    assert await mem.delete_memories(["nobody", "no one"], ns) == 0
    assert await mem.delete_memories([], ns) == 0
    assert (await mem.stats()).durable_lsn == lsn, "what changes nothing is not logged"
    assert ns not in await mem.namespaces()


async def test_namespaces_lists_those_that_hold_memories(mem: AsyncMemory, ns: str) -> None:
    added = [f"{ns} {text}" for text in ("b", "a", "Z", "é", "😀", "\uffff")]
    ids = [await mem.add_entry("here", space) for space in added]
    listed = await mem.namespaces()
    assert [space for space in listed if space in added] == sorted(added)
    assert listed == sorted(listed)
    assert await mem.count() == sum([await mem.count(space) for space in listed])
    await mem.delete_memory(ids[0], added[0])
    assert await mem.namespaces() == [space for space in listed if space != added[0]]


# ------------------------------------------------------------------------------------------------------ searching


async def test_the_newest_come_first(mem: AsyncMemory, ns: str) -> None:
    for text, day in (("middle", 5), ("oldest", 1), ("newest", 9)):
        await mem.add_entry(text, ns, timestamp=at(day))
    await mem.add_entries([{"content": text, "timestamp": at(9)} for text in ("same time", "added last")], ns)
    assert contents(await mem.search(ns)) == ["added last", "same time", "newest", "middle", "oldest"]


async def test_limit(mem: AsyncMemory, ns: str) -> None:
    await mem.add_entries([{"content": str(n)} for n in range(30)], ns)
    for query in (None, "7"):
        assert await mem.search(ns, query, 0) == []
        limits: list[Any] = [1, 5, 29, 30, 31, 1000, 2**31, 2**63, 10**30, np.int64(30)]
        for limit in limits:
            assert len(await mem.search(ns, query, limit)) == min(int(limit), 30)


async def test_times_are_inclusive(mem: AsyncMemory, ns: str) -> None:
    for day in range(1, 6):
        await mem.add_entry(str(day), ns, timestamp=at(day))

    async def between(start: dt.datetime | None, end: dt.datetime | None) -> str:
        found = await mem.search(ns, start_time=start, end_time=end)
        assert found == await mem.search(ns, None, 5, None, start, end)
        by_meaning = await mem.search(ns, "1 2 3 4 5", start_time=start, end_time=end)
        assert sorted(contents(by_meaning)) == sorted(contents(found))
        return "".join(contents(found))

    microsecond = dt.timedelta(microseconds=1)
    assert await between(at(2), at(4)) == "432"
    assert await between(at(2) + microsecond, at(4) - microsecond) == "3"
    assert await between(at(3), None) == "543"
    assert await between(None, at(3)) == "321"
    assert await between(at(3), at(3)) == "3"
    assert await between(at(3) + microsecond, at(4) - microsecond) == ""
    assert await between(dt.datetime.min, dt.datetime.max) == "54321"  # noqa: DTZ901 - naive, as people write it
    local = at(3).astimezone().replace(tzinfo=None)
    assert await between(local, local) == "3", "a naive datetime is local time"
    elsewhere = at(3).astimezone(dt.timezone(dt.timedelta(hours=-9, minutes=-30)))
    assert await between(elsewhere, elsewhere) == "3"


async def test_metadata_filter(mem: AsyncMemory, ns: str) -> None:
    await mem.add_entries(
        [
            {"content": "paper", "metadata": {"type": "note", "year": 2023, "tags": ["topic_Z", "key"]}},
            {"content": "book", "metadata": {"type": "note", "year": 1999, "tags": "topic_Z"}},
            {"content": "talk", "metadata": {"type": "video", "year": 2024, "place": {"city": "Oslo"}}},
        ],
        ns,
    )
    for wanted, expected in (
        ({}, ["talk", "book", "paper"]),
        ({"tags": "topic_Z"}, ["book", "paper"]),
        ({"tags": ["topic_Z", "key"]}, ["paper"]),
        ({"type": "note", "year": {"$gte": 2000}}, ["paper"]),
        ({"place.city": "Oslo"}, ["talk"]),
        ({"place": {"$exists": False}}, ["book", "paper"]),
        ({"$or": [{"year": 1999}, {"year": 2024.0}]}, ["talk", "book"]),
        ({"year": "2023"}, []),
        ({"type": None}, []),
    ):
        assert contents(await mem.search(ns, metadata_filter=wanted)) == expected, wanted
        found = await mem.search(ns, "paper book talk", metadata_filter=wanted)
        assert sorted(contents(found)) == sorted(expected), wanted


async def test_a_query_finds_the_nearest_first(mem: AsyncMemory, ns: str) -> None:
    texts = ["the cat sat on the mat", "a cat sat", "stock markets fell", "dogs and cats", "the mat was red"]
    await mem.add_entries([{"content": text} for text in texts], ns)
    found = await mem.search(ns, "the cat sat", limit=10)
    target = words_vector("the cat sat")
    expected = sorted(((cosine(words_vector(text), target), text) for text in texts), reverse=True)
    assert contents(found) == [text for _, text in expected]
    assert [m["similarity_score"] for m in found] == pytest.approx([score for score, _ in expected], abs=1e-5)
    assert set(found[0]) == {"memory_id", "timestamp", "content", "metadata", "similarity_score"}
    assert all(type(m["similarity_score"]) is float for m in found)
    assert all("similarity_score" not in m for m in await mem.search(ns))
    exact = await mem.search(ns, "a cat sat", limit=1)
    assert contents(exact) == ["a cat sat"]
    assert exact[0]["similarity_score"] == pytest.approx(1)


async def test_min_score(mem: AsyncMemory, ns: str) -> None:
    texts = [f"{word} {other}" for word in ("red", "blue", "green") for other in ("car", "boat", "plane")]
    await mem.add_entries([{"content": text} for text in texts], ns)
    scores = [m["similarity_score"] for m in await mem.search(ns, "red car", limit=20)]
    assert len(scores) == 9
    for bound in (-1, scores[4] - 1e-6, scores[4] + 1e-6, 0.999, 1):
        found = await mem.search(ns, "red car", 20, min_score=bound)
        kept = [score for score in scores if score >= bound]
        if bound != 1:  # there rounding decides
            assert [m["similarity_score"] for m in found] == pytest.approx(kept, abs=1e-6)
        assert len(await mem.search(ns, "red car", 2, min_score=bound)) == min(2, len(found))


async def test_a_vector_of_ones_own(mem: AsyncMemory, ns: str) -> None:
    axes = np.eye(DIMENSIONS, dtype=np.float32)
    await mem.add_entry("x", ns, embedding=axes[0])
    await mem.add_entries([{"content": "y", "embedding": axes[1].tolist()}, {"content": "by the model"}], ns)
    target = (axes[0] * 3 + axes[1]).astype(np.float64)
    found = await mem.search(ns, vector=target, limit=2)
    assert contents(found) == ["x", "y"]
    assert [m["similarity_score"] for m in found] == pytest.approx([3 / 10**0.5, 1 / 10**0.5])
    assert contents(await mem.search(ns, vector=tuple(axes[1].tolist()), limit=1, min_score=0.9)) == ["y"]
    found = await mem.search(ns, "by the model", limit=1)
    assert found[0]["content"] == "by the model"
    assert found[0]["similarity_score"] == pytest.approx(1)
    # two memories of one text keep a vector each
    await mem.add_entries([{"content": "twin", "embedding": axes[n]} for n in (4, 5)], ns)
    found = await mem.search(ns, vector=axes[5], limit=2)
    assert found[0]["content"] == "twin"
    assert found[0]["similarity_score"] == pytest.approx(1)
    assert found[1]["similarity_score"] < 0.9


# ------------------------------------------------------------------------------------------------------- updating


async def test_an_update_replaces_what_is_given(mem: AsyncMemory, ns: str) -> None:
    memory_id = await mem.add_entry("a red fox", ns, {"n": 1, "old": True}, timestamp=at(3))
    other = await mem.add_entry("an owl", ns)

    assert await mem.update_memory(memory_id, ns, content="a blue whale") is True
    found = await mem.search(ns, "a blue whale", limit=1)
    assert found[0]["memory_id"] == memory_id
    assert found[0]["similarity_score"] == pytest.approx(1), "new content is embedded again"
    assert (found[0]["timestamp"], found[0]["metadata"]) == (at(3), {"n": 1, "old": True})

    assert await mem.update_memory(memory_id, ns, metadata={"n": 2}) is True
    found = await mem.search(ns, "a blue whale", limit=1, metadata_filter={"n": 2})
    assert (found[0]["content"], found[0]["metadata"]) == ("a blue whale", {"n": 2})
    assert found[0]["similarity_score"] == pytest.approx(1)
    assert await mem.search(ns, metadata_filter={"old": True}) == []

    assert await mem.update_memory(memory_id, ns, "a grey heron", {"n": 3}) is True
    assert await mem.get_memory(memory_id, ns) == {
        "memory_id": memory_id, "timestamp": at(3), "content": "a grey heron", "metadata": {"n": 3},
    }  # fmt: skip

    assert await mem.update_memory(memory_id, ns, metadata={}) is True
    assert await mem.update_memory(memory_id, ns, content="") is True
    found = await mem.search(ns, start_time=at(3), end_time=at(3))
    assert [(m["content"], m["metadata"]) for m in found] == [("", {})]
    untouched = await mem.get_memory(other, ns)
    assert untouched is not None
    assert untouched["content"] == "an owl"


async def test_an_update_of_nothing(mem: AsyncMemory, ns: str) -> None:
    memory_id = await mem.add_entry("as it was", ns, {"n": 1})
    await mem.flush()
    lsn = (await mem.stats()).durable_lsn
    assert await mem.update_memory(memory_id, ns) is True
    assert await mem.update_memory("nobody", ns) is False
    assert (await mem.stats()).durable_lsn == lsn
    found = await mem.get_memory(memory_id, ns)
    assert found is not None
    assert (found["content"], found["metadata"]) == ("as it was", {"n": 1})


async def test_an_update_with_a_vector(mem: AsyncMemory, ns: str) -> None:
    axes = np.eye(DIMENSIONS)
    memory_id = await mem.add_entry("here", ns, embedding=axes[0])
    await mem.update_memory(memory_id, ns, metadata={"n": 1})
    assert (await mem.search(ns, vector=axes[0]))[0]["similarity_score"] == pytest.approx(1), "the vector stays"
    await mem.update_memory(memory_id, ns, "there", embedding=axes[1])
    for _ in range(2):  # before the tables show it, and when they do
        assert (await mem.search(ns, vector=axes[1]))[0]["similarity_score"] == pytest.approx(1)
        await mem.flush()
    await mem.update_memory(memory_id, ns, "here")
    for _ in range(2):
        found = await mem.search(ns, "here")
        assert found[0]["similarity_score"] == pytest.approx(1), "a new content takes the model's"
        await mem.flush()


async def test_an_update_right_after_the_add(mem: AsyncMemory, ns: str) -> None:
    for n in range(10):
        memory_id = await mem.add_entry(f"first {n}", ns)
        assert await mem.update_memory(memory_id, ns, f"second {n}", {"n": n}) is True
    found = await mem.search(ns, limit=20)
    assert [(m["content"], m["metadata"]) for m in found] == [(f"second {n}", {"n": n}) for n in reversed(range(10))]


async def test_many_updates_of_one_memory_leave_the_last(mem: AsyncMemory, ns: str) -> None:
    memory_id = await mem.add_entry("start", ns, timestamp=at(1))
    for n in range(50):
        assert await mem.update_memory(memory_id, ns, f"version {n}", {"n": n})
    assert await mem.get_memory(memory_id, ns) == {
        "memory_id": memory_id, "timestamp": at(1), "content": "version 49", "metadata": {"n": 49},
    }  # fmt: skip
    assert await mem.count(ns) == 1


# ------------------------------------------------------------------------------------------------------- deleting


async def test_what_is_deleted_is_gone(mem: AsyncMemory, ns: str) -> None:
    ids = await mem.add_entries([{"content": text} for text in "abc"], ns)
    assert await mem.delete_memory(ids[1], ns) is True
    assert await mem.delete_memory(ids[1], ns) is False
    assert await mem.get_memory(ids[1], ns) is None
    assert await mem.update_memory(ids[1], ns, "again") is False
    assert contents(await mem.search(ns)) == ["c", "a"]
    assert sorted(contents(await mem.search(ns, "b"))) == ["a", "c"]
    assert await mem.count(ns) == 2


async def test_delete_memories_counts_those_that_existed(mem: AsyncMemory, ns: str) -> None:
    ids = await mem.add_entries([{"content": str(n)} for n in range(10)], ns)
    await mem.delete_memory(ids[0], ns)
    assert await mem.delete_memories([ids[0], ids[1], ids[2], ids[1], "nobody"], ns) == 2
    assert await mem.delete_memories(tuple(ids[2:5]), ns) == 2
    left: Any = (i for i in ids)
    assert await mem.delete_memories(left, ns) == 5
    assert await mem.search(ns) == []


async def test_a_deleted_id_may_be_added_again(mem: AsyncMemory, ns: str) -> None:
    for n in range(5):
        assert await mem.add_entry(f"life {n}", ns, {"n": n}, memory_id="phoenix", timestamp=at(n + 1)) == "phoenix"
        if n % 2:
            await mem.flush()
        if n < 4:
            assert await mem.delete_memory("phoenix", ns) is True
    assert await mem.search(ns) == [
        {"memory_id": "phoenix", "timestamp": at(5), "content": "life 4", "metadata": {"n": 4}}
    ]


async def test_of_many_deletes_of_one_memory_one_counts(mem: AsyncMemory, ns: str) -> None:
    memory_id = await mem.add_entry("doomed", ns)
    outcomes: list[bool] = []

    async def delete() -> None:
        outcomes.append(await mem.delete_memory(memory_id, ns))

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(delete)
    assert sorted(outcomes) == [False] * 9 + [True]


# --------------------------------------------------------------------------------------------------- consistency


async def test_a_reader_sees_its_own_writes(mem: AsyncMemory, ns: str) -> None:
    for n in range(20):
        memory_id = await mem.add_entry(str(n), ns)
        assert await mem.get_memory(memory_id, ns) is not None
        assert len(await mem.search(ns, limit=100)) == n + 1
        assert await mem.count(ns) == n + 1


async def test_every_consistency_is_accepted_by_every_read(mem: AsyncMemory, ns: str) -> None:
    memory_id = await mem.add_entry("here", ns)
    await mem.flush()
    for consistency in ("session", "eventual", "strong", 0, mem.last_lsn):
        at_most: Any = {"consistency": consistency, "timeout": 30}
        assert await mem.get_memory(memory_id, ns, **at_most) is not None
        assert contents(await mem.search(ns, **at_most)) == ["here"]
        assert await mem.count(ns, **at_most) == 1
        assert ns in await mem.namespaces(**at_most)


async def test_eventual_does_not_wait_and_catches_up(mem: AsyncMemory, ns: str) -> None:
    written = [await mem.add_entry(str(n), ns) for n in range(30)]
    seen = [m["memory_id"] for m in await mem.search(ns, limit=100, consistency="eventual")]
    assert set(seen) <= set(written)
    assert seen == sorted(seen, reverse=True)
    assert seen == list(reversed(written[: len(seen)])), "a prefix of what was written"
    assert len(await mem.search(ns, limit=100, consistency="strong")) == 30


async def test_a_wait_for_an_lsn_that_does_not_come(mem: AsyncMemory, ns: str) -> None:
    await mem.add_entry("here", ns)
    await mem.flush()
    future = mem.last_lsn + 10
    for read in (
        mem.search(ns, consistency=future, timeout=0.05),
        mem.get_memory("x", ns, consistency=future, timeout=0.05),
        mem.count(ns, consistency=future, timeout=0.05),
        mem.namespaces(consistency=future, timeout=0.05),
    ):
        with pytest.raises(WaitTimeoutError) as raised:
            await read
        error = raised.value
        assert (error.lsn, error.watermark, error.timeout_seconds) == (future, future - 10, 0.05)
        assert isinstance(error, TimeoutError)
        assert isinstance(error, PixelmemoryError)
        assert "10 events behind" in str(error)
    assert contents(await mem.search(ns)) == ["here"], "and nothing is the worse for it"


async def test_a_wait_for_an_lsn_that_comes(mem: AsyncMemory, ns: str) -> None:
    await mem.flush()
    goal = mem.last_lsn + 3
    found: list[str] = []

    async def wait() -> None:
        found.extend(contents(await mem.search(ns, limit=10, consistency=goal)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        for n in range(3):
            await mem.add_entry(str(n), ns)
    assert found == ["2", "1", "0"]


@pytest.mark.parametrize(
    ("consistency", "error"),
    [
        ("Session", InvalidArgumentError),
        ("", InvalidArgumentError),
        (-1, InvalidArgumentError),
        (True, InvalidTypeError),
        (1.0, InvalidTypeError),
        (None, InvalidTypeError),
    ],
)
async def test_other_consistencies_are_errors(mem: AsyncMemory, consistency: Any, error: type[Exception]) -> None:
    for read in (
        mem.search(consistency=consistency),
        mem.get_memory("x", consistency=consistency),
        mem.count(consistency=consistency),
        mem.namespaces(consistency=consistency),
    ):
        with pytest.raises(error, match=r"^consistency "):
            await read


# --------------------------------------------------------------------------------------------- the store as a whole


async def test_flush_and_last_lsn(mem: AsyncMemory, ns: str) -> None:
    start = mem.last_lsn
    await mem.add_entry("one", ns)
    assert mem.last_lsn == start + 1
    ids = await mem.add_entries([{"content": text} for text in ("two", "three")], ns)
    assert mem.last_lsn == start + 3
    await mem.update_memory(ids[0], ns, "zwei")
    await mem.delete_memory(ids[1], ns)
    assert mem.last_lsn == start + 5
    assert await mem.flush() == start + 5
    assert await mem.flush(timeout=10) == start + 5
    assert contents(await mem.search(ns, consistency="eventual")) == ["zwei", "one"]


async def test_stats(mem: AsyncMemory, ns: str) -> None:
    await mem.flush()
    before = await mem.stats()
    await mem.add_entries([{"content": f"text {n} of {ns}"} for n in range(7)], ns)
    await mem.flush()
    after = await mem.stats()
    assert after.durable_lsn == after.watermark == after.last_lsn == mem.last_lsn == before.durable_lsn + 7
    assert after.lag_events == 0
    assert after.log_events - before.log_events == 7
    assert after.events_applied - before.events_applied == 7
    assert after.texts_embedded - before.texts_embedded == 7
    assert after.log_bytes > before.log_bytes
    assert after.log_syncs > before.log_syncs
    assert after.batches > before.batches
    assert after.apply_seconds > before.apply_seconds
    assert after.dead_letters == 0
    assert after.log_segments >= 1


async def test_health(mem: AsyncMemory) -> None:
    health = await mem.health()
    assert health.ok is True
    assert health.problems == ()
    assert await mem.retry_dead_letters() == 0


async def test_many_tasks_at_once(mem: AsyncMemory, ns: str) -> None:
    async def live(n: int) -> None:
        memory_id = await mem.add_entry(f"{n}", ns, {"n": n}, memory_id=f"task {n}")
        assert await mem.update_memory(memory_id, ns, metadata={"n": -n})
        found = await mem.get_memory(memory_id, ns)
        assert found is not None
        assert found["metadata"] == {"n": -n}
        if n % 3 == 0:
            assert await mem.delete_memory(memory_id, ns)

    async with anyio.create_task_group() as tasks:
        for n in range(60):
            tasks.start_soon(live, n)
    found = await mem.search(ns, limit=100)
    assert {m["memory_id"]: m["metadata"]["n"] for m in found} == {f"task {n}": -n for n in range(60) if n % 3}


async def test_the_table_beneath(mem: AsyncMemory, ns: str) -> None:
    empty = await mem.get_namespace_table(ns)
    assert isinstance(empty, pxt.Table)
    assert ns not in await mem.namespaces()
    assert await mem.count(ns) == 0
    memory_id = await mem.add_entry("seen from beneath", ns, {"n": 1}, timestamp=at(2))
    table = await mem.get_namespace_table(ns)

    def rows() -> list[dict[str, Any]]:
        columns = (table.memory_id, table.content, table.metadata, table.timestamp)
        where = table.memory_id == uuid.UUID(memory_id)
        return list(table.where(where).select(*columns).collect())

    assert await with_pixeltable(rows) == [
        {"memory_id": uuid.UUID(memory_id), "content": "seen from beneath", "metadata": {"n": 1}, "timestamp": at(2)}
    ]


# -------------------------------------------------------------------------------------------- opening and closing


async def test_a_store_that_is_open_can_be_opened_again(facade: str, options: Options) -> None:
    """With the same arguments it is the same store; with others it is refused."""
    name = f"contract_{next(_numbers)}"
    first = await open_facade(facade, name, None, None, options=options)
    try:
        second = await open_facade(facade, name, None, None, options=options)
        with pytest.raises(StoreLockedError):
            await open_facade(facade, name, {"year": int}, None, options=options)
        memory_id = await first.add_entry("still works")
        assert await second.get_memory(memory_id) is not None
        await second.aclose()
        assert await first.get_memory(memory_id) is not None
    finally:
        await first.aclose()
    again = await open_facade(facade, name, None, None, options=options)
    try:
        assert again.last_lsn == 1
        assert contents(await again.search()) == ["still works"]
    finally:
        await again.aclose()


async def test_a_closed_store_says_so(facade: str, options: Options) -> None:
    closed = await open_facade(facade, f"contract_{next(_numbers)}", None, None, options=options)
    await closed.add_entry("before")
    await closed.aclose()
    await closed.aclose()
    for call in (
        closed.add_entry("x"),
        closed.add_entries([{"content": "x"}]),
        closed.get_memory("x"),
        closed.search(),
        closed.update_memory("x", content="y"),
        closed.delete_memory("x"),
        closed.delete_memories(["x"]),
        closed.get_namespace_table("x"),
        closed.namespaces(),
        closed.count(),
        closed.flush(),
        closed.retry_dead_letters(),
        closed.stats(),
        closed.health(),
    ):
        with pytest.raises(StoreClosedError):
            await call
    assert closed.last_lsn == 1


async def test_a_context_manager_closes_its_store(facade: str, options: Options) -> None:
    name = f"contract_{next(_numbers)}"
    if facade == "Memory":
        await anyio.to_thread.run_sync(use_in_a_with_block, name, options)
        return
    mem = AsyncMemory(name, None, None, options=options)
    with pytest.raises(StoreClosedError, match="not open"):
        await mem.search()
    async with mem as entered:
        assert entered is mem
        await mem.add_entry("inside")
        assert repr(mem).endswith(" open>")
    with pytest.raises(StoreClosedError):
        await mem.search()
    assert repr(mem).endswith(" closed>")


def use_in_a_with_block(name: str, options: Options) -> None:
    with Memory(name, None, None, options=options) as mem:
        mem.add_entry("inside")
        assert repr(mem) == f"<Memory {name!r} open>"
    with pytest.raises(StoreClosedError):
        mem.search()
    assert repr(mem) == f"<Memory {name!r} closed>"


def test_an_existing_id_in_a_batch_is_named_by_its_place(store_name: str, open_memory: OpenMemory) -> None:
    mem = open_memory(store_name)
    mem.add_entry("first", memory_id="taken")
    before = mem.last_lsn
    with pytest.raises(MemoryExistsError) as raised:
        mem.add_entries([{"content": "x", "memory_id": "free"}, {"content": "y", "memory_id": "taken"}])
    assert raised.value.field == "entries[1].memory_id"
    assert mem.last_lsn == before
    assert mem.get_memory("free") is None


# --------------------------------------------------------------------------------------------------------- lists


async def ids_of(mem: Any, ns: str, **conditions: Any) -> list[str]:
    """The ids of all pages."""
    ids: list[str] = []
    page = await mem.list_memories(ns, **conditions)
    while True:
        ids += [memory["memory_id"] for memory in page.memories]
        if page.next is None:
            return ids
        assert page.memories
        page = await mem.list_memories(ns, after=page.next, **conditions)


async def test_a_list_has_every_memory_once(mem: AsyncMemory, ns: str) -> None:
    """Also among equal times."""
    entries = [{"content": str(n), "metadata": {"n": n}, "timestamp": at(1 + n // 30)} for n in range(100)]
    added = await mem.add_entries(entries, ns)
    newest = await ids_of(mem, ns, limit=7)
    assert sorted(newest) == sorted(added)
    assert len(newest) == 100
    assert [i for i in newest if i in added[90:]] == newest[:10], "the newest come first"
    assert await ids_of(mem, ns, limit=9, order="oldest") == newest[::-1]
    assert await ids_of(mem, ns) == newest, "a page has 100 by default, and the last one no next"
    some = {"metadata_filter": {"n": {"$gte": 20}}, "start_time": at(1), "end_time": at(2)}
    assert set(await ids_of(mem, ns, limit=6, **some)) == set(added[20:60])
    assert await ids_of(mem, "never written") == []


async def test_pages_neither_skip_nor_repeat_while_others_write(mem: AsyncMemory, ns: str) -> None:
    first = await mem.add_entries([{"content": str(n), "timestamp": at(3)} for n in range(40)], ns)
    seen: list[str] = []
    after = None
    for step in range(100):
        page = await mem.list_memories(ns, limit=4, after=after)
        seen += [memory["memory_id"] for memory in page.memories]
        await mem.add_entry("newer", ns)
        await mem.add_entry("as old", ns, timestamp=at(3))
        assert await mem.update_memory(first[step % 40], ns, content=f"changed {step}")
        if (after := page.next) is None or len(seen) > 100:
            break
    assert len(seen) == len(set(seen))
    assert set(first) <= set(seen)


async def test_iterate_goes_through_all_pages(mem: AsyncMemory, ns: str) -> None:
    ids = await mem.add_entries([{"content": str(n)} for n in range(1201)], ns)
    assert [memory["memory_id"] async for memory in mem.iterate(ns)] == ids[::-1]
    assert [memory["memory_id"] async for memory in mem.iterate(ns, order="oldest")] == ids


async def test_an_offset_leaves_out_the_first(mem: AsyncMemory, ns: str) -> None:
    await mem.add_entries([{"content": f"tea number {n}"} for n in range(9)], ns)
    every = await mem.search(ns, limit=9)
    assert await mem.search(ns, limit=4, offset=3) == every[3:7]
    best = await mem.search(ns, "tea", limit=9)
    assert await mem.search(ns, "tea", limit=4, offset=7) == best[7:]
    assert await mem.search(ns, offset=10**30) == []


@pytest.mark.parametrize(
    "bad",
    [
        {"limit": 0},
        {"limit": "3"},
        {"order": "best"},
        {"order": None},
        {"after": "nonsense"},
        {"after": ""},
        {"after": 3},
        {"after": "gaFhoWI="},
        {"metadata_filter": {"$no": 1}},
    ],
)
async def test_a_bad_list_is_an_error(mem: AsyncMemory, ns: str, bad: dict[str, Any]) -> None:
    with pytest.raises((InvalidArgumentError, InvalidTypeError)):
        await mem.list_memories(ns, **bad)


async def test_a_page_of_another_order_is_an_error(mem: AsyncMemory, ns: str) -> None:
    await mem.add_entries([{"content": "a"}, {"content": "b"}], ns)
    page = await mem.list_memories(ns, limit=1)
    with pytest.raises(InvalidArgumentError, match="after"):
        await mem.list_memories(ns, order="oldest", after=page.next)


# ------------------------------------------------------------------------------------------- ids that exist already


async def test_an_import_that_is_run_again(mem: AsyncMemory, ns: str) -> None:
    rows = [{"content": f"c{n}", "memory_id": f"m{n}", "metadata": {"n": n}} for n in range(20)]
    await mem.add_entries(rows[:10], ns)
    with pytest.raises(MemoryExistsError) as caught:
        await mem.add_entries(rows, ns)
    assert caught.value.memory_ids == [f"m{n}" for n in range(10)]
    assert (caught.value.memory_id, caught.value.field) == ("m0", "entries[0].memory_id")
    assert await mem.count(ns) == 10
    lsn = (await mem.stats()).durable_lsn
    again = [{**row, "content": "other"} for row in rows[:10]]
    assert await mem.add_entries(again, ns, if_exists="ignore") == [f"m{n}" for n in range(10)]
    assert (await mem.stats()).durable_lsn == lsn, "nothing is logged"
    assert await mem.add_entries([*rows, {"content": "no id"}], ns, if_exists="ignore") != []
    assert await mem.count(ns) == 21
    found = await mem.get_memory("m3", ns)
    assert found is not None
    assert found["content"] == "c3"
    assert await mem.add_entries(again[:5], ns, if_exists="replace") == [f"m{n}" for n in range(5)]
    found = await mem.get_memory("m3", ns)
    assert found is not None
    assert (found["content"], found["metadata"]) == ("other", {"n": 3})
    await mem.flush()
    assert await mem.get_memory("m3", ns) == found
    assert await mem.count(ns) == 21


async def test_one_entry_whose_id_exists(mem: AsyncMemory, ns: str) -> None:
    assert await mem.add_entry("first", ns, memory_id="m", timestamp=at(1)) == "m"
    with pytest.raises(MemoryExistsError) as caught:
        await mem.add_entry("second", ns, memory_id="m")
    assert caught.value.memory_ids == ["m"]
    assert await mem.add_entry("second", ns, memory_id="m", if_exists="ignore") == "m"
    assert contents(await mem.search(ns)) == ["first"]
    assert await mem.add_entry("third", ns, memory_id="m", timestamp=at(2), if_exists="replace") == "m"
    (found,) = await mem.search(ns)
    assert (found["content"], found["timestamp"]) == ("third", at(2))


async def test_an_id_twice_in_one_call(mem: AsyncMemory, ns: str) -> None:
    rows = [{"content": "first", "memory_id": "m"}, {"content": "last", "memory_id": "m"}]
    with pytest.raises(MemoryExistsError):
        await mem.add_entries(rows, ns)
    assert await mem.add_entries(rows, ns, if_exists="ignore") == ["m", "m"]
    assert contents(await mem.search(ns)) == ["first"]
    assert await mem.add_entries(rows, ns, if_exists="replace") == ["m", "m"]
    assert contents(await mem.search(ns)) == ["last"]


@pytest.mark.parametrize("bad", ["skip", None, True])
async def test_a_bad_if_exists_is_an_error(mem: AsyncMemory, ns: str, bad: Any) -> None:
    for call in (mem.add_entry("text", ns, if_exists=bad), mem.add_entries([{"content": "a"}], ns, if_exists=bad)):
        with pytest.raises((InvalidArgumentError, InvalidTypeError), match="if_exists"):
            await call
    assert await mem.count(ns) == 0


# ------------------------------------------------------------------- merging, deleting and counting by conditions


async def test_merge_keeps_the_other_keys(mem: AsyncMemory, ns: str) -> None:
    memory_id = await mem.add_entry("text", ns, {"a": 1, "b": {"c": 2}})
    assert await mem.update_memory(memory_id, ns, metadata={"b": {"d": 3}, "e": None}, merge=True)
    found = await mem.get_memory(memory_id, ns)
    assert found is not None
    assert found["metadata"] == {"a": 1, "b": {"d": 3}, "e": None}
    assert found["content"] == "text"
    assert await mem.update_memory(memory_id, ns, "new", {"a": 2}, merge=True)
    await mem.flush()
    found = await mem.get_memory(memory_id, ns)
    assert found is not None
    assert (found["content"], found["metadata"]) == ("new", {"a": 2, "b": {"d": 3}, "e": None})
    assert not await mem.update_memory("nobody", ns, metadata={}, merge=True)
    with pytest.raises(InvalidArgumentError, match="merge"):
        await mem.update_memory(memory_id, ns, "new", merge=True)
    with pytest.raises(InvalidTypeError, match="merge"):
        await mem.update_memory(memory_id, ns, metadata={}, merge=1)  # type: ignore[arg-type]


async def test_many_merges_at_once_lose_none(mem: AsyncMemory, ns: str) -> None:
    memory_id = await mem.add_entry("text", ns)

    async def merge(n: int) -> None:
        assert await mem.update_memory(memory_id, ns, metadata={str(n): n}, merge=True)

    async with anyio.create_task_group() as tasks:
        for n in range(10):
            tasks.start_soon(merge, n)
    found = await mem.get_memory(memory_id, ns)
    assert found is not None
    assert found["metadata"] == {str(n): n for n in found["metadata"].values()}
    assert len(found["metadata"]) == 10


async def test_what_satisfies_conditions_is_counted_and_deleted(mem: AsyncMemory, ns: str) -> None:
    entries = [{"content": str(n), "metadata": {"n": n}, "timestamp": at(1 + n % 3)} for n in range(1500)]
    await mem.add_entries(entries, ns)
    assert await mem.count(ns, metadata_filter={"n": {"$lt": 100}}) == 100
    assert await mem.count(ns, metadata_filter={"n": {"$lt": 99}}, start_time=at(2), end_time=at(3)) == 66
    assert await mem.delete_where(ns, {"n": {"$lt": 1200}}) == 1200
    assert await mem.count(ns) == 300
    assert await mem.delete_where(ns, start_time=at(3)) == 100
    assert await mem.delete_where(ns, {"n": -1}) == 0
    nothing: list[dict[str, Any]] = [{}, {"metadata_filter": {"$no": 1}}]
    for bad in nothing:
        with pytest.raises(InvalidArgumentError):
            await mem.delete_where(ns, **bad)
    assert await mem.count(metadata_filter={"n": 1}) >= await mem.count(ns, metadata_filter={"n": 1})
    assert await mem.count(ns) == 200
    assert await mem.delete_namespace(ns) == 200
    assert await mem.delete_namespace(ns) == 0
    assert await mem.search(ns) == []
