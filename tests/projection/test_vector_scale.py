"""Vectors of every magnitude, in single and half precision: kept as given, found with the cosine that they have."""

from __future__ import annotations

import functools
import math
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

from pixelmemory import InvalidArgumentError, Memory
from pixelmemory.memory.events import MemoryAdded, MemoryUpdated
from pixelmemory.projection.pixeltable.startup import connection_string
from tests.harness.embedders import HALF_DIMENSIONS, cosine, embed_far, far_vector
from tests.harness.engine_tools import indexes_of, tables_of

if TYPE_CHECKING:
    from tests.conftest import OpenMemory

NAMESPACE = "default_namespace"
FLOAT32_MAX = float(np.finfo(np.float32).max)
#: what the largest number of a vector is
LARGEST = (1.0, -1.0, 300.0, 0.01, 1e6, 7e4, 1e-9, 1e30, 1e-30, 1e-37, FLOAT32_MAX, 1e-43)
PATHS = pytest.mark.parametrize("direct_sql", [True, False], ids=["sql", "public API"])


def tolerance(dimensions: int) -> float:
    """How far a score may be from the cosine in double precision.

    A rounding to half precision is off by a part in 2**11, so it turns each of two vectors by at most 2**-11; the sums
    of the database are made in single precision, and each of their terms is off by at most a part in 2**23.
    """
    return (2.0**-10 if dimensions > 2000 else 0.0) + dimensions * 2.0**-23


@functools.cache
def vectors_of(dimensions: int) -> list[NDArray[np.float32]]:
    """A vector of each magnitude, as float32 holds it, in another direction each."""
    numbers = np.random.default_rng(dimensions).standard_normal((len(LARGEST), dimensions)) + 0.3
    numbers /= np.abs(numbers).max(axis=1, keepdims=True)
    made = [(row * largest).astype(np.float32) for row, largest in zip(numbers, LARGEST, strict=True)]
    assert float(np.abs(made[-1]).max()) < np.finfo(np.float32).tiny, "the last one is denormal"
    return made


def run_on_table(mem: Memory, statement: str, **parameters: object) -> None:
    """Run SQL on the table of the default namespace, past every check; {table}, {vector}, {type} are its own."""
    tables = tables_of(mem)
    name = tables.name_of(NAMESPACE)
    assert name is not None
    table = tables.physical(name)
    text = statement.format(table=table.name, vector=table.vector, type=table.vector_type, **table.columns)
    with psycopg.connect(connection_string(), autocommit=True) as connection:
        assert connection.execute(text.encode(), parameters).rowcount == 1


def append(mem: Memory, *events: MemoryAdded | MemoryUpdated) -> None:
    """Write events to the log past every check, as an older version may have done."""
    engine = mem._memory._engine
    assert engine is not None
    mem._call(engine.append, events)


@PATHS
@pytest.mark.parametrize("dimensions", [2, 2000, 2001, 3072, 4000])
def test_scores_are_cosines_at_every_magnitude(open_memory: OpenMemory, dimensions: int, direct_sql: bool) -> None:
    mem = open_memory(embedding_config={"dimensions": dimensions}, direct_sql=direct_sql)
    vectors = vectors_of(dimensions)
    mem.add_entries([{"content": str(n), "embedding": vector} for n, vector in enumerate(vectors)])
    mem.flush()
    near = tolerance(dimensions)
    for n, target in enumerate(vectors):
        expected = {str(k): cosine(vector, target) for k, vector in enumerate(vectors)}
        found = mem.search(vector=target, limit=50)
        scores = {m["content"]: m["similarity_score"] for m in found}
        assert scores == pytest.approx(expected, abs=near)
        assert scores[str(n)] == pytest.approx(1, abs=near)
        assert list(scores.values()) == sorted(scores.values(), reverse=True)
        assert all(-1 <= score <= 1 for score in scores.values())
        # the middle of the two scores in the middle tells apart what min_score keeps
        ranked = sorted(expected.values())
        least = (ranked[5] + ranked[6]) / 2
        if ranked[6] - ranked[5] > 2 * near:
            kept = {m["content"] for m in mem.search(vector=target, limit=50, min_score=least)}
            assert kept == {content for content, score in expected.items() if score >= least}
    assert mem.health().ok
    assert mem.stats().dead_letters == 0


