"""An open store: its parts, which :mod:`pixelmemory.store.opening` puts together."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from pixelmemory.embedding import Embedder
from pixelmemory.log.contract import EventLog
from pixelmemory.memory.rules import Rules
from pixelmemory.memory.schema import Schema
from pixelmemory.options import Options
from pixelmemory.store.erase import Eraser
from pixelmemory.store.maintenance import Maintenance

if TYPE_CHECKING:
    from pixelmemory.embedding.cached import ContentVectors
    from pixelmemory.projection.projection import Projection
    from pixelmemory.projection.query import Query

__all__ = ["OpenStore"]


class OpenStore:
    """The open parts of one store.

    Attributes:
        name, folder: of the store.
        log, projection, query, maintenance, eraser: its parts.
        schema: checked before each append, or None.
        embedder: the model, or None.
        contents: the vectors that it makes of contents, or None.
        dimensions: of a vector, or None without semantic search.
        rules: what it accepts.
        is_temporary: its close removes its home and its tables.
        last_logged_us: the time of the newest event, microseconds since the epoch; 0 in an empty log.
    """

    log: EventLog
    projection: Projection
    query: Query
    maintenance: Maintenance
    eraser: Eraser

    def __init__(self, name: str, folder: Path, options: Options, stack: ExitStack) -> None:
        self.name = name
        self.folder = folder
        self.options = options
        self.schema: Schema | None = None
        self.embedder: Embedder | None = None
        self.contents: ContentVectors | None = None
        self.dimensions: int | None = None
        self.is_temporary = False
        self.last_logged_us = 0
        self.rules = Rules(options)
        self._stack = stack
        self._close_lock = threading.Lock()

    def close(self) -> None:
        """Close every part, the lock last. Blocking; idempotent."""
        with self._close_lock:
            self._stack.close()
