"""The schema: what it takes, what it refuses before the append, and the columns it makes."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import subprocess
import sys
import typing
import uuid
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelmemory.errors import InvalidArgumentError, InvalidTypeError, PixelmemoryError, SchemaViolationError
from pixelmemory.memory.schema import OWN_COLUMNS, PIXELTABLE_NAMES, ColumnKind, Schema, exact_float, parse_schema


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Author(msgspec.Struct):
    name: str
    born: int | None = None


@dataclasses.dataclass
class Place:
    x: float


class Movie(typing.TypedDict):
    title: str


class Note(msgspec.Struct):
    year: int
    title: str = ""
    author: Author | None = None
    stars: Annotated[int, msgspec.Meta(ge=1, le=5)] | None = None


def parsed(schema: object) -> Schema:
    found = parse_schema(schema)
    assert found is not None
    return found


def test_no_schema() -> None:
    assert parse_schema(None) is None
    assert parse_schema({}) is None


@pytest.mark.parametrize(
    ("given_type", "kind"),
    [
        (str, ColumnKind.STRING),
        (int, ColumnKind.INT),
        (float, ColumnKind.FLOAT),
        (bool, ColumnKind.BOOL),
        (dt.datetime, ColumnKind.TIMESTAMP),
        (str | None, ColumnKind.STRING),
        (typing.Optional[int], ColumnKind.INT),  # noqa: UP045 - the old spelling is a type too
        (int | float, ColumnKind.FLOAT),
        (int | str, ColumnKind.JSON),
        (Literal["a", "b", None], ColumnKind.STRING),
        (Literal[1, 2], ColumnKind.INT),
        (Literal[1, "a"], ColumnKind.JSON),
        (Colour, ColumnKind.STRING),
        (Level | None, ColumnKind.INT),
        (dt.date, ColumnKind.STRING),
        (uuid.UUID, ColumnKind.STRING),
        (list, ColumnKind.JSON),
        (list[str], ColumnKind.JSON),
        (list[dict[str, int | None]], ColumnKind.JSON),
        (dict, ColumnKind.JSON),
        (dict[str, Any], ColumnKind.JSON),
        (tuple[int, ...], ColumnKind.JSON),
        (Author, ColumnKind.JSON),
        (Place, ColumnKind.JSON),
        (Movie, ColumnKind.JSON),
        (Any, ColumnKind.JSON),
        (Annotated[int, msgspec.Meta(ge=0)], ColumnKind.INT),
    ],
)
def test_python_types(given_type: Any, kind: ColumnKind) -> None:
    assert parsed({"field": given_type}).columns == {"field": kind}


def test_pixeltable_types() -> None:
    import pixeltable as pxt

    schema = parsed(
        {
            "s": pxt.String,
            "i": pxt.Int | None,
            "f": pxt.Float,
            "b": pxt.Bool,
            "t": pxt.Timestamp | None,
            "j": pxt.Json,
            "k": pxt.Json | None,
            "tags": list[pxt.String],
            "r": pxt.Required[pxt.String],
            "shaped": pxt.Json[{"a": pxt.Int}],
            "d": pxt.Date,
        }
    )
    assert "".join(kind.value[0] for kind in schema.columns.values()) == "sifbtjjjsjs"
    schema.check({"s": "x", "i": None, "j": [1, {"a": None}], "tags": ["a"], "shaped": {"a": 1}})
    for metadata in ({"s": None}, {"s": 1}, {"i": "1"}, {"tags": ["a", 1]}, {"b": 0}):
        with pytest.raises(SchemaViolationError):
            schema.check(metadata)
    for refused in (pxt.Image, pxt.Array, pxt.Array[(3,), pxt.Float], pxt.Binary, list[pxt.Image]):
        with pytest.raises(InvalidTypeError, match=r"schema\.x has "):
            parse_schema({"x": refused})


def test_pixeltable_is_not_imported() -> None:
    program = """
