"""A search, from its caller to the SQL: one struct, built once."""

from __future__ import annotations

import datetime as dt
import enum
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    import numpy as np

    from pixelmemory.memory.filters import Filter
    from pixelmemory.memory.namespaces import Under

__all__ = ["NO_LIMIT", "Position", "Ranking", "Search", "is_past", "list_order"]

#: more than any database counts
NO_LIMIT = 2**62

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)


class Ranking(enum.Enum):
    """In which order the results come, best first."""

    #: by their time, the newest first
    NEWEST = "newest"
    #: by the cosine similarity of their content to the query
    SIMILARITY = "similarity"
    #: as a list is paged through, by what never changes of a memory: its time, then its id; undated rows at the end
    LISTED_NEWEST = "listed newest"
    LISTED_OLDEST = "listed oldest"


class Position(NamedTuple):
    """A place in a list of memories: right after one of them."""

    #: aware; None in a row that a user inserted without one
    created_at: dt.datetime | None
    memory_id: str
    namespace: str


class Search(msgspec.Struct, frozen=True):
    """A search of one namespace or several. Every condition holds before ``limit`` is applied."""

    namespaces: tuple[str, ...]
    limit: int = NO_LIMIT
    ranking: Ranking = Ranking.NEWEST
    #: the text that was asked for, if one was; kept beside its vector
    query: str | None = None
    #: float32, (dimensions,); of ``query`` once that is embedded, or the caller's own
    vector: np.ndarray | None = None
    filter: Filter | None = None
    #: inclusive bounds, aware
    start: dt.datetime | None = None
    end: dt.datetime | None = None
    #: of a ranking with a score
    min_score: float | None = None
    #: of a ranking with a score: results whose similarity to a better one is at least this are left out
    distinct: float | None = None
    #: of a ranking with a score: 0 to 1, how much the difference of the results counts beside their score
    diversity: float | None = None
    #: how many of the first results are left out; a list has ``after`` in its place
    offset: int = 0
    #: of a list: where it begins; None for its beginning
    after: Position | None = None
    #: (namespace, id) of the only memories that are looked at, and of those that are left out
    among: frozenset[tuple[str, str]] | None = None
    without: frozenset[tuple[str, str]] = frozenset()
    #: whether the rows come with their vectors
    with_vectors: bool = False
    #: in place of ``namespaces``, until it is known which there are
    under: Under | None = None
    #: whether results say which namespace they are in
    named: bool = False


def list_order(ranking: Ranking, place: Position) -> tuple[bool, int, str, str]:
    """Where a memory stands in a list, to sort it by: descending for the newest first, ascending for the oldest."""
    microseconds = 0 if place.created_at is None else (place.created_at - _EPOCH) // _MICROSECOND
    is_undated_last = (place.created_at is None) is (ranking is Ranking.LISTED_OLDEST)
    return is_undated_last, microseconds, place.memory_id, place.namespace


def is_past(search: Search, place: Position) -> bool:
    """Whether a memory comes after :attr:`Search.after`, where the search has one."""
    if search.after is None:
        return True
    here, after = list_order(search.ranking, place), list_order(search.ranking, search.after)
    return here < after if search.ranking is Ranking.LISTED_NEWEST else here > after
