"""What the parser takes and refuses, and that its tree is its own."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelmemory.errors import InvalidFilterError
from pixelmemory.memory.filters import And, Condition, Filter, Not, Operator, Or, matches, parse_filter
from pixelmemory.options import Options
from tests.harness.filter_strategies import documents, filters, paths, write_path


def parsed(value: Any, **limits: int) -> Filter | None:
    return parse_filter(value, Options(**limits))  # type: ignore[arg-type]


def test_a_filter_becomes_a_tree() -> None:
    assert parsed({"a.b": 1}) == Condition(("a", "b"), Operator.EQ, 1)
    assert parsed({"a": {"$ne": None}}) == Not(Condition(("a",), Operator.EQ, None))
    assert parsed({"a": {"$nin": (1, 2)}}) == Not(Condition(("a",), Operator.IN, [1, 2]))
    assert parsed({"a": {"$exists": False}}) == Not(Condition(("a",), Operator.EXISTS, True))
    assert parsed({"$or": [{"a": 1}, {"b": {"$lt": 2, "$gte": 0}}]}) == Or(
        (
            Condition(("a",), Operator.EQ, 1),
            And((Condition(("b",), Operator.LT, 2), Condition(("b",), Operator.GTE, 0))),
        )
    )


@pytest.mark.parametrize(
    ("value", "field", "reason"),
    [
        ("a = 1", "metadata_filter", "must be a dict, not str"),
        ([{"a": 1}], "metadata_filter", "must be a dict, not list"),
        ({1: 2}, "metadata_filter", "keys must be strings"),
        ({"a": {"$regex": "x"}}, "metadata_filter.a.$regex", "unknown operator"),
        ({"a": {"$": 1}}, "metadata_filter.a.$", "unknown operator"),
        ({"$nor": [{"a": 1}]}, "metadata_filter.$nor", "unknown operator"),
        ({"$gt": 5}, "metadata_filter.$gt", "needs a field"),
        ({"a": {"$gt": 1, "b": 2}}, "metadata_filter.a.b", "stands beside operators"),
        ({"a": {"$gt": 1, 2: 2}}, "metadata_filter.a", "keys must be strings"),
        ({"a": {"$eq": 1, "$regex": 2}}, "metadata_filter.a.$regex", "unknown operator"),
        ({"a": {"$gt": None}}, "metadata_filter.a.$gt", "others have no order"),
        ({"a": {"$lt": [1]}}, "metadata_filter.a.$lt", "others have no order"),
        ({"a": {"$lte": {"b": 1}}}, "metadata_filter.a.$lte", "others have no order"),
        ({"a": {"$in": "abc"}}, "metadata_filter.a.$in", "must be given a list, not str"),
        ({"a": {"$nin": {1, 2}}}, "metadata_filter.a.$nin", "must be given a list, not set"),
        ({"a": {"$in": [1, {2}]}}, "metadata_filter.a.$in[1]", "must not be a set"),
        ({"a": {"$exists": 1}}, "metadata_filter.a.$exists", "must be given True or False"),
        ({"a": {"$exists": None}}, "metadata_filter.a.$exists", "must be given True or False"),
        ({"$and": []}, "metadata_filter.$and", "at least one filter"),
        ({"$or": {"a": 1}}, "metadata_filter.$or", "must be given a list"),
        ({"$or": [{"a": 1}, 5]}, "metadata_filter.$or[1]", "must be a dict, not int"),
        ({"$not": [{"a": 1}]}, "metadata_filter.$not", "must be a dict, not list"),
        ({"$and": [{"a": {"$or": []}}]}, "metadata_filter.$and[0].a.$or", "at least one filter"),
        ({"a": float("nan")}, "metadata_filter.a", "must be finite"),
        ({"a": {"$gt": float("inf")}}, "metadata_filter.a.$gt", "must be finite"),
        ({"a": "x\0"}, "metadata_filter.a", "NUL"),
        ({"a\0": 1}, "metadata_filter", "NUL"),
        ({"a": ["\ud800"]}, "metadata_filter.a[0]", "lone surrogate"),
        ({"\udfff": 1}, "metadata_filter", "lone surrogate"),
        ({"a": {"b": {"\0": 1}}}, "metadata_filter.a.b", "NUL"),
        ({"a": dt.datetime(2024, 1, 1, tzinfo=dt.UTC)}, "metadata_filter.a", "must not be a datetime"),
        ({"a": {"$gte": dt.date(2024, 1, 1)}}, "metadata_filter.a.$gte", "must not be a date"),
        ({"a": (1, 2)}, "metadata_filter.a", "must not be a tuple"),
        ({"a": b"x"}, "metadata_filter.a", "must be a JSON value"),
        ({"a": {1: 2}}, "metadata_filter.a", "keys must be strings"),
        ({"a": 10**5000}, "metadata_filter.a", "digits"),
        ({"a": b"x"}, "metadata_filter.a", "not bytes"),
        ({"a": np.bool_(True)}, "metadata_filter.a", "not numpy.bool; pass value.tolist()"),
    ],
)
def test_what_is_wrong_is_an_error_with_its_place(value: Any, field: str, reason: str) -> None:
    with pytest.raises(InvalidFilterError) as caught:
        parsed(value)
    assert caught.value.field == field
    assert reason in caught.value.reason
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("value", "field", "reason"),
    [
        # operators without their dollar
        ({"score": {"gte": 2}}, "metadata_filter.score", '"$gte" for "gte"'),
        ({"score": {"GTE": 2}}, "metadata_filter.score", '"$gte" for "GTE"'),
        ({"a": {"gt": 1, "lt": 3}}, "metadata_filter.a", '"$gt" for "gt", "$lt" for "lt"'),
        ({"a": {" In ": [1]}}, "metadata_filter.a", '"$in" for " In "'),
        ({"a": {"eq": {"b": 1}}}, "metadata_filter.a", '"$eq" for "eq"'),
        ({"a": {"ne": None}}, "metadata_filter.a", '"$ne" for "ne"'),
        ({"a": {"nin": []}}, "metadata_filter.a", '"$nin" for "nin"'),
        ({"a": {"notIn": []}}, "metadata_filter.a", '"$nin" for "notIn"'),
        ({"a": {"exists": True}}, "metadata_filter.a", '"$exists" for "exists"'),
        ({"a": {"Contains": "x"}}, "metadata_filter.a", '"$contains" for "Contains"'),
        ({"a": {">=": 1, "<": 2}}, "metadata_filter.a", '"$gte" for ">=", "$lt" for "<"'),
        ({"a": {"!=": 1}}, "metadata_filter.a", '"$ne" for "!="'),
        ({"a": {"not": {"gt": 1}}}, "metadata_filter.a", '"$not" for "not"'),
        ({"a": {"OR": [{"$gt": 1}, 2]}}, "metadata_filter.a", '"$or" for "OR"'),
        ({"$or": [{"b": 1}, {"a": {"gt": 1}}]}, "metadata_filter.$or[1].a", '"$gt" for "gt"'),
        ({"$not": {"a": {"gt": 1}}}, "metadata_filter.$not.a", '"$gt" for "gt"'),
        ({"a": {"$or": [1, {"gt": 1}]}}, "metadata_filter.a.$or[1]", '"$gt" for "gt"'),
        # operators that there are elsewhere
        ({"a": {"like": "x%"}}, "metadata_filter.a", "there is none of this name"),
        ({"a": {"icontains": "x"}}, "metadata_filter.a", "there is none of this name"),
        ({"a": {"Regex": "x.*"}}, "metadata_filter.a", "there is none of this name"),
        ({"a": "*"}, "metadata_filter.a", 'for any value write {"$exists": True}'),
        # operators inside of an object
        ({"a": {"b": {"$gt": 1}}}, "metadata_filter.a", 'by a dotted path, "field.b"'),
        ({"a": {"b": {"gt": 1}}}, "metadata_filter.a", 'by a dotted path, "field.b"'),
        ({"a": {"x": 1, "b": {"c": {"$lt": 1, "$gt": 0}}}}, "metadata_filter.a", 'by a dotted path, "field.b"'),
        # logical operators without their dollar, at any level
        ({"OR": [{"a": 1}]}, "metadata_filter.OR", 'write {"$or": [...]}'),
        ({"or": [{"a": 1}, {"b": 2}]}, "metadata_filter.or", 'write {"$or": [...]}'),
        ({"AND": [{"a": 1}]}, "metadata_filter.AND", 'write {"$and": [...]}'),
        ({"And": ({"a": 1}, {"b": 2})}, "metadata_filter.And", 'write {"$and": [...]}'),
        ({"NOT": {"a": 1}}, "metadata_filter.NOT", 'write {"$not": {...}}'),
        ({"not": {"$or": [{"a": 1}]}}, "metadata_filter.not", 'write {"$not": {...}}'),
        ({"NOT": [{"a": 1}]}, "metadata_filter.NOT", 'write {"$not": {"$or": [...]}}'),
        ({"nor": [{"a": 1}]}, "metadata_filter.nor", 'write {"$not": {"$or": [...]}}'),
        ({"$and": [{"a": 1}, {"OR": [{"b": 1}]}]}, "metadata_filter.$and[1].OR", 'write {"$or": [...]}'),
    ],
)
def test_what_cannot_be_meant_is_an_error_that_says_what_is(value: Any, field: str, reason: str) -> None:
    with pytest.raises(InvalidFilterError) as caught:
        parsed(value)
    assert caught.value.field == field
    assert reason in caught.value.reason
    assert "$eq" in caught.value.reason, "and how to ask for the value itself"


def test_objects_that_are_no_operators_can_be_asked_for() -> None:
    plain: list[Any] = [
        {}, {"gte": 2, "unit": "kg"}, {"in": "a door", "out": "a window"}, {"like": 5}, {"like": "x", "dislike": "y"},
        {"b": {"in": 1, "out": 2}}, {"b": {"$ref": 1}}, {"b": {"$ref": 1, "$gt": 2}}, {"greater": 1}, {"b": "*"},
        {"b": [{"gt": 1}]}, ["*"], "**", "a*", [{"gt": 1}], "or",
    ]  # fmt: skip
    for value in plain:
        assert parsed({"a": value}) == Condition(("a",), Operator.EQ, value)
    for value in (*plain, {"gte": 2}, {"$gte": 2}, "*", {"b": {"$gt": 1}}, {"like": "x"}):
        assert parsed({"a": {"$eq": value}}) == Condition(("a",), Operator.EQ, value)
        assert parsed({"a": {"$in": [value]}}) == Condition(("a",), Operator.IN, [value])
        assert parsed({"a": {"$ne": value}}) == Not(Condition(("a",), Operator.EQ, value))


def test_fields_with_the_name_of_an_operator_can_be_asked_for() -> None:
    for name in ("or", "OR", "and", "not", "NOT", "nor", "gt", "in"):
        values: list[Any] = [1, "x", [], ["x"], [1, {"a": 1}], None]
        for value in values:
            assert parsed({name: value}) == Condition((name,), Operator.EQ, value)
        lists: list[Any] = [[{"a": 1}], {"a": 1}]
        for value in lists:
            assert parsed({name: {"$eq": value}}) == Condition((name,), Operator.EQ, value)
        assert parsed({name: {"$gt": 1}}) == Condition((name,), Operator.GT, 1)


def test_limits() -> None:
    assert parsed({"$or": [{"a": 1}] * 9}, filter_nodes_max=10) is not None
    with pytest.raises(InvalidFilterError, match="filter_nodes_max"):
        parsed({"$or": [{"a": 1}] * 10}, filter_nodes_max=10)
    with pytest.raises(InvalidFilterError, match="filter_nodes_max"):
        parsed({".".join(["a"] * 11): 1}, filter_nodes_max=10)
    nested: dict[str, Any] = {"a": 1}
    for _ in range(4):
        nested = {"$not": nested}
    assert parsed(nested, filter_depth_max=5) is not None
    with pytest.raises(InvalidFilterError, match="filter_depth_max"):
        parsed({"$not": nested}, filter_depth_max=5)
    with pytest.raises(InvalidFilterError, match="metadata_bytes_max"):
        parsed({"a": {"$in": ["x" * 60] * 2}}, metadata_bytes_max=100)
    with pytest.raises(InvalidFilterError, match="metadata_bytes_max"):
        parsed({"$or": [{"a": "x" * 60}, {"a": "y" * 60}]}, metadata_bytes_max=100)
    with pytest.raises(InvalidFilterError, match="metadata_depth_max"):
        parsed({"a": [[[1]]]}, metadata_depth_max=2)


def test_an_endless_filter_ends() -> None:
    endless: dict[str, Any] = {}
    endless["$not"] = endless
    with pytest.raises(InvalidFilterError, match="nested"):
        parsed(endless)
    with pytest.raises(InvalidFilterError, match="nested"):
        parsed(endless, filter_depth_max=128, filter_nodes_max=10**7)
    operand: list[Any] = []
    operand += [operand, operand]
    with pytest.raises(InvalidFilterError):
        parsed({"a": operand})


@given(path=paths, document=documents)
def test_every_key_can_be_reached(path: list[str], document: dict[str, Any]) -> None:
    wanted: Any = "found"
    for key in reversed(path):
        wanted = {key: wanted}
    tree = parsed({write_path(tuple(path)): "found"})
    assert tree == Condition(tuple(path), Operator.EQ, "found")
    assert matches(tree, {**document, **wanted})


@settings(max_examples=50)
@given(value=filters, metadata=st.lists(documents, min_size=1, max_size=5))
def test_the_tree_shares_nothing_with_what_it_was_made_from(
    value: dict[str, Any], metadata: list[dict[str, Any]]
) -> None:
    copied = msgspec.json.decode(msgspec.json.encode(value))
    tree = parsed(value)
    before = [matches(tree, document) for document in metadata]
    _empty(value)
    assert [matches(tree, document) for document in metadata] == before
    assert tree == parsed(copied)


def _empty(value: Any) -> None:
    if isinstance(value, (dict, list)):
        for item in list(value.values() if isinstance(value, dict) else value):
            _empty(item)
        value.clear()
