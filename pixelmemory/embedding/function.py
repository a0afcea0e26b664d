"""A Python function of the user's as the store's embedding model."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelmemory.embedding.config import EmbeddingConfig
from pixelmemory.embedding.fingerprint import embedding_label
from pixelmemory.embedding.source import first_line
from pixelmemory.errors import EmbeddingError, InvalidArgumentError, ModelLoadError, UnembeddableTextError, type_name
from pixelmemory.forks import forks

__all__ = ["PythonFunctionEmbedder"]

#: texts in one call where the user says nothing
BATCH_SIZE = 128


class PythonFunctionEmbedder:
    """Embeds with ``embedding_config["function"]``: a callable from texts to as many vectors, sync or async.

    A sync one is called by one thread at a time. An async one runs on an event loop in a thread of its own, and may be
    called while an earlier call still waits.

    Args:
        config: with ``function`` and ``name``. Without ``dimensions`` the function is called once, to see how long its
            vectors are.

    Raises:
        ModelLoadError: that call failed.
        InvalidArgumentError: it did not return one finite vector for one text.
    """

    #: how much of a text it reads is not known
    window = None

    def __init__(self, config: EmbeddingConfig) -> None:
        self._function: Callable[[list[str]], Any] = config.function
        self._name = config.name or ""
        self._normalize = config.normalize
        self._is_async = _is_async(config.function)
        self._turn = threading.Lock()
        self.batch_size = config.batch_size or BATCH_SIZE
        self.dimensions = config.dimensions or self._probe()
        self.fingerprint = f"python:{self._name}:{self.dimensions}"
        self.label = embedding_label(self.fingerprint, None)

    def __repr__(self) -> str:
        return f"PythonFunctionEmbedder({self.fingerprint})"

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """None, as far as is known; see :meth:`pixelmemory.embedding.Embedder.truncated`."""
        return [False] * len(texts)

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See :meth:`pixelmemory.embedding.Embedder.embed_documents`."""
        first_rows: dict[str, int] = {}
        for row, text in enumerate(texts):
            first_rows.setdefault(text, row)
        distinct = list(first_rows)
        made = np.empty((len(distinct), self.dimensions), dtype=np.float32)
        for start in range(0, len(distinct), self.batch_size):
            batch = distinct[start : start + self.batch_size]
            made[start : start + len(batch)] = self._embed(batch, [first_rows[text] for text in batch])
        places = {text: place for place, text in enumerate(distinct)}
        return made[[places[text] for text in texts]]

    def embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of queries: as a document's, the function knows no difference."""
        return self.embed_documents(texts)

    def _probe(self) -> int:
        """The length of the function's vectors."""
        try:
            vectors = self._call(["dimensions"])
        except EmbeddingError as error:
            remedy = "Correct it; with 'dimensions' in embedding_config it is not called when a store is opened"
            raise ModelLoadError(self._name, str(error), remedy) from error
        if vectors.ndim != 2 or vectors.shape[0] != 1 or vectors.shape[1] == 0 or not np.isfinite(vectors).all():
            raise InvalidArgumentError(
                "embedding_config['function']",
                f"must return one finite vector a text, not {_shape(vectors)} for a list of one text",
            )
        return int(vectors.shape[1])

    def _embed(self, texts: list[str], rows: list[int]) -> NDArray[np.float32]:
        """The checked vectors of distinct ``texts``; ``rows`` are the texts' places in the caller's list."""
        vectors = self._call(texts)
        if vectors.shape != (len(texts), self.dimensions):
            raise EmbeddingError(
                f"the function {self._name} returned {_shape(vectors)} for {len(texts)} texts, "
                f"not an array of shape {(len(texts), self.dimensions)}"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            norms = np.linalg.norm(vectors, axis=1)  # in double: a norm may exceed float32
            if self._normalize:
                vectors = np.divide(vectors, norms[:, None], out=vectors.copy(), where=norms[:, None] > 0)
            single = vectors.astype(np.float32)
        for row in np.flatnonzero(~np.isfinite(single).all(axis=1) | ~single.any(axis=1)).tolist():
            kind = "a vector that is not finite" if norms[row] else "a zero vector"
            raise UnembeddableTextError(rows[row], f"the function {self._name} gives it {kind}")
        return single

    def _call(self, texts: list[str]) -> NDArray[np.float64]:
        """What the function returns, as an array.

        Raises:
            EmbeddingError: it raised, or returned no numbers. What it raised is the cause.
        """
        try:
            if self._is_async:
                value = _on_loop(self._function(texts))
            else:
                with self._turn:
                    value = self._function(texts)
                if inspect.isawaitable(value):
                    value = _on_loop(value)
        except Exception as error:
            raise EmbeddingError(f"the function {self._name} failed: {first_line(error)}") from error
        try:
            return np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a torch tensor with a gradient
            raise EmbeddingError(
                f"the function {self._name} returned no array of numbers but {type_name(value)}: {first_line(error)}"
            ) from error


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _shape(vectors: np.ndarray) -> str:
    return f"an array of shape {vectors.shape}"


#: one for all async functions of the process, so that a client that they share stays in one event loop
_loop: asyncio.AbstractEventLoop | None = None
#: the fork in which the loop was started; its thread does not live on in a child
_loop_forks = 0
_loop_lock = threading.Lock()


def _on_loop(awaitable: Awaitable[Any]) -> Any:
    """Wait, on this thread, for ``awaitable`` to be run on the loop's thread."""
    global _loop, _loop_forks
    with _loop_lock:
        if _loop is None or _loop_forks != forks():
            _loop, _loop_forks = asyncio.new_event_loop(), forks()
            # a daemon: a call that hangs must not keep the process from ending
            threading.Thread(target=_loop.run_forever, name="pixelmemory-embed", daemon=True).start()
        loop = _loop
    return asyncio.run_coroutine_threadsafe(_awaited(awaitable), loop).result()


def _awaited(awaitable: Awaitable[Any]) -> Coroutine[Any, Any, Any]:
    async def wait() -> Any:
        return await awaitable

    return wait()
