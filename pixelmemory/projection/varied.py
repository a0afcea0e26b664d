"""Results that are not all alike: near duplicates are left out, and the rest is chosen for its difference too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from pixelmemory.memory.search import Search
from pixelmemory.projection.rows import Row

__all__ = ["varied"]

#: the best results that are looked at: this many, or this many times as many as are wanted
CANDIDATES_MIN, CANDIDATES_FACTOR = 50, 4
#: where near duplicates take the place of what is wanted, so many at most
CANDIDATES_MAX = 10_000


def varied(search: Search, read: Callable[[Search], list[Row]]) -> list[Row]:
    """The rows that satisfy ``search``, which has ``distinct`` or ``diversity``.

    Args:
        read: finds the rows of a search without them.
    """
    wanted = search.offset + search.limit
    count = max(CANDIDATES_MIN, CANDIDATES_FACTOR * wanted)
    while True:
        plain = msgspec.structs.replace(search, limit=count, offset=0, distinct=None, diversity=None, with_vectors=True)
        rows = read(plain)
        kept = rows if search.distinct is None else _distinct(rows, search.distinct)
        if len(kept) >= wanted or len(rows) < count or count >= CANDIDATES_MAX:
            break
        count = min(CANDIDATES_FACTOR * count, CANDIDATES_MAX)
    if search.diversity is not None:
        kept = _diverse(kept, wanted, search.diversity)
    return kept[search.offset : wanted]


def _directions(rows: Sequence[Row]) -> np.ndarray:
    """The vectors of ``rows``, each of length 1: float32, ``(n, dimensions)``."""
    vectors = np.stack([row.vector for row in rows if row.vector is not None]).astype(np.float64)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def _distinct(rows: list[Row], similarity_max: float) -> list[Row]:
    """``rows`` without those whose similarity to a better one that is kept is at least ``similarity_max``."""
    if not rows:
        return []
    directions = _directions(rows)
    kept: list[int] = []
    for place, direction in enumerate(directions):
        if not kept or float((directions[kept] @ direction).max()) < similarity_max:
            kept.append(place)
    return [rows[place] for place in kept]


def _diverse(rows: list[Row], count: int, diversity: float) -> list[Row]:
    """The first ``count`` by maximal marginal relevance (Carbonell and Goldstein, 1998).

    The next is always the one with the most of ``(1 - diversity) * its score - diversity * its similarity to the most
    similar of those before it``.
    """
    if not rows:
        return []
    directions = _directions(rows)
    relevance = (1 - diversity) * np.array([row.score for row in rows])
    nearest = np.zeros(len(rows))
    left = np.ones(len(rows), dtype=bool)
    chosen: list[Row] = []
    while len(chosen) < min(count, len(rows)):
        place = int(np.argmax(np.where(left, relevance - diversity * nearest, -np.inf)))
        similarity = directions @ directions[place]
        nearest = np.maximum(nearest, similarity) if chosen else similarity
        left[place] = False
        chosen.append(rows[place])
    return chosen
