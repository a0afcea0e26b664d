"""Which host a store's projection has: the one place where it is started, opened, and where its errors are told.

Pixeltable and PyTorch load here, when a store is opened, and not at import.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pixelmemory.embedding import Embedder, EmbeddingConfig
from pixelmemory.errors import InvalidArgumentError, ProjectionUnavailableError
from pixelmemory.memory.schema import Schema
from pixelmemory.options import Options

if TYPE_CHECKING:
    from pixelmemory.projection.batches import EmbedTexts
    from pixelmemory.projection.contract import Host, ProjectionState
    from pixelmemory.projection.pixeltable.server import Stopped

__all__ = [
    "as_unavailable",
    "drop_tables",
    "function_embedder",
    "keep_database",
    "open_host",
    "start_host",
    "stop_database",
]


def start_host(dimensions: int | None, options: Options, check: Callable[[], None]) -> None:
    """Start Pixeltable, and see whether it can index the vectors: before anything says what the store is made with.

    Args:
        dimensions: of a vector, or None without semantic search.
        check: called while waiting; what it raises ends the wait.

    Raises:
        ProjectionUnavailableError: it does not start.
        InvalidArgumentError: vectors of so many dimensions cannot be indexed.
    """
    from pixelmemory.projection.pixeltable.startup import start_pixeltable
    from pixelmemory.projection.scaling import DIMENSIONS_MAX_FP16

    start_pixeltable(
        keep_http_server=options.keep_pixeltable_http_server,
        timeout_seconds=options.database_timeout_seconds,
        check=check,
    )
    if dimensions is not None and dimensions > DIMENSIONS_MAX_FP16:
        raise InvalidArgumentError(
            "embedding_config", f"gives {dimensions} dimensions; at most {DIMENSIONS_MAX_FP16} can be indexed"
        )


def open_host(
    store_name: str,
    tables_id: uuid.UUID,
    state: ProjectionState,
    *,
    schema: Schema | None,
    embed_texts: EmbedTexts | None,
    options: Options,
) -> Host:
    """The host of a store's projection, claimed; see :meth:`PixeltableHost.open` for the arguments and errors."""
    from pixelmemory.projection.pixeltable.host import PixeltableHost

    return PixeltableHost.open(store_name, tables_id, state, schema=schema, embed_texts=embed_texts, options=options)


def drop_tables(store_name: str, tables_id: uuid.UUID, history_id: uuid.UUID) -> None:
    """Drop the tables of a store that nobody has open; after :func:`start_host`."""
    from pixelmemory.projection.pixeltable.dropping import drop_tables

    drop_tables(store_name, tables_id, history_id)


def as_unavailable(error: Exception) -> ProjectionUnavailableError | None:
    """What ``error``, raised while the tables are opened, means to the caller: the database fails; None if not that."""
    from pixelmemory.projection.pixeltable.startup import as_unavailable

    return as_unavailable(error)


def function_embedder(config: EmbeddingConfig) -> Embedder:
    """A model that is a function of the host's."""
    from pixelmemory.projection.pixeltable.function import FunctionEmbedder

    return FunctionEmbedder(config)


def keep_database(*, stop: bool, check: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
    """Around a store's life; see :func:`pixelmemory.projection.pixeltable.startup.keep_database`."""
    from pixelmemory.projection.pixeltable.startup import keep_database

    return keep_database(stop=stop, check=check)


def stop_database(*, force: bool) -> tuple[Path, Stopped]:
    """Stop the host's own database; see :func:`pixelmemory.projection.pixeltable.startup.stop_database`."""
    from pixelmemory.projection.pixeltable.startup import stop_database

    return stop_database(force=force)
