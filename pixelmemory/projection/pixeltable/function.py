"""A Pixeltable function as the store's embedding model."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from pixelmemory.embedding import EmbeddingConfig, embedding_label
from pixelmemory.errors import EmbeddingError, InvalidArgumentError, UnembeddableTextError, type_name
from pixelmemory.projection.scaling import has_direction

__all__ = ["FunctionEmbedder"]


class FunctionEmbedder:
    """Embeds with ``embedding_config["function"]``: a Pixeltable function of one text that returns one vector.

    Args:
        config: with ``function``, and ``dimensions`` where the function's return type does not tell them.

    Raises:
        InvalidArgumentError: it is no such function, or its dimensions are not what was asked for.
    """

    def __init__(self, config: EmbeddingConfig) -> None:
        from pixeltable import func

        self._config = config
        if not isinstance(config.function, func.Function):
            raise InvalidArgumentError(
                "embedding_config['function']", f"must be a Pixeltable function, not {type_name(config.function)}"
            )
        self._function: Any = config.function
        self._lock = threading.Lock()
        probe = self._one("probe")
        if probe is None or probe.ndim != 1:
            raise InvalidArgumentError("embedding_config['function']", "must return one vector for a text")
        if config.dimensions is not None and config.dimensions != len(probe):
            raise InvalidArgumentError(
                "embedding_config['dimensions']", f"is {config.dimensions}, and the function gives {len(probe)}"
            )
        self.dimensions = len(probe)
        self.fingerprint = f"function:{self._function.self_path or self._function.name}:{self.dimensions}"
        self.label = embedding_label(self.fingerprint, None)

    #: each text is a call
    batch_size = 1

    @property
    def window(self) -> None:
        """Not known of a function."""
        return None

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """None, as far as is known; see :meth:`pixelmemory.embedding.Embedder.truncated`."""
        return [False] * len(texts)

    def __repr__(self) -> str:
        return f"FunctionEmbedder({self.fingerprint})"

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of ``texts``, float32, ``(len(texts), dimensions)``."""
        vectors = np.empty((len(texts), self.dimensions), np.float32)
        with self._lock:
            known: dict[str, np.ndarray] = {}
            for index, text in enumerate(texts):
                vector = known.get(text)
                if vector is None:
                    vector = known[text] = self._checked(text, index)
                vectors[index] = vector
        return vectors

    def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of queries, float32, ``(len(texts), dimensions)``: the function knows no difference to a document."""
        return self.embed_documents(texts)

    def _checked(self, text: str, index: int) -> np.ndarray:
        vector = self._one(text)
        if vector is None or vector.shape != (self.dimensions,):
            raise UnembeddableTextError(index, "the function returned no vector of the store's length")
        length = float(np.linalg.norm(vector))
        if self._config.normalize and 0.0 < length < np.inf:
            vector = vector / length
        with np.errstate(over="ignore"):
            single = vector.astype(np.float32)
        if not has_direction(single):
            raise UnembeddableTextError(index, "its vector is zero or not finite (as float32)")
        return single

    def _one(self, text: str) -> np.ndarray | None:
        try:
            value = self._function.exec([text], {})
        except Exception as error:
            raise EmbeddingError(f"the function {self._function.name} failed: {error}") from error
        return None if value is None else np.asarray(value, dtype=np.float64)  # squares of float32 fit into it
