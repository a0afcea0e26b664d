"""Figures of a projector."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ProjectorStats"]


class ProjectorStats(NamedTuple):
    """What the projector has done since it was opened, and how it is."""

    #: last LSN whose event is visible
    watermark: int
    #: transactions committed
    batches: int
    #: events applied
    events: int
    #: texts given to the model or the cache
    texts_embedded: int
    #: texts for which the model has no vector: their memories are found by metadata and time only
    texts_unembeddable: int
    #: texts that are longer than the model reads
    texts_truncated: int
    #: seconds spent embedding, and applying
    embed_seconds: float
    apply_seconds: float
    #: events that could not be applied
    dead_letters: int
    #: why nothing moves at the moment, or None
    blocked: str | None
