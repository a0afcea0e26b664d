"""The fields of a memory as its row has them: written down once.

Tables, inserts, patches, COPY and reads, by SQL and through the public API, are made from :data:`COLUMNS`; what reads
return, from :class:`Row` and :func:`record_of`. Identity (namespace, memory id) and the typed columns of a schema are
not fields: the first is the key of a row, the second follow from its metadata.
"""

from __future__ import annotations

import datetime as dt
import enum
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from pixelmemory.memory.metadata import decode_metadata
from pixelmemory.memory.search import Ranking, list_order
from pixelmemory.memory.values import from_timestamp
from pixelmemory.models import MemoryRecord

if TYPE_CHECKING:
    from pixelmemory.projection.changes import Change

__all__ = [
    "COLUMNS",
    "PROJECTION_FORMAT",
    "SHOWN",
    "Column",
    "Kind",
    "Row",
    "given",
    "in_list_order",
    "record_of",
    "row_after",
    "row_of",
    "values_of",
]

#: increase it when the tables' columns change; an older projection is then rebuilt
PROJECTION_FORMAT = 1


class Kind(enum.Enum):
    """What a column holds, in the form of the log."""

    #: ``str``
    TEXT = "text"
    #: a JSON object as UTF-8 bytes, stored so that the database can look into it
    JSON = "json"
    #: the same bytes, stored as text, exactly
    JSON_TEXT = "json_text"
    #: microseconds since the epoch, UTC
    TIME = "time"
    #: ``int``
    INT = "int"


class Column(msgspec.Struct, frozen=True):
    """One column of a table of memories."""

    name: str
    kind: Kind
    #: which attribute of a :class:`~pixelmemory.projection.changes.Change` it is made from
    source: str
    #: whether a row always has it; a user who inserts rows may leave out any other
    required: bool = False
    #: whether reads return it
    shown: bool = False

    @property
    def of(self) -> Callable[[Change], Any]:
        """Takes the column's value out of a change that inserts or patches; None where it leaves it as it was."""
        return operator.attrgetter(self.source)


#: the columns of every table of memories, in their order; a column of :attr:`Kind.JSON` has its text beside it
COLUMNS = (
    Column("content", Kind.TEXT, "state.content", required=True, shown=True),
    Column("metadata", Kind.JSON, "state.metadata_json", shown=True),
    Column("metadata_text", Kind.JSON_TEXT, "state.metadata_json"),
    Column("timestamp", Kind.TIME, "state.created_at_us", shown=True),
    Column("lsn", Kind.INT, "lsn"),
)


class Row(NamedTuple):
    """One memory as it stands in a table; after its id the columns of :data:`SHOWN`."""

    memory_id: str
    content: str
    #: a JSON object; None in a row that a user inserted without metadata
    metadata_json: str | None
    #: None in a row that a user inserted without one
    created_at: dt.datetime | None
    #: cosine similarity to the query's vector, -1 to 1; None without one
    score: float | None = None


#: the columns that reads return, in the order of :class:`Row`
SHOWN = tuple(column for column in COLUMNS if column.shown)


def given(change: Change) -> tuple[Column, ...]:
    """The columns that ``change`` has values for: all for an insert, those that it replaces for a patch."""
    return tuple(column for column in COLUMNS if column.of(change) is not None)


def values_of(change: Change, columns: Sequence[Column]) -> list[Any]:
    """The values of ``change`` for ``columns``, as Python and Pixeltable have them."""
    return [_to_python(column.kind, column.of(change)) for column in columns]


def row_of(id_text: str | None, key: object, *shown: Any, score: float | None = None) -> Row:
    """A row as a database gives it.

    Args:
        id_text: the memory's id; None where it is ``key``'s own text.
        key: of the row.
        shown: the columns of :data:`SHOWN`, a JSON object as its text.
        score: see :class:`Row`.
    """
    values: list[Any] = [value.astimezone(dt.UTC) if isinstance(value, dt.datetime) else value for value in shown]
    return Row._make([str(key) if id_text is None else id_text, *values, None if score is None else float(score)])


def in_list_order(rows: Sequence[Row], ranking: Ranking) -> list[Row]:
    """``rows`` in the order of a list."""
    newest = ranking is Ranking.LISTED_NEWEST
    return sorted(rows, key=lambda row: list_order(ranking, row.created_at, row.memory_id), reverse=newest)


def row_after(change: Change, row: Row | None) -> Row | None:
    """What a read shows once ``change`` is applied.

    Args:
        row: the memory's row as it is; only a patch needs it.

    Returns:
        Without a score. None where there is no memory afterwards.
    """
    if not change.insert and (not change.patch or row is None):
        return None
    before: Sequence[Any] = (None,) * len(SHOWN) if change.insert or row is None else row[1 : 1 + len(SHOWN)]
    after = [_as_read(column.kind, column.of(change)) for column in SHOWN]
    values: list[Any] = [old if new is None else new for old, new in zip(before, after, strict=True)]
    return Row._make([change.memory_id, *values, None])


def record_of(row: Row) -> MemoryRecord:
    """What a caller gets for ``row``."""
    record = MemoryRecord(
        memory_id=row.memory_id,
        timestamp=row.created_at,
        content=row.content,
        metadata={} if row.metadata_json is None else decode_metadata(row.metadata_json),
    )
    if row.score is not None:
        record["similarity_score"] = row.score
    return record


def _as_read(kind: Kind, value: Any) -> Any:
    return value.decode() if kind is Kind.JSON and value is not None else _to_python(kind, value)


def _to_python(kind: Kind, value: Any) -> Any:
    if value is None:
        return None
    if kind is Kind.JSON:
        return decode_metadata(value)
    if kind is Kind.JSON_TEXT:
        return value.decode()
    return from_timestamp(value) if kind is Kind.TIME else value