import sys
from pixelmemory.memory.schema import parse_schema
parse_schema({"a": int})
print("pixeltable" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert run.stdout.strip() == "False"


UNKNOWN = list["Unknown"]  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    "given_type",
    [
        *(bytes, set[int], frozenset, complex, Decimal, object, dt.timedelta, dict[int, str], list[set[int]]),
        *("int", 5, Ellipsis, UNKNOWN, dict[str, bytes], int | bytes, Exception),
    ],
    ids=str,
)
def test_types_that_json_cannot_hold_are_refused(given_type: Any) -> None:
    with pytest.raises(InvalidTypeError) as caught:
        parse_schema({"field": given_type})
    assert caught.value.field == "schema.field"


@pytest.mark.parametrize("schema", [5, "year: int", [("year", int)], int, Author(name="x"), {1: int}])
def test_what_is_no_schema_is_refused(schema: object) -> None:
    with pytest.raises(InvalidTypeError, match=r"^schema "):
        parse_schema(schema)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        *((name, "every memory table has one") for name in sorted(OWN_COLUMNS)),
        ("Content", "every memory table has one"),
        ("count", "Pixeltable keeps the name"),
        ("Where", "Pixeltable keeps the name"),
        ("_a", "cannot name a column"),
        ("a b", "cannot name a column"),
        ("a.b", "cannot name a column"),
        ("1a", "cannot name a column"),
        ("", "cannot name a column"),
        ("é", "cannot name a column"),
        ("class", "keyword"),
        ("$a", "cannot name a column"),
        ("year Year", "case alone"),
    ],
)
def test_names_that_cannot_be_columns_are_refused(names: str, reason: str) -> None:
    schema = dict.fromkeys(names.split(" ") if "ear" in names else [names], int)
    with pytest.raises(InvalidArgumentError, match=reason):
        parse_schema(schema)


def test_the_reserved_names_are_those_of_the_installed_pixeltable() -> None:
    from pixeltable.catalog import InsertableTable, View

    names = {name.lower() for name in (*dir(InsertableTable), *dir(View)) if not name.startswith("_")}
    assert names <= PIXELTABLE_NAMES


def test_fields_of_a_mapping_may_be_absent_and_others_present() -> None:
    schema = parsed({"year": int, "title": str})
    for metadata in ({}, {"year": 1}, {"title": ""}, {"other": object()}, {"year": -1, "more": {"deep": [None]}}):
        schema.check(metadata)


def test_fields_of_a_struct_must_be_there_unless_they_have_a_default() -> None:
    schema = parsed(Note)
    assert schema.columns == {
        "year": ColumnKind.INT,
        "title": ColumnKind.STRING,
        "author": ColumnKind.JSON,
        "stars": ColumnKind.INT,
    }
    schema.check({"year": 2024})
    schema.check({"year": 2024, "author": {"name": "A"}, "stars": 5, "other": 1})
    with pytest.raises(SchemaViolationError, match=r"metadata\.year breaks the schema: it is required and missing"):
        schema.check({"title": "x"})
    with pytest.raises(SchemaViolationError, match=r"metadata\.author\.name breaks the schema: it is required"):
        schema.check({"year": 1, "author": {}})
    with pytest.raises(SchemaViolationError, match=r"metadata\.stars breaks the schema: expected `int` <= 5"):
        schema.check({"year": 1, "stars": 6})


def test_structs_that_are_no_objects_are_refused() -> None:
    class Tagged(msgspec.Struct, tag=True):
        a: int

    class Listed(msgspec.Struct, array_like=True):
        a: int

    for schema in (Tagged, Listed):
        with pytest.raises(InvalidTypeError, match="neither array_like nor tagged"):
            parse_schema(schema)


def test_a_renamed_field_is_known_by_its_name_in_the_metadata() -> None:
    class Renamed(msgspec.Struct, rename="camel"):
        first_seen: int

    schema = parsed(Renamed)
    assert schema.columns == {"firstSeen": ColumnKind.INT}
    assert schema.extract({"firstSeen": 5}) == {"firstSeen": 5}


