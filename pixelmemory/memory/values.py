"""Checks of single values that a caller hands in, made before anything is logged: text, time, numbers, vectors.

Each check returns the value in the form the log holds, or raises a typed error with the field's name and the reason.
What is accepted comes back exactly as it went in.

Two things are refused everywhere because no database text can hold them: the NUL character and lone surrogates.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pixelmemory.errors import InvalidArgumentError, InvalidTypeError, LimitExceededError, brief, type_name
from pixelmemory.options import Options

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "bad_text",
    "check_content",
    "check_limit",
    "check_memory_id",
    "check_namespace",
    "check_time_range",
    "check_timestamp",
    "check_vector",
    "from_timestamp",
]

# --------------------------------------------------------------------------------------------------------- text

_SURROGATE = re.compile("[\ud800-\udfff]")


def check_namespace(value: object, options: Options, field: str = "namespace") -> str:
    """A namespace: 1 to ``namespace_chars_max`` characters, any but NUL and surrogates; compared by code point.

    Raises:
        InvalidTypeError: not a string.
        InvalidArgumentError: empty, or with a NUL or a lone surrogate.
        LimitExceededError: too long.
    """
    return _check_text(value, options.namespace_chars_max, "namespace_chars_max", field, empty=False)


def check_content(value: object, options: Options, field: str = "content") -> str:
    """A memory's content: up to ``content_chars_max`` characters, and it may be empty.

    Raises:
        InvalidTypeError: not a string.
        InvalidArgumentError: with a NUL or a lone surrogate.
        LimitExceededError: too long.
    """
    return _check_text(value, options.content_chars_max, "content_chars_max", field, empty=True)


def check_memory_id(value: object, options: Options, field: str = "memory_id") -> str:
    """A memory id: 1 to ``memory_id_chars_max`` characters, any but NUL and surrogates; compared by code point.

    Raises:
        InvalidTypeError: not a string.
        InvalidArgumentError: empty, or with a NUL or a lone surrogate.
        LimitExceededError: too long.
    """
    return _check_text(value, options.memory_id_chars_max, "memory_id_chars_max", field, empty=False)


def _check_text(value: object, chars_max: int, option: str, field: str, *, empty: bool) -> str:
    if not isinstance(value, str):
        raise InvalidTypeError(field, f"must be a string, not {type_name(value)}")
    if not value and not empty:
        raise InvalidArgumentError(field, "must not be empty")
    if len(value) > chars_max:
        raise LimitExceededError(field, f"has {len(value)} characters, and the limit ({option}) is {chars_max}")
    if reason := bad_text(value):
        raise InvalidArgumentError(field, reason)
    return str.__str__(value)  # a subclass of str is kept as the plain text it holds


def bad_text(text: str) -> str | None:
    """Why ``text`` cannot be stored, or None."""
    if "\0" in text:
        return f"must not contain the NUL character (character {text.index(chr(0))})"
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"must not contain a lone surrogate (character {error.start})"
    return None


# --------------------------------------------------------------------------------------------------------- time

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_DAY_US = 86_400_000_000
# A day from the ends of what datetime can hold, so that every accepted value can be read in every time zone.
_TIMESTAMP_MIN_US = (dt.datetime.min.replace(tzinfo=dt.UTC) - _EPOCH) // _MICROSECOND + _DAY_US
_TIMESTAMP_MAX_US = (dt.datetime.max.replace(tzinfo=dt.UTC) - _EPOCH) // _MICROSECOND - _DAY_US


def check_timestamp(value: object, field: str = "timestamp") -> int:
    """A datetime as microseconds since the epoch, UTC. A naive one is local time.

    Raises:
        InvalidTypeError: not a datetime.
        InvalidArgumentError: before 0001-01-02 or after 9999-12-30, UTC.
    """
    us = _microseconds(value, field)
    if not _TIMESTAMP_MIN_US <= us <= _TIMESTAMP_MAX_US:
        raise InvalidArgumentError(field, f"must lie between 0001-01-02 and 9999-12-30, UTC, not {value}")
    return us


def _microseconds(value: object, field: str) -> int:
    if not isinstance(value, dt.datetime):
        raise InvalidTypeError(field, f"must be a datetime, not {type_name(value)}")
    try:
        aware = value.astimezone(dt.UTC)
    except (OverflowError, ValueError, OSError):  # at the ends of the calendar; the range check decides
        aware = value.replace(tzinfo=dt.UTC)
    us = (aware - _EPOCH) // _MICROSECOND
    if not isinstance(us, int):  # pandas' NaT passes for a datetime
        raise InvalidArgumentError(field, f"must be a point in time, not {value}")
    return us


def from_timestamp(us: int) -> dt.datetime:
    """The aware datetime (UTC) of ``us`` microseconds since the epoch."""
    return _EPOCH + dt.timedelta(microseconds=us)


def check_time_range(start: object, end: object) -> tuple[int | None, int | None]:
    """The inclusive bounds of a search in microseconds since the epoch, UTC; None is no bound.

    Bounds at the ends of the calendar (``datetime.min``, ``datetime.max``) are taken as the furthest timestamp.

    Raises:
        InvalidTypeError: not a datetime.
        InvalidArgumentError: the start lies after the end.
    """
    start_us, end_us = (
        None if value is None else min(max(_microseconds(value, field), _TIMESTAMP_MIN_US), _TIMESTAMP_MAX_US)
        for value, field in ((start, "start_time"), (end, "end_time"))
    )
    if start_us is not None and end_us is not None and start_us > end_us:
        raise InvalidArgumentError("start_time", f"({start}) must not be after end_time ({end})")
    return start_us, end_us


# ------------------------------------------------------------------------------------------------------ numbers


def check_limit(value: object, field: str = "limit") -> int:
    """A number of results: any integer from 0. More than a database can count is cut to that.

    Raises:
        InvalidTypeError: not an integer (a bool is none).
        InvalidArgumentError: negative.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InvalidTypeError(field, f"must be an integer, not {type_name(value)}")
    try:
        limit = int(value.__index__())
    except TypeError:  # an array has the method and no value
        raise InvalidTypeError(field, f"must be an integer, not {type_name(value)}") from None
    if limit < 0:
        raise InvalidArgumentError(field, f"must be at least 0, not {brief(limit)}")
    return min(limit, 2**63 - 1)


