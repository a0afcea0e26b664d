"""What is stored and searched: the same on every machine, made here from a seed.

Vectors are clustered, with few degrees of freedom inside a cluster, as those of texts are: independent random numbers
would be all equally far from each other, and a graph over them would look worse than it is.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["DIMENSIONS", "FILTERS", "Corpus", "content", "corpus", "exact", "recall", "texts"]

DIMENSIONS = 384
#: rows in a cluster, on average, and the degrees of freedom inside one
_CLUSTER_ROWS = 50
_LATENT = 24
#: a result whose exact similarity is this close to the last wanted one counts: vectors are stored with half precision
_TIE = 1e-4

_SUBJECTS = "the user, a colleague, the build, the report, an agent, the customer, a neighbour, the garden".split(", ")
_VERBS = "prefers, mentioned, finished, postponed, measured, asked about, wrote down, forgot".split(", ")
_OBJECTS = (
    "green tea with lemon, the quarterly budget, a failing integration test, the train to Leipzig, "
    "an allergy to peanuts, short answers with one example, the colour of the kitchen, a paper on index structures, "
    "the key of the bicycle, the deadline in spring, a recipe without eggs, the password policy"
).split(", ")
_WHEN = "in the morning, last week, before the meeting, on the phone, twice this year, while travelling".split(", ")


def content(number: int) -> str:
    """A text of about 130 characters; another one for each number."""
    parts = []
    for step in range(2):
        turn = number * 7919 + step * 104729
        parts.append(
            f"{_SUBJECTS[turn % 8]} {_VERBS[turn // 8 % 8]} {_OBJECTS[turn // 64 % 12]} {_WHEN[turn // 768 % 6]}"
        )
    return f"Note {number}: {parts[0]}, and {parts[1]}."


def texts(count: int, first: int = 0) -> list[str]:
    return [content(number) for number in range(first, first + count)]


class Corpus(NamedTuple):
    """Rows that a store gets. Everything in ``metadata`` is drawn independently of the vectors."""

    contents: list[str]
    #: float32, ``(rows, DIMENSIONS)``, of length 1
    vectors: NDArray[np.float32]
    metadata: list[dict[str, Any]]
    times: list[dt.datetime]
    #: float32, ``(queries, DIMENSIONS)``, of length 1; none is a row
    queries: NDArray[np.float32]

    def entries(self, first: int, last: int) -> list[dict[str, Any]]:
        """Rows ``first`` to ``last``, as ``add_entries`` takes them; ``metadata['n']`` is the row number."""
        return [
            {
                "content": self.contents[i],
                "metadata": self.metadata[i],
                "timestamp": self.times[i],
                "embedding": self.vectors[i],
            }
            for i in range(first, min(last, len(self.contents)))
        ]


#: one row in twenty each, and who may be asked: name, filter, time range as a share of the span
FILTERS: tuple[tuple[str, dict[str, Any] | None], ...] = (
    ("equality", {"group": "g7"}),
    ("range of a typed field", {"year": {"$gte": 95}}),
    ("range of an untyped field", {"score": {"$gte": 95}}),
    ("list containment", {"tags": "t7"}),
    ("time", None),
)
_EPOCH = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)


def corpus(rows: int, queries: int = 100, seed: int = 0) -> Corpus:
    """The rows and queries of ``seed``."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(rows // _CLUSTER_ROWS, 8), DIMENSIONS), dtype=np.float32)
    spread = random.standard_normal((_LATENT, DIMENSIONS), dtype=np.float32) / np.float32(np.sqrt(_LATENT))

    def draw(count: int) -> NDArray[np.float32]:
        vectors = centres[random.integers(0, len(centres), count)]
        vectors = vectors + random.standard_normal((count, _LATENT), dtype=np.float32) @ spread
        vectors += 0.1 * random.standard_normal((count, DIMENSIONS), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    vectors, asked = draw(rows), draw(queries)
    groups, tags = random.integers(0, 20, rows), random.integers(0, 20, rows)
    years, scores = random.integers(0, 100, rows), random.integers(0, 100, rows)
    seconds = random.permutation(rows)
    return Corpus(
        contents=texts(rows),
        vectors=vectors,
        metadata=[
            {
                "n": i,
                "group": f"g{groups[i]}",
                "year": int(years[i]),
                "score": int(scores[i]),
                "tags": ["x", f"t{tags[i]}"],
            }
            for i in range(rows)
        ],
        times=[_EPOCH + dt.timedelta(seconds=int(second)) for second in seconds],
        queries=asked,
    )


def time_range(rows: int) -> tuple[dt.datetime, dt.datetime]:
    """One row in twenty of a corpus of ``rows``, both ends included."""
    return _EPOCH, _EPOCH + dt.timedelta(seconds=max(rows // 20, 1) - 1)


def matches(of: Corpus, name: str) -> NDArray[np.bool_]:
    """The rows that the filter ``name`` of :data:`FILTERS` lets through."""
    if name == "time":
        end = time_range(len(of.times))[1]
        return np.array([each <= end for each in of.times])
    tests: dict[str, Callable[[dict[str, Any]], bool]] = {
        "equality": lambda row: row["group"] == "g7",
        "range of a typed field": lambda row: row["year"] >= 95,
        "range of an untyped field": lambda row: row["score"] >= 95,
        "list containment": lambda row: "t7" in row["tags"],
    }
    return np.array([tests[name](row) for row in of.metadata])


def exact(of: Corpus, query: NDArray[np.float32], among: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
    """The similarity of each row; -2 for those that are not ``among`` the wanted."""
    similarity: NDArray[np.float32] = of.vectors @ query
    return similarity if among is None else np.where(among, similarity, np.float32(-2))


def recall(similarity: NDArray[np.float32], found: Sequence[int], limit: int) -> float:
    """The share of the ``limit`` nearest rows that ``found`` holds; ties within rounding count."""
    wanted = min(limit, int((similarity > -2).sum()))
    least = np.sort(similarity)[-wanted]
    return sum(bool(similarity[row] >= least - _TIE) for row in set(found)) / wanted
