"""Every kind of bad input is a typed error that names its field, and nothing is logged."""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pixelmemory import (
    InvalidArgumentError,
    InvalidFilterError,
    InvalidTypeError,
    LimitExceededError,
    Memory,
    ModelLoadError,
    Options,
    PixelmemoryError,
)
from tests.harness.embedders import embed_words

if TYPE_CHECKING:  # at run time there are several modules of this name
    from tests.conftest import OpenMemory

DIMENSIONS = 4
VECTOR = [1.0, 2.0, 3.0, 4.0]
GOOD: dict[Any, Any] = {"content": "good", "embedding": VECTOR}
LIMITS: dict[str, Any] = {"content_chars_max": 1000, "metadata_bytes_max": 5000, "append_bytes_max": 20_000}

endless: dict[str, Any] = {}
endless["again"] = endless


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels - 1):
        value = [value]
    return {"a": value}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def mem(home: Path) -> Iterator[Memory]:
    """A store whose vectors are given."""
    options = Options(home=home, progress=False, **LIMITS)
    with Memory("bad_input", None, {"dimensions": DIMENSIONS}, options=options) as opened:
        opened.add_entry("the one memory", memory_id="taken", embedding=VECTOR)
        yield opened


@pytest.fixture(scope="module")
def plain(home: Path) -> Iterator[Memory]:
    """A store without semantic search."""
    with Memory("bad_input_plain", None, None, options=Options(home=home, progress=False)) as opened:
        yield opened


def assert_refused(
    mem: Memory, call: Callable[[], Any], error: type[InvalidArgumentError | InvalidTypeError], field: str
) -> None:
    lsn = mem.stats().durable_lsn
    with pytest.raises(error) as raised:
        call()
    assert type(raised.value) is error
    assert isinstance(raised.value, PixelmemoryError)
    assert isinstance(raised.value, TypeError if error is InvalidTypeError else ValueError)
    assert raised.value.field == field
    assert str(raised.value).startswith(f"{field} ")
    stats = mem.stats()
    assert stats.durable_lsn == stats.last_lsn == lsn, "nothing is logged"


