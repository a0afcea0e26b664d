"""From text to vectors: which model, how its texts are prefixed, what identifies it, and what is kept on disk.

::

    embedding_config -> EmbeddingConfig -> open_embedder -> Embedder --(vectors)--> VectorCache
      (the user's)        (checked)          (loads)        (a model)               (on disk)

The parts: ``config`` checks what the user gave, ``source`` finds the model's files (on this machine, else from the
hub), ``fingerprint`` identifies them, ``model`` runs them, ``function`` is a Python function in a model's place,
``window`` says how much of a text a model reads, ``vector_cache`` keeps what was embedded.
"""

from __future__ import annotations

from pixelmemory.embedding.config import EmbeddingConfig, parse_embedding_config
from pixelmemory.embedding.fingerprint import embedding_label, tell_apart
from pixelmemory.embedding.model import Embedder, open_embedder
from pixelmemory.embedding.vector_cache import VectorCache
from pixelmemory.embedding.window import Window

__all__ = [
    "Embedder",
    "EmbeddingConfig",
    "VectorCache",
    "Window",
    "embedding_label",
    "open_embedder",
    "parse_embedding_config",
    "tell_apart",
]
