"""The filter language: from a caller's dict to one checked expression tree, and what that tree means.

:func:`parse_filter` reads a ``metadata_filter`` and leaves nothing to guess: an unknown operator, a wrong operand or a
value that no metadata can hold is an error, never an empty result. :func:`matches` evaluates the tree in Python. It is
the definition of the language: the SQL that the projection makes of a tree must agree with it on every value.

``$ne``, ``$nin`` and ``"$exists": False`` are parsed into negations, so the tree needs fewer kinds of nodes.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, TypeAlias

import msgspec

from pixelmemory.errors import InvalidArgumentError, InvalidFilterError, InvalidTypeError, brief, type_name
from pixelmemory.memory.filter_mistakes import mistaken_key, mistaken_value
from pixelmemory.memory.metadata import plain_json
from pixelmemory.options import Options

__all__ = ["And", "Condition", "Filter", "Not", "Operator", "Or", "equal", "matches", "ordered_kind", "parse_filter"]


class Operator(enum.Enum):
    """What a condition asks of the value at its path."""

    #: equal, or a list with an equal element
    EQ = "$eq"
    #: equal to one of the operand's elements, or a list with such an element
    IN = "$in"
    #: of the operand's type and greater (and so on), or a list with such an element
    GT = "$gt"
    GTE = "$gte"
    LT = "$lt"
    LTE = "$lte"
    #: present, and be it null; the operand is True
    EXISTS = "$exists"
    #: a list with an equal element
    CONTAINS = "$contains"


class And(msgspec.Struct, frozen=True):
    """All of ``items`` hold; no items: always."""

    items: tuple[Filter, ...]


class Or(msgspec.Struct, frozen=True):
    """At least one of ``items`` holds."""

    items: tuple[Filter, ...]


class Not(msgspec.Struct, frozen=True):
    """``item`` does not hold."""

    item: Filter


class Condition(msgspec.Struct, frozen=True):
    """One question about the value at ``path``."""

    #: keys from the metadata's top level downwards, at least one
    path: tuple[str, ...]
    op: Operator
    #: a plain JSON value of the parser's own copy; for IN a list
    operand: Any


Filter: TypeAlias = And | Or | Not | Condition

# ------------------------------------------------------------------------------------------------------ parsing

_LOGICAL: Final = ("$and", "$or", "$not")
_OPERATORS: Final = (
    "$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists", "$contains", *_LOGICAL,
)  # fmt: skip


def parse_filter(value: object, options: Options, field: str = "metadata_filter") -> Filter | None:
    """The expression tree of a ``metadata_filter``; None where it is None or ``{}`` and so matches everything.

    The tree shares nothing with ``value``. Its operands together take at most ``metadata_bytes_max`` bytes as JSON.

    Raises:
        InvalidFilterError: whatever is wrong with it; ``field`` of the error names the place.
    """
    if value is None:
        return None
    try:
        tree = _Parser(options, field).filter(value, field, 1)
    except RecursionError:
        raise InvalidFilterError(field, "is nested too deeply") from None
    return None if tree == And(()) else tree


class _Parser:
    """Parses one filter, counting its nodes and the bytes of its operands."""

    def __init__(self, options: Options, field: str) -> None:
        self._options = options
        self._field = field
        self._nodes = 0
        self._operand_bytes = 0

    def filter(self, value: object, field: str, depth: int) -> Filter:
        """A dict of fields and logical operators; several keys are all to hold."""
        self._check_depth(depth)
        items: list[Filter] = []
        for key, operand in self._items(value, field):
            place = f"{field}.{key}"
            if key in _LOGICAL:
                self._count_nodes(1)
                items.append(self._logical(key, operand, None, place, depth))
            elif key.startswith("$"):
                raise InvalidFilterError(place, _misplaced(key))
            elif reason := mistaken_key(key, operand):
                raise InvalidFilterError(place, reason)
            else:
                items.append(self._field_filter(_split_path(key), operand, place, depth))
        return items[0] if len(items) == 1 else And(tuple(items))

    def _field_filter(self, path: tuple[str, ...], operand: object, field: str, depth: int) -> Filter:
        """What a field must be: a plain value, or a dict of operators that are all to hold."""
        self._check_depth(depth)
        if not isinstance(operand, Mapping) or not any(isinstance(key, str) and key[:1] == "$" for key in operand):
            self._count_nodes(len(path))
            literal = self._literal(operand, field)
            if reason := mistaken_value(literal):
                raise InvalidFilterError(field, reason)
            return Condition(path, Operator.EQ, literal)
        operators = self._items(operand, field)
        items = [self._operator(path, key, value, f"{field}.{key}", depth) for key, value in operators]
        return items[0] if len(items) == 1 else And(tuple(items))

    def _operator(self, path: tuple[str, ...], key: str, operand: object, field: str, depth: int) -> Filter:
        self._count_nodes(len(path))
        match key:
            case "$eq":
                return Condition(path, Operator.EQ, self._literal(operand, field))
            case "$ne":
                return Not(Condition(path, Operator.EQ, self._literal(operand, field)))
            case "$in":
                return Condition(path, Operator.IN, self._list(operand, field))
            case "$nin":
                return Not(Condition(path, Operator.IN, self._list(operand, field)))
            case "$contains":
                return Condition(path, Operator.CONTAINS, self._literal(operand, field))
            case "$gt" | "$gte" | "$lt" | "$lte":
                return Condition(path, Operator(key), self._ordered(operand, field))
            case "$exists":
                if not isinstance(operand, bool):
                    raise InvalidFilterError(field, f"must be given True or False, not {brief(operand)}")
                found = Condition(path, Operator.EXISTS, True)
                return found if operand else Not(found)
            case "$and" | "$or" | "$not":
                return self._logical(key, operand, path, field, depth)
            case _ if key.startswith("$"):
                raise InvalidFilterError(field, _misplaced(key))
            case _:
                reason = "stands beside operators; give a whole object to $eq, or reach into one by a dotted path"
                raise InvalidFilterError(field, reason)

    def _list(self, operand: object, field: str) -> Any:
        if not isinstance(operand, (list, tuple)):
            raise InvalidFilterError(field, f"must be given a list, not {type_name(operand)}")
        return self._literal(list(operand), field)

    def _ordered(self, operand: object, field: str) -> Any:
        literal = self._literal(operand, field)
        if ordered_kind(literal) is None:
            raise InvalidFilterError(field, "must be given a number, a string or a boolean: others have no order")
        return literal

    def _logical(self, key: str, operand: object, path: tuple[str, ...] | None, field: str, depth: int) -> Filter:
        """``$and``, ``$or``, ``$not`` of whole filters, or under a field (``path``) of what that field must be."""

        def below(value: object, place: str) -> Filter:
            if path is None:
                return self.filter(value, place, depth + 1)
            return self._field_filter(path, value, place, depth + 1)

        if key == "$not":
            return Not(below(operand, field))
        if not isinstance(operand, (list, tuple)) or not operand:
            raise InvalidFilterError(field, "must be given a list of at least one filter")
        items = tuple(below(item, f"{field}[{index}]") for index, item in enumerate(operand))
        return And(items) if key == "$and" else Or(items)

    def _items(self, value: object, field: str) -> list[tuple[str, Any]]:
        if not isinstance(value, Mapping):
            raise InvalidFilterError(field, f"must be a dict, not {type_name(value)}")
        items: list[tuple[str, Any]] = []
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidFilterError(field, f"has the key {brief(key)}, and keys must be strings")
            items.append((self._literal(key, field), item))
            # an operator is a node; so an endless mapping ends as well
            if len(items) > self._options.filter_nodes_max:
                self._count_nodes(len(items))
        return items

    def _literal(self, value: object, field: str) -> Any:
        try:
            literal = plain_json(value, self._options, field)
        except (InvalidArgumentError, InvalidTypeError) as error:
            raise InvalidFilterError(error.field, error.reason) from None
        self._operand_bytes += len(msgspec.json.encode(literal))
        if self._operand_bytes > self._options.metadata_bytes_max:
            limit = self._options.metadata_bytes_max
            raise InvalidFilterError(self._field, f"takes more than {limit} bytes as JSON (metadata_bytes_max)")
        return literal

    def _count_nodes(self, nodes: int) -> None:
        """A logical operator of whole filters is a node, and so is every step of a path in each of its conditions."""
        self._nodes += nodes
        if self._nodes > self._options.filter_nodes_max:
            limit = self._options.filter_nodes_max
            raise InvalidFilterError(self._field, f"has more than {limit} nodes (filter_nodes_max)")

    def _check_depth(self, depth: int) -> None:
        if depth > self._options.filter_depth_max:
            limit = self._options.filter_depth_max
            raise InvalidFilterError(self._field, f"is nested more than {limit} levels deep (filter_depth_max)")


def _misplaced(key: str) -> str:
    if key in _OPERATORS:
        return f'needs a field: {{"field": {{"{key}": ...}}}}'
    return (
        f"is an unknown operator; known are {', '.join(_OPERATORS)}. "
        f"A metadata key that begins with $ is written with a backslash before it"
    )


def _split_path(text: str) -> tuple[str, ...]:
    r"""The keys of a dotted path. ``\.`` is a dot, a leading ``\$`` is a dollar, other backslashes are themselves.

    Of several backslashes before a leading dollar the first is removed, so that every key can be written.
    """
    if text.lstrip("\\")[:1] == "$":
        text = text[1:]
    # no key has a NUL: it can stand for an escaped dot meanwhile
    return tuple(key.replace("\0", ".") for key in text.replace("\\.", "\0").split("."))


# ------------------------------------------------------------------------------------------------------ meaning


class _Missing(enum.Enum):
    MISSING = enum.auto()


_MISSING: Final = _Missing.MISSING


def matches(filter: Filter | None, metadata: Mapping[str, Any]) -> bool:  # noqa: A002 - the word of the language
    """Whether ``metadata`` satisfies ``filter``; None is satisfied by everything."""
    match filter:
        case None:
            return True
        case And(items):
            return all(matches(item, metadata) for item in items)
        case Or(items):
            return any(matches(item, metadata) for item in items)
        case Not(item):
            return not matches(item, metadata)
        case Condition(path, op, operand):
            return _holds(op, operand, _reach(metadata, path))


def _reach(metadata: Mapping[str, Any], path: tuple[str, ...]) -> object:
    """The value at ``path``; a path leads through objects only, never into lists."""
    value: Any = metadata
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return _MISSING
        value = value[key]
    return value


def _holds(op: Operator, operand: Any, value: object) -> bool:
    if op is Operator.EXISTS:
        return value is not _MISSING
    if value is _MISSING:
        return False
    elements = value if isinstance(value, list) else []
    match op:
        case Operator.CONTAINS:
            return any(equal(element, operand) for element in elements)
        case Operator.EQ:
            return any(equal(candidate, operand) for candidate in (value, *elements))
        case Operator.IN:
            return any(equal(candidate, item) for candidate in (value, *elements) for item in operand)
        case _:
            return any(_in_order(op, candidate, operand) for candidate in (value, *elements))


def equal(left: object, right: object) -> bool:
    """Whether two JSON values are equal: 1 is 1.0, True is not 1, lists in order, objects whole and in any order."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return _decimal(left) == _decimal(right)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(equal, left, right))
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(equal(item, right[key]) for key, item in left.items())
    return type(left) is type(right) and left == right


def ordered_kind(value: object) -> str | None:
    """The type within which ``value`` has an order: ``boolean``, ``number`` or ``string``; None where it has none."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    return "string" if isinstance(value, str) else None


def _in_order(op: Operator, value: object, operand: Any) -> bool:
    kind = ordered_kind(operand)
    if ordered_kind(value) != kind:
        return False
    left: Any = _decimal(value) if kind == "number" else value
    right: Any = _decimal(operand) if kind == "number" else operand
    match op:
        case Operator.GT:
            return bool(left > right)
        case Operator.GTE:
            return bool(left >= right)
        case Operator.LT:
            return bool(left < right)
        case _:
            return bool(left <= right)


def _decimal(number: Any) -> Decimal:
    """The number as its JSON text says it, which is what the database compares."""
    return Decimal(number) if isinstance(number, int) else Decimal(repr(number))
