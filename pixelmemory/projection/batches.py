"""Making a run of events ready to be applied: folded, and with the vectors that its texts need. Touches no table."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pixelmemory.errors import StoreClosedError, UnembeddableTextError
from pixelmemory.faults import fault_point
from pixelmemory.log.contract import StoredEvent
from pixelmemory.options import Options
from pixelmemory.projection.changes import Change, fold
from pixelmemory.projection.scaling import has_direction, scaled
from pixelmemory.readers import give_way

__all__ = ["Batch", "EmbedTexts", "Preparer", "TruncatedTexts"]

_logger = logging.getLogger("pixelmemory.projector")

#: ``(n distinct texts) -> float32 (n, dimensions)``; raises UnembeddableTextError for one text without a vector
EmbedTexts = Callable[[Sequence[str]], np.ndarray]
#: which of several texts are longer than the model reads
TruncatedTexts = Callable[[Sequence[str]], Sequence[bool]]


#: contents that are looked at before readers get their turn
TEXTS_A_TURN = 50


class Batch(NamedTuple):
    """Events that are applied together."""

    events: list[StoredEvent]
    changes: dict[tuple[str, str], Change]
    #: for each change with content: float32, (dimensions,), scaled for the database; None where the model has none
    vectors: dict[tuple[str, str], np.ndarray | None]
    #: changes whose text cannot be embedded, with the reason
    failed: dict[tuple[str, str], str]


class Preparer:
    """Folds and embeds.

    Args:
        embed: the store's model, or None.
        truncated: which texts it cuts, or None.
        dimensions: of a vector, or None without semantic search.
        options: the pauses between tries.
        is_infrastructure_error: whether an error of the model's speaks of the machine, and is tried again.
        stopping: ends a wait for the next try.
        block, unblock: told of what fails and is tried again, and of its end.
    """

    def __init__(
        self,
        embed: EmbedTexts | None,
        truncated: TruncatedTexts | None,
        dimensions: int | None,
        options: Options,
        *,
        is_infrastructure_error: Callable[[BaseException], bool],
        stopping: threading.Event,
        block: Callable[[str, Exception], None],
        unblock: Callable[[str], None],
    ) -> None:
        self._embed = embed
        self._truncated = truncated
        self._dimensions = dimensions
        self._options = options
        self._is_infrastructure_error = is_infrastructure_error
        self._stopping = stopping
        self._block = block
        self._unblock = unblock
        #: whether a memory without a vector was warned of; further ones are in the figures
        self._has_warned = False
        self.texts_embedded = 0
        self.texts_unembeddable = 0
        self.texts_truncated = 0
        self.embed_seconds = 0.0

    def prepare(self, events: list[StoredEvent]) -> Batch:
        """Fold ``events``, and embed each distinct text once. Blocks for as long as the machine cannot embed.

        Raises:
            StoreClosedError: the store was closed meanwhile.
        """
        fault_point("projector.fold")
        changes = fold(events)
        vectors: dict[tuple[str, str], np.ndarray | None] = {}
        failed: dict[tuple[str, str], str] = {}
        wanted: dict[str, list[tuple[str, str]]] = {}
        for place, (key, change) in enumerate(changes.items()):
            if place % TEXTS_A_TURN == 0:
                give_way()
            if change.content is None or self._dimensions is None:
                continue
            own = None if change.embedding is None else np.frombuffer(change.embedding, dtype="<f4")
            if own is not None and len(own) == self._dimensions:
                if has_direction(own):
                    vectors[key] = scaled(own)
                else:  # refused at the door today, and may stand in a log that is older than that
                    failed[key] = "its vector is all zero or not finite, and so has no direction"
            elif self._embed is not None:  # the caller's vector is of another length after a change of model
                wanted.setdefault(change.content, []).append(key)
            else:
                given = "no vector" if own is None else f"a vector of {len(own)} dimensions"
                failed[key] = f"it has {given}, and the store, which has no model, needs {self._dimensions} dimensions"
        fault_point("projector.embed.before")
        started = time.perf_counter()
        for text, outcome in self._embed_each(list(wanted)).items():
            for key in wanted[text]:
                if isinstance(outcome, str):
                    failed[key] = outcome
                elif isinstance(outcome, UnembeddableTextError):
                    vectors[key] = None
                    _logger.log(
                        logging.DEBUG if self._has_warned else logging.WARNING,
                        "memory %r in namespace %r has no vector and is found by metadata and time only: %s",
                        key[1],
                        key[0],
                        outcome.reason,
                    )
                    self._has_warned = True
                else:
                    vectors[key] = outcome
        self.embed_seconds += time.perf_counter() - started
        fault_point("projector.embed.after")
        return Batch(events, changes, vectors, failed)

    def _embed_each(self, texts: list[str]) -> dict[str, np.ndarray | UnembeddableTextError | str]:
        """Each text's vector; the error where the model has none for it; or why it could not be embedded.

        A failure of the machine's is tried again, one of the model's is narrowed down to the text.
        """
        outcomes: dict[str, np.ndarray | UnembeddableTextError | str] = {}
        pause = self._options.retry_seconds_min
        while texts:
            assert self._embed is not None
            try:
                vectors = self._embed(texts)
            except UnembeddableTextError as error:
                self.texts_unembeddable += 1
                outcomes[texts.pop(error.index)] = error
                continue
            except Exception as error:  # noqa: BLE001 - whatever a model raises is looked into below
                failure = error
            else:
                self.texts_embedded += len(texts)
                self._count_truncated(texts)
                outcomes |= dict(zip(texts, scaled(vectors), strict=True))
                self._unblock("embedding")
                return outcomes
            if len(texts) == 1 and not self._is_infrastructure_error(failure):
                outcomes[texts[0]] = f"{type(failure).__name__}: {failure}"
                return outcomes
            if not self._is_infrastructure_error(failure):
                half = len(texts) // 2
                return outcomes | self._embed_each(texts[:half]) | self._embed_each(texts[half:])
            self._block("embedding", failure)
            if self._stopping.wait(pause):
                raise StoreClosedError("the store was closed")
            pause = min(pause * 2, self._options.retry_seconds_max)
        return outcomes

    def _count_truncated(self, texts: list[str]) -> None:
        """Count the texts that the model cut, and those whose vector is of a cut text, where the cache has it."""
        if self._truncated is None:
            return
        try:
            self.texts_truncated += sum(self._truncated(texts))
        except Exception as error:  # noqa: BLE001 - their vectors are made: a figure must not hold them up
            _logger.warning("texts_truncated leaves out %d texts: %s: %s", len(texts), type(error).__name__, error)
