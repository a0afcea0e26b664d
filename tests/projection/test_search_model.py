"""Searches against a model in plain Python: filters by ``filters.matches``, meaning by numpy, in every combination."""

from __future__ import annotations

import datetime as dt
import random
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import hypothesis
import numpy as np
import psycopg
import pytest
from hypothesis import strategies as st
from numpy.typing import NDArray
from psycopg import sql

from pixelmemory import Layout, Memory, Options
from pixelmemory.memory.filters import matches, parse_filter
from pixelmemory.projection.pixeltable.startup import connection_string, start_pixeltable
from pixelmemory.projection.sql import ranking
from pixelmemory.projection.sql import session as connections
from tests.harness.embedders import cosine
from tests.harness.engine_tools import indexes_of, tables_of

DIMENSIONS = 6
START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
NAMESPACES = ("alpha", "Alpha", "beta")


class Entry(NamedTuple):
    namespace: str
    memory_id: str
    content: str
    metadata: dict[str, Any]
    timestamp: dt.datetime
    #: None: found by metadata and time alone
    vector: NDArray[np.float32]


def random_metadata(draw: random.Random) -> dict[str, Any]:
    choices: dict[str, list[Any]] = {
        "kind": ["note", "paper", "Note", None, True],
        "year": [1999, 2020, 2020.0, 2020.5, "2020", [2019, 2021], -1, 10**20],
        "tags": [["a"], ["a", "b"], ["b", 1], [], "a", [["a"]], {"a": 1}],
        "place": [{"city": "Oslo", "at": {"x": 1}}, {"city": ["Oslo", "Rome"]}, {}, None, "Oslo"],
        "a.b": [1, 2, "1", False],
    }
    return {key: draw.choice(values) for key, values in choices.items() if draw.random() < 0.7}


def make_entries(count: int) -> list[Entry]:
    draw = random.Random(7)
    numbers = np.random.default_rng(7)
    corners = numbers.standard_normal((40, DIMENSIONS)).astype(np.float32)
    return [
        Entry(
            NAMESPACES[min(draw.randrange(5), 2)],
            f"memory {n}",
            f"content {n % 50}",
            random_metadata(draw),
            START + dt.timedelta(hours=draw.randrange(100)),
            # some memories share a direction: then the newest comes first
            corners[draw.randrange(40)] if n % 3 else numbers.standard_normal(DIMENSIONS).astype(np.float32),
        )
        for n in range(count)
    ]


ENTRIES = make_entries(300)
PATHS = {
    "per namespace, sql": (Layout.PER_NAMESPACE, True),
    "per namespace, public API": (Layout.PER_NAMESPACE, False),
    "shared, sql": (Layout.SHARED, True),
    "shared, public API": (Layout.SHARED, False),
}


def fill(mem: Memory, entries: list[Entry]) -> None:
    """Write the entries by every kind of write, so that what is searched has a history."""
    for start in range(0, len(entries), 100):
        for namespace in NAMESPACES:
            part = [entry for entry in entries[start : start + 100] if entry.namespace == namespace]
            mem.add_entries([as_added(entry, n) for n, entry in enumerate(part)], namespace)
            for n, entry in enumerate(part):
                if n % 9 == 0:
                    mem.update_memory(entry.memory_id, namespace, entry.content, embedding=entry.vector)
                if n % 10 == 0:
                    mem.update_memory(entry.memory_id, namespace, metadata=entry.metadata)
            mem.add_entry("to be deleted", namespace, memory_id="gone", embedding=entries[0].vector)
            mem.delete_memory("gone", namespace)


def as_added(entry: Entry, n: int) -> dict[str, Any]:
    return {
        "memory_id": entry.memory_id,
        "content": "before an update" if n % 9 == 0 else entry.content,
        "metadata": {"before": "an update"} if n % 10 == 0 else entry.metadata,
        "timestamp": entry.timestamp,
        "embedding": -entry.vector if n % 9 == 0 else entry.vector,
    }