# what is bad in an entry: (field of the entry, value, error, what the error names under the field)
BAD_ENTRIES: list[tuple[str, Any, type[Any], str]] = [
    ("content", None, InvalidTypeError, ""),
    ("content", 5, InvalidTypeError, ""),
    ("content", b"bytes", InvalidTypeError, ""),
    ("content", ["a"], InvalidTypeError, ""),
    ("content", "NUL \0 within", InvalidArgumentError, ""),
    ("content", "lone \ud83d surrogate", InvalidArgumentError, ""),
    ("content", "x" * 1001, LimitExceededError, ""),
    ("metadata", "text", InvalidTypeError, ""),
    ("metadata", [("a", 1)], InvalidTypeError, ""),
    ("metadata", 5, InvalidTypeError, ""),
    ("metadata", {1: "a"}, InvalidTypeError, ""),
    ("metadata", {"a": {None: "a"}}, InvalidTypeError, ".a"),
    ("metadata", {"a": (1, 2)}, InvalidTypeError, ".a"),
    ("metadata", {"a": {1, 2}}, InvalidTypeError, ".a"),
    ("metadata", {"a": b"bytes"}, InvalidTypeError, ".a"),
    ("metadata", {"a": dt.datetime(2024, 1, 1, tzinfo=dt.UTC)}, InvalidTypeError, ".a"),
    ("metadata", {"a": dt.date(2024, 1, 1)}, InvalidTypeError, ".a"),
    ("metadata", {"a": uuid.uuid4()}, InvalidTypeError, ".a"),
    ("metadata", {"a": decimal.Decimal(1)}, InvalidTypeError, ".a"),
    ("metadata", {"a": 1j}, InvalidTypeError, ".a"),
    ("metadata", {"a": np.int64(1)}, InvalidTypeError, ".a"),
    ("metadata", {"a": np.zeros(2)}, InvalidTypeError, ".a"),
    ("metadata", {"a": object()}, InvalidTypeError, ".a"),
    ("metadata", {"a": [0, {"b": object()}]}, InvalidTypeError, ".a[1].b"),
    ("metadata", {"a": float("nan")}, InvalidArgumentError, ".a"),
    ("metadata", {"a": {"b": [1, float("inf")]}}, InvalidArgumentError, ".a.b[1]"),
    ("metadata", {"a": [-float("inf")]}, InvalidArgumentError, ".a[0]"),
    ("metadata", {"a": "NUL \0"}, InvalidArgumentError, ".a"),
    ("metadata", {"a\0": 1}, InvalidArgumentError, ""),
    ("metadata", {"a": ["\udc00"]}, InvalidArgumentError, ".a[0]"),
    ("metadata", {"\udc00": 1}, InvalidArgumentError, ""),
    ("metadata", {"a": 10**1000}, LimitExceededError, ".a"),
    ("metadata", {"a": 10**10_000}, LimitExceededError, ".a"),
    ("metadata", {"a": "x" * 5000}, LimitExceededError, ""),
    ("metadata", nested(65), LimitExceededError, ""),
    ("metadata", nested(5000), LimitExceededError, ""),
    ("metadata", endless, LimitExceededError, ""),
    ("memory_id", 5, InvalidTypeError, ""),
    ("memory_id", b"id", InvalidTypeError, ""),
    ("memory_id", uuid.uuid4(), InvalidTypeError, ""),
    ("memory_id", "", InvalidArgumentError, ""),
    ("memory_id", "\0", InvalidArgumentError, ""),
    ("memory_id", "\ud800", InvalidArgumentError, ""),
    ("memory_id", "x" * 1025, LimitExceededError, ""),
    ("timestamp", "2024-01-01T00:00:00Z", InvalidTypeError, ""),
    ("timestamp", 1704067200, InvalidTypeError, ""),
    ("timestamp", dt.date(2024, 1, 1), InvalidTypeError, ""),
    ("timestamp", dt.datetime.min.replace(tzinfo=dt.UTC), InvalidArgumentError, ""),
    ("timestamp", dt.datetime.max.replace(tzinfo=dt.UTC), InvalidArgumentError, ""),
    ("embedding", "vector", InvalidTypeError, ""),
    ("embedding", b"\0" * 16, InvalidTypeError, ""),
    ("embedding", 5, InvalidTypeError, ""),
    ("embedding", {"a": 1}, InvalidTypeError, ""),
    ("embedding", ["1", "2", "3", "4"], InvalidTypeError, ""),
    ("embedding", [1, 2, 3, None], InvalidTypeError, ""),
    ("embedding", [True, False, True, False], InvalidTypeError, ""),
    ("embedding", [1j] * 4, InvalidTypeError, ""),
    ("embedding", None, InvalidArgumentError, ""),
    ("embedding", [], InvalidArgumentError, ""),
    ("embedding", VECTOR[:3], InvalidArgumentError, ""),
    ("embedding", [*VECTOR, 5.0], InvalidArgumentError, ""),
    ("embedding", np.zeros((1, 4)), InvalidArgumentError, ""),
    ("embedding", [[1.0, 2.0], [3.0, 4.0]], InvalidArgumentError, ""),
    ("embedding", np.zeros(4), InvalidArgumentError, ""),
    ("embedding", [1.0, 2.0, 3.0, float("nan")], InvalidArgumentError, ""),
    ("embedding", [1.0, 2.0, 3.0, 1e39], InvalidArgumentError, ""),
    ("embedding", [1e-50] * 4, InvalidArgumentError, ""),
]


