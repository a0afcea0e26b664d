"""Filters as SQL: one boolean expression for PostgreSQL 16 that agrees with :func:`pixelmemory.memory.filters.matches`.

Equality, ``$in`` and ``$contains`` are written as containment (``@>``), which a GIN index with ``jsonb_path_ops`` on
the metadata column serves. Containment is exact for scalars; for an object or a list it only narrows the rows down,
and an exact comparison follows. Comparisons are one strict jsonpath, evaluated on every row that is left to look at,
unless the field has a typed column, whose index then serves them.

Everything that comes from the filter is a parameter, keys included. An expression may be NULL where the metadata is
NULL or has nothing at a path; that is as good as false in ``WHERE``, ``AND`` and ``OR``, and negation is written
``IS NOT TRUE``, so that a missing key satisfies it.

Plans depend on the parameters' values: run these statements with ``plan_cache_mode = force_custom_plan`` where the
driver prepares them. A generic plan is right as well, but compares a long ``$in`` one by one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import msgspec

from pixelmemory.memory.filters import And, Condition, Filter, Not, Operator, Or, ordered_kind
from pixelmemory.memory.schema import ColumnKind, exact_float

__all__ = ["STRING_INDEX_CHARS", "compile_filter", "typed_index"]

#: STRING columns are indexed by this many leading characters (a btree entry holds at most 2,704 bytes), as
#: ``left(column, 256) COLLATE "C"``
STRING_INDEX_CHARS: Final = 256

#: elements of an ``$in`` that are looked up in the index one by one; more are compared by hash in a scan
IN_LOOKUPS_MAX: Final = 100
#: of these, objects and lists
IN_NESTED_MAX: Final = 8

#: keys and characters of a path up to which containment serves: it nests as deep, and repeats it for each operand
PATH_KEYS_MAX: Final = 100
PATH_CHARS_MAX: Final = 1000

_SIGNS: Final = {Operator.GT: ">", Operator.GTE: ">=", Operator.LT: "<", Operator.LTE: "<="}
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


def compile_filter(
    filter: Filter,  # noqa: A002 - the word of the language
    *,
    metadata: str,
    typed: Mapping[str, tuple[str, ColumnKind]],
) -> tuple[str, dict[str, Any]]:
    """The SQL expression of ``filter`` and its parameters ``f0``, ``f1``, ... for psycopg's named placeholders.

    Args:
        filter: the tree to compile.
        metadata: the metadata column (jsonb), as trusted SQL.
        typed: schema field -> its column, as trusted SQL, and what that holds. A column is NULL where the field's
            value is not of its kind (:meth:`pixelmemory.memory.schema.Schema.extract`); then the metadata itself
            decides, since the schema may have come later than the row.
    """
    compiler = _Compiler(metadata, typed)
    return compiler.compile(filter), compiler.parameters


def typed_index(metadata: str, field: str, column: str, kind: ColumnKind) -> tuple[str, str]:
    """What to index, so that comparisons of a schema field need no scan.

    Returns:
        the expression to index, and the predicate of a second, partial index: the rows whose field holds what the
        column cannot. They are few, mostly none; without that index every row with a NULL in the column is looked at.
    """
    expression = _indexed(column, kind)
    quoted = field.replace("'", "''")
    return expression, f"{expression} IS NULL AND ({metadata} -> '{quoted}'::text) <> 'null'::jsonb"


class _Compiler:
    def __init__(self, metadata: str, typed: Mapping[str, tuple[str, ColumnKind]]) -> None:
        self._metadata = metadata
        self._typed = typed
        self.parameters: dict[str, Any] = {}
        #: (text, type) -> its placeholder, so that a path is passed once
        self._placeholders: dict[tuple[str, str], str] = {}

    def compile(self, node: Filter) -> str:
        match node:
            case And(items):
                return self._joined(" AND ", self._all_of(items), "TRUE")
            case Or(items):
                return self._joined(" OR ", [self.compile(item) for item in items], "FALSE")
            case Not(item):
                return f"({self.compile(item)} IS NOT TRUE)"
            case Condition():
                return self._condition(node)

    def _joined(self, word: str, parts: Sequence[str], none: str) -> str:
        return f"({word.join(parts)})" if parts else none

    def _parameter(self, value: object, kind: str) -> str:
        if isinstance(value, str) and (known := self._placeholders.get((value, kind))):
            return known
        name = f"f{len(self.parameters)}"
        self.parameters[name] = value
        placeholder = f"%({name})s::{kind}"
        if isinstance(value, str):
            self._placeholders[value, kind] = placeholder
        return placeholder

    def _all_of(self, items: Sequence[Filter]) -> list[str]:
        """The parts of a conjunction. Comparisons of one field stand together: one range of an index, or one path."""
        parts: list[str] = []
        comparisons: dict[tuple[str, ...], list[Condition]] = {}
        for item in items:
            if isinstance(item, Condition) and item.op in _SIGNS:
                comparisons.setdefault(item.path, []).append(item)
            else:
                parts.append(self.compile(item))
        return parts + [self._comparisons(conditions) for conditions in comparisons.values()]

    # -- conditions on the metadata column

    def _condition(self, condition: Condition) -> str:
        if condition.op in _SIGNS:
            return self._comparisons([condition])
        match condition.op:
            case Operator.EXISTS:
                return f"({self._value(condition.path)} IS NOT NULL)"
            case Operator.EQ:
                return self._any_equal(condition.path, [condition.operand], whole=True)
            case Operator.IN if _is_long(condition.operand):
                return self._any_equal_by_hash(condition.path, condition.operand, whole=True)
            case Operator.IN:
                return self._any_equal(condition.path, condition.operand, whole=True)
            case _:
                return self._any_equal(condition.path, [condition.operand], whole=False)

    def _value(self, path: tuple[str, ...]) -> str:
        """The jsonb value at ``path``. ``-> text`` reaches into objects alone, where ``#>`` would enter lists."""
        return "(" + " -> ".join([self._metadata, *(self._parameter(key, "text") for key in path)]) + ")"

    def _any_equal(self, path: tuple[str, ...], operands: Sequence[Any], *, whole: bool) -> str:
        """The value is a list with an element equal to an operand; or, if ``whole``, is itself equal to one."""
        if len(path) > PATH_KEYS_MAX or sum(map(len, path)) > PATH_CHARS_MAX:
            return self._any_equal_by_hash(path, operands, whole=whole)
        contained: list[str] = []
        parts: list[str] = []
        for operand in operands:
            as_whole, as_element = _at_path(path, operand), _at_path(path, [operand])
            if not isinstance(operand, (dict, list)):
                contained += [as_whole, as_element] if whole else [as_element]
                continue
            exact = self._parameter(_json(operand), "jsonb")
            if whole:
                parts.append(f"({self._contains(as_whole)} AND {self._value(path)} = {exact})")
            parts.append(f"({self._contains(as_element)} AND {self._has_element(path, f'= {exact}')})")
        if len(contained) == 1:
            parts.append(self._contains(contained[0]))
        elif contained:
            parts.append(f"{self._metadata} @> ANY({self._parameter(contained, 'jsonb[]')})")
        return self._joined(" OR ", parts, "FALSE")

    def _any_equal_by_hash(self, path: tuple[str, ...], operands: Sequence[Any], *, whole: bool) -> str:
        """As :meth:`_any_equal` of many operands. Containment would try one after the other for every row."""
        value = self._value(path)
        test = f"= ANY({self._parameter([_json(operand) for operand in operands], 'jsonb[]')})"
        element = f"(jsonb_typeof({value}) = 'array' AND {self._has_element(path, test)})"
        return f"({value} {test} OR {element})" if whole else element

    def _contains(self, text: str) -> str:
        return f"{self._metadata} @> {self._parameter(text, 'jsonb')}"

    def _has_element(self, path: tuple[str, ...], test: str) -> str:
        value = self._value(path)
        elements = f"jsonb_array_elements(CASE jsonb_typeof({value}) WHEN 'array' THEN {value} ELSE '[]' END)"
        return f"EXISTS (SELECT 1 FROM {elements} AS e(element) WHERE e.element {test})"

    def _comparisons(self, conditions: Sequence[Condition]) -> str:
        """Comparisons of one field, all to hold: by its column as far as that can decide them, else by a path."""
        path = conditions[0].path
        by_column = [(sql, each) for each in conditions if (sql := self._column_condition(each))]
        by_path = [each for each in conditions if not any(each is other for _, other in by_column)]
        parts = [self._compared(by_path)] if by_path else []
        if by_column:
            in_column = " AND ".join(sql for sql, _ in by_column)
            column, kind = self._typed[path[0]]
            absent = f"{_indexed(column, kind)} IS NULL AND {self._value(path)} <> 'null'::jsonb"
            in_column += f" OR ({absent} AND {self._compared([each for _, each in by_column])})"
            parts.append(f"({in_column})")
        return self._joined(" AND ", parts, "TRUE")

    def _compared(self, conditions: Sequence[Condition]) -> str:
        """Comparisons, all to hold, each with the value at a path or with any element of it.

        In strict mode a path enters objects alone, ``[*]`` lists alone, and a comparison of different types is
        neither true nor false; strings compare by code point.
        """
        keys = "".join(f".{_json(key)}" for key in conditions[0].path)
        signs = [f"{_SIGNS[each.op]} $x{index}" for index, each in enumerate(conditions)]
        tests = " && ".join(f"(@ {sign} || exists (@[*] ? (@ {sign})))" for sign in signs)
        path = self._parameter(f"strict ${keys} ? ({tests})", "jsonpath")
        variables = _json({f"x{index}": each.operand for index, each in enumerate(conditions)})
        return f"jsonb_path_exists({self._metadata}, {path}, {self._parameter(variables, 'jsonb')}, TRUE)"

    # -- conditions on a typed column

    def _column_condition(self, condition: Condition) -> str | None:
        """A comparison on the field's column; None where the column cannot decide it."""
        entry = self._typed.get(condition.path[0]) if len(condition.path) == 1 else None
        if entry is None:
            return None
        column, kind = entry
        operand = condition.operand
        match kind:
            case ColumnKind.STRING if isinstance(operand, str):
                return self._string_condition(column, condition)
            case ColumnKind.BOOL if isinstance(operand, bool):
                return self._scalar_condition(column, condition.op, operand, "boolean")
            case ColumnKind.FLOAT if ordered_kind(operand) == "number":
                number = operand if isinstance(operand, float) else exact_float(operand)
                if number is None:
                    return None
                return self._scalar_condition(column, condition.op, number, "double precision")
            case ColumnKind.INT if ordered_kind(operand) == "number":
                bound = _integer_bound(condition.op, operand)
                return None if bound is None else self._scalar_condition(column, condition.op, bound, "bigint")
            case _:
                return None

    def _scalar_condition(self, column: str, op: Operator, operand: object, kind: str) -> str:
        return f"{column} {_SIGNS[op]} {self._parameter(operand, kind)}"

    def _string_condition(self, column: str, condition: Condition) -> str:
        """The beginning narrows the rows down by the index, the whole text decides."""
        beginning = _indexed(column, ColumnKind.STRING)
        sign = _SIGNS[condition.op]
        narrow_sign = f"{sign[0]}="
        narrowed = f"{beginning} {narrow_sign} {self._parameter(condition.operand[:STRING_INDEX_CHARS], 'text')}"
        return f'({narrowed} AND {column} COLLATE "C" {sign} {self._parameter(condition.operand, "text")})'