@pytest.fixture(scope="module", params=list(PATHS))
def path(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def mem(path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Memory]:
    layout, direct_sql = PATHS[path]
    options = Options(home=tmp_path_factory.mktemp("home"), layout=layout, direct_sql=direct_sql, progress=False)
    name = f"model_{list(PATHS).index(path)}"
    with Memory(name, None, {"dimensions": DIMENSIONS}, options=options) as opened:
        fill(opened, ENTRIES)
        opened.flush()
        yield opened


# ------------------------------------------------------------------------------------------------------ the model


def matching(namespace: str, search: dict[str, Any], entries: list[Entry] = ENTRIES) -> list[Entry]:
    tree = parse_filter(search.get("metadata_filter"), Options())
    start, end = search.get("start_time"), search.get("end_time")
    return [
        entry
        for entry in entries
        if entry.namespace == namespace
        and (start is None or entry.timestamp >= start)
        and (end is None or entry.timestamp <= end)
        and matches(tree, entry.metadata)
    ]


def newest_first(entries: list[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: entry.timestamp, reverse=True)


def assert_model(mem: Memory, namespace: str, search: dict[str, Any]) -> int:
    """Hold one search against the model; how many results it had."""
    expected = matching(namespace, search)
    limit = search["limit"]
    found = mem.search(namespace, **search)
    by_id = {entry.memory_id: entry for entry in expected}
    assert len(found) == min(limit, len(expected)), "a search returns as many as match, up to the limit"
    for memory in found:
        entry = by_id[memory["memory_id"]]
        assert (memory["content"], memory["metadata"], memory["timestamp"]) == (
            entry.content, entry.metadata, entry.timestamp,
        )  # fmt: skip
    assert len({memory["memory_id"] for memory in found}) == len(found)
    if "vector" not in search:
        times = [entry.timestamp for entry in newest_first(expected)[:limit]]
        assert [memory["timestamp"] for memory in found] == times
        return len(found)
    scores = sorted((cosine(entry.vector, search["vector"]) for entry in expected), reverse=True)
    assert [memory["similarity_score"] for memory in found] == pytest.approx(scores[:limit], abs=1e-5)
    for memory in found:
        true = cosine(by_id[memory["memory_id"]].vector, search["vector"])
        assert memory["similarity_score"] == pytest.approx(true, abs=1e-5)
    return len(found)


# ----------------------------------------------------------------------------------------------------- searching

_values = st.sampled_from([
    "note", "paper", "Note", None, True, False, 1, 1.0, 2020, 2020.5, "2020", "a", "b", "Oslo", 10**20, [], ["a"], {},
    ["a", "b"], {"a": 1}, {"city": "Oslo", "at": {"x": 1}},
])  # fmt: skip
_ordered = st.sampled_from(["a", "m", "paper", 0, 2019.5, 2020, 2020.5, True, 10**20])
_paths = st.sampled_from(
    ["kind", "year", "tags", "place", "place.city", "place.at.x", "a\\.b", "a.b", "nothing", "before"]
)
_conditions = st.one_of(
    _values.map(lambda value: {"$eq": value}),
    _values.map(lambda value: {"$ne": value}),
    st.builds(lambda op, value: {op: value}, st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), _ordered),
    st.builds(lambda op, some: {op: some}, st.sampled_from(["$in", "$nin"]), st.lists(_values, max_size=3)),
    st.booleans().map(lambda there: {"$exists": there}),
    _values.map(lambda value: {"$contains": value}),
)
_fields = st.dictionaries(_paths, _conditions | st.sampled_from(["note", "a", 2020, None, ["a"]]), max_size=2)
_filters: st.SearchStrategy[Any] = st.none() | st.recursive(
    _fields,
    lambda inner: (
        st.builds(
            lambda word, some: {word: some}, st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=1, max_size=3)
        )
        | inner.map(lambda one: {"$not": one})
    ),
    max_leaves=4,
)
_times = st.none() | st.integers(-2, 102).map(lambda hour: START + dt.timedelta(hours=hour))


@st.composite
def searches(draw: st.DrawFn) -> dict[str, Any]:
    times = sorted(t for t in (draw(_times), draw(_times)) if t is not None)
    search: dict[str, Any] = {"limit": draw(st.sampled_from([0, 1, 3, 5, 17, 100, 1000]))}
    if times:
        search["start_time"] = times[0]
    if len(times) > 1:
        search["end_time"] = times[1]
    if (wanted := draw(_filters)) is not None:
        search["metadata_filter"] = wanted
    if draw(st.booleans()):
        seed = draw(st.integers(0, 1000))
        search["vector"] = np.random.default_rng(seed).standard_normal(DIMENSIONS).astype(np.float32)
    return search


