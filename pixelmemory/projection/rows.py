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
from pixelmemory.memory.search import Position, Ranking, Search, list_order
from pixelmemory.memory.values import from_timestamp
from pixelmemory.models import MemoryRecord

if TYPE_CHECKING:
    import numpy as np

    from pixelmemory.projection.changes import Change

__all__ = [
    "COLUMNS",
    "PROJECTION_FORMAT",
    "SHOWN",
    "Column",
    "Kind",
    "Row",
    "given",
    "ranked",
    "record_of",
    "row_after",
    "row_of",
    "values_of",
]

#: increase it when the tables' columns change; an older projection is then rebuilt
PROJECTION_FORMAT = 1


_NEVER = dt.datetime.min.replace(tzinfo=dt.UTC)


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
    #: of the last event that touched it; None in a row that a user inserted
    lsn: int | None
    namespace: str
    #: cosine similarity to the query's vector, -1 to 1; None without one
    score: float | None = None
    #: float32, ``(dimensions,)``, as stored; None where it was not asked for, or there is none
    vector: np.ndarray | None = None

    @property
    def key(self) -> tuple[str, str]:
        """(namespace, memory id)."""
        return self.namespace, self.memory_id

    @property
    def place(self) -> Position:
        """Where it stands in a list."""
        return Position(self.created_at, self.memory_id, self.namespace)


#: the columns that reads return, in the order of :class:`Row`
SHOWN = tuple(column for column in COLUMNS if column.shown)


def given(change: Change) -> tuple[Column, ...]:
    """The columns that ``change`` has values for: all for an insert, those that it replaces for a patch."""
    return tuple(column for column in COLUMNS if column.of(change) is not None)


def values_of(change: Change, columns: Sequence[Column]) -> list[Any]:
    """The values of ``change`` for ``columns``, as Python and Pixeltable have them."""
    return [_to_python(column.kind, column.of(change)) for column in columns]


def row_of(
    namespace: str,
    id_text: str | None,
    key: object,
    *values: Any,
    score: float | None = None,
    vector: np.ndarray | None = None,
) -> Row:
    """A row as a database gives it.

    Args:
        id_text: the memory's id; None where it is ``key``'s own text.
        key: of the row.
        values: the columns of :data:`SHOWN`, a JSON object as its text, and the LSN.
        namespace, score, vector: see :class:`Row`.
    """
    read: list[Any] = [value.astimezone(dt.UTC) if isinstance(value, dt.datetime) else value for value in values]
    memory_id = str(key) if id_text is None else id_text
    return Row._make([memory_id, *read, namespace, None if score is None else float(score), vector])


def ranked(rows: Sequence[Row], search: Search) -> list[Row]:
    """Rows of several tables in the order of ``search``, its offset and limit applied. Equals keep their order."""
    if search.ranking in (Ranking.LISTED_NEWEST, Ranking.LISTED_OLDEST):
        newest = search.ranking is Ranking.LISTED_NEWEST
        best = sorted(rows, key=lambda row: list_order(search.ranking, row.place), reverse=newest)
    elif search.ranking is Ranking.SIMILARITY:
        best = sorted(rows, key=lambda row: (row.score, -1 if row.lsn is None else row.lsn), reverse=True)
    else:
        best = sorted(
            rows, key=lambda row: (row.created_at or _NEVER, -1 if row.lsn is None else row.lsn), reverse=True
        )
    return best[search.offset : search.offset + search.limit]


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
    return Row._make([change.memory_id, *values, change.lsn, change.namespace, None, None])


def record_of(row: Row, *, named: bool = False) -> MemoryRecord:
    """What a caller gets for ``row``; ``named``: with its namespace."""
    record = MemoryRecord(
        memory_id=row.memory_id,
        timestamp=row.created_at,
        content=row.content,
        metadata={} if row.metadata_json is None else decode_metadata(row.metadata_json),
    )
    if row.score is not None:
        record["similarity_score"] = row.score
    if named:
        record["namespace"] = row.namespace
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