@pytest.mark.parametrize(("field", "value", "error", "place"), BAD_ENTRIES)
def test_a_bad_entry(mem: Memory, field: str, value: Any, error: type[Any], place: str) -> None:
    bad: dict[str, Any] = {**GOOD, field: value}
    single = dict(bad)
    assert_refused(mem, lambda: mem.add_entry(single.pop("content"), **single), error, field + place)
    for position in (0, 2):
        entries = [dict(GOOD), dict(GOOD)]
        entries.insert(position, bad)
        assert_refused(mem, lambda e=entries: mem.add_entries(e), error, f"entries[{position}].{field}{place}")  # type: ignore[misc]
    if field in ("content", "metadata", "embedding") and value is not None:
        change = {"content": "new", "embedding": VECTOR, field: value}
        assert_refused(mem, lambda: mem.update_memory("taken", **change), error, field + place)
    if field == "memory_id":
        for method in (mem.get_memory, mem.update_memory, mem.delete_memory):
            assert_refused(mem, lambda m=method: m(value), error, "memory_id")  # type: ignore[misc]
        assert_refused(mem, lambda: mem.delete_memories(["taken", value]), error, "memory_ids[1]")
    assert [m["content"] for m in mem.search()] == ["the one memory"]


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        ("text", InvalidTypeError),
        (None, InvalidTypeError),
        (["content"], InvalidTypeError),
        ({}, InvalidArgumentError),
        ({"embedding": VECTOR}, InvalidArgumentError),
        ({**GOOD, "text": "?"}, InvalidArgumentError),
        ({**GOOD, "namespace": "x"}, InvalidArgumentError),
        ({**GOOD, 5: "?"}, InvalidArgumentError),
    ],
)
def test_what_is_no_entry(mem: Memory, entry: Any, error: type[Any]) -> None:
    assert_refused(mem, lambda: mem.add_entries([GOOD, entry]), error, "entries[1]")


@pytest.mark.parametrize("entries", [None, "text", b"bytes", 5, GOOD])
def test_what_are_no_entries(mem: Memory, entries: Any) -> None:
    assert_refused(mem, lambda: mem.add_entries(entries), InvalidTypeError, "entries")


@pytest.mark.parametrize("ids", [None, "taken", b"taken", 5])
def test_what_are_no_ids(mem: Memory, ids: Any) -> None:
    assert_refused(mem, lambda: mem.delete_memories(ids), InvalidTypeError, "memory_ids")


@pytest.mark.parametrize(
    ("namespace", "error"),
    [
        (None, InvalidTypeError),
        (5, InvalidTypeError),
        (b"bytes", InvalidTypeError),
        ("", InvalidArgumentError),
        ("a\0b", InvalidArgumentError),
        ("\udfff", InvalidArgumentError),
        ("x" * 256, LimitExceededError),
    ],
)
def test_a_bad_namespace(mem: Memory, namespace: Any, error: type[Any]) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: mem.add_entry("x", namespace, embedding=VECTOR),
        lambda: mem.add_entries([GOOD], namespace),
        lambda: mem.add_entries([], namespace),
        lambda: mem.get_memory("x", namespace),
        lambda: mem.search(namespace),
        lambda: mem.update_memory("x", namespace, metadata={}),
        lambda: mem.delete_memory("x", namespace),
        lambda: mem.delete_memories(["x"], namespace),
        lambda: mem.get_namespace_table(namespace),
    ]
    if namespace is not None:
        calls.append(lambda: mem.count(namespace))
    for call in calls:
        assert_refused(mem, call, error, "namespace")


