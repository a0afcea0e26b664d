"""The embedding function of every projection's index, at a module path that is kept for ever.

Pixeltable stores the path and the bound arguments with each index and calls the function whenever content is inserted
or updated, by us or by the table's user. The projector hands over the vectors it has prepared; texts that it has not
prepared (rows that a user inserts, ``similarity(string=...)``) are embedded with the store's model.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import pixeltable as pxt
from pixeltable.func import Batch
from pixeltable.type_system import ArrayType

from pixelmemory.errors import EmbeddingError, UnembeddableTextError
from pixelmemory.projection.scaling import scaled

__all__ = ["VectorSource", "Vectors", "embed_content", "register", "unregister"]

_logger = logging.getLogger("pixelmemory.projection")

#: text -> its vector, float32, ``(dimensions,)``, or None where it has none
Vectors: TypeAlias = Mapping[str, np.ndarray | None]

#: rows per call; Pixeltable deadlocks on larger inserts above 2,048
ROWS_PER_CALL = 1024


class VectorSource:
    """Where one open store's vectors come from: what the projector prepared, else the model.

    Args:
        embed: ``(n texts) -> float32 (n, dimensions)``, or None for a store whose vectors are always given.
    """

    def __init__(self, embed: Callable[[Sequence[str]], np.ndarray] | None) -> None:
        self._embed = embed
        self._prepared: Vectors = {}
        self._thread: int | None = None

    @contextmanager
    def prepared(self, vectors: Vectors) -> Iterator[None]:
        """Within the block, texts embedded by the calling thread take their vector, or the lack of one, from here."""
        self._prepared, self._thread = vectors, threading.get_ident()
        try:
            yield
        finally:
            self._prepared, self._thread = {}, None

    def prepares_here(self) -> bool:
        """Whether the calling thread is in a :meth:`prepared` block of this source."""
        return threading.get_ident() == self._thread

    def vectors(self, texts: Sequence[str]) -> list[np.ndarray | None]:
        """One vector a text, scaled for the database; None where none was given and the model has none.

        A row without a vector is found by metadata and time only.
        """
        known: Vectors = self._prepared if self.prepares_here() else {}
        found = [known.get(text) for text in texts]
        missing = [i for i, text in enumerate(texts) if text not in known]
        while missing and self._embed is not None:
            try:
                vectors = self._embed([texts[i] for i in missing])
            except UnembeddableTextError as error:
                _logger.warning("a text inserted into the table has no vector: %s", error)
                del missing[error.index]
                continue
            for i, vector in zip(missing, scaled(vectors), strict=True):
                found[i] = vector
            break
        return found


#: several where a copy of a store is open beside it, under another name
_sources: dict[str, list[VectorSource]] = {}


def register(store_id: str, source: VectorSource) -> None:
    """Make ``source`` serve the indexes of the open store ``store_id``."""
    _sources[store_id] = [*_sources.get(store_id, ()), source]


def unregister(store_id: str, source: VectorSource) -> None:
    """The store is closed: its indexes cannot embed in this process any more. Idempotent."""
    if left := [each for each in _sources.get(store_id, ()) if each is not source]:
        _sources[store_id] = left
    else:
        _sources.pop(store_id, None)


@pxt.udf(batch_size=ROWS_PER_CALL)  # type: ignore[untyped-decorator]
def embed_content(
    content: Batch[str],
    store_id: str,
    dimensions: int,  # noqa: ARG001 - makes the return type
) -> Batch[pxt.Array[(None,), np.float32]]:
    """The vectors of ``content`` in the store ``store_id``: float32, ``(dimensions,)`` each."""
    sources = _sources.get(store_id)
    if not sources:
        raise EmbeddingError(
            f"store {store_id} is not open in this process: open it with pixelmemory before inserting content into "
            "its table or searching it by text"
        )
    source = next((each for each in sources if each.prepares_here()), sources[-1])
    return source.vectors(content)


@embed_content.conditional_return_type  # type: ignore[untyped-decorator]
def _(dimensions: int) -> Any:
    return ArrayType((dimensions,), dtype=np.dtype("float32"))
