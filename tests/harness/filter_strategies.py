"""Random metadata and random filters over it, drawn from so few keys and values that filters match often."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

KEYS = [
    "a", "b", "0", "", "a.b", "$gt", "$x", "\\$x", "\\", "a\\", "a\\.b", "%s", "%(f0)s", "%", "'", '"', "''; --", "é",
    "😀", "\n\t\x01\x7f", "{}", "[0]", "*", "?", "@", "A", " ", "null", "\u2028", "\\u0041",
]  # fmt: skip
INTEGERS = [0, 1, -1, 2, 5, 10, 2**53, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**23, 10**30, -(10**400), 10**308]
FLOATS = [0.0, -0.0, 1.0, -1.0, 1.5, 0.1, 5e-324, 1e308, -1e308, 1e23, 9007199254740992.0, 9.2e18, 2.0, 1e-7]
STRINGS = [
    "", "a", "A", "b", "aa", "é", "e\u0301", "z", "Z", "~", "😀", "\uffff", "%", "%s", "'", '"', "\\", "\\u0041",
    "1", "true", "null", "\x01", "\n", "$x", "a.b", "\ue000", "x" * 255, "x" * 256, "x" * 257, "x" * 300,
    "x" * 256 + "a", " ", "ß", "ss",
]  # fmt: skip


def pick(choices: list[Any]) -> st.SearchStrategy[Any]:
    """One of ``choices``, which hypothesis does not write out with every strategy that is made of it."""
    return st.integers(0, len(choices) - 1).map(lambda index: choices[index])


keys = pick(KEYS[:6]) | pick(KEYS) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4
)  # fmt: skip
numbers = pick(INTEGERS) | pick(FLOATS) | st.integers(-3, 3)
strings = pick(STRINGS)
scalars = st.none() | st.booleans() | numbers | strings
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(pick(KEYS[:8]), inner, max_size=2),
    max_leaves=6,
)
documents = st.dictionaries(keys, values, max_size=4)


def write_path(path: tuple[str, ...]) -> str:
    """The dotted text of ``path``, which no key but the last may end with a backslash in."""
    text = ".".join(key.replace(".", "\\.") for key in path)
    return f"\\{text}" if text.lstrip("\\").startswith("$") else text


paths = st.lists(keys, min_size=1, max_size=3).filter(lambda path: not any(key.endswith("\\") for key in path[:-1]))

_ordered = numbers | strings | st.booleans()
_operators = st.fixed_dictionaries(
    {},
    optional={
        "$eq": values,
        "$ne": values,
        "$gt": _ordered,
        "$gte": _ordered,
        "$lt": _ordered,
        "$lte": _ordered,
        "$in": st.lists(values, max_size=4) | st.lists(scalars, min_size=101, max_size=110),
        "$nin": st.lists(values, max_size=4),
        "$exists": st.booleans(),
        "$contains": values,
    },
).filter(bool)


def _of_field(value: Any) -> Any:
    """A plain value as it may stand under a field: with a key that begins with $ only behind ``$eq``."""
    return {"$eq": value} if _reads_as_operators(value) else value


def _reads_as_operators(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return any(key.startswith("$") or _reads_as_operators(item) for key, item in value.items())


_one_operator = _operators.map(lambda operators: dict([next(iter(operators.items()))]))
_of_fields: st.SearchStrategy[Any] = st.recursive(
    values.map(_of_field) | _one_operator | _operators,
    lambda inner: (
        st.builds(lambda word, of: {word: of}, st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=1))
        | inner.map(lambda of: {"$not": of})
    ),
    max_leaves=3,
)
_fields = st.dictionaries(paths.map(lambda path: write_path(tuple(path))), _of_fields, min_size=1, max_size=2)
filters: st.SearchStrategy[dict[str, Any]] = st.recursive(
    _fields,
    lambda inner: (
        st.builds(
            lambda word, of: {word: of}, st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=1, max_size=3)
        )
        | inner.map(lambda of: {"$not": of})
    ),
    max_leaves=4,
)
