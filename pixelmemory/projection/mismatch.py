"""What a projection was made with and what its store is opened with, where the two differ: for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pixelmemory.errors import ProjectionMismatchError
from pixelmemory.memory.schema import Schema, fields_fingerprint
from pixelmemory.options import Layout
from pixelmemory.projection.contract import ProjectionState

__all__ = ["find_mismatch", "fits"]

_LAYOUTS = {
    Layout.AUTO.value: "a shared table, and one for each namespace that is large or asked for",
    Layout.PER_NAMESPACE.value: "a table for each namespace",
    Layout.SHARED.value: "one table for all",
}
#: fields that a message names
FIELDS_MAX = 10


def find_mismatch(
    found: ProjectionState, state: ProjectionState, recorded: Mapping[str, str] | None, schema: Schema | None
) -> ProjectionMismatchError | None:
    """The error that says how the tables do not fit; None if they do.

    Args:
        found, state: what the tables were made from, and what they should have been made from.
        recorded: the fields of their schema as the store has written them down, if it has.
        schema: the one that the store is opened with.
    """
    differences = []
    given = {} if schema is None else schema.fields
    stored = _stored_fields(found, recorded)
    if found.schema != state.schema:
        if stored is None:
            now = "none" if state.schema is None else f"{state.schema} ({_listed(given)})"
            differences.append(f"the schema was the one of the fingerprint {found.schema} and is now {now}")
        else:
            fields = list(_field_differences(stored, given)) or ["a Struct without a field is not the same as none"]
            differences.append(f"in the schema, {_shortened(fields)}")
    if not fits(found.layout, state.layout):
        was, now = (_LAYOUTS.get(each.layout, each.layout) for each in (found, state))
        differences.append(f"the layout was {was} ({found.layout}) and is now {now} ({state.layout})")
    return ProjectionMismatchError("; ".join(differences), stored, given) if differences else None


def fits(found: str, wanted: str) -> bool:
    """Whether tables of the layout ``found`` can be used in the layout ``wanted``: the automatic one takes any."""
    return wanted in (found, Layout.AUTO.value)


def _stored_fields(found: ProjectionState, recorded: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """``recorded`` if it is what these tables were made with: a kill may leave one that is older than the tables."""
    if found.schema is None:
        return {}
    return recorded if recorded is not None and fields_fingerprint(recorded) == found.schema else None


def _field_differences(stored: Mapping[str, str], given: Mapping[str, str]) -> Iterator[str]:
    for name, kind in stored.items():
        if name not in given:
            yield f"the field {name!r} ({kind}) is missing"
        elif given[name] != kind:
            yield f"the field {name!r} was {kind} and is now {given[name]}"
    for name, kind in given.items():
        if name not in stored:
            yield f"the field {name!r} ({kind}) is new"


def _listed(fields: Mapping[str, str]) -> str:
    return _shortened([f"{name}: {kind}" for name, kind in fields.items()])


def _shortened(parts: list[str]) -> str:
    more = [f"and {len(parts) - FIELDS_MAX} more"] if len(parts) > FIELDS_MAX else []
    return ", ".join(parts[:FIELDS_MAX] + more)
