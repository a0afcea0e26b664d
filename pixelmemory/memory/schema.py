"""The metadata schema: which fields are checked before the append, and which typed columns the tables get for them.

A schema is given as a mapping of field names to types, or as a :class:`msgspec.Struct` class. Types are Python's
(``str``, ``int``, ``float``, ``bool``, ``datetime``, ``list[...]``, ``dict[...]``, ``X | None``, ``Literal[...]``,
enums, nested Structs, dataclasses and TypedDicts) or Pixeltable's (``pxt.String``, ``pxt.Int | None``, ``pxt.Json``,
...), which are recognised without importing Pixeltable.

Metadata is JSON, so a ``datetime`` field is an ISO 8601 text there (RFC 3339, such as ``2024-05-01T09:00:00+02:00``;
without a time zone it is UTC).
"""

from __future__ import annotations

import datetime as dt
import enum
import functools
import hashlib
import keyword
import operator
import re
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import inspect

from pixelmemory.errors import InvalidArgumentError, InvalidTypeError, SchemaViolationError, brief, type_name
from pixelmemory.memory.values import check_timestamp

__all__ = ["ColumnKind", "Schema", "fields_fingerprint", "parse_schema"]


class ColumnKind(enum.Enum):
    """What a field's column holds."""

    STRING = "string"
    #: 64 bits, signed
    INT = "int"
    #: double precision
    FLOAT = "float"
    BOOL = "bool"
    #: with time zone
    TIMESTAMP = "timestamp"
    #: everything else, as JSON
    JSON = "json"


#: columns that every table has
OWN_COLUMNS: Final = frozenset((
    "memory_id", "id_text", "content", "metadata", "metadata_text", "timestamp", "lsn", "namespace", "namespace_key",
    "content_embedding",
))  # fmt: skip
#: names that Pixeltable keeps for the methods of its tables
PIXELTABLE_NAMES: Final = frozenset((
    "add_btree_index", "add_column", "add_columns", "add_computed_column", "add_embedding_index", "alter_column",
    "alter_computed_column", "batch_update", "collect", "columns", "compute", "count", "cursor", "delete", "describe",
    "distinct", "drop_column", "drop_embedding_index", "drop_index", "get_base_table", "get_metadata", "get_versions",
    "group_by", "head", "history", "insert", "join", "limit", "list_views", "order_by", "recompute_columns",
    "rename_column", "revert", "sample", "select", "select_list_to_additional_columns", "show", "tail",
    "to_coco_dataset", "to_pytorch_dataset", "update", "validate_view_query", "where",
))  # fmt: skip

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_MISSING_FIELD = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_PLACED = re.compile(r"(.*) - at `(?:key in )?\$(.*)`", re.DOTALL)


