"""What a read asks for and what it gets, whichever way it is answered."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np

from pixelmemory.embedding.window import Window
from pixelmemory.memory.filters import Filter

__all__ = ["PAGE_ROWS", "ReadBackend", "Row", "Search"]

#: rows of :meth:`ReadBackend.long_texts` that are in memory at once
PAGE_ROWS = 50


class Row(NamedTuple):
    """One memory as it stands in a table."""

    memory_id: str
    content: str
    #: a JSON object; None in a row that a user inserted without metadata
    metadata_json: str | None
    #: None in a row that a user inserted without one
    created_at: dt.datetime | None
    #: cosine similarity to the query's vector, -1 to 1; None without one
    score: float | None = None


class Search(msgspec.Struct, frozen=True):
    """A search of one namespace. Every condition holds before ``limit`` is applied."""

    namespace: str
    limit: int
    #: float32, (dimensions,); None lists the newest first
    vector: np.ndarray | None = None
    filter: Filter | None = None
    #: inclusive bounds
    start: dt.datetime | None = None
    end: dt.datetime | None = None
    min_score: float | None = None


class ReadBackend(Protocol):
    """How the tables are read; called on worker threads, several at a time. ``table`` is a table of the projection."""

    def search(self, table: str, search: Search) -> list[Row]:
        """The rows of ``table`` that satisfy ``search``, best first."""

    def get(self, table: str, namespace: str, memory_id: str) -> Row | None:
        """One memory, or None."""

    def existing(self, table: str, namespace: str, keys: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """Which of ``keys`` are live rows."""

    def count(self, table: str, namespace: str) -> int:
        """How many live rows ``namespace`` has."""

    def long_texts(self, table: str, namespace: str, window: Window) -> Generator[list[Row]]:
        """The rows whose content may be longer than ``window``, newest first, in pages of :data:`PAGE_ROWS`."""

    def close(self) -> None:
        """Let go of what is held."""


def row_of(id_text: str | None, memory_id: Any, content: str, metadata: Any, created_at: Any, score: Any = None) -> Row:
    return Row(
        id_text if id_text is not None else str(memory_id),
        content,
        metadata,
        created_at.astimezone(dt.UTC) if created_at is not None else None,
        float(score) if score is not None else None,
    )
