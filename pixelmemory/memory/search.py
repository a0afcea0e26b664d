"""A search, from its caller to the SQL: one struct, built once."""

from __future__ import annotations

import datetime as dt
import enum
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import numpy as np

    from pixelmemory.memory.filters import Filter

__all__ = ["Ranking", "Search"]


class Ranking(enum.Enum):
    """In which order the results come, best first."""

    #: by their time, the newest first
    NEWEST = "newest"
    #: by the cosine similarity of their content to the query
    SIMILARITY = "similarity"


class Search(msgspec.Struct, frozen=True):
    """A search of one namespace. Every condition holds before ``limit`` is applied."""

    namespace: str
    limit: int
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
