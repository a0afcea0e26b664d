"""Metadata as exact JSON: what was given comes back, with the order of its keys and every digit."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from typing import Any

import msgspec

from pixelmemory.errors import InvalidArgumentError, InvalidTypeError, LimitExceededError, brief, type_name
from pixelmemory.memory.values import bad_text
from pixelmemory.options import Options

__all__ = ["decode_metadata", "encode_metadata", "plain_json"]

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
        if reason := bad_text(value):
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
            if reason := bad_text(key):
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
