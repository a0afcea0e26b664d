"""Vectors as the database can hold them: scaled by a power of two where its numbers would overflow or lose digits.

pgvector indexes up to 2,000 dimensions in single precision and up to 4,000 in half, and sums squares in single. A
vector and a positive multiple of it have the same cosine to any other, and a factor that is a power of two changes no
digit. So a vector is scaled on its way into a table or a query, and only where it has to be. The log keeps it as given.
"""

from __future__ import annotations

import numpy as np

__all__ = ["DIMENSIONS_MAX_FP16", "DIMENSIONS_MAX_FP32", "has_direction", "scaled"]

#: dimensions that pgvector indexes in single and in half precision
DIMENSIONS_MAX_FP32 = 2000
DIMENSIONS_MAX_FP16 = 4000

# Bounds of a vector's largest number, between which it is stored as given. Single precision ends at 2**128 and is
# precise from 2**-126: 2,000 squares of 2**20 sum to 2**51, and a square loses digits only below 2**-63, which is a
# part in 2**43 of the largest at the lower bound. Half precision ends at 2**16, and near zero it is off by at most
# 2**-25: a part in 2**19 of the largest at the lower bound, where rounding elsewhere is off by a part in 2**11.
_SAFE_FP32 = (2.0**-20, 2.0**20)
_SAFE_FP16 = (2.0**-6, 2.0**10)


def scaled(vectors: np.ndarray) -> np.ndarray:
    """``vectors`` with the same directions, and the magnitudes that the database computes with precisely.

    Where the largest number of a vector is out of bounds, the vector is multiplied by the power of two that brings that
    number to at least 0.5 and below 1. This is exact, except for numbers below 2**-125 of the largest.

    Args:
        vectors: float32, ``(dimensions,)`` or ``(n, dimensions)``; not changed. What has no direction stays as it is.

    Returns:
        The same shape; ``vectors`` itself where nothing has to be scaled. Scaling twice changes nothing.
    """
    smallest, greatest = _SAFE_FP32 if vectors.shape[-1] <= DIMENSIONS_MAX_FP32 else _SAFE_FP16
    largest = np.abs(vectors).max(axis=-1, keepdims=True)
    outside = ((largest < smallest) | (largest > greatest)) & np.isfinite(largest) & (largest > 0)
    if not outside.any():
        return vectors
    exponents = np.where(outside, np.frexp(largest)[1], 0)
    return np.asarray(np.ldexp(vectors, -exponents), dtype=np.float32)


def has_direction(vector: np.ndarray) -> bool:
    """Whether ``vector`` is finite and not all zero: only then has it a cosine to others."""
    return bool(np.isfinite(vector).all() and vector.any())
