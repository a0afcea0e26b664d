"""PostgreSQL agrees with the Python evaluator on random metadata and filters, and uses the indexes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import hypothesis
import msgspec
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelmemory.errors import SchemaViolationError
from pixelmemory.memory.filters import matches, parse_filter
from pixelmemory.memory.metadata import decode_metadata, encode_metadata
from pixelmemory.memory.schema import ColumnKind, parse_schema
from pixelmemory.options import Options
from pixelmemory.projection.sql.filters import compile_filter, typed_index
from tests.harness.filter_strategies import FLOATS, INTEGERS, STRINGS, documents, filters, pick

OPTIONS = Options()
checked = hypothesis.settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)


@checked
@given(metadata=st.lists(documents, min_size=1, max_size=25), values=st.lists(filters, min_size=1, max_size=12))
def test_sql_agrees_with_python(
    metadata: list[dict[str, Any]],
    values: list[dict[str, Any]],
    sql_matches: Callable[[Any, Sequence[Any]], list[bool]],
) -> None:
    stored = [decode_metadata(encode_metadata(document, OPTIONS)) for document in metadata]
    for value in values:
        tree = parse_filter(value, OPTIONS)
        assert sql_matches(value, stored) == [matches(tree, document) for document in stored], value


SCHEMA = parse_schema({"s": str, "i": int, "f": float, "b": bool})
assert SCHEMA is not None
TYPES = {"s": "text", "i": "bigint", "f": "double precision", "b": "boolean"}
TYPED = {name: (f"col_{name}", kind) for name, kind in SCHEMA.columns.items()}

_operands = {
    "s": pick(STRINGS),
    "i": pick([*INTEGERS, *FLOATS, 1.5, -0.5, 2**63 - 0.5, 4]) | st.integers(-5, 5),
    "f": pick([*FLOATS, *INTEGERS]) | st.floats(-2, 2),
    "b": st.booleans(),
}
_any = st.one_of(*_operands.values(), st.none(), st.lists(st.one_of(*_operands.values()), max_size=3))


def _rows(*, satisfying: bool) -> st.SearchStrategy[dict[str, Any]]:
    fields = {name: operand if satisfying else operand | _any for name, operand in _operands.items()}
    return st.fixed_dictionaries({}, optional=fields)


def _conditions(name: str) -> st.SearchStrategy[dict[str, Any]]:
    operand = _operands[name]
    single = st.sampled_from(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte"])
    return st.builds(lambda op, value: {name: {op: value}}, single, operand) | st.builds(
        lambda op, many: {name: {op: many}}, st.sampled_from(["$in", "$nin"]), st.lists(operand, max_size=3)
    )


_condition = st.one_of(*(_conditions(name) for name in TYPES), st.builds(lambda value: {"i": value}, _any))
_typed_filters = _condition | st.builds(lambda one, two: {"$or": [one, {"$not": two}]}, _condition, _condition)


def _evaluate_typed(
    connection: psycopg.Connection[Any], rows: list[dict[str, Any]], value: dict[str, Any]
) -> list[bool]:
    assert SCHEMA is not None
    tree = parse_filter(value, OPTIONS)
    assert tree is not None
    expression, parameters = compile_filter(tree, metadata="metadata", typed=TYPED)
    columns = [SCHEMA.extract(row) for row in rows]
    arrays = ", ".join(f"%({name})s::{kind}[]" for name, kind in TYPES.items())
    query = (
        f"SELECT ({expression}) IS TRUE FROM (SELECT n, d::jsonb AS metadata, {', '.join(f'col_{n}' for n in TYPES)} "
        f"FROM unnest(%(texts)s::text[], {arrays}) WITH ORDINALITY AS t(d, {', '.join(f'col_{n}' for n in TYPES)}, n)"
        ") AS rows ORDER BY n"
    )
    given_rows: dict[str, Any] = {name: [column[name] for column in columns] for name in TYPES}
    given_rows["texts"] = [msgspec.json.encode(row).decode() for row in rows]
    return [row[0] for row in connection.execute(query, {**parameters, **given_rows}).fetchall()]


def _satisfies(row: dict[str, Any]) -> bool:
    assert SCHEMA is not None
    try:
        SCHEMA.check(row)
    except SchemaViolationError:
        return False
    return True


@checked
@given(
    rows=st.lists(_rows(satisfying=True).filter(_satisfies), min_size=1, max_size=20),
    values=st.lists(_typed_filters, min_size=1, max_size=10),
)
def test_typed_columns_agree_with_python(
    rows: list[dict[str, Any]], values: list[dict[str, Any]], connection: psycopg.Connection[Any]
) -> None:
    for value in values:
        expected = [matches(parse_filter(value, OPTIONS), row) for row in rows]
        assert _evaluate_typed(connection, rows, value) == expected, value


@checked
@given(
    rows=st.lists(_rows(satisfying=False), min_size=1, max_size=20),
    values=st.lists(_typed_filters, min_size=1, max_size=10),
)
def test_rows_older_than_the_schema_are_found_by_their_metadata(
    rows: list[dict[str, Any]], values: list[dict[str, Any]], connection: psycopg.Connection[Any]
) -> None:
    for value in values:
        expected = [matches(parse_filter(value, OPTIONS), row) for row in rows]
        assert _evaluate_typed(connection, rows, value) == expected, value


@pytest.fixture(scope="module")
def big_table(connection: psycopg.Connection[Any]) -> str:
    connection.execute("DROP TABLE IF EXISTS big")
    connection.execute(
        """CREATE TEMP TABLE big AS
        SELECT n, jsonb_build_object('kind', 'k' || n % 500, 'n', n, 'tags', jsonb_build_array('t' || n % 700, n % 90),
                                     'nested', jsonb_build_object('x', n % 1000),
                                     'year', CASE WHEN n % 2 = 0 THEN n % 1000 END) AS metadata,
               CASE WHEN n % 2 = 0 THEN (n % 1000)::bigint END AS year,
               (n / 7.0)::double precision AS score, 'author ' || n % 3000 AS author
        FROM generate_series(1, 20000) AS n"""
    )
    connection.execute("CREATE INDEX big_metadata ON big USING gin (metadata jsonb_path_ops)")
    for field, (column, kind) in BIG_TYPED.items():
        expression, predicate = typed_index("metadata", field, column, kind)
        connection.execute(f"CREATE INDEX big_{column} ON big (({expression}))")
        connection.execute(f"CREATE INDEX big_other_{column} ON big ((1)) WHERE {predicate}")
    connection.execute("ANALYZE big")
    return "big"


BIG_TYPED = {
    "year": ("year", ColumnKind.INT),
    "score": ("score", ColumnKind.FLOAT),
    "author": ("author", ColumnKind.STRING),
}


@pytest.mark.parametrize(
    ("value", "index"),
    [
        ({"kind": "k7"}, "big_metadata"),
        ({"tags": "t7"}, "big_metadata"),
        ({"tags": ["t7", 7]}, "big_metadata"),
        ({"tags": {"$contains": "t7"}}, "big_metadata"),
        ({"nested.x": 7}, "big_metadata"),
        ({"nested": {"x": 7}}, "big_metadata"),
        ({"n": {"$in": [1, 2, 3]}}, "big_metadata"),
        ({"$or": [{"n": 1}, {"kind": "k7"}]}, "big_metadata"),
        ({"kind": "k7", "other": {"$gt": 5}}, "big_metadata"),
        ({"kind": "k7", "n": {"$ne": 7}}, "big_metadata"),
        ({"year": {"$gte": 990}}, "big_year"),
        ({"year": {"$gt": 10.5, "$lt": 15}}, "big_year"),
        ({"score": {"$lt": 3}}, "big_score"),
        ({"author": {"$gte": "author 10", "$lt": "author 11"}}, "big_author"),
    ],
)
def test_an_index_serves(
    value: dict[str, Any], index: str, big_table: str, connection: psycopg.Connection[Any]
) -> None:
    tree = parse_filter(value, OPTIONS)
    assert tree is not None
    sql, parameters = compile_filter(tree, metadata="metadata", typed=BIG_TYPED)
    plan = connection.execute(f"EXPLAIN SELECT n FROM {big_table} WHERE {sql}", parameters).fetchall()
    text = "\n".join(row[0] for row in plan)
    assert f"Index Scan on {index}" in text or f"Scan using {index}" in text, text
    assert "Seq Scan" not in text


def test_everything_from_the_filter_is_a_parameter() -> None:
    canary = "ca'n\"ary%s"
    values = [
        {canary: canary},
        {f"a.{canary}": {"$gt": canary, "$in": [canary, [canary]], "$contains": {canary: canary}, "$exists": True}},
        {canary: {"$in": [canary] * 200}},
    ]
    for value in values:
        tree = parse_filter(value, OPTIONS)
        assert tree is not None
        sql, parameters = compile_filter(tree, metadata="m", typed={canary: ("column", ColumnKind.STRING)})
        assert "ary" not in sql
        assert sql.count("%") == sql.count("%(f")
        assert all(name.startswith("f") for name in parameters)


def test_the_widest_filter_fits_into_one_statement(sql_matches: Callable[[Any, Sequence[Any]], list[bool]]) -> None:
    widest = {"$or": [{f"key {n}": {"$in": [[n, m] for m in range(9)]}} for n in range(400)]}
    assert sql_matches(widest, [{"key 399": [399, 8]}, {"key 399": [399, 9]}]) == [True, False]
    longest = {".".join(["x" * 9] * 900): {"$exists": True}}
    assert sql_matches(longest, [{}]) == [False]
    assert sql_matches({".".join(["x"] * 900): {"$gt": 1}}, [{}]) == [False]