NOW = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("arguments", "error", "field"),
    [
        ({"limit": -1}, InvalidArgumentError, "limit"),
        ({"limit": 1.5}, InvalidTypeError, "limit"),
        ({"limit": 2.0}, InvalidTypeError, "limit"),
        ({"limit": "5"}, InvalidTypeError, "limit"),
        ({"limit": True}, InvalidTypeError, "limit"),
        ({"limit": None}, InvalidTypeError, "limit"),
        ({"query": "words"}, InvalidArgumentError, "query"),
        ({"query": 5}, InvalidTypeError, "query"),
        ({"query": "\0"}, InvalidArgumentError, "query"),
        ({"query": "x" * 1001}, LimitExceededError, "query"),
        ({"query": "words", "vector": VECTOR}, InvalidArgumentError, "vector"),
        ({"vector": VECTOR[:2]}, InvalidArgumentError, "vector"),
        ({"vector": np.zeros(4)}, InvalidArgumentError, "vector"),
        ({"vector": "words"}, InvalidTypeError, "vector"),
        ({"start_time": "yesterday"}, InvalidTypeError, "start_time"),
        ({"end_time": 5}, InvalidTypeError, "end_time"),
        ({"end_time": dt.date(2024, 1, 1)}, InvalidTypeError, "end_time"),
        ({"start_time": NOW, "end_time": NOW - dt.timedelta(microseconds=1)}, InvalidArgumentError, "start_time"),
        ({"min_score": 0.5}, InvalidArgumentError, "min_score"),
        ({"vector": VECTOR, "min_score": 1.1}, InvalidArgumentError, "min_score"),
        ({"vector": VECTOR, "min_score": float("nan")}, InvalidArgumentError, "min_score"),
        ({"vector": VECTOR, "min_score": "0.5"}, InvalidTypeError, "min_score"),
        ({"vector": VECTOR, "min_score": True}, InvalidTypeError, "min_score"),
        ({"timeout": -1}, InvalidArgumentError, "timeout"),
        ({"timeout": float("nan")}, InvalidArgumentError, "timeout"),
        ({"timeout": "1"}, InvalidTypeError, "timeout"),
        ({"consistency": "Strong"}, InvalidArgumentError, "consistency"),
        ({"metadata_filter": "tags"}, InvalidFilterError, "metadata_filter"),
        ({"metadata_filter": {5: 1}}, InvalidFilterError, "metadata_filter"),
        ({"metadata_filter": {"a": {"$near": 1}}}, InvalidFilterError, "metadata_filter.a.$near"),
        ({"metadata_filter": {"$where": 1}}, InvalidFilterError, "metadata_filter.$where"),
        ({"metadata_filter": {"a": {"$in": 5}}}, InvalidFilterError, "metadata_filter.a.$in"),
        ({"metadata_filter": {"a": {"$gt": None}}}, InvalidFilterError, "metadata_filter.a.$gt"),
        ({"metadata_filter": {"a": {"$exists": 1}}}, InvalidFilterError, "metadata_filter.a.$exists"),
        ({"metadata_filter": {"$or": []}}, InvalidFilterError, "metadata_filter.$or"),
        ({"metadata_filter": {"a": {"$gt": 1, "b": 2}}}, InvalidFilterError, "metadata_filter.a.b"),
        ({"metadata_filter": {"a": NOW}}, InvalidFilterError, "metadata_filter.a"),
        ({"metadata_filter": {"a": float("nan")}}, InvalidFilterError, "metadata_filter.a"),
    ],
)
def test_a_bad_search(mem: Memory, arguments: dict[str, Any], error: type[Any], field: str) -> None:
    assert_refused(mem, lambda: mem.search(**arguments), error, field)


def test_vectors_where_there_is_no_semantic_search(plain: Memory) -> None:
    assert_refused(plain, lambda: plain.search(query="words"), InvalidArgumentError, "query")
    assert_refused(plain, lambda: plain.search(vector=VECTOR), InvalidArgumentError, "vector")
    assert_refused(plain, lambda: plain.add_entry("x", embedding=VECTOR), InvalidArgumentError, "embedding")
    assert_refused(plain, lambda: plain.add_entries([GOOD]), InvalidArgumentError, "entries[0].embedding")
    memory_id = plain.add_entry("x")
    refused = lambda: plain.update_memory(memory_id, content="y", embedding=VECTOR)  # noqa: E731
    assert_refused(plain, refused, InvalidArgumentError, "embedding")


