"""Filters that are valid and cannot be meant: operators as other stores write them, which are keys of metadata here.

``{"score": {"gte": 2}}`` asks for a score that is the object ``{"gte": 2}``. No memory has one, so the search would be
empty without a word. Each of these is an error instead; behind ``$eq`` everything can still be asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["mistaken_key", "mistaken_value"]

#: what is written elsewhere, in lower case -> the operator that it is here
_MEANT: Final = {
    **{name: f"${name}" for name in ("eq", "ne", "gt", "gte", "lt", "lte", "in", "nin", "exists", "contains")},
    **{name: f"${name}" for name in ("and", "or", "not")},
    "=": "$eq", "==": "$eq", "!=": "$ne", "<>": "$ne", ">": "$gt", ">=": "$gte", "<": "$lt", "<=": "$lte",
    "neq": "$ne", "ge": "$gte", "le": "$lte", "notin": "$nin", "not_in": "$nin",
}  # fmt: skip
_KNOWN: Final = frozenset(_MEANT.values())
#: operators on texts that there are elsewhere and not here
_OF_TEXTS: Final = frozenset(
    ("like", "ilike", "regex", "icontains", "not_contains", "startswith", "starts_with", "endswith", "ends_with")
)
#: operators of whole filters -> how they are written here
_OF_FILTERS: Final = {"and": '{"$and": [...]}', "or": '{"$or": [...]}', "nor": '{"$not": {"$or": [...]}}'}

_WHOLE: Final = 'to match the object itself, give it to $eq: {"$eq": {...}}'


def mistaken_key(key: str, operand: object) -> str | None:
    """Why ``key`` cannot be meant as a field where a filter has it, as a clause; None if it can.

    Args:
        key: does not begin with a dollar.
        operand: what the filter has under it, not checked yet.
    """
    word = key.strip().casefold()
    if word not in _OF_FILTERS and word != "not":
        return None
    itself = f'for a field of this name write {{"{key}": {{"$eq": ...}}}}'
    is_list = (
        isinstance(operand, (list, tuple)) and bool(operand) and all(isinstance(each, Mapping) for each in operand)
    )
    if word in _OF_FILTERS:
        return f"reads like an operator: write {_OF_FILTERS[word]}; {itself}" if is_list else None
    if is_list:
        return f"reads like an operator: write {_OF_FILTERS['nor']}; {itself}"
    if not isinstance(operand, Mapping) or not operand:
        return None
    if any(isinstance(name, str) and name[:1] == "$" and name not in ("$and", "$or", "$not") for name in operand):
        return None  # conditions on a field that is called so
    return f'reads like an operator: write {{"$not": {{...}}}}; {itself}'


def mistaken_value(value: Any) -> str | None:
    """Why the plain value ``value`` cannot be what a field is to be equal to, as a clause; None if it can.

    Args:
        value: a JSON value of the parser's own copy; an object's keys do not begin with a dollar.
    """
    if value == "*":
        return 'is no wildcard: for any value write {"$exists": True}, for the text itself {"$eq": "*"}'
    if not isinstance(value, Mapping) or not value:
        return None
    words = {key: key.strip().casefold() for key in value}
    if all(word in _MEANT for word in words.values()):
        meant = ", ".join(f'"{_MEANT[word]}" for "{key}"' for key, word in words.items())
        return f"reads like operators without their dollar: write {meant}; {_WHOLE}"
    if all(word in _OF_TEXTS and isinstance(value[key], str) for key, word in words.items()):
        return f"reads like the operator {', '.join(words)}, and there is none of this name; {_WHOLE}"
    for key, item in value.items():
        if isinstance(item, Mapping) and item and (item.keys() <= _KNOWN or mistaken_value(item)):
            return f'has operators inside of an object: reach there by a dotted path, "field.{key}"; {_WHOLE}'
    return None