def test_every_search_agrees_with_the_model(mem: Memory, path: str) -> None:
    found: list[int] = []

    @hypothesis.settings(
        max_examples=150 if "sql" in path else 40, deadline=None, database=None, derandomize=True,
    )  # fmt: skip
    @hypothesis.given(st.sampled_from(NAMESPACES), searches())
    def search(namespace: str, wanted: dict[str, Any]) -> None:
        found.append(assert_model(mem, namespace, wanted))

    search()
    assert sum(1 for n in found if n > 1) > len(found) / 5, "most searches should find something"


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_filters_are_applied_before_the_limit(mem: Memory, namespace: str) -> None:
    rare = {"year": {"$in": [10**20, -1]}}
    everything = matching(namespace, {"metadata_filter": rare})
    assert len(everything) >= 2
    for limit in (1, 2, len(everything), 500):
        for vector in (None, ENTRIES[0].vector):
            found = mem.search(namespace, limit=limit, metadata_filter=rare, vector=vector)
            assert len(found) == min(limit, len(everything))


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_of_equal_rank_the_last_written_comes_first(mem: Memory, namespace: str) -> None:
    """So that the same search gives the same results, on whichever path it goes."""
    entries = [entry for entry in ENTRIES if entry.namespace == namespace]
    listed = mem.search(namespace, limit=1000)
    ranks = {m["memory_id"]: n for n, m in enumerate(listed)}
    assert len(ranks) == len(entries)
    target = ENTRIES[1].vector
    scored = mem.search(namespace, limit=1000, vector=target)
    assert len(scored) == len(entries)
    order = [m["memory_id"] for m in scored]
    assert order == [m["memory_id"] for m in mem.search(namespace, limit=1000, vector=target * 2)]
    for limit in (1, 7, 30):
        assert [m["memory_id"] for m in mem.search(namespace, limit=limit, vector=target)] == order[:limit]
        assert [m["memory_id"] for m in mem.search(namespace, limit=limit)] == [m["memory_id"] for m in listed[:limit]]


def test_min_score_agrees_with_the_model(mem: Memory) -> None:
    target = np.random.default_rng(5).standard_normal(DIMENSIONS).astype(np.float32)
    for namespace in NAMESPACES:
        for bound in (-0.9, -0.25, 0.0, 0.31, 0.77, 0.99):
            for limit in (3, 1000):
                wanted = {"metadata_filter": {"kind": {"$ne": "note"}}}
                scores = [cosine(e.vector, target) for e in matching(namespace, wanted)]
                expected = sorted((score for score in scores if score >= bound), reverse=True)[:limit]
                found = mem.search(namespace, limit=limit, vector=target, min_score=bound, **wanted)  # type: ignore[arg-type]
                assert [m["similarity_score"] for m in found] == pytest.approx(expected, abs=1e-5)


