"""Each sentence of the language's meaning, for both evaluators: Python's, which defines it, and PostgreSQL's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pixelmemory.memory.filters import matches, parse_filter
from pixelmemory.options import Options

# (what is said, the filter, metadata that satisfies it, metadata that does not)
CASES: list[tuple[str, dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]] = [
    ("a plain value is $eq", {"a": "x"}, [{"a": "x"}, {"a": "x", "b": 1}], [{}, {"a": "y"}, {"b": "x"}, {"a": "X"}]),
    (
        "an equal value or a list that contains it", {"tags": "z"},
        [{"tags": "z"}, {"tags": ["y", "z"]}],
        [{"tags": "zz"}, {"tags": []}, {"tags": [["z"]]}, {"tags": {"z": 1}}],
    ),
    ("several keys are $and", {"a": 1, "b": 2}, [{"a": 1, "b": 2}], [{"a": 1}, {"b": 2}, {"a": 1, "b": 3}]),
    ("several operators are $and", {"a": {"$gt": 1, "$lt": 3}}, [{"a": 2}, {"a": [0, 5]}], [{"a": 1}, {"a": 3}, {}]),
    ("$and", {"$and": [{"a": 1}, {"b": 2}]}, [{"a": 1, "b": 2}], [{"a": 1}, {}]),
    ("$or", {"$or": [{"a": 1}, {"b": 2}]}, [{"a": 1}, {"b": 2}], [{}, {"a": 2, "b": 1}]),
    ("$not", {"$not": {"a": 1}}, [{}, {"a": 2}], [{"a": 1}, {"a": [1]}]),
    (
        "$not under a field", {"a": {"$not": {"$gt": 1}}},
        [{}, {"a": 1}, {"a": "x"}, {"a": None}],
        [{"a": 2}, {"a": [0, 2]}],
    ),
    ("$not of a plain value", {"a": {"$not": 1}}, [{}, {"a": 2}], [{"a": 1}]),
    (
        "$or under a field", {"a": {"$or": [{"$lt": 1}, {"$gt": 5}, 3]}},
        [{"a": 0}, {"a": 6}, {"a": 3}],
        [{"a": 4}, {}],
    ),
    ("{} inside matches all", {"$or": [{"a": 1}, {}]}, [{}, {"a": 1}], []),
    ("$not {} matches nothing", {"$not": {}}, [], [{}, {"a": 1}]),
    (
        "a dotted path reaches into nested objects", {"a.b": 1},
        [{"a": {"b": 1}}, {"a": {"b": [1]}}],
        [{"a": 1}, {"a.b": 1}, {"b": 1}, {"a": {}}],
    ),
    ("a dotted path never reaches into lists", {"a.b": 1}, [], [{"a": [{"b": 1}]}, {"a": [[1]]}]),
    ("nor does an index", {"a.0": 1}, [{"a": {"0": 1}}], [{"a": [1]}]),
    ("nor does a comparison", {"a.b": {"$gt": 0}}, [{"a": {"b": 1}}], [{"a": [{"b": 1}]}, {"a": None}]),
    ("nor does $exists", {"a.0": {"$exists": True}}, [{"a": {"0": None}}], [{"a": [1]}, {"a": "text"}, {"a": 1}]),
    ("\\. is a real dot", {"a\\.b": 1}, [{"a.b": 1}], [{"a": {"b": 1}}]),
    ("other backslashes are themselves", {"a\\b": 1}, [{"a\\b": 1}], [{"ab": 1}]),
    ("a backslash before an escaped dot too", {"a\\\\.b": 1}, [{"a\\.b": 1}], [{"a.b": 1}, {"a\\": {"b": 1}}]),
    ("a leading \\$ is a dollar", {"\\$gt": 1}, [{"$gt": 1}], [{"\\$gt": 1}]),
    ("and two backslashes one and a dollar", {"\\\\$gt": 1}, [{"\\$gt": 1}], [{"$gt": 1}]),
    ("further in a dollar is itself", {"a.$gt": 1}, [{"a": {"$gt": 1}}], [{"a": {"\\$gt": 1}}]),
    ("an empty key is a key", {"": 1, "a.": 2}, [{"": 1, "a": {"": 2}}], [{"a": {"": 2}}]),
    ("numbers compare as numbers", {"a": 1}, [{"a": 1}, {"a": 1.0}, {"a": [1.0]}], [{"a": "1"}, {"a": 1.1}]),
    ("floats too", {"a": 1.0}, [{"a": 1}, {"a": 1.0}], [{"a": "1.0"}]),
    ("minus zero is zero", {"a": -0.0}, [{"a": 0}, {"a": 0.0}, {"a": -0.0}], [{"a": 5e-324}]),
    ("numbers compare by their decimal text", {"a": 1e23}, [{"a": 10**23}, {"a": 1e23}], [{"a": int(1e23)}]),
    ("integers of any size", {"a": 2**70 + 1}, [{"a": 2**70 + 1}], [{"a": 2**70}, {"a": float(2**70)}]),
    ("huge and tiny floats", {"a": {"$gte": 1e308}}, [{"a": 1e308}, {"a": 10**400}], [{"a": 9e307}, {"a": 5e-324}]),
    ("0.1 is 0.1", {"a": {"$lte": 0.1}}, [{"a": 0.1}, {"a": -1}], [{"a": 0.10000000000000002}]),
    ("booleans are not numbers", {"a": True}, [{"a": True}, {"a": [True]}], [{"a": 1}, {"a": "true"}, {"a": False}]),
    ("nor numbers booleans", {"a": 1}, [{"a": 1}], [{"a": True}, {"a": [True]}]),
    ("nor in a comparison", {"a": {"$gte": 0}}, [{"a": 0}], [{"a": True}, {"a": [True]}]),
    (
        "booleans have an order of their own", {"a": {"$gt": False}},
        [{"a": True}, {"a": [True]}],
        [{"a": False}, {"a": 1}, {}],
    ),
    (
        "None matches a null and not a missing key", {"a": None},
        [{"a": None}, {"a": [1, None]}],
        [{}, {"a": 0}, {"a": ""}, {"a": {}}],
    ),
    ("$ne None", {"a": {"$ne": None}}, [{}, {"a": 0}], [{"a": None}, {"a": [None]}]),
    (
        "an object is equal only to the whole object", {"a": {"b": 1}},
        [{"a": {"b": 1}}, {"a": {"b": 1.0}}, {"a": [{"b": 1}]}],
        [{"a": {"b": 1, "c": 2}}, {"a": {}}, {"a": {"b": [1]}}, {}],
    ),
    ("in any order of its keys", {"a": {"b": 1, "c": 2}}, [{"a": {"c": 2, "b": 1}}], [{"a": {"b": 1}}]),
    ("an empty object too", {"a": {}}, [{"a": {}}, {"a": [{}]}], [{"a": {"b": 1}}, {"a": []}, {"a": None}, {}]),
    ("$eq takes an object with dollars literally", {"a": {"$eq": {"$gt": 1}}}, [{"a": {"$gt": 1}}], [{"a": 2}]),
    (
        "a list is equal as a whole", {"a": [1, 2]},
        [{"a": [1, 2]}, {"a": [1.0, 2]}],
        [{"a": [2, 1]}, {"a": [1, 2, 2]}, {"a": [1]}, {"a": 1}],
    ),
    ("or as an element", {"a": [1]}, [{"a": [1]}, {"a": [[1], 2]}], [{"a": [[1, 1]]}, {"a": [[[1]]]}, {"a": 1}]),
    ("an empty list too", {"a": []}, [{"a": []}, {"a": [[]]}], [{"a": [1]}, {"a": {}}, {}]),
    (
        "nested values compare whole", {"a": [{"b": [1, None]}]},
        [{"a": [{"b": [1, None]}]}],
        [{"a": [{"b": [None, 1]}]}, {"a": {"b": [1, None]}}],
    ),
    (
        "comparisons hold for any element", {"a": {"$gt": 5}},
        [{"a": 6}, {"a": [1, 6]}],
        [{"a": 5}, {"a": [5]}, {"a": []}, {"a": [[6]]}, {"a": {"b": 6}}],
    ),
    ("$gte", {"a": {"$gte": 5}}, [{"a": 5}, {"a": 5.0}], [{"a": 4.999}]),
    ("$lt", {"a": {"$lt": 5}}, [{"a": 4}, {"a": [9, 4]}], [{"a": 5}, {"a": []}, {"a": None}, {}]),
    ("$lte", {"a": {"$lte": 5}}, [{"a": 5}], [{"a": 6}]),
    (
        "different types never satisfy a comparison", {"a": {"$gt": "5"}},
        [{"a": "6"}, {"a": ["6"]}],
        [{"a": 6}, {"a": None}, {"a": True}, {"a": {}}, {"a": []}],
    ),
    (
        "nor the other way round", {"a": {"$lt": 5}},
        [{"a": 1}],
        [{"a": "1"}, {"a": None}, {"a": False}, {"a": ["1", None, False]}],
    ),
    (
        "strings order by code point", {"a": {"$gt": "Z"}},
        [{"a": "a"}, {"a": "é"}, {"a": "Za"}],
        [{"a": "A"}, {"a": "Z"}, {"a": ""}],
    ),
    (
        "above the basic plane too", {"a": {"$gt": "\uffff"}},
        [{"a": "😀"}, {"a": ["😀"]}],
        [{"a": "\ue000"}, {"a": "z"}],
    ),
    ("strings are not normalized", {"a": "é"}, [{"a": "é"}], [{"a": "e\u0301"}]),
    (
        "$in", {"a": {"$in": [1, "x", None]}},
        [{"a": 1.0}, {"a": "x"}, {"a": None}, {"a": [5, "x"]}],
        [{"a": 2}, {}, {"a": True}],
    ),
    (
        "$in with a list and an object", {"a": {"$in": [[1], {"b": 1}]}},
        [{"a": [1]}, {"a": [[1]]}, {"a": {"b": 1}}, {"a": [{"b": 1}]}],
        [{"a": 1}, {"a": {"b": 1, "c": 1}}],
    ),
    ("$in of nothing", {"a": {"$in": []}}, [], [{}, {"a": 1}, {"a": []}]),
    (
        "a long $in", {"a": {"$in": [*range(500), [1], {"b": 2}]}},
        [{"a": 499}, {"a": 7.0}, {"a": [-1, 3]}, {"a": {"b": 2}}, {"a": [1]}],
        [{"a": 500}, {"a": "1"}, {"a": True}, {}, {"a": [[2]]}, {"a": []}],
    ),
    (
        "many objects in $in", {"a": {"$in": [{"b": n} for n in range(20)]}},
        [{"a": {"b": 3}}, {"a": [1, {"b": 4}]}],
        [{"a": {"b": 20}}, {"a": {"b": 3, "c": 1}}, {}],
    ),
    (
        "$nin is the negation", {"a": {"$nin": [1, 2]}},
        [{}, {"a": 3}, {"a": []}, {"a": None}],
        [{"a": 1}, {"a": [3, 2]}],
    ),
    ("$nin of nothing", {"a": {"$nin": []}}, [{}, {"a": 1}], []),
    (
        "a missing key satisfies $ne", {"a": {"$ne": 1}},
        [{}, {"a": 2}, {"a": "1"}, {"a": None}, {"b": 1}],
        [{"a": 1}, {"a": 1.0}, {"a": [2, 1]}],
    ),
    ("a missing part of a path too", {"a.b": {"$ne": 1}}, [{}, {"a": 1}, {"a": [{"b": 1}]}], [{"a": {"b": 1}}]),
    ("$exists", {"a": {"$exists": True}}, [{"a": None}, {"a": 0}, {"a": []}], [{}, {"b": 1}]),
    ("not $exists", {"a": {"$exists": False}}, [{}, {"b": {"a": 1}}], [{"a": None}]),
    (
        "$contains needs a list", {"a": {"$contains": "x"}},
        [{"a": ["x"]}, {"a": [1, "x"]}],
        [{"a": "x"}, {"a": {"x": 1}}, {"a": "xyz"}, {"a": [["x"]]}, {}],
    ),
    ("$contains a null", {"a": {"$contains": None}}, [{"a": [None]}], [{"a": None}, {}, {"a": []}]),
    (
        "$contains an object, whole", {"a": {"$contains": {"b": 1}}},
        [{"a": [{"b": 1}]}],
        [{"a": [{"b": 1, "c": 2}]}, {"a": {"b": 1}}, {"a": [[{"b": 1}]]}],
    ),
    ("$contains a list, whole", {"a": {"$contains": [1, 2]}}, [{"a": [[1, 2]]}], [{"a": [1, 2]}, {"a": [[2, 1]]}]),
    ("text that looks like SQL is text", {"a": "'; DROP TABLE x; --"}, [{"a": "'; DROP TABLE x; --"}], [{"a": "'"}]),
    ("so are placeholders", {"%(f0)s": "%s"}, [{"%(f0)s": "%s"}], [{"%(f0)s": "%"}]),
    ("and keys that look like a path", {'a" ? (1 == 1)': {"$gt": 0}}, [{'a" ? (1 == 1)': 1}], [{"a": 1}]),
    ("escapes in keys are the key's", {"\\u0061": {"$gt": 0}}, [{"\\u0061": 1}], [{"a": 1}]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "satisfied", "not_satisfied"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_meaning(
    value: dict[str, Any],
    satisfied: list[dict[str, Any]],
    not_satisfied: list[dict[str, Any]],
    sql_matches: Callable[[Any, Sequence[Any]], list[bool]],
) -> None:
    expected = [True] * len(satisfied) + [False] * len(not_satisfied)
    documents = [*satisfied, *not_satisfied]
    tree = parse_filter(value, Options())
    assert [matches(tree, document) for document in documents] == expected
    assert sql_matches(value, documents) == expected


def test_no_filter_matches_all() -> None:
    assert parse_filter(None, Options()) is None
    assert parse_filter({}, Options()) is None
    assert matches(None, {"a": 1})


def test_null_metadata_is_as_good_as_empty(connection: Any) -> None:
    from pixelmemory.projection.sql.filters import compile_filter

    for value, expected in [({"a": {"$ne": 1}}, True), ({"a": {"$exists": False}}, True), ({"a": {"$gt": 1}}, False)]:
        tree = parse_filter(value, Options())
        assert tree is not None
        sql, parameters = compile_filter(tree, metadata="metadata", typed={})
        query = f"SELECT 1 FROM (SELECT NULL::jsonb AS metadata) AS t WHERE {sql}"
        assert (connection.execute(query, parameters).fetchone() is not None) == expected