class Schema:
    """A parsed schema; made by :func:`parse_schema`, immutable.

    Attributes:
        columns: field name -> what its column holds, in the order of the schema.
        fingerprint: hexadecimal digest of the columns' names and kinds. Equal where the same tables serve.
    """

    def __init__(self, model: Any, columns: Mapping[str, ColumnKind]) -> None:
        self._model = model
        self.columns: dict[str, ColumnKind] = dict(columns)
        #: field name -> the name of its type; what :func:`fields_fingerprint` takes
        self.fields: dict[str, str] = {name: kind.value for name, kind in columns.items()}
        self.fingerprint = fields_fingerprint(self.fields)

    def __repr__(self) -> str:
        return f"Schema({', '.join(f'{name}: {kind}' for name, kind in self.fields.items())})"

    def check(self, metadata: dict[str, Any], field: str = "metadata") -> None:
        """Check metadata in its stored form (what ``decode_metadata`` returns). Keys outside the schema are allowed.

        Raises:
            SchemaViolationError: a field of the wrong type, a required one that is missing, an integer beyond 64
                bits, an integer that a float field cannot hold exactly. Its ``field`` names the place.
        """
        try:
            msgspec.convert(metadata, self._model, strict=True)
        except msgspec.ValidationError as error:
            raise _violation(str(error), field) from None
        for name, kind in self.columns.items():
            value = metadata.get(name)
            if value is not None and kind is not ColumnKind.JSON and _column_value(value, kind) is None:
                raise SchemaViolationError(f"{field}.{name}", f"breaks the schema: {_NO_COLUMN_VALUE[kind]}")

    def extract(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """The value of every column: None where the metadata has none, or one that the column cannot hold.

        TIMESTAMP is an aware datetime in UTC; JSON is the value itself.
        """
        return {name: _column_value(metadata.get(name), kind) for name, kind in self.columns.items()}


def fields_fingerprint(fields: Mapping[str, str]) -> str:
    """Digest of a schema's fields, name to type, in any order: 32 hexadecimal digits."""
    text = "\n".join(f"{name}:{kind}" for name, kind in sorted(fields.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _violation(message: str, field: str) -> SchemaViolationError:
    if placed := _PLACED.fullmatch(message):
        message, field = placed[1], field + placed[2]
    if missing := _MISSING_FIELD.fullmatch(message):
        return SchemaViolationError(f"{field}.{missing[1]}", "breaks the schema: it is required and missing")
    return SchemaViolationError(field, f"breaks the schema: {message[:1].lower()}{message[1:]}")


# ------------------------------------------------------------------------------------------------ column values

_NO_COLUMN_VALUE: Final = {
    ColumnKind.STRING: "expected a string",
    ColumnKind.INT: "expected an integer of at most 64 bits",
    ColumnKind.FLOAT: "expected a number that a float holds exactly",
    ColumnKind.BOOL: "expected a boolean",
    ColumnKind.TIMESTAMP: "expected an ISO 8601 date and time between the years 1 and 9999",
}


def _column_value(value: Any, kind: ColumnKind) -> Any:
    match kind:
        case ColumnKind.JSON:
            return value
        case ColumnKind.STRING:
            return value if isinstance(value, str) else None
        case ColumnKind.BOOL:
            return value if isinstance(value, bool) else None
        case ColumnKind.INT:
            fits = isinstance(value, int) and not isinstance(value, bool) and _INT64_MIN <= value <= _INT64_MAX
            return value if fits else None
        case ColumnKind.FLOAT:
            if isinstance(value, float):
                return value
            return exact_float(value) if isinstance(value, int) and not isinstance(value, bool) else None
        case ColumnKind.TIMESTAMP:
            return _timestamp(value) if isinstance(value, str) else None


def exact_float(number: int) -> float | None:
    """The float whose shortest text is the number ``number``, or None where there is none."""
    if -(2**53) <= number <= 2**53:
        return float(number)
    try:
        value = float(number)
    except OverflowError:
        return None
    mantissa, _, exponent = repr(value).partition("e")
    digits, _, fraction = mantissa.partition(".")
    fraction = fraction.rstrip("0")
    power = int(exponent or 0) - len(fraction)
    return value if power >= 0 and int(digits + fraction) * 10**power == number else None


def _timestamp(text: str) -> dt.datetime | None:
    try:
        value = msgspec.convert(text, dt.datetime)
        if value.tzinfo is None:
            value = value.replace(tzinfo=dt.UTC)
        check_timestamp(value)
    except (msgspec.ValidationError, InvalidArgumentError):
        return None
    return value.astimezone(dt.UTC)


# ------------------------------------------------------------------------------------------------------ parsing


def parse_schema(schema: object) -> Schema | None:
    """The schema that ``schema`` describes: a mapping of names to types, a Struct class, or None for none.

    Fields of a mapping may be absent from the metadata; fields of a Struct must be there unless they have a default.

    Raises:
        InvalidTypeError: not a schema, or a type that JSON metadata cannot have.
        InvalidArgumentError: a name that cannot be a column's: not an identifier in ASCII, with a leading underscore,
            a Python keyword, one of the table's own columns or of Pixeltable's names, or equal to another but for case.
    """
    if schema is None or isinstance(schema, Schema):
        return schema
    if isinstance(schema, type) and issubclass(schema, msgspec.Struct):
        return _from_struct(schema)
    if not isinstance(schema, Mapping):
        reason = f"must be a mapping of names to types, or a msgspec.Struct class, not {type_name(schema)}"
        raise InvalidTypeError("schema", reason)
    return _from_mapping(schema) if schema else None


def _from_mapping(schema: Mapping[Any, Any]) -> Schema:
    _check_names(list(schema))
    columns: dict[str, ColumnKind] = {}
    fields: list[tuple[str, Any, Any]] = []
    for index, (name, given) in enumerate(schema.items()):
        kind = _without_pixeltable(given, f"schema.{name}")
        columns[name] = _column_kind(kind, f"schema.{name}")
        fields.append((f"f{index}", kind | msgspec.UnsetType, msgspec.UNSET))
    rename = {f"f{index}": name for index, name in enumerate(schema)}
    return Schema(msgspec.defstruct("Metadata", fields, rename=rename, kw_only=True), columns)


def _from_struct(schema: type[msgspec.Struct]) -> Schema:
    config = schema.__struct_config__
    if config.array_like or config.tag is not None:
        raise InvalidTypeError("schema", "must be a Struct class that is neither array_like nor tagged")
    fields = msgspec.structs.fields(schema)
    _check_names([each.encode_name for each in fields])
    return Schema(schema, {each.encode_name: _column_kind(each.type, f"schema.{each.name}") for each in fields})


def _check_names(names: list[Any]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str):
            raise InvalidTypeError("schema", f"has the key {brief(name)}, and keys must be strings")
        field = f"schema.{name}"
        if not (name.isidentifier() and name.isascii()) or name.startswith("_") or keyword.iskeyword(name):
            raise InvalidArgumentError(
                field, "cannot name a column: use letters, digits and underscores, beginning with a letter, and no "
                "keyword of Python"
            )  # fmt: skip
        folded = name.lower()  # Pixeltable's column names ignore case
        if folded in OWN_COLUMNS:
            raise InvalidArgumentError(field, "cannot name a column: every memory table has one of that name")
        if folded in PIXELTABLE_NAMES:
            raise InvalidArgumentError(field, "cannot name a column: Pixeltable keeps the name for itself")
        if folded in seen:
            raise InvalidArgumentError(field, f"differs from {seen[folded]!r} in case alone, which columns ignore")
        seen[folded] = name


def _without_pixeltable(given: Any, field: str) -> Any:
    """The type ``given`` with Pixeltable's replaced by Python's. They are told by module and name."""
    if isinstance(given, type) and given.__module__.partition(".")[0] == "pixeltable":
        if given.__name__ == "Json":
            return Any
        raise InvalidTypeError(field, f"has the type {given.__name__}, which JSON metadata cannot hold")
    origin, arguments = typing.get_origin(given), typing.get_args(given)
    if origin is None or origin is Literal:
        return given
    if origin is Annotated:
        base = _without_pixeltable(arguments[0], field)
        constraints = tuple(each for each in arguments[1:] if isinstance(each, msgspec.Meta))
        return functools.reduce(lambda kind, each: Annotated[kind, each], constraints, base)
    arguments = tuple(each if each is ... else _without_pixeltable(each, field) for each in arguments)
    if origin in (typing.Union, types.UnionType):
        return functools.reduce(operator.or_, arguments)
    if getattr(origin, "__module__", "").partition(".")[0] == "pixeltable":  # Required[...]
        return arguments[0]
    return origin[arguments]


def _column_kind(kind: Any, field: str) -> ColumnKind:
    try:
        info = inspect.type_info(kind)
        if isinstance(info, inspect.CustomType):
            raise InvalidTypeError(field, f"has the type {kind!r}, which JSON metadata cannot hold")
        kinds = _kinds(info, field)
    except (TypeError, NameError) as error:
        if isinstance(error, InvalidTypeError):
            raise
        raise InvalidTypeError(field, f"has the type {kind!r}, which is not one: {error}") from None
    kinds.discard(None)
    if kinds == {ColumnKind.INT, ColumnKind.FLOAT}:
        return ColumnKind.FLOAT
    only = kinds.pop() if len(kinds) == 1 else None
    return only or ColumnKind.JSON


_SCALARS: Final[dict[type[inspect.Type], ColumnKind | None]] = {
    inspect.NoneType: None,
    inspect.StrType: ColumnKind.STRING,
    inspect.DateType: ColumnKind.STRING,
    inspect.TimeType: ColumnKind.STRING,
    inspect.UUIDType: ColumnKind.STRING,
    inspect.IntType: ColumnKind.INT,
    inspect.FloatType: ColumnKind.FLOAT,
    inspect.BoolType: ColumnKind.BOOL,
    inspect.DateTimeType: ColumnKind.TIMESTAMP,
    inspect.AnyType: ColumnKind.JSON,
}


def _kinds(info: inspect.Type, field: str) -> set[ColumnKind | None]:
    """The kinds that values of the type may have; None stands for null. Raises for what JSON cannot hold."""
    match info:
        case inspect.Metadata(type=inner):
            return _kinds(inner, field)
        case inspect.UnionType(types=members):
            return set().union(*(_kinds(member, field) for member in members))
        case inspect.LiteralType(values=values):
            return {_literal_kind(value) for value in values}
        case inspect.EnumType(cls=cls):
            return {_literal_kind(member.value) for member in cls}
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            _kinds(item, field)
        case inspect.DictType(key_type=key, value_type=value):
            if not isinstance(key, (inspect.StrType, inspect.AnyType)):
                raise InvalidTypeError(field, "has a dict type whose keys are not strings")
            _kinds(value, field)
        case inspect.StructType() | inspect.TypedDictType() | inspect.DataclassType():
            pass  # msgspec checks what is inside, in the form that JSON gives it
        case _ if type(info) in _SCALARS:
            return {_SCALARS[type(info)]}
        case _:
            raise InvalidTypeError(field, f"has a type that JSON metadata cannot hold ({type(info).__name__})")
    return {ColumnKind.JSON}


def _literal_kind(value: object) -> ColumnKind | None:
    if value is None:
        return None
    return ColumnKind.STRING if isinstance(value, str) else ColumnKind.INT