def test_both_layouts_and_both_read_paths_agree(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One log, read in every way: equal results in an equal order, ties included."""
    home = tmp_path_factory.mktemp("home")
    asked: list[dict[str, Any]] = [
        {"limit": 400},
        {"limit": 7},
        {"limit": 400, "vector": ENTRIES[1].vector},
        {"limit": 7, "vector": ENTRIES[2].vector, "min_score": 0.2},
        {"limit": 25, "metadata_filter": {"tags": "a"}, "vector": ENTRIES[4].vector},
        {"limit": 25, "metadata_filter": {"year": {"$gte": 2020}}, "start_time": START + dt.timedelta(hours=20)},
    ]
    answers: list[list[Any]] = []
    for layout, direct_sql in PATHS.values():
        options = Options(home=home, layout=layout, direct_sql=direct_sql, rebuild=True, progress=False)
        with Memory("model_agreement", None, {"dimensions": DIMENSIONS}, options=options) as mem:
            if not answers:
                fill(mem, ENTRIES[:100])
            answers.append([mem.search(namespace, **each) for namespace in NAMESPACES for each in asked])
    for answer in answers[1:]:
        for found, first in zip(answer, answers[0], strict=True):
            assert [m["memory_id"] for m in found] == [m["memory_id"] for m in first]
            for left, right in zip(found, first, strict=True):
                assert left.pop("similarity_score", None) == pytest.approx(right.get("similarity_score"), abs=1e-6)
                assert left == {key: value for key, value in right.items() if key != "similarity_score"}


# ------------------------------------------------------------------------------------------------------- the index

INDEX_DIMENSIONS = 24
INDEX_ROWS = 3000


@pytest.fixture(scope="module")
def planner_likes_hnsw() -> Iterator[None]:
    """PostgreSQL scans tables of a few thousand rows whatever indexes there are; here it is to prefer the index."""
    start_pixeltable(keep_http_server=False)
    settings = ("enable_seqscan", "enable_sort")
    with psycopg.connect(connection_string(), autocommit=True) as connection:
        database = sql.Identifier(connection.info.dbname)
        for name in settings:
            connection.execute(sql.SQL("ALTER DATABASE {} SET {} = off").format(database, sql.Identifier(name)))
        connections.shared.forget_idle()  # those of other stores have begun without it
        yield
        for name in settings:
            connection.execute(sql.SQL("ALTER DATABASE {} RESET {}").format(database, sql.Identifier(name)))
        connections.shared.forget_idle()


class Large(NamedTuple):
    mem: Memory
    #: memory id -> its vector
    vectors: dict[str, NDArray[np.float32]]


def index_was_used(mem: Memory, namespace: str) -> bool:
    """Whether PostgreSQL has answered a search from the index of the namespace's table."""
    tables = tables_of(mem)
    name = tables.name_of(namespace)
    assert name is not None
    index = tables.physical(name).hnsw
    deadline = time.monotonic() + 120
    with psycopg.connect(connection_string(), autocommit=True) as connection:
        while time.monotonic() < deadline:
            # a connection reports what it has counted when it is used a second later
            mem.search(namespace, vector=np.ones(INDEX_DIMENSIONS), limit=1)
            statement = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = %s"
            row = connection.execute(statement, (index,)).fetchone()
            assert row is not None, "the index is there"
            if row[0] > 0:
                return True
            time.sleep(0.1)
    return False


@pytest.fixture(scope="module", params=[False, True], ids=["per namespace", "shared"])
def shared(request: pytest.FixtureRequest) -> bool:
    value: bool = request.param
    return value


@pytest.fixture(scope="module")
def large(
    shared: bool,
    tmp_path_factory: pytest.TempPathFactory,
    planner_likes_hnsw: None,  # noqa: ARG001 - set before a connection is made
) -> Iterator[Large]:
    options = Options(
        home=tmp_path_factory.mktemp("home"),
        layout=Layout.SHARED if shared else Layout.PER_NAMESPACE,
        graph_rows_min=500,
        batch_events_max=400,
        progress=False,
    )
    numbers = np.random.default_rng(3)
    vectors: dict[str, NDArray[np.float32]] = {}
    with Memory("index_shared" if shared else "index", None, {"dimensions": INDEX_DIMENSIONS}, options=options) as mem:

        def add(first: int, count: int) -> None:
            made = numbers.standard_normal((count, INDEX_DIMENSIONS)).astype(np.float32)
            vectors.update({str(first + n): vector for n, vector in enumerate(made)})
            mem.add_entries(
                [
                    {"memory_id": str(n), "content": f"content {n}", "metadata": {"n": n, "rare": n % 100 == 0},
                     "embedding": vectors[str(n)], "timestamp": START + dt.timedelta(seconds=n)}
                    for n in range(first, first + count)
                ],
                "large",
            )  # fmt: skip

        add(0, 1000)
        # a small namespace, which in the shared layout lies in the same index
        mem.add_entries(
            [{"content": f"small {n}", "memory_id": str(n), "embedding": vectors[str(n)]} for n in range(30)], "small"
        )
        mem.flush()
        assert indexes_of(mem).wait(60)
        # the index is there; what is written from now on goes into it
        add(1000, INDEX_ROWS - 1000)
        for n in range(0, 300, 3):
            key = str(n)
            vectors[key] = -vectors[key]
            mem.update_memory(key, "large", f"changed {n}", embedding=vectors[key])
        gone = [str(n) for n in range(1, 600, 6)]
        assert mem.delete_memories(gone, "large") == len(gone)
        for key in gone:
            del vectors[key]
        mem.flush()
        assert indexes_of(mem).wait(60)
        yield Large(mem, vectors)


def nearest(large: Large, target: NDArray[np.float32], keys: list[str]) -> list[str]:
    matrix = np.stack([large.vectors[key] for key in keys]).astype(np.float64)
    scores = matrix @ target / np.linalg.norm(matrix, axis=1)
    return [keys[i] for i in np.argsort(-scores, kind="stable")]


def targets(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(11).standard_normal((count, INDEX_DIMENSIONS)).astype(np.float32)


def recall(large: Large, limits: tuple[int, ...], keys: list[str], **conditions: Any) -> float:
    """The part of the nearest of ``keys`` that searches find; they return as many as there are, with true scores."""
    mem, vectors = large
    hits = total = 0
    for target in targets(25):
        exact = nearest(large, target, keys)
        for limit in limits:
            found = mem.search("large", vector=target, limit=limit, **conditions)
            assert len(found) == min(limit, len(keys))
            scores = [m["similarity_score"] for m in found]
            assert scores == sorted(scores, reverse=True)
            assert scores == pytest.approx([cosine(vectors[m["memory_id"]], target) for m in found], abs=1e-5)
            assert {m["memory_id"] for m in found} <= set(keys)
            hits += len({m["memory_id"] for m in found} & set(exact[:limit]))
            total += len(exact[:limit])
    return hits / total


def test_the_index_finds_nearly_all(large: Large, shared: bool) -> None:
    found = recall(large, (1, 10, 50), list(large.vectors))
    if shared:
        assert found == 1, "the index holds other namespaces' rows too, so one of this size is searched exactly"
    else:
        assert found >= 0.95
        assert index_was_used(large.mem, "large")


def test_a_filter_that_leaves_much_goes_to_the_index(large: Large, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "EXACT_ROWS_MAX", 100)
    for wanted, keys in (
        ({"n": {"$gte": 500}}, [key for key in large.vectors if int(key) >= 500]),
        ({"n": {"$lt": 700}}, [key for key in large.vectors if int(key) < 700]),
        ({"rare": {"$ne": True}}, [key for key in large.vectors if int(key) % 100]),
    ):
        assert recall(large, (1, 20, 150), keys, metadata_filter=wanted) >= 0.95


def test_beside_the_index_filters_are_exact(large: Large) -> None:
    mem, vectors = large
    for target in targets(10):
        for wanted, keys in (
            ({"rare": True}, [key for key in vectors if int(key) % 100 == 0]),
            ({"n": {"$lt": 5}}, [key for key in vectors if int(key) < 5]),
            ({"n": {"$gte": 500}}, [key for key in vectors if int(key) >= 500]),
            ({"n": {"$gte": 10**6}}, []),
        ):
            exact = nearest(large, target, keys) if keys else []
            for limit in (1, 10, 100):
                found = mem.search("large", vector=target, limit=limit, metadata_filter=wanted)
                assert [m["memory_id"] for m in found] == exact[:limit]
        after = START + dt.timedelta(seconds=2900)
        exact = nearest(large, target, [key for key in vectors if int(key) >= 2900])
        found = mem.search("large", vector=target, limit=20, start_time=after)
        assert [m["memory_id"] for m in found] == exact[:20]


def test_beside_the_index_large_limits_are_exact(large: Large) -> None:
    mem, vectors = large
    target = targets(1)[0]
    exact = nearest(large, target, list(vectors))
    for limit in (300, 1000, 10_000):
        found = mem.search("large", vector=target, limit=limit)
        assert [m["memory_id"] for m in found] == exact[:limit]
    bounded = [key for key in exact if cosine(vectors[key], target) >= 0.5]
    found = mem.search("large", vector=target, limit=10_000, min_score=0.5)
    assert [m["memory_id"] for m in found] == bounded


def test_beside_the_index_min_score_drops_the_tail_alone(large: Large) -> None:
    for target in targets(10):
        found = large.mem.search("large", vector=target, limit=20)
        for kept in (1, 7, 20):
            least = found[kept - 1]["similarity_score"]
            assert large.mem.search("large", vector=target, limit=20, min_score=least) == found[:kept]
        assert large.mem.search("large", vector=target, limit=20, min_score=1) == []


def test_a_small_namespace_is_not_lost_in_a_large_index(large: Large) -> None:
    mem, _ = large
    for target in targets(10):
        found = mem.search("small", vector=target, limit=100)
        assert len(found) == 30
        assert all(memory["content"].startswith("small") for memory in found)