@PATHS
@pytest.mark.parametrize("dimensions", [3, 3072])
def test_updates_and_rebuilds_keep_the_scores(open_memory: OpenMemory, dimensions: int, direct_sql: bool) -> None:
    vectors = vectors_of(dimensions)
    config = {"dimensions": dimensions}
    with open_memory(embedding_config=config, direct_sql=direct_sql) as mem:
        ids = mem.add_entries([{"content": "same text", "embedding": vectors[0]} for _ in vectors])
        for memory_id, vector in zip(ids, vectors, strict=True):
            assert mem.update_memory(memory_id, content="same text", embedding=vector)
        expected = {key: cosine(vector, vectors[2]) for key, vector in zip(ids, vectors, strict=True)}
        scores = {m["memory_id"]: m["similarity_score"] for m in mem.search(vector=vectors[2], limit=50)}
        assert scores == pytest.approx(expected, abs=tolerance(dimensions))
    with open_memory(embedding_config=config, direct_sql=direct_sql, rebuild=True) as mem:
        assert {m["memory_id"]: m["similarity_score"] for m in mem.search(vector=vectors[2], limit=50)} == scores


def test_an_ordinary_vector_stands_in_the_table_as_it_was_given(open_memory: OpenMemory) -> None:
    mem = open_memory(embedding_config={"dimensions": 3})
    given = np.array([300.0, -0.123456789, 1e-12], dtype=np.float32)
    mem.add_entry("a", embedding=given)
    table = mem.get_namespace_table(NAMESPACE)
    [row] = table.select(vector=table.content.embedding(idx="content_embedding")).collect()
    assert np.array_equal(row["vector"], given)


@pytest.mark.parametrize("dimensions", [3, 2001])
def test_what_has_no_direction_is_refused_before_the_log(open_memory: OpenMemory, dimensions: int) -> None:
    mem = open_memory(embedding_config={"dimensions": dimensions})
    filled = functools.partial(np.full, dimensions)
    refused: list[tuple[Any, str]] = [
        (np.zeros(dimensions), "all zero"),
        (filled(-0.0), "all zero"),
        (filled(1e39), r"finite numbers \(as float32: up to 3.4e38\)"),
        (filled(-1e300), "finite numbers"),
        (filled(np.inf), "finite numbers"),
        (filled(np.nan), "finite numbers"),
        (filled(1e-60), "too small for float32: its largest number is 1e-60; normalize it"),
        (filled(1.3e-44), "too small for float32"),
    ]
    for vector, reason in refused:
        with pytest.raises(InvalidArgumentError, match=f"embedding .*{reason}"):
            mem.add_entry("x", embedding=vector)
        with pytest.raises(InvalidArgumentError, match=f"vector .*{reason}"):
            mem.search(vector=vector)
    assert mem.stats().durable_lsn == 0


def test_one_dimension_too_many_is_refused_at_open(open_memory: OpenMemory) -> None:
    with pytest.raises(InvalidArgumentError, match="4001 dimensions; at most 4000"):
        open_memory(embedding_config={"dimensions": 4001})


@PATHS
@pytest.mark.parametrize("dimensions", [3, 2001])
def test_vectors_without_a_direction_in_a_log_are_one_dead_letter_each(
    open_memory: OpenMemory, dimensions: int, direct_sql: bool
) -> None:
    """No such vector is let in; a log may hold one from a time when it was."""
    config = {"dimensions": dimensions}
    good = np.ones(dimensions, dtype=np.float32)
    far = good * np.float32(1e30)
    numbers = [0.0, -0.0, math.nan, math.inf]
    with open_memory(embedding_config=config, direct_sql=direct_sql) as mem:
        mem.add_entry("before", embedding=good)
        bad = [np.full(dimensions, number, dtype=np.float32).tobytes() for number in numbers]
        append(mem, *(MemoryAdded(NAMESPACE, f"bad {n}", "bad", n + 1, b"{}", each) for n, each in enumerate(bad)))
        append(mem, MemoryAdded(NAMESPACE, "far", "far", 10, b"{}", far.tobytes()))
        mem.add_entry("after", embedding=-good)
        mem.flush()
        assert mem.stats().dead_letters == len(bad)
        assert "no direction" in mem.health().problems[0]
    with open_memory(embedding_config=config, direct_sql=direct_sql, rebuild=True) as mem:
        assert mem.stats().dead_letters == len(bad)
        scores = {m["content"]: m["similarity_score"] for m in mem.search(vector=good, limit=10)}
        assert scores == pytest.approx({"before": 1, "far": 1, "after": -1}, abs=1e-5)
        assert mem.count() == 3