@pytest.mark.parametrize(
    ("given_type", "value", "reason"),
    [
        (int, "5", "expected `int`, got `str`"),
        (int, True, "expected `int`, got `bool`"),
        (int, 5.0, "expected `int`, got `float`"),
        (int, None, "expected `int`, got `null`"),
        (int, 2**63, "at most 64 bits"),
        (int | None, -(2**63) - 1, "at most 64 bits"),
        (float, True, "expected `float`, got `bool`"),
        (float, "1.0", "expected `float`, got `str`"),
        (float, 2**53 + 1, "a float holds exactly"),
        (float, 10**400, "out of range"),
        (bool, 1, "expected `bool`, got `int`"),
        (str, 1, "expected `str`, got `int`"),
        (dt.datetime, "yesterday", "RFC3339"),
        (dt.datetime, 1700000000, "expected `datetime`, got `int`"),
        (dt.datetime, "0001-01-01T00:00:00+05:00", "between the years 1 and 9999"),
        (Literal["a"], "b", "invalid enum value 'b'"),
        (list[int], [1, "x"], "expected `int`, got `str`"),
    ],
)
def test_a_wrong_type_is_named(given_type: Any, value: Any, reason: str) -> None:
    with pytest.raises(SchemaViolationError) as caught:
        parsed({"field": given_type}).check({"field": value}, "entries[2].metadata")
    assert caught.value.field.startswith("entries[2].metadata.field")
    assert reason in caught.value.reason
    assert isinstance(caught.value, (ValueError, PixelmemoryError))


def test_the_place_in_a_list_is_named() -> None:
    with pytest.raises(SchemaViolationError) as caught:
        parsed({"tags": list[dict[str, int]]}).check({"tags": [{}, {"a": "x"}]})
    assert caught.value.field.startswith("metadata.tags[1]")


@pytest.mark.parametrize(
    ("given_type", "value", "column"),
    [
        (int, 2**63 - 1, 2**63 - 1),
        (float, 1, 1.0),
        (float, 2**53, 9007199254740992.0),
        (float, 10**23, 1e23),
        (float, -0.0, -0.0),
        (int | None, None, None),
        (dt.datetime, "2024-05-01T09:00:00+02:00", dt.datetime(2024, 5, 1, 7, tzinfo=dt.UTC)),
        (dt.datetime, "2024-05-01T09:00:00", dt.datetime(2024, 5, 1, 9, tzinfo=dt.UTC)),
        (dt.datetime, "2024-05-01T09:00:00.000001Z", dt.datetime(2024, 5, 1, 9, 0, 0, 1, tzinfo=dt.UTC)),
        (list[int], [1, 2], [1, 2]),
        (Any, {"a": None}, {"a": None}),
        (Colour, "red", "red"),
        (dt.date, "2024-05-01", "2024-05-01"),
    ],
)
def test_columns_hold_the_value(given_type: Any, value: Any, column: Any) -> None:
    schema = parsed({"field": given_type})
    schema.check({"field": value})
    extracted = schema.extract({"field": value})["field"]
    assert extracted == column
    assert type(extracted) is type(column)


def test_what_a_column_cannot_hold_is_none_in_it() -> None:
    schema = parsed({"i": int, "f": float, "b": bool, "s": str, "t": dt.datetime, "j": list})
    nothing = dict.fromkeys("ifbst")
    assert schema.extract({}) == {**nothing, "j": None}
    wrong = {"i": True, "f": "1", "b": 1, "s": 5, "t": "never", "j": "kept as it is"}
    assert schema.extract(wrong) == {**nothing, "j": "kept as it is"}
    wrong = {"i": 2**63, "f": 2**53 + 1, "b": "true", "s": None, "t": 5, "j": None}
    assert schema.extract(wrong) == {**nothing, "j": None}


def test_the_fingerprint_is_that_of_the_columns() -> None:
    one = parsed({"a": int, "b": str})
    assert one.fingerprint == parsed({"b": str | None, "a": int | None}).fingerprint
    assert one.fingerprint != parsed({"a": int, "b": int}).fingerprint
    assert one.fingerprint != parsed({"a": int}).fingerprint
    assert one.fingerprint == "cf5064920d2cb7a9f9b1b95d51df2d14"
    assert parse_schema(one) is one
    assert repr(one) == "Schema(a: int, b: string)"


@given(st.integers() | st.integers(-(2**70), 2**70) | st.builds(int, st.floats(allow_nan=False, allow_infinity=False)))
def test_a_float_is_exact_where_its_text_is_the_number(number: int) -> None:
    value = exact_float(number)
    assert (value is not None) == (Decimal(repr(float(number))) == number)
    assert value is None or value == float(number)