def _integer_bound(op: Operator, operand: int | float) -> int | None:
    """The integer to which integers have the relation ``op`` exactly when they have it to ``operand``.

    None where no integer of 64 bits is such.
    """
    number = Decimal(operand) if isinstance(operand, int) else Decimal(repr(operand))
    if not _INT64_MIN <= number <= _INT64_MAX:
        return None
    match op:
        case Operator.GT | Operator.LTE:
            return math.floor(number)
        case Operator.GTE | Operator.LT:
            return math.ceil(number)
        case _:
            raise AssertionError(op)


def _indexed(column: str, kind: ColumnKind) -> str:
    """A typed column as its index holds it."""
    return f'left({column}, {STRING_INDEX_CHARS}) COLLATE "C"' if kind is ColumnKind.STRING else column


def _is_long(operands: Sequence[Any]) -> bool:
    """Whether so many index look-ups (or so many parameters, for objects and lists) cost more than one scan."""
    return len(operands) > IN_LOOKUPS_MAX or sum(isinstance(each, (dict, list)) for each in operands) > IN_NESTED_MAX


def _at_path(path: tuple[str, ...], value: object) -> str:
    """JSON text of the object that has nothing but ``value`` at ``path``."""
    for key in reversed(path):
        value = {key: value}
    return _json(value)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
