"""One warning for each kind of call that is legal and surely not meant; none for what is meant."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from pixelmemory import Layout, Memory
from pixelmemory.engine import hints
from tests.engine.test_closing import stalled_projector
from tests.harness.engine_tools import async_memory, open_memory, vector

FILTER = (
    "metadata_filter has a condition on 'content', and nothing was found: a filter looks at metadata alone; to find "
    "texts by what they say, pass query=..."
)


@pytest.fixture(params=list(Layout), ids=lambda layout: layout.value)
def mem(request: pytest.FixtureRequest, tmp_path: Path, store_name: str) -> Any:
    """A store that has memories in three namespaces, one of them deleted."""
    with open_memory(tmp_path, store_name, layout=request.param) as memory:
        memory.add_entry("Ada prefers tea", memory_id="tea", embedding=vector(1))
        memory.add_entry("Ann's own", "ann", {"n": 1}, memory_id="own", embedding=vector(2))
        memory.add_entry("gone", "an old namespace", memory_id="gone", embedding=vector(3))
        memory.flush()
        memory.delete_memory("gone", "an old namespace")
        yield memory


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was warned of since the last time."""

    def since() -> list[str]:
        found = [(each.name, each.getMessage()) for each in caplog.records if each.levelno >= logging.WARNING]
        caplog.clear()
        assert {name for name, _ in found} <= {"pixelmemory"}
        return [message for _, message in found]

    return since


def test_what_is_meant_is_not_warned_of(mem: Memory, told: Callable[[], list[str]]) -> None:
    assert len(mem.search()) == 1
    assert mem.search("an old namespace") == [], "it held something once"
    assert mem.search("ann", metadata_filter={"n": 2}) == []
    assert mem.search(metadata_filter={"n": 1}) == []
    assert mem.search("ann", offset=5, metadata_filter={"$not": {"content": 1}}) == [], "past the end"
    page = mem.list_memories("ann")
    assert page.next is None
    assert mem.get_memory("nobody's") is None
    assert mem.get_memory("gone", "an old namespace") is None
    assert mem.update_memory("nobody's", content="x", embedding=vector(4)) is False
    assert mem.delete_memory("nobody's", "ann") is False
    assert mem.delete_memories(["tea", "nobody's"]) == 1, "one of them was there"
    assert mem.delete_memories([]) == 0
    assert mem.count("ann") == 1
    assert mem.count() == 1
    assert told() == []


@pytest.mark.parametrize(
    "read",
    [
        lambda mem, name: mem.search(name, vector=vector(1)),
        lambda mem, name: mem.search(name),
        lambda mem, name: mem.list_memories(name).memories,
        lambda mem, name: list(mem.iterate(name)),
        lambda mem, name: mem.count(name),
        lambda mem, name: mem.get_memory("nobody's", name),
        lambda mem, name: mem.update_memory("nobody's", name, metadata={}),
        lambda mem, name: mem.delete_memories(["nobody's", "nor this"], name),
        lambda mem, name: mem.delete_where(name, {"n": 1}),
        lambda mem, name: mem.delete_namespace(name),
        lambda mem, name: mem.erase_namespace(name),
    ],
    ids="vector search list iterate count get update delete delete_where delete_namespace erase_namespace".split(),
)
def test_a_namespace_that_was_never_written(
    mem: Memory, told: Callable[[], list[str]], read: Callable[[Memory, str], Any]
) -> None:
    assert not read(mem, "anne")
    assert told() == ["nothing was ever written to namespace 'anne': did you mean 'ann'?"]
    assert not read(mem, "bob")
    assert not mem.search("Ann")
    assert told() == [], "once"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Ann ", "did you mean 'ann'?"),
        ("an_old_namespace", "did you mean 'an old namespace'?"),
        ("default-namespace", "did you mean 'default_namespace'?"),
    ],
)
def test_the_nearest_name(mem: Memory, told: Callable[[], list[str]], name: str, said: str) -> None:
    assert mem.count(name) == 0
    assert told() == [f"nothing was ever written to namespace {name!r}: {said}"]


def test_what_there_is_where_no_name_is_near(tmp_path: Path, store_name: str, told: Callable[[], list[str]]) -> None:
    with open_memory(tmp_path, store_name) as mem:
        assert mem.search() == []
        assert mem.get_memory("x") is None
        assert told() == [], "nothing was written at all: a first start"
        for number in range(7):
            mem.add_entry("x", f"user {number}", embedding=vector(number))
        assert mem.search() == [], "whether the tables show them or not"
        [said] = told()
    listed = ", ".join(f"'user {number}'" for number in range(5))
    assert said == f"nothing was ever written to namespace 'default_namespace'; there are {listed} and 2 more"
    with open_memory(tmp_path, store_name) as mem:
        assert mem.search() == []
        assert told() == [said], "each time that the store is opened"
        with open_memory(tmp_path, store_name) as other:
            assert other.search() == []
        assert told() == [], "and not for each handle"


