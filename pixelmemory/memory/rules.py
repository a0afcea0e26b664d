"""What a store accepts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from pixelmemory.options import Options

if TYPE_CHECKING:
    from pixelmemory.memory.schema import Schema

__all__ = ["Rules"]


class Rules(msgspec.Struct, frozen=True):
    """What an open store accepts, for whoever checks a call's arguments against it."""

    #: the limits
    options: Options
    #: what metadata has to satisfy, or None
    schema: Schema | None = None
    #: of a vector, or None without semantic search
    dimensions: int | None = None
    #: whether the store embeds texts itself; without a model its vectors are always given
    has_model: bool = False