def test_a_vector_belongs_to_a_content(mem: Memory) -> None:
    assert_refused(mem, lambda: mem.update_memory("taken", embedding=VECTOR), InvalidArgumentError, "embedding")
    assert_refused(mem, lambda: mem.update_memory("taken", content="new"), InvalidArgumentError, "embedding")


def test_a_batch_over_the_limit(mem: Memory) -> None:
    entries = [{**GOOD, "content": "x" * 900}] * 30
    lsn = mem.stats().durable_lsn
    with pytest.raises(LimitExceededError, match="append_bytes_max"):
        mem.add_entries(entries)
    assert mem.stats().durable_lsn == lsn
    assert mem.count() == 1
    assert mem.health().ok


@pytest.mark.parametrize(
    ("arguments", "error", "field"),
    [
        ({"name": ""}, InvalidArgumentError, "name"),
        ({"name": ".."}, InvalidArgumentError, "name"),
        ({"name": "a/b"}, InvalidArgumentError, "name"),
        ({"name": "a b"}, InvalidArgumentError, "name"),
        ({"name": "é"}, InvalidArgumentError, "name"),
        ({"name": "a\n"}, InvalidArgumentError, "name"),
        ({"name": "x" * 65}, InvalidArgumentError, "name"),
        ({"name": None}, InvalidTypeError, "name"),
        ({"options": {}}, InvalidTypeError, "options"),
        ({"schema": 5}, InvalidTypeError, "schema"),
        ({"schema": {"content": str}}, InvalidArgumentError, "schema.content"),
        ({"schema": {"a b": str}}, InvalidArgumentError, "schema.a b"),
        ({"schema": {"a": 5}}, InvalidTypeError, "schema.a"),
        ({"embedding_config": 5}, InvalidTypeError, "embedding_config"),
        ({"embedding_config": {}}, InvalidArgumentError, "embedding_config"),
        ({"embedding_config": {"model": "x"}}, InvalidArgumentError, "embedding_config['model']"),
        ({"embedding_config": {"dimensions": 0}}, InvalidArgumentError, "embedding_config['dimensions']"),
        ({"embedding_config": {"dimensions": "8"}}, InvalidTypeError, "embedding_config['dimensions']"),
        ({"embedding_config": {"dimensions": 5000}}, InvalidArgumentError, "embedding_config"),
        ({"embedding_config": {"function": len}}, InvalidArgumentError, "embedding_config['function']"),
    ],
)
def test_a_bad_store(tmp_path: Path, arguments: dict[str, Any], error: type[Any], field: str) -> None:
    given = {"name": "bad_store", "embedding_config": None, "options": Options(home=tmp_path), **arguments}
    with pytest.raises(error) as raised:
        Memory(**given)
    assert raised.value.field == field
    assert not [path for path in tmp_path.rglob("*") if path.name not in ("bad_store", "LOCK")], "no store was made"


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError) as raised:
        Memory("no_model", embedding_config=str(tmp_path / "nowhere"), options=Options(home=tmp_path))
    assert raised.value.model == str(tmp_path / "nowhere")
    assert not list(tmp_path.rglob("MANIFEST")), "a store is not made for a model that does not load"
    with Memory("no_model", embedding_config=None, options=Options(home=tmp_path)) as mem:
        assert mem.count() == 0


@pytest.mark.parametrize("query", ["", " ", "\n\t ", "\u3000"])
@pytest.mark.parametrize("config", [None, {"dimensions": 2}, {"function": embed_words}], ids=["none", "given", "model"])
def test_an_empty_query(open_memory: OpenMemory, query: str, config: object) -> None:
    mem = open_memory(embedding_config=config)
    with pytest.raises(
        InvalidArgumentError, match="query is empty: pass a text, or no query to get the newest"
    ) as raised:
        mem.search("", query, -1)  # before anything else that is wrong
    assert raised.value.field == "query"
