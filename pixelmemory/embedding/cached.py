"""The vectors of a store's contents: what was embedded once is not embedded again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from pixelmemory.embedding.model import Embedder
from pixelmemory.embedding.vector_cache import VectorCache
from pixelmemory.errors import UnembeddableTextError

__all__ = ["ContentVectors"]

#: vectors that are embedded ahead and not taken yet; the oldest gives way
AHEAD_MAX = 2048


class ContentVectors:
    """The documents' side of a model. For use from any thread.

    Args:
        embedder: the model.
        cache: on disk, or None.
    """

    def __init__(self, embedder: Embedder, cache: VectorCache | None) -> None:
        self._embedder = embedder
        self._cache = cache
        #: text -> its vector, in memory alone: an erase that runs beside a read leaves nothing on disk
        self._ahead: OrderedDict[str, np.ndarray] = OrderedDict()
        self._ahead_lock = threading.Lock()

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of ``texts``, for the tables: looks into the cache first, and writes there what is new.

        Args:
            texts: distinct.

        Returns:
            float32, ``(n, dimensions)``.

        Raises:
            UnembeddableTextError: the model has none for one of them.
        """
        return self._embed(texts, keep=True)

    def embed_ahead(self, texts: Sequence[str]) -> np.ndarray:
        """As :meth:`embed`, for a read of what is not in the tables yet. :meth:`embed` takes its vectors over."""
        with self._ahead_lock:  # reads of the same texts do not embed them twice
            vectors = self._embed(texts, keep=False)
            self._ahead |= zip(texts, vectors, strict=True)
            while len(self._ahead) > AHEAD_MAX:
                self._ahead.popitem(last=False)
        return vectors

    def _embed(self, texts: Sequence[str], *, keep: bool) -> np.ndarray:
        if self._cache is None:
            found = np.zeros(len(texts), dtype=np.bool_)
            vectors = np.zeros((len(texts), self._embedder.dimensions), dtype=np.float32)
        else:
            found, vectors = self._cache.get_many(texts)
        new = np.flatnonzero(~found)
        unknown: list[int] = []
        for place in new.tolist():
            vector = self._ahead.pop(texts[place], None) if keep else self._ahead.get(texts[place])
            if vector is None:
                unknown.append(place)
            else:
                vectors[place] = vector
        if unknown:
            try:
                vectors[unknown] = self._embedder.embed_documents([texts[place] for place in unknown])
            except UnembeddableTextError as error:
                raise UnembeddableTextError(unknown[error.index], error.reason) from error
        if keep and len(new) and self._cache is not None:
            self._cache.put_many([texts[place] for place in new.tolist()], vectors[new])
        return vectors
