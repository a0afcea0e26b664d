"""An embedding function without a model, and its vectors worked out again by plain Python."""

from __future__ import annotations

import zlib

import numpy as np
import pixeltable as pxt
from numpy.typing import NDArray

DIMENSIONS = 16

#: texts with this word have no vector while ``failing`` is set
REFUSED = "refused"
failing = [True]
#: the texts that :func:`embed_words` was called with
embedded: list[str] = []


def words_vector(text: str) -> NDArray[np.float32]:
    """The sum of one random vector a word: texts that share words are near each other. Float32, (DIMENSIONS,)."""
    if REFUSED in text and failing[0]:
        raise ValueError("this text has no vector")
    vector = np.full(DIMENSIONS, 0.01)
    for word in text.lower().split():
        vector += np.random.default_rng(zlib.crc32(word.encode())).standard_normal(DIMENSIONS)
    return vector.astype(np.float32)


@pxt.udf  # type: ignore[untyped-decorator]
def embed_words(text: str) -> pxt.Array[(DIMENSIONS,), np.float32]:
    """:func:`words_vector` as a function of Pixeltable's."""
    embedded.append(text)
    return words_vector(text)


@pxt.udf  # type: ignore[untyped-decorator]
def embed_length(text: str) -> pxt.Array[(2,), np.float32]:
    """Something else to index: the text's length as an angle. Fails for an empty text."""
    angle = 1 / len(text)
    return np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)


@pxt.udf  # type: ignore[untyped-decorator]
def thousand_over_length(text: str) -> int:
    """Fails for an empty text."""
    return 1000 // len(text)


def cosine(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    """Cosine similarity in double precision."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


#: dimensions that are indexed in half precision
HALF_DIMENSIONS = 2001


def far_vector(text: str) -> NDArray[np.float32]:
    """Of ``"<factor> <words>"``: :func:`words_vector` times the factor, then zeros. Float32, (HALF_DIMENSIONS,)."""
    factor, _, words = text.partition(" ")
    vector = np.zeros(HALF_DIMENSIONS, dtype=np.float32)
    vector[:DIMENSIONS] = words_vector(words).astype(np.float64) * (float(factor) if words else 1.0)
    return vector


@pxt.udf  # type: ignore[untyped-decorator]
def embed_far(text: str) -> pxt.Array[(HALF_DIMENSIONS,), np.float32]:
    """:func:`far_vector` as a function of Pixeltable's."""
    return far_vector(text)
