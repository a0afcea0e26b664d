"""A model behind its cache: what was embedded once is not embedded again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pixelmemory.embedding.model import Embedder
from pixelmemory.embedding.vector_cache import VectorCache
from pixelmemory.errors import UnembeddableTextError

__all__ = ["cached"]


def cached(embedder: Embedder, cache: VectorCache | None) -> Callable[[Sequence[str]], np.ndarray]:
    """The documents' side of ``embedder``, which looks into ``cache`` first, and writes there what is new."""
    if cache is None:
        return embedder.embed_documents

    def embed(texts: Sequence[str]) -> np.ndarray:
        found, vectors = cache.get_many(texts)
        missing = np.flatnonzero(~found)
        if len(missing):
            new_texts = [texts[i] for i in missing.tolist()]
            try:
                vectors[missing] = embedder.embed_documents(new_texts)
            except UnembeddableTextError as error:
                raise UnembeddableTextError(int(missing[error.index]), error.reason) from error
            cache.put_many(new_texts, vectors[missing])
        return vectors

    return embed
