"""Checks of every value a caller hands in, made before anything is logged.

Each check returns the value in the form the log holds, or raises a typed error with the field's name and the reason.
What is accepted comes back exactly as it went in: Unicode, empty content, nested metadata with the order of its keys,
integers of any size up to the limit, floats to the last bit.

Two things are refused everywhere because no database text can hold them: the NUL character and lone surrogates.
"""

from __future__ import annotations

import datetime as dt
import math
import os
import random
import re
import threading
import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from pixelmemory.errors import InvalidArgumentError, InvalidTypeError, LimitExceededError, brief, type_name
from pixelmemory.options import Options

if TYPE_CHECKING:
    import numpy as np

    from pixelmemory.memory.schema import Schema

__all__ = [
    "CheckedEntry",
    "check_content",
    "check_entry",
    "check_limit",
    "check_memory_id",
    "check_namespace",
    "check_time_range",
    "check_timestamp",
    "check_values",
    "check_vector",
    "decode_metadata",
    "encode_metadata",
    "from_timestamp",
    "memory_key",
    "new_memory_id",
    "plain_json",
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
    if reason := _bad_text(value):
        raise InvalidArgumentError(field, reason)
    return str.__str__(value)  # a subclass of str is kept as the plain text it holds


def _bad_text(text: str) -> str | None:
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


# --------------------------------------------------------------------------------------------------- memory ids

#: namespace of the UUIDv5 that stands for a memory id of the caller's own; part of the stored format, so for ever
MEMORY_ID_NAMESPACE = uuid.UUID("6f0c1d0e-5b1a-4c53-9a6e-70c9c1a0f4d2")

_CANONICAL_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

# A generator of our own, so that a program that seeds the global one does not make the same ids twice.
_random = random.Random(os.urandom(32))  # noqa: S311 - ids are unique, not secret
_id_lock = threading.Lock()
#: the last id's 48 bits of milliseconds and 74 free bits; only grows, so ids are monotone within the process
_id_last = 0


def _after_fork_in_child() -> None:
    global _id_lock
    _id_lock = threading.Lock()
    _random.seed(os.urandom(32))


os.register_at_fork(after_in_child=_after_fork_in_child)


def new_memory_id() -> str:
    """A new UUIDv7 (RFC 9562) as canonical text: it sorts by time, and is monotone within the process."""
    global _id_last
    with _id_lock:
        fresh = time.time_ns() // 1_000_000 << 74 | _random.getrandbits(73)
        # Within one millisecond, or when the clock steps back, go on from the last id by a random step.
        _id_last = value = fresh if fresh >> 74 > _id_last >> 74 else _id_last + 1 + _random.getrandbits(32)
    high, low = value >> 62, value & 0x3FFF_FFFF_FFFF_FFFF
    text = f"{(high >> 12) << 16 | 0x7000 | high & 0xFFF:016x}{0x8000_0000_0000_0000 | low:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def memory_key(memory_id: str) -> uuid.UUID:
    """The UUID that stands for ``memory_id`` in the tables; two ids never share one.

    Canonical (lowercase) UUID text of any version but 5 is its own key. Every other id maps to the UUIDv5 of its text
    under :data:`MEMORY_ID_NAMESPACE`; UUID text of version 5 does too, so that no caller can pass such a key off as
    an id.
    """
    if len(memory_id) == 36 and memory_id[14] != "5" and _CANONICAL_UUID.fullmatch(memory_id):
        return uuid.UUID(memory_id)
    return uuid.uuid5(MEMORY_ID_NAMESPACE, memory_id)


# ----------------------------------------------------------------------------------------------------- metadata

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(dict[str, Any])
_INT64_MAX = 2**63 - 1


def encode_metadata(value: object, options: Options, field: str = "metadata") -> bytes:
    """Metadata as the exact JSON text (UTF-8) that the log holds; None is ``{}``.

    Accepted are dicts with string keys, lists, strings, integers, finite floats, booleans and None, nested up to
    ``metadata_depth_max`` levels (the metadata itself is the first), ``metadata_bytes_max`` bytes in all.

    Raises:
        InvalidTypeError: not a dict, a key that is not a string, a value that JSON has no exact form for (a tuple, a
            set, a datetime, bytes, ...).
        InvalidArgumentError: NaN, Infinity, a NUL or a lone surrogate.
        LimitExceededError: too deep, too large, an integer of too many digits.
    """
    if value is None:
        return b"{}"
    if not isinstance(value, Mapping):
        raise InvalidTypeError(field, f"must be a dict, not {type_name(value)}")
    try:
        text = _encoder.encode(value if _is_plain(value, options, field) else plain_json(value, options, field))
    except UnicodeEncodeError:
        text = _encoder.encode(_copied(value, options, field))  # raises, and names the field
    if len(text) > options.metadata_bytes_max:
        reason = f"takes {len(text)} bytes as JSON, and the limit (metadata_bytes_max) is {options.metadata_bytes_max}"
        raise LimitExceededError(field, reason)
    return text


def decode_metadata(text: bytes | str) -> dict[str, Any]:
    """The exact inverse of :func:`encode_metadata`.

    Raises:
        msgspec.DecodeError: if ``text`` is not a JSON object.
    """
    return _decoder.decode(text)


def _is_plain(value: object, options: Options, field: str) -> bool:
    """True where ``value`` can be encoded as it stands; False where it needs the slow, precise walk.

    Lone surrogates are left to the encoder, which refuses them.

    Raises:
        LimitExceededError: so many values that their JSON text is too long, as where one part stands many times over.
    """
    level: list[Any] = [value]
    nodes = 0
    for _ in range(options.metadata_depth_max):
        below: list[Any] = []
        for container in level:
            nodes += len(container)
            if nodes > options.metadata_bytes_max:
                raise _too_long(options, field)
            if type(container) is dict:
                for key in container:
                    if type(key) is not str or "\0" in key:
                        return False
                container = container.values()
            elif type(container) is not list:
                return False
            for item in container:
                kind = type(item)
                if kind is str:
                    if "\0" in item:
                        return False
                elif kind is int:
                    if not -_INT64_MAX <= item <= _INT64_MAX:
                        return False
                elif kind is float:
                    if not math.isfinite(item):
                        return False
                elif kind is dict or kind is list:
                    below.append(item)
                elif kind is not bool and item is not None:
                    return False
        if not below:
            return True
        level = below
    return False


def plain_json(value: object, options: Options, field: str) -> Any:
    """A copy of the JSON value ``value`` in plain dicts, lists and scalars, under the limits that metadata has.

    Raises:
        InvalidTypeError, InvalidArgumentError, LimitExceededError: as :func:`encode_metadata`, naming the place.
    """
    try:
        if _is_plain([value], options, field):
            return msgspec.json.decode(_encoder.encode(value))
    except UnicodeEncodeError:
        pass  # the walk names the place
    return _copied(value, options, field)


def _copied(value: object, options: Options, field: str) -> Any:
    try:
        return _Copier(options, field).copy(value, field, 1)
    except RecursionError:  # within the limit, but the caller's own calls have left too little of Python's
        raise LimitExceededError(field, "is nested too deeply for what is left of Python's recursion limit") from None


def _too_long(options: Options, field: str) -> LimitExceededError:
    limit = options.metadata_bytes_max
    return LimitExceededError(field, f"takes more than {limit} bytes as JSON, the limit (metadata_bytes_max)")


class _Copier:
    """Copies one value, counting what it copies so that shared and endless structures end."""

    def __init__(self, options: Options, field: str) -> None:
        self._options = options
        self._field = field
        self._nodes = 0

    def copy(self, value: object, field: str, depth: int) -> Any:
        self._nodes += 1
        if self._nodes > self._options.metadata_bytes_max:
            raise _too_long(self._options, self._field)
        match value:
            case None | True | False:
                return value
            case str():
                return self._text(value, field)
            case int():
                return self._integer(value, field)
            case float():
                return self._float(value, field)
            case list() | Mapping():
                return self._container(value, field, depth)
            case _:
                raise InvalidTypeError(field, _no_json(value))

    def _container(self, value: list[Any] | Mapping[Any, Any], field: str, depth: int) -> Any:
        limit = self._options.metadata_depth_max
        if depth > limit:
            raise LimitExceededError(self._field, f"is nested more than {limit} levels deep (metadata_depth_max)")
        if isinstance(value, list):
            return [self.copy(item, f"{field}[{index}]", depth + 1) for index, item in enumerate(value)]
        return self._object(value, field, depth)

    def _text(self, value: str, field: str) -> str:
        if reason := _bad_text(value):
            raise InvalidArgumentError(field, reason)
        return str.__str__(value)

    def _float(self, value: float, field: str) -> float:
        if not math.isfinite(value):
            raise InvalidArgumentError(field, f"must be finite, not {float(value)}: JSON has no such number")
        return float.__float__(value)

    def _integer(self, value: int, field: str) -> int:
        value = int.__int__(value)
        digits_max = self._options.metadata_int_digits_max
        if not -_INT64_MAX <= value <= _INT64_MAX and abs(value) >= 10**digits_max:
            reason = f"is an integer of more than {digits_max} digits (metadata_int_digits_max)"
            raise LimitExceededError(field, reason)
        return value

    def _object(self, value: Mapping[Any, Any], field: str, depth: int) -> dict[str, Any]:
        copied: dict[str, Any] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidTypeError(
                    field, f"has the key {brief(key)}, and keys must be strings, not {type_name(key)}"
                )
            if reason := _bad_text(key):
                raise InvalidArgumentError(field, f"has the key {brief(key)}, which {reason}")
            copied[str.__str__(key)] = self.copy(item, f"{field}.{key}", depth + 1)
        if len(copied) != len(value):
            raise InvalidArgumentError(field, "has two keys with the same text")
        return copied


def _no_json(value: object) -> str:
    kind = type_name(value)
    if isinstance(value, tuple):
        return f"must not be a {kind}: it would come back as a list; pass a list"
    if isinstance(value, (set, frozenset)):
        return f"must not be a {kind}: JSON has no sets; pass a list"
    if isinstance(value, (dt.datetime, dt.date, dt.time)):
        return f"must not be a {kind}: JSON has no such type; pass value.isoformat()"
    if hasattr(value, "tolist"):  # a number or an array of numpy's, or of a library that is like it
        return f"must be a JSON value (dict, list, string, number, boolean or None), not {kind}; pass value.tolist()"
    return f"must be a JSON value (dict, list, string, number, boolean or None), not {kind}"


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


def check_limit(value: object) -> int:
    """How many results a search returns at most: any integer from 0. More than a database can count is cut to that.

    Raises:
        InvalidTypeError: not an integer (a bool is none).
        InvalidArgumentError: negative.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InvalidTypeError("limit", f"must be an integer, not {type_name(value)}")
    try:
        limit = int(value.__index__())
    except TypeError:  # an array has the method and no value
        raise InvalidTypeError("limit", f"must be an integer, not {type_name(value)}") from None
    if limit < 0:
        raise InvalidArgumentError("limit", f"must be at least 0, not {brief(limit)}")
    return min(limit, _INT64_MAX)


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


# ------------------------------------------------------------------------------------------------------ entries


class CheckedEntry(msgspec.Struct, frozen=True, gc=False):
    """One entry of ``add_entries`` in the form the log holds; None where the caller gave nothing."""

    memory_id: str | None
    content: str
    metadata_json: bytes
    #: microseconds since the epoch, UTC
    created_at_us: int | None
    #: float32, little-endian
    embedding: bytes | None


_ENTRY_KEYS = frozenset(("content", "metadata", "memory_id", "timestamp", "embedding"))


def check_entry(
    entry: object, options: Options, dimensions: int | None, field: str, schema: Schema | None
) -> CheckedEntry:
    """One entry: a dict with ``content`` and optionally ``metadata``, ``memory_id``, ``timestamp``, ``embedding``.

    Args:
        entry: what the caller gave; an optional key with the value None counts as absent.
        dimensions: length of the store's vectors, or None where it has none.
        field: how errors name the entry, such as ``entries[3]``; empty for the arguments of a single add.
        schema: the store's schema, which the metadata must satisfy.

    Raises:
        InvalidTypeError, InvalidArgumentError, LimitExceededError, SchemaViolationError: as the single checks.
    """
    if not isinstance(entry, Mapping):
        raise InvalidTypeError(field or "entry", f"must be a dict with 'content', not {type_name(entry)}")
    if unknown := [key for key in entry if key not in _ENTRY_KEYS]:
        names, known = ", ".join(map(brief, unknown[:5])), ", ".join(sorted(_ENTRY_KEYS))
        raise InvalidArgumentError(field or "entry", f"has unknown keys: {names}; known are {known}")
    if "content" not in entry:
        raise InvalidArgumentError(field or "entry", "has no 'content'")
    return check_values(
        entry["content"],
        entry.get("metadata"),
        entry.get("memory_id"),
        entry.get("timestamp"),
        entry.get("embedding"),
        options,
        dimensions,
        f"{field}." if field else "",
        schema,
    )


def check_values(
    content: object,
    metadata: object,
    memory_id: object,
    timestamp: object,
    embedding: object,
    options: Options,
    dimensions: int | None,
    prefix: str,
    schema: Schema | None,
) -> CheckedEntry:
    """As :func:`check_entry`; ``prefix`` stands before the names of the values in errors."""
    checked_content = check_content(content, options, f"{prefix}content")
    metadata_json = encode_metadata(metadata, options, f"{prefix}metadata")
    if schema is not None:
        schema.check(decode_metadata(metadata_json), f"{prefix}metadata")
    if embedding is not None and dimensions is None:
        raise InvalidArgumentError(f"{prefix}embedding", "was given, and this store has no vectors")
    return CheckedEntry(
        None if memory_id is None else check_memory_id(memory_id, options, f"{prefix}memory_id"),
        checked_content,
        metadata_json,
        None if timestamp is None else check_timestamp(timestamp, f"{prefix}timestamp"),
        None if embedding is None or dimensions is None else check_vector(embedding, dimensions, f"{prefix}embedding"),
    )