@PATHS
@pytest.mark.parametrize("dimensions", [3, 2001])
def test_a_score_is_never_nan(open_memory: OpenMemory, dimensions: int, direct_sql: bool) -> None:
    """The tables of an older version may hold a zero vector: half precision made one of a small one."""
    mem = open_memory(embedding_config={"dimensions": dimensions}, direct_sql=direct_sql)
    good = np.ones(dimensions, dtype=np.float32)
    mem.add_entry("good", embedding=good)
    mem.add_entry("zero", embedding=good)
    mem.flush()
    zero = str([0.0] * dimensions)
    run_on_table(mem, "UPDATE {table} SET {vector} = %(zero)s::{type} WHERE {content} = 'zero'", zero=zero)
    for bound in (None, -1, 0.5, 1):
        for limit in (1, 10):
            found = mem.search(vector=good, limit=limit, min_score=bound)
            assert [m["content"] for m in found] == ["good"]
            assert found[0]["similarity_score"] == pytest.approx(1)
    assert mem.count() == 2
    assert len(mem.search()) == 2, "it is still found by metadata and time"


def test_a_score_is_never_nan_beside_an_index(open_memory: OpenMemory) -> None:
    mem = open_memory(embedding_config={"dimensions": 3}, graph_rows_min=20)
    vectors = np.random.default_rng(1).standard_normal((60, 3))
    mem.add_entries([{"content": str(n), "embedding": vector * 1e-25} for n, vector in enumerate(vectors)])
    mem.flush()
    run_on_table(mem, "UPDATE {table} SET {vector} = '[0,0,0]' WHERE {content} = '7'")
    keeper = indexes_of(mem)
    assert keeper.wait(60)
    assert keeper.has_index(tables_of(mem).name_of(NAMESPACE) or "")
    expected = {str(n): cosine(vector, vectors[3]) for n, vector in enumerate(vectors) if n != 7}
    for limit in (5, 60, 100):
        found = {m["content"]: m["similarity_score"] for m in mem.search(vector=vectors[3] * 1e25, limit=limit)}
        best = sorted(expected, key=lambda content: -expected[content])[:limit]
        assert found == pytest.approx({content: expected[content] for content in best}, abs=1e-5)
        above = mem.search(vector=vectors[3], limit=limit, min_score=0.5)
        assert {m["content"] for m in above} == {content for content in best if expected[content] >= 0.5}


@PATHS
def test_vectors_that_a_function_makes_are_scaled_too(open_memory: OpenMemory, direct_sql: bool) -> None:
    """By the projector, by Pixeltable for rows of a user's, and of a query."""
    config = {"function": embed_far, "normalize": False}
    mem = open_memory(embedding_config=config, direct_sql=direct_sql)
    contents = ["1e6 red car", "1e-9 red boat", "-1e30 green car", "1e-30 green boat", "1 green"]
    mem.add_entries([{"content": content} for content in contents[:3]])
    table = mem.get_namespace_table(NAMESPACE)
    table.insert([{"memory_id": uuid.uuid4(), "content": content} for content in contents[3:]])
    for query in ("1e33 red", "1e-33 green boat", "-1e6 car"):
        expected = {content: cosine(far_vector(content), far_vector(query)) for content in contents}
        scores = {m["content"]: m["similarity_score"] for m in mem.search(query=query, limit=10)}
        assert scores == pytest.approx(expected, abs=tolerance(HALF_DIMENSIONS))
        like = table.content.similarity(string=query)
        rows = table.select(table.content, score=like).collect()
        assert {row["content"]: row["score"] for row in rows} == pytest.approx(expected, abs=tolerance(HALF_DIMENSIONS))
    assert mem.health().ok


def test_a_function_that_normalizes_takes_every_magnitude(open_memory: OpenMemory) -> None:
    mem = open_memory(embedding_config={"function": embed_far})
    contents = ["1e37 red car", "1e-37 red boat"]
    mem.add_entries([{"content": content} for content in contents])
    expected = {content: cosine(far_vector(content), far_vector("1 car")) for content in contents}
    scores = {m["content"]: m["similarity_score"] for m in mem.search(query="1 car", limit=10)}
    assert scores == pytest.approx(expected, abs=tolerance(HALF_DIMENSIONS))
    assert mem.stats().texts_unembeddable == 0