#: from here on float32 keeps 24 bits of a number, 2**-126
_FLOAT32_NORMAL_MIN = 1.1754943508222875e-38


def check_vector(value: object, dimensions: int, field: str = "embedding") -> bytes:
    """A vector as float32 bytes, little-endian, of ``4 * dimensions`` bytes.

    Args:
        value: a sequence of numbers, or a one-dimensional array or tensor of them.

    Raises:
        InvalidTypeError: not such a sequence.
        InvalidArgumentError: of another length, not finite as float32, all zero as float32, or so small that
            float32 would change its direction.
    """
    import numpy as np  # not needed by a program that has no vectors of its own

    array = _numbers(value, field)
    if array.ndim != 1:
        raise InvalidArgumentError(field, f"must have one dimension, not {array.ndim}")
    if len(array) != dimensions:
        raise InvalidArgumentError(field, f"must have {dimensions} numbers, not {len(array)}")
    with np.errstate(over="ignore"):
        vector = array.astype("<f4")
    if not np.isfinite(vector).all():
        raise InvalidArgumentError(field, "must hold finite numbers (as float32: up to 3.4e38)")
    if not array.any():
        raise InvalidArgumentError(field, "must not be all zero: it has no direction")
    largest = float(np.abs(vector).max())
    if largest < _FLOAT32_NORMAL_MIN and not np.array_equal(vector, array):
        reason = f"is too small for float32: its largest number is {float(np.abs(array).max()):g}; normalize it"
        raise InvalidArgumentError(field, reason)
    return vector.tobytes()


def _numbers(value: Any, field: str) -> np.ndarray[Any, Any]:
    import numpy as np

    if hasattr(value, "detach"):  # a torch tensor, on whatever device and of whatever precision
        value = value.detach().cpu().double().numpy()
    if isinstance(value, (str, bytes, bytearray, Mapping)) or not hasattr(value, "__len__"):
        raise InvalidTypeError(field, f"must be a sequence of numbers, not {type_name(value)}")
    if isinstance(value, (list, tuple)) and any(isinstance(item, (bool, str, bytes)) for item in value):
        raise InvalidTypeError(field, "must hold numbers alone")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError):  # ragged
        raise InvalidTypeError(field, "must be a flat sequence of numbers") from None
    if array.size and array.dtype.kind not in "fiu":
        raise InvalidTypeError(field, f"must hold numbers alone, not {array.dtype}")
    return array