def test_a_question_taken_for_a_namespace(mem: Memory, told: Callable[[], list[str]]) -> None:
    for question in ("what does Ada drink?", "and\twhat does Bob?"):
        assert mem.search(question) == []
        assert mem.search(question, metadata_filter={"a": 1}) == []
    said = "search() was given the namespace 'what does Ada drink?', which holds no memory: did you mean query=...?"
    assert told() == [said]


@pytest.mark.parametrize(
    "use",
    [
        lambda mem: mem.get_memory("own"),
        lambda mem: mem.update_memory("own", metadata={}),
        lambda mem: mem.delete_memory("own"),
        lambda mem: mem.delete_memories(["nobody's", "own"]),
        lambda mem: mem.erase_memory("own"),
    ],
    ids="get update delete delete_memories erase".split(),
)
def test_an_id_of_another_namespace(mem: Memory, told: Callable[[], list[str]], use: Callable[[Memory], Any]) -> None:
    assert not use(mem)
    said = "namespace 'default_namespace' has no memory 'own', and namespace 'ann' has: did you mean namespace='ann'?"
    assert told() == [said]
    assert not use(mem)
    assert told() == []


def test_an_id_of_another_namespace_that_the_tables_do_not_show_yet(mem: Memory, told: Callable[[], list[str]]) -> None:
    with stalled_projector(mem):
        mem.add_entry("new", "beth", memory_id="new", embedding=vector(5))
        mem.delete_memory("own", "ann")
        assert mem.get_memory("own") is None
        assert told() == [], "it is deleted there, although the table has its row"
        assert mem.get_memory("new") is None
        [said] = told()
    assert said.endswith("and namespace 'beth' has: did you mean namespace='beth'?")


def test_misses_are_looked_into_a_few_times_alone(
    mem: Memory, told: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Any] = []
    monkeypatch.setattr(hints, "_holder", lambda _store, _but, memory_ids, _deleted: looks.append(memory_ids))
    for number in range(hints.LOOKS_MAX + 10):
        assert mem.get_memory(f"miss {number}") is None
    assert len(looks) == hints.LOOKS_MAX
    assert mem.get_memory("own") is None
    assert told() == []


@pytest.mark.parametrize(
    "condition",
    [
        {"content": "tea"},
        {"n": 1, "content": {"$contains": "tea"}},
        {"$or": [{"content.text": "tea"}, {"x": 1}]},
        {"$not": {"content": {"$exists": False}}},
    ],
    ids=["equal", "and", "or", "not"],
)
def test_a_filter_on_content(mem: Memory, told: Callable[[], list[str]], condition: dict[str, Any]) -> None:
    assert mem.search("ann", metadata_filter=condition) == []
    assert told() == [FILTER]
    assert mem.count("ann", metadata_filter=condition) == 0
    assert told() == []


def test_a_filter_on_metadata_that_is_called_content(mem: Memory, told: Callable[[], list[str]]) -> None:
    mem.add_entry("x", metadata={"content": "tea"}, embedding=vector(6))
    assert len(mem.search(metadata_filter={"content": "tea"})) == 1
    assert mem.search(metadata_filter={"a.content": "tea"}) == []
    assert told() == []


@pytest.mark.anyio
async def test_a_look_that_fails_or_takes_long_is_not_waited_for(
    tmp_path: Path, store_name: str, told: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints, "LOOK_SECONDS", 0.05)
    async with async_memory(tmp_path, store_name) as mem:
        await mem.add_entry("x", "ann", memory_id="own", embedding=vector(1))
        await mem.flush()
        host: Any = mem._engine._store.projection.host  # type: ignore[union-attr]
        monkeypatch.setattr(host, "namespaces", lambda: anyio.run(anyio.sleep, 1))
        with anyio.fail_after(30):
            assert await mem.get_memory("own") is None
            assert await mem.count("anne") == 0
        assert told() == []


def test_what_the_log_alone_may_know_is_not_called_unknown(mem: Memory, told: Callable[[], list[str]]) -> None:
    """The tables may not know a namespace yet that was written before the store was opened."""
    engine = mem._memory._engine
    assert engine is not None
    engine.hints._opened_lsn = engine.last_lsn + 1  # as where the tables have not caught up with the log
    assert mem.search("anne", consistency="eventual") == []
    assert told() == []
    engine.hints._opened_lsn = mem.flush()
    assert mem.search("anne", consistency="eventual") == []
    assert len(told()) == 1
