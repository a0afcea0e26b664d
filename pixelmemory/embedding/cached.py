"""The vectors of a store's contents: what was embedded once is not embedded again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from pixelmemory.embedding.fair_lock import FairLock
from pixelmemory.embedding.model import Embedder
from pixelmemory.embedding.vector_cache import VectorCache
from pixelmemory.errors import UnembeddableTextError

__all__ = ["ContentVectors"]

#: vectors that are made and not in the cache yet; the oldest gives way
MADE_MAX = 2048
#: texts that the projector embeds before a read gets its turn, at least
PASS_MIN = 32


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
        self._made: OrderedDict[str, np.ndarray] = OrderedDict()
        #: held while the model works: a text is not embedded twice; a read gets its turn between two passes
        self._lock = FairLock()

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of ``texts``, for the tables: looks into the cache first, and writes there what is new.

        Args:
            texts: distinct.

        Returns:
            float32, ``(n, dimensions)``.

        Raises:
            UnembeddableTextError: the model has none for one of them.
        """
        found, vectors = self._cached(texts)
        # the longest first, as the model takes them, and one pass at a time: a read need not wait for all of them
        new = sorted(np.flatnonzero(~found).tolist(), key=lambda place: len(texts[place]), reverse=True)
        size = max(self._embedder.batch_size, PASS_MIN)
        for start in range(0, len(new), size):
            self._make(texts, new[start : start + size], vectors)
        if self._cache is not None and new:
            self._cache.put_many([texts[place] for place in new], vectors[new])
        with self._lock:
            for place in new:
                self._made.pop(texts[place], None)
        return vectors

    def embed_ahead(self, texts: Sequence[str]) -> np.ndarray:
        """As :meth:`embed`, for a read of what is not in the tables yet. :meth:`embed` takes its vectors over."""
        found, vectors = self._cached(texts)
        self._make(texts, np.flatnonzero(~found).tolist(), vectors)
        return vectors

    def _cached(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Which of ``texts`` are in the cache, and their vectors."""
        if self._cache is not None:
            return self._cache.get_many(texts)
        return np.zeros(len(texts), dtype=np.bool_), np.zeros((len(texts), self._embedder.dimensions), dtype=np.float32)

    def _make(self, texts: Sequence[str], places: Sequence[int], vectors: np.ndarray) -> None:
        """Embed the texts at ``places`` into ``vectors``; what is made already is taken."""
        with self._lock:
            unknown: list[int] = []
            for place in places:
                vector = self._made.get(texts[place])
                if vector is None:
                    unknown.append(place)
                else:
                    vectors[place] = vector
            if not unknown:
                return
            try:
                vectors[unknown] = self._embedder.embed_documents([texts[place] for place in unknown])
            except UnembeddableTextError as error:
                raise UnembeddableTextError(unknown[error.index], error.reason) from error
            for place in unknown:
                self._made[texts[place]] = vectors[place].copy()
            while len(self._made) > MADE_MAX:
                self._made.popitem(last=False)
