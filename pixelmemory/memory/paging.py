"""The texts that page through a list: what a caller gets as ``next`` and gives back as ``after``.

Opaque to callers: base64 of a msgpack array of the order, the time of the last memory, its id and its namespace.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt

import msgspec

from pixelmemory.errors import InvalidArgumentError, InvalidTypeError, brief, type_name
from pixelmemory.memory.search import Position, Ranking

__all__ = ["check_after", "check_order", "text_after"]

_ORDERS = {"newest": Ranking.LISTED_NEWEST, "oldest": Ranking.LISTED_OLDEST}


class _Place(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    order: str
    created_at: dt.datetime | None
    memory_id: str
    namespace: str


def check_order(value: object) -> Ranking:
    """``"newest"`` or ``"oldest"`` first."""
    if not isinstance(value, str):
        raise InvalidTypeError("order", f"must be 'newest' or 'oldest', not {type_name(value)}")
    if value not in _ORDERS:
        raise InvalidArgumentError("order", f"must be 'newest' or 'oldest', not {brief(value)}")
    return _ORDERS[value]


def text_after(ranking: Ranking, place: Position) -> str:
    """The text for the place right after a memory."""
    order = next(order for order, each in _ORDERS.items() if each is ranking)
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(_Place(order, *place))).decode()


def check_after(value: object, ranking: Ranking) -> Position | None:
    """The place that ``value`` means.

    Raises:
        InvalidTypeError, InvalidArgumentError: it is no such text, or one of a list in another order.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidTypeError("after", f"must be the 'next' of a page, not {type_name(value)}")
    try:
        place = msgspec.msgpack.decode(base64.b64decode(value, altchars=b"-_", validate=True), type=_Place)
        wanted = _ORDERS[place.order]
    except (ValueError, KeyError, binascii.Error, msgspec.MsgspecError):
        raise InvalidArgumentError("after", f"must be the 'next' of a page, not {brief(value)}") from None
    if wanted is not ranking:
        raise InvalidArgumentError("after", f"is of a list in the order {place.order!r}; go on in that order")
    if place.created_at is not None and place.created_at.tzinfo is None:
        raise InvalidArgumentError("after", f"must be the 'next' of a page, not {brief(value)}")
    return Position(place.created_at, place.memory_id, place.namespace)
