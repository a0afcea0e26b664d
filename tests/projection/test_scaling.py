"""Vectors on their way into the database: scaled exactly, once, and never turned."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pixelmemory.projection.scaling import has_direction, scaled

FLOAT32_MAX = float(np.finfo(np.float32).max)
DENORMAL_MIN = float(np.finfo(np.float32).smallest_subnormal)

#: dimensions -> the bounds of the largest number of a vector that is stored as it is
BOUNDS = {4: (2.0**-20, 2.0**20), 2000: (2.0**-20, 2.0**20), 2001: (2.0**-6, 2.0**10), 4000: (2.0**-6, 2.0**10)}

_numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
_likely = st.sampled_from([1.0, -3.0, 2.0**-6, 2.0**10, 2.0**-20, 2.0**20, FLOAT32_MAX, -FLOAT32_MAX, DENORMAL_MIN])


@st.composite
def vectors(draw: st.DrawFn) -> NDArray[np.float32]:
    """Four numbers of any magnitude in a vector that is otherwise zero."""
    vector = np.zeros(draw(st.sampled_from(list(BOUNDS))), dtype=np.float32)
    vector[-4:] = draw(st.lists(_numbers | _likely, min_size=4, max_size=4))
    return vector


def cosine(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    a, b = left.astype(np.longdouble), right.astype(np.longdouble)
    return float(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b))


@given(vector=vectors())
def test_scaling_is_by_a_power_of_two_and_exact(vector: NDArray[np.float32]) -> None:
    before = vector.copy()
    result = scaled(vector)
    assert np.array_equal(vector, before), "the caller's is not changed"
    assert result.dtype == np.float32
    assert result.shape == vector.shape
    if not vector.any():
        assert result is vector
        return
    smallest, greatest = BOUNDS[len(vector)]
    largest = np.abs(vector).max()
    if smallest <= largest <= greatest:
        assert result is vector, "an ordinary vector is stored as it was given"
    else:
        assert 0.5 <= np.abs(result).max() < 1
    mantissa, exponent = np.frexp(float(np.abs(result).max()) / float(largest))
    assert mantissa == 0.5, "the factor is a power of two"
    exact = vector.astype(np.float64) * 2.0 ** (int(exponent) - 1)
    kept = np.abs(vector.astype(np.float64)) >= float(largest) * 2.0**-125
    assert np.array_equal(result[kept], exact[kept]), "no digit is lost"
    assert np.abs(result - exact).max() <= 2.0**-150, "and of what is nothing beside the largest, next to nothing"


@given(vector=vectors())
def test_scaling_twice_is_scaling_once(vector: NDArray[np.float32]) -> None:
    result = scaled(vector)
    assert scaled(result) is result


@given(vector=vectors(), other=vectors())
def test_scaling_keeps_every_cosine(vector: NDArray[np.float32], other: NDArray[np.float32]) -> None:
    if not (vector.any() and other.any() and len(vector) == len(other)):
        return
    # both are rounded to 64 bits, and the parts that were lost are below 2**-125 of the largest
    assert cosine(scaled(vector), scaled(other)) == pytest.approx(cosine(vector, other), abs=1e-15)


@given(rows=st.lists(vectors(), min_size=1, max_size=4))
def test_several_are_scaled_each_by_itself(rows: list[NDArray[np.float32]]) -> None:
    rows = [row for row in rows if len(row) == len(rows[0])]
    result = scaled(np.stack(rows))
    for row, single in zip(result, map(scaled, rows), strict=True):
        assert np.array_equal(row, single)


@given(vector=vectors())
def test_what_is_scaled_fits_the_databases_arithmetic(vector: NDArray[np.float32]) -> None:
    """The sum of squares in float32 neither overflows nor vanishes, and the numbers fit into their type."""
    if not vector.any():
        return
    stored = scaled(vector)
    if len(vector) > 2000:
        stored = stored.astype(np.float16).astype(np.float32)
    squares = float(np.sum(stored * stored, dtype=np.float32))
    assert np.isfinite(squares)
    assert squares >= 2.0**-50


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_has_no_direction_stays_as_it_is(number: float) -> None:
    for vector in (np.array([1.0, number], dtype=np.float32), np.zeros(2, dtype=np.float32)):
        assert not has_direction(vector)
        assert scaled(vector) is vector
    assert has_direction(np.array([0.0, -DENORMAL_MIN], dtype=np.float32))
