"""What is accepted comes back exactly: at once, after a reopen, after a rebuild, and through Pixeltable's API alone."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from hypothesis import strategies as st

from pixelmemory import Layout, Memory

if TYPE_CHECKING:  # at run time there are several modules of this name
    from tests.conftest import OpenMemory

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
keys = text | st.sampled_from(["", "a", "b", "a.b", "$x", "__pxttype__", "_classname", "id", "é", "e\u0301", "\u2028"])
integers = st.integers() | st.integers(-(10**300), 10**300) | st.sampled_from([2**63 - 1, 2**63, -(2**63) - 1, 10**999])
floats = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([-0.0, 1.0, 1e23, 1e308, 5e-324, 1e16, 0.1])
scalars = st.none() | st.booleans() | integers | floats | text
json = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
metadata = st.dictionaries(keys, json, max_size=5)
# to the day before the ends of the calendar, which every time zone can show
times = st.integers(-719_161 * 86_400 * 10**6, 2_932_895 * 86_400 * 10**6).map(
    lambda us: dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=us)
)
ids = st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40)
entry = st.fixed_dictionaries(
    {"content": text}, optional={"metadata": metadata, "timestamp": times, "memory_id": ids}
)  # fmt: skip


def form(value: Any) -> Any:
    """``value`` so that equal forms mean the same in type, in the order of keys, and to the last bit."""
    if isinstance(value, dict):
        return "dict", [(key, form(item)) for key, item in value.items()]
    if isinstance(value, list):
        return "list", [form(item) for item in value]
    return type(value).__name__, repr(value)


def deep(levels: int) -> Any:
    value: Any = {}
    for n in range(levels - 1):
        value = {"k": value} if n % 2 else [value]
    return value if isinstance(value, dict) else {"k": value}


#: what a random draw seldom gives
CHOSEN: list[dict[str, Any]] = [
    {"content": ""},
    {"content": "\ufeff\u2028\u2029\x01\x7f\x85\r\n\t \U0010ffff\ufffe"},
    {"content": "e\u0301 is not \u00e9, and ﬁ is not fi"},
    {"content": "'; DROP TABLE x; -- %s %(a)s \\x \\u0041 {} ${a} \\N"},
    {"content": "x" * 1_000_000},
    {"content": "😀é" * 300_000},
    {"content": "order", "metadata": {"z": 1, "a": {"y": 1, "b": 2, "aa": 3}, "m": [{"q": 1, "c": 2}]}},
    {"content": "long keys", "metadata": {"k" * 10_000: {"k" * 5000: 1}}},
    {"content": "large", "metadata": {"text": "é" * 400_000}},
    {"content": "numbers", "metadata": {"a": [1, 1.0, True, -0.0, 0, 10**999, 1e308, 2**53 + 1, 5e-324, 1e23, 10**23]}},
    {"content": "deep", "metadata": deep(63)},
    {"content": "wide", "metadata": {str(n): n for n in range(5000)}},
    {"content": "special", "metadata": {"__pxttype__": "Image", "_classname": "X", "null": None, "": {"": []}}},
]


class Expected:
    """What was accepted, by memory id."""

    def __init__(self) -> None:
        self.memories: dict[str, dict[str, Any]] = {}

    def add(self, mem: Memory, entries: list[dict[str, Any]]) -> None:
        added = mem.add_entries(entries)
        for memory_id, given in zip(added, entries, strict=True):
            self.memories[memory_id] = given
        for memory_id in added:
            self.assert_same(memory_id, mem.get_memory(memory_id))

    def assert_same(self, memory_id: str, found: Any) -> None:
        given = self.memories[memory_id]
        assert found["memory_id"] == memory_id
        assert found["content"] == given["content"]
        assert form(found["metadata"]) == form(given.get("metadata", {}))
        if "timestamp" in given:
            assert found["timestamp"] == given["timestamp"]

    def assert_all(self, mem: Memory) -> None:
        found = mem.search(limit=len(self.memories) + 1)
        assert {m["memory_id"] for m in found} == set(self.memories)
        assert len(found) == len(self.memories) == mem.count()
        for memory in found:
            self.assert_same(memory["memory_id"], memory)
        assert mem.health().ok


def test_what_is_accepted_comes_back(open_memory: OpenMemory) -> None:
    expected = Expected()
    mem = open_memory()
    expected.add(mem, CHOSEN)

    @hypothesis.settings(max_examples=40, deadline=None, database=None, derandomize=True)
    @hypothesis.given(st.lists(entry, min_size=1, max_size=15, unique_by=lambda e: e.get("memory_id") or object()))
    def add(entries: list[dict[str, Any]]) -> None:
        expected.add(mem, [e for e in entries if e.get("memory_id") not in expected.memories])
        mem.flush()  # while entries are drawn no thread may use the global random numbers

    add()
    assert len(expected.memories) > 100
    expected.assert_all(mem)
    mem.close()
    for options in (
        dict[str, Any](),
        dict[str, Any](direct_sql=False),
        dict[str, Any](rebuild=True),
        dict[str, Any](rebuild=True, direct_sql=False, layout=Layout.SHARED),
    ):
        mem = open_memory(**options)
        expected.assert_all(mem)
        mem.close()


def test_what_an_update_brings_comes_back(open_memory: OpenMemory) -> None:
    expected = Expected()
    mem = open_memory()
    added = [mem.add_entry("before", metadata={"before": True}) for _ in CHOSEN]
    for memory_id, given in zip(added, CHOSEN, strict=True):
        assert mem.update_memory(memory_id, content=given["content"], metadata=given.get("metadata", {}))
        expected.memories[memory_id] = given
    expected.assert_all(mem)
    mem.close()
    expected.assert_all(open_memory(rebuild=True))


@pytest.mark.parametrize("direct_sql", [True, False], ids=["sql", "public API"])
def test_what_comes_back_is_the_callers_own(open_memory: OpenMemory, direct_sql: bool) -> None:
    mem = open_memory(direct_sql=direct_sql)
    given: dict[str, Any] = {"tags": ["a"], "nested": {"n": 1}}
    memory_id = mem.add_entry("x", metadata=given)
    given["tags"].append("later")
    for _ in range(2):
        found = mem.get_memory(memory_id)
        assert found is not None
        assert found["metadata"] == {"tags": ["a"], "nested": {"n": 1}}
        found["metadata"]["tags"].append("changed")
